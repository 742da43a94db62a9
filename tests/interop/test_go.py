"""Go's own transparency log packages, golang.org/x/mod/sumdb/{note,tlog}, check both logs whole; spoiled by one byte they refuse.

goverify/ recomputes the root from the entries: x/mod's tile reader alone would believe tiles that no entry stands behind.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from muniment.checkpoint import Checkpoint
from muniment.encoding import b64
from muniment.errors import BadSignature, FormatError
from muniment.hashing import RootHash
from muniment.note import SignatureLine, SigningKey, parse_note, verify_note
from muniment.receipt import Receipt
from muniment.tlogproof import TlogProof
from tests.interop.flips import Spoil, after, bit_at
from tests.interop.proxy import spoiling
from tests.interop.sample import SIZE, Sample
from tests.live import PATIENCE
from tests.unit.samples import Logged, SampleLog, policy_of, raw_log

RAW = raw_log()
FULL, REST = 256, SIZE % 256
SPOILED: list[tuple[str, str, Spoil, str]] = [
    # what, GET, the byte, where the verifier must say it stopped
    ("origin", "/checkpoint", bit_at(0), "checkpoint"),
    ("size", "/checkpoint", after(b"\n", 1), "checkpoint"),
    ("root", "/checkpoint", after(f"\n{SIZE}\n".encode(), 7), "checkpoint"),
    ("signer", "/checkpoint", after("— ".encode()), "checkpoint"),
    ("key id", "/checkpoint", lambda data: after(data.split()[-2] + b" ", 2)(data), "checkpoint"),
    ("signature", "/checkpoint", bit_at(-20), "checkpoint"),
    ("full bundle", "/tile/entries/000", bit_at(-1), "entries"),
    ("entry length", "/tile/entries/000", bit_at(1), "bundle 0"),
    ("partial bundle", f"/tile/entries/002.p/{REST}", bit_at(-1), "entries"),
    ("full tile", "/tile/0/000", bit_at(99 * 32 + 5), "tiles"),
    ("second full tile", "/tile/0/001", bit_at(-1), "tiles"),
    ("partial tile", f"/tile/0/002.p/{REST}", bit_at(0), "tiles"),
    ("level 1 tile", "/tile/1/000.p/2", bit_at(32), "tiles"),
    ("published checkpoint", "/checkpoints?start=0&limit=1000", after(b'"checkpoint":"', 4), "published"),
    ("inclusion hash", f"/proof/inclusion?index=1&tree_size={SIZE}", after(b'"hashes":["', 9), "inclusion proof of 1"),
    ("inclusion root", f"/proof/inclusion?index=2&tree_size={SIZE}", after(b'"root":"', 0), "inclusion proof of 2"),
    ("leaf hash", f"/proof/inclusion?index=2&tree_size={SIZE}", after(b'"leaf_hash":"', 3), "inclusion proof of 2"),
    ("proof's note", f"/proof/inclusion?index=0&tree_size={SIZE}", after(b'"checkpoint":"', 1), "inclusion proof of 0"),
    (
        "consistency hash",
        f"/proof/consistency?first=3&second={SIZE}",
        after(b'"hashes":["', 63),
        "consistency proof from 3",
    ),
    ("receipt leaf", f"/entries/2/receipt?tree_size={SIZE}", after(b'"leaf":"', 1), "receipt of 2"),
    ("receipt hash", f"/entries/2/receipt?tree_size={SIZE}", after(b'"hashes":["', 70), "receipt of 2"),
]


def _verify(program: Path, url: str, vkey: str) -> subprocess.CompletedProcess[str]:
    words = [str(program), "-url", url, "-vkey", vkey]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_go_accepts_the_whole_log(goverify: Path, sample: Sample) -> None:
    done = _verify(goverify, sample.url, str(sample.vkey))
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    tiles = 3 + 1  # two full and a partial one, and the one above
    assert counted == {
        "size": SIZE,
        "entries": SIZE,
        "tiles": tiles,
        "checkpoints": len(sample.published()),
        "record_proofs": SIZE,
        "tree_proofs": SIZE,
        "receipts": SIZE,
    }
    assert counted["checkpoints"] > 2


def test_go_refuses_another_key(goverify: Path, sample: Sample) -> None:
    other = "example.com/log" if sample.kind == "raw" else "example.com/raw"
    vkey = str(sample.vkey).replace(sample.origin, other)
    done = _verify(goverify, sample.url, vkey)
    assert done.returncode == 1, "a key under another name has another id: the vkey does not parse"
    assert "vkey" in done.stderr


@pytest.mark.parametrize(("target", "spoil", "where"), [case[1:] for case in SPOILED], ids=[c[0] for c in SPOILED])
def test_go_refuses_one_changed_byte(goverify: Path, sample: Sample, target: str, spoil: Spoil, where: str) -> None:
    with spoiling(sample.url, target, spoil) as proxy:
        done = _verify(goverify, proxy.url, str(sample.vkey))
    assert proxy.spoiled
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith(f"goverify: {where}"), done.stderr
    assert not done.stdout


def test_go_accepts_through_a_proxy_that_changes_nothing(goverify: Path, samples: Callable[[str], Sample]) -> None:
    log = samples("raw")
    with spoiling(log.url, "/checkpoint", lambda data: data) as proxy:
        done = _verify(goverify, proxy.url, str(log.vkey))
    assert proxy.spoiled == 1
    assert done.returncode == 0, done.stderr


# --- notes: what Go opens we open, and what it refuses we refuse --------------------------------------------------------

LOG, OTHER = SigningKey("log.example/go", b"g" * 32), SigningKey("other.example", b"o" * 32)
TEXTS = [
    str(Checkpoint(origin, 7, RootHash(bytes(range(32)))))
    for origin in (LOG.vkey.name, "go.sum database tree", "rekor.example - 2605736670972794746", "a+b", "é" * 200)
]


def _notes() -> list[str]:
    """Every order of up to three lines, of known keys and others, good and bad, and some that are no lines."""
    notes = []
    for text in TEXTS:
        good, other = LOG.sign(text), OTHER.sign(text)
        lines = [
            str(good),
            str(SignatureLine(good.name, good.key_id, other.signature)),
            str(other),
            str(SignatureLine("witness.example", b"wwww", bytes(72))),
            str(SignatureLine("witness.example", b"wwww", b"\x01" * 72)),
            str(SignatureLine(good.name, b"kkkk", good.signature)),
            "— a b AAAAAAAA\n",
        ]
        depth = 3 if text == TEXTS[0] else 2
        chosen = [several for count in range(depth + 1) for several in itertools.product(lines, repeat=count)]
        notes += [f"{text}\n{''.join(several)}" for several in chosen]
    unknown = [str(SignatureLine("w", number.to_bytes(4), b"s")) for number in range(101)]
    first = f"text\n\n{LOG.sign('text' + chr(10))}"
    return [*notes, first + "".join(unknown[:99]), first + "".join(unknown)]


def _signers(note: str) -> list[str]:
    try:
        return [key.name for key in verify_note(parse_note(note), [LOG.vkey, OTHER.vkey])]
    except (FormatError, BadSignature):
        return []


def test_go_opens_the_same_notes(goverify: Path) -> None:
    notes = _notes()
    words = [str(goverify), "-notes", "-vkey", f"{LOG.vkey} {OTHER.vkey}"]
    given = "\n".join(json.dumps(b64(note.encode())) for note in notes)
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    opened = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(opened) == len(notes)
    for note, signers in zip(notes, opened, strict=True):
        assert _signers(note) == signers, note
    assert [LOG.vkey.name] in opened
    assert [OTHER.vkey.name, LOG.vkey.name] in opened
    assert [] in opened


# --- tlog-proofs as stock Go reads them: line by line, none over 64 KiB -------------------------------------------------


def _prove(program: Path, folder: Path, text: str, leaf: bytes) -> subprocess.CompletedProcess[str]:
    (folder / "proof").write_text(text)
    (folder / "leaf").write_bytes(leaf)
    words = [str(program), "-vkey", str(RAW.key.vkey), "-proof", str(folder / "proof"), "-leaf", str(folder / "leaf")]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize(("size", "extra"), [(0, 0), (49_146, 49_146), (49_147, -1), (65_535, -1)])
def test_go_reads_the_proof_of_a_leaf_of_any_size(goverify: Path, tmp_path: Path, size: int, extra: int) -> None:
    leaf = bytes(size)
    log = SampleLog([Logged(b"first"), Logged(leaf), Logged(b"third")], RAW.key)
    text = log.receipt(1).to_tlog_proof()
    done = _prove(goverify, tmp_path, text, leaf)
    assert (done.returncode, done.stdout.strip()) == (0, str(extra)), done.stderr
    assert Receipt.parse(text, leaf).verify(policy_of(log)).leaf == leaf
    assert _prove(goverify, tmp_path, text, leaf + b"x").returncode == 1
    whole = str(replace(TlogProof.parse(text.encode()), extra=leaf))
    assert _prove(goverify, tmp_path, whole, leaf).returncode == (0 if extra >= 0 else 1), "or it need not be left out"
