"""The worked examples of docs/spec, every byte recomputed; and docs/verify-by-hand.md, executed.

A fenced block whose info string holds ``example=NAME`` must be what EXAMPLES[NAME] computes from the primitives. The shell commands
of verify-by-hand.md use none of our code: they are the second opinion on the same receipt.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from muniment import event, strictjson, tree
from muniment.anchor import check, scan
from muniment.anchor.proof import merge_submission
from muniment.anchored import MAX_ANCHORS, AnchoredCheckpoint
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.encoding import b64, b64url
from muniment.errors import BadDisclosure, BadProof, BadSignature, EventRefused, FormatError, PolicyNotMet
from muniment.evidence import MAX_EVIDENCE, Evidence, make, verify
from muniment.hashing import EMPTY_ROOT, leaf_hash
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment.proofs import MAX_PROOF, whole_proof
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsReader, ReceiptsWriter
from muniment.tiles import Bundle, Tile, encode_bundle, format_bundle, format_tile
from tests import oracle
from tests.bitcoin.calendar import SHA256, append, bitcoin, pending, prepend
from tests.bitcoin.chain import solve
from tests.live import PATIENCE
from tests.test_architecture import ORDER

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "docs" / "spec"
BY_HAND = ROOT / "docs" / "verify-by-hand.md"

ORIGIN = "spec.example/log"
KEY = SigningKey(ORIGIN, bytes(range(0x20)))
SEED = bytes(range(0x20, 0x40))
SECOND_SEED = bytes(range(0x40, 0x60))
NOON = "2026-11-20T12:00:00.000Z"

_FENCE = re.compile(r"^(`{3,})(\w*)(?: example=([a-z0-9-]+))?\n(.*?)^\1$", re.DOTALL | re.MULTILINE)


def blocks(path: Path) -> dict[str, str]:
    """Return the named examples of one page."""
    found: dict[str, str] = {}
    for _, _, name, body in _FENCE.findall(path.read_text()):
        if name:
            assert name not in found, f"{path.name} has two examples called {name}"
            found[name] = body
    return found


def scripts(path: Path) -> list[str]:
    """Return the bash blocks of one page, in order."""
    return [body for _, language, _, body in _FENCE.findall(path.read_text()) if language == "bash"]


# --- the example log ----------------------------------------------------------------------------------------------------

POSTED = """\
{
  "resource": "inv-17",
  "actor":    "alice",
  "action":   "invoice.approve",
  "amount":   1.50e2,
  "note":     "caf\\u00e9"
}"""
EVENT = event.parse_event(POSTED.encode())
DISCLOSURES = event.disclose(SEED, EVENT)
COMMITMENT = event.Commitment.to(DISCLOSURES)
SECOND = event.Commitment.to(
    event.disclose(SECOND_SEED, {"actor": "bob", "action": "invoice.pay", "resource": "inv-17"})
)
LEAVES = (
    event.genesis_leaf(ORIGIN, "event", [str(KEY.vkey)], NOON),
    event.event_leaf(COMMITMENT.digest(), "2026-11-20T12:00:00.123Z"),
    event.event_leaf(SECOND.digest(), "2026-11-20T12:00:01.456Z"),
)
HASHES = tuple(map(leaf_hash, LEAVES))
GROWN = tree.grow(tree.Edge(), HASHES)
CHECKPOINT = str(sign_checkpoint(Checkpoint(ORIGIN, len(LEAVES), GROWN.edge.root()), KEY))
POLICY = Policy((LogKey(KEY.vkey),))
RECEIPT = Receipt(
    origin=ORIGIN,
    index=1,
    leaf=LEAVES[1],
    tree_size=len(LEAVES),
    proof=tuple(tree.plan_inclusion(1, len(LEAVES)).fold(GROWN.edge.lookup)),
    checkpoint=CHECKPOINT,
    commitment=COMMITMENT,
    disclosures=tuple(DISCLOSURES),
)


NONCE = bytes(range(16))
DIGEST = sha256(CHECKPOINT.encode()).digest()
MESSAGE = sha256(DIGEST + NONCE).digest()
# A made-up block with one transaction more than its coinbase: the Merkle root is two operations and a double hash away.
MERKLE_ROOT = sha256(sha256(b"coinbase" + MESSAGE).digest()).digest()
HEADER = solve(bytes(32), MERKLE_ROOT, 1_795_176_000)
STAMPED = prepend(b"coinbase") + SHA256 + SHA256 + bitcoin(7)
PROMISED = append(b"calendar") + SHA256 + pending("https://calendar.example")
OTS = merge_submission(merge_submission(None, DIGEST, NONCE, PROMISED), DIGEST, NONCE, STAMPED)
ANCHORED = AnchoredCheckpoint(CHECKPOINT, len(LEAVES), RECEIPT.proof, OTS, 7, HEADER)
ANCHOR_LEAF = event.anchor_leaf(
    len(LEAVES),
    DIGEST,
    {"hash": sha256(sha256(HEADER).digest()).digest()[::-1].hex(), "height": 7, "time": 1_795_176_000},
    "2026-11-20T13:00:00.000Z",
)


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def _root(size: int) -> bytes:
    return tree.grow(tree.Edge(), HASHES[:size]).edge.root()


def _only(name: str) -> dict[str, Any]:
    """Return the receipt's disclosures member when only `name` is opened."""
    return {"disclosures": [text for text in DISCLOSURES if event.Disclosure.parse(text).name == name]}


def _receipt(index: int) -> Receipt:
    """Return the receipt of an event of the example log that opens `amount`, if it has one."""
    first = index == 1
    return replace(
        RECEIPT,
        index=index,
        leaf=LEAVES[index],
        proof=tuple(tree.plan_inclusion(index, len(LEAVES)).fold(GROWN.edge.lookup)),
        commitment=COMMITMENT if first else SECOND,
        disclosures=tuple(_only("amount")["disclosures"]) if first else (),
    )


def _bundle(claimed: tuple[int, int] | None, *indices: int) -> str:
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, Header(ORIGIN, CHECKPOINT, claimed))
    for index in indices:
        writer.add(_receipt(index))
    writer.end()
    return b"".join(lines).decode()


def _evidence(leaves: tuple[bytes, ...]) -> str:
    """Return evidence that the key of the example log signed a tree of these leaves too."""
    other = tree.grow(tree.Edge(), map(leaf_hash, leaves)).edge.root()
    note = str(sign_checkpoint(Checkpoint(ORIGIN, len(leaves), other), KEY))
    proof = tree.plan_consistency(len(leaves), len(LEAVES)).fold(GROWN.edge.lookup)
    hashes = whole_proof(len(leaves), _root(len(leaves)), proof) if proof else ()
    return bytes(make(note, CHECKPOINT, hashes, POLICY)[0]).decode()


EXAMPLES: dict[str, dict[str, Callable[[], str]]] = {
    "event.md": {
        "posted": lambda: _lines(POSTED),
        "canonical": lambda: _lines(strictjson.canonical(EVENT).decode()),
        "seed": lambda: _lines(SEED.hex()),
        "salts": lambda: _lines(*(f"{name:9}{event.salt_of(SEED, name)}" for name in sorted(EVENT))),
        "disclosure-text": lambda: _lines(base64.urlsafe_b64decode(DISCLOSURES[0] + "==").decode()),
        "disclosures": lambda: _lines(*DISCLOSURES),
        "digests": lambda: _lines(*map(event.digest_of, DISCLOSURES)),
        "commitment": lambda: _lines(strictjson.canonical(COMMITMENT.value()).decode()),
        "commitment-digest": lambda: _lines(COMMITMENT.digest()),
        "leaf": lambda: _lines(LEAVES[1].decode()),
        "leaf-hash": lambda: _lines(HASHES[1].hex()),
    },
    "genesis.md": {
        "key-seed": lambda: _lines(bytes(range(32)).hex()),
        "vkey": lambda: _lines(str(KEY.vkey)),
        "leaf": lambda: _lines(LEAVES[0].decode()),
        "leaf-hash": lambda: _lines(HASHES[0].hex()),
    },
    "receipt.md": {
        "policy": lambda: str(POLICY),
        "checkpoint": lambda: CHECKPOINT,
        "receipt": lambda: str(RECEIPT),
        "tlog-proof": RECEIPT.to_tlog_proof,
        "one-disclosure": lambda: json.dumps(_only("amount"), indent=2) + "\n",
    },
    "receipts.md": {
        "bundle": lambda: _bundle((1, 3), 1, 2),
        "without-range": lambda: _bundle(None, 2),
    },
    "evidence.md": {
        "policy": lambda: str(POLICY),
        "same-size": lambda: _evidence((LEAVES[0], LEAVES[2], LEAVES[1])),
        "two-sizes": lambda: _evidence((LEAVES[0], LEAVES[2])),
    },
    "anchor.md": {
        "digest": lambda: _lines(DIGEST.hex(), MESSAGE.hex()),
        "ots": lambda: _lines(*textwrap.wrap(OTS.hex(), 100)),
        "anchor-leaf": lambda: _lines(ANCHOR_LEAF.decode()),
        "anchor-leaf-hash": lambda: _lines(leaf_hash(ANCHOR_LEAF).hex()),
        "header": lambda: _lines(HEADER.hex()),
        "anchors": lambda: json.dumps([ANCHORED.to_json()], indent=2, ensure_ascii=False) + "\n",
    },
    "merkle.md": {
        "hashes": lambda: _lines(*(f"{at} {value.hex()}" for at, value in enumerate(HASHES))),
        "roots": lambda: _lines(f"0 {EMPTY_ROOT.hex()}", *(f"{size} {_root(size).hex()}" for size in range(1, 4))),
        "paths": lambda: _lines(
            *(f"tile/{format_tile(Tile(*place))}" for place in ((0, 0), (0, 273, 112), (1, 0), (2, 0, 1))),
            *(f"tile/{format_bundle(Bundle(*place))}" for place in ((999,), (1000,), (1234067, 7))),
        ),
        "bundle": lambda: _lines(encode_bundle(LEAVES[2:]).hex()),
    },
}


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in EXAMPLES for name in EXAMPLES[page]])
def test_example_is_what_the_primitives_make(page: str, name: str) -> None:
    assert blocks(SPEC / page)[name] == EXAMPLES[page][name]()


@pytest.mark.parametrize("page", sorted(path.name for path in SPEC.glob("*.md")))
def test_every_example_is_checked(page: str) -> None:
    checked = {"refusals", "numbers", "constant"} | set(EXAMPLES.get(page, ()))
    assert set(blocks(SPEC / page)) <= checked


@pytest.mark.parametrize("page", sorted(EXAMPLES))
def test_specification_speaks_rfc_2119(page: str) -> None:
    text = (SPEC / page).read_text()
    assert "BCP 14" in text
    assert "MUST" in text


# --- event.md -----------------------------------------------------------------------------------------------------------


def _refusals() -> list[tuple[str, str, str]]:
    rows = []
    for line in blocks(SPEC / "event.md")["refusals"].splitlines():
        code, pointer, source = line.split(None, 2)
        rows.append((code, ast.literal_eval(pointer), source))
    return rows


@pytest.mark.parametrize(("code", "pointer", "source"), _refusals())
def test_refused_events(code: str, pointer: str, source: str) -> None:
    data = eval(source, {"__builtins__": {"range": range}})
    with pytest.raises(EventRefused) as refused:
        event.parse_event(data)
    assert (refused.value.code, refused.value.pointer) == (code, pointer)


def test_every_refusal_code_is_documented() -> None:
    source = "".join(Path(module.__file__).read_text() for module in (strictjson, event))
    raised = set(re.findall(r'EventRefused\(\s*"(\w+)"', source))
    assert {code for code, _, _ in _refusals()} == raised
    gate = (SPEC / "event.md").read_text().partition("## 2.")[0]
    table = re.findall(r"^\| `(\w+)` \|", gate, re.MULTILINE)
    assert sorted(table) == sorted(raised)


def test_number_spellings() -> None:
    for line in blocks(SPEC / "event.md")["numbers"].splitlines():
        posted, canonical = line.split()
        assert strictjson.canonical(strictjson.parse(posted.encode())) == canonical.encode()


def test_sizes_named_in_the_specification() -> None:
    text = (SPEC / "event.md").read_text()
    assert f"{len(LEAVES[1])} bytes" in text
    assert {len(leaf) for leaf in LEAVES[1:]} == {len(LEAVES[1])}
    assert f"at most {event.MAX_MEMBERS} members" in text
    assert f"deeper than {strictjson.MAX_DEPTH}" in text
    assert len(event.salt_of(SEED, "actor")) == 22
    assert len(COMMITMENT.digest()) == 43


# --- receipts.md --------------------------------------------------------------------------------------------------------


def test_the_bundles_of_the_page_verify() -> None:
    examples = blocks(SPEC / "receipts.md")
    whole = ReceiptsReader(examples["bundle"].encode().splitlines(keepends=True), POLICY)
    assert [(found.index, sorted(found.opened), found.hidden) for _, found in whole] == [
        (1, ["amount"], ("action", "actor", "note", "resource")),
        (2, [], ("action", "actor", "resource")),
    ]
    assert whole.header.range == (1, 3)
    some = ReceiptsReader(examples["without-range"].encode().splitlines(keepends=True), POLICY)
    assert [found.index for _, found in some] == [2]
    assert some.header.range is None


# --- evidence.md --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sizes"), [("same-size", (3, 3)), ("two-sizes", (2, 3))])
def test_the_evidence_of_the_page_verifies(name: str, sizes: tuple[int, int]) -> None:
    examples = blocks(SPEC / "evidence.md")
    fork = verify(Evidence.parse(examples[name].encode()), Policy.parse(examples["policy"]))
    assert (fork.first.size, fork.second.size) == sizes
    assert fork.root == _root(2) if name == "two-sizes" else fork.root in (_root(3), fork.second.root)


def test_bounds_and_steps_of_evidence() -> None:
    text = (SPEC / "evidence.md").read_text()
    assert f"at most {MAX_EVIDENCE:,} bytes" in text
    assert f"1 to {MAX_PROOF} texts" in text
    section = text.partition("## 2. Verification")[2].partition("## 3.")[0]
    steps = re.findall(r"^(\d)\. ", section, re.MULTILINE)
    assert steps == ["1", "2", "3", "4", "5"]
    assert re.findall(r"^ *(\d)\. ", verify.__doc__ or "", re.MULTILINE) == steps[1:]


# --- anchor.md ----------------------------------------------------------------------------------------------------------


def test_bounds_named_in_the_specification() -> None:
    text = (SPEC / "anchor.md").read_text()
    table = {name: value.replace(",", "") for name, value in re.findall(r"^\| (.*?) \| (.*?) \|$", text, re.MULTILINE)}
    assert table["bytes of a proof"] == str(scan.MAX_FILE)
    assert table["bytes of a calendar's reply"] == str(scan.MAX_REPLY)
    assert table["nodes"] == str(scan.MAX_NODES)
    assert table["nodes of a calendar's reply"] == str(scan.MAX_REPLY_NODES)
    assert table["nodes below one another"] == str(scan.MAX_DEPTH)
    assert table["attestations"] == str(scan.MAX_ATTESTATIONS)
    assert table["bytes of one message"] == str(scan.MAX_MESSAGE)
    assert table["bytes of all messages"] == str(scan.MAX_MESSAGES)
    assert table["bytes of an attestation's payload"] == str(scan.MAX_PAYLOAD)
    assert f"more than {check.MAX_LOOKUPS} Bitcoin attestations" in text
    assert f"at least {check.MIN_DEPTH} confirmations" in text
    assert f"at most {MAX_ANCHORS} anchors" in (SPEC / "receipt.md").read_text()
    assert scan.MAX_HEIGHT == 2**28


def test_steps_of_an_anchor_are_those_of_the_code() -> None:
    section = (SPEC / "receipt.md").read_text().partition("## 7. Anchors")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.MULTILINE) == ["1", "2", "3", "4", "5", "6"]
    assert re.findall(r"^ *(\d)\. ", check.check_receipt_anchor.__doc__ or "", re.MULTILINE) == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
    ]


def test_example_anchor_is_embedded_and_no_more() -> None:
    anchors = json.loads(blocks(SPEC / "anchor.md")["anchors"])
    value = json.loads(blocks(SPEC / "receipt.md")["receipt"]) | {"anchors": anchors}
    receipt = Receipt.from_json(strictjson.parse(json.dumps(value).encode()))
    receipt.verify(POLICY)
    found = check.check_receipt_anchor(receipt, receipt.anchors[0], POLICY, None)
    assert (found.state, found.calendars) == ("no_source", ("https://calendar.example",))
    assert check.EMBEDDED in found.claim
    assert check.EMBEDDED in (SPEC / "receipt.md").read_text()


# --- receipt.md ---------------------------------------------------------------------------------------------------------


def test_example_receipt_verifies() -> None:
    text = blocks(SPEC / "receipt.md")
    policy = Policy.parse(text["policy"])
    found = Receipt.parse(text["receipt"]).verify(policy)
    assert found.complete
    assert found.opened == EVENT
    assert found.leaf == LEAVES[1]
    short = Receipt.parse(text["tlog-proof"]).verify(policy)
    assert (short.leaf, short.hidden) == (LEAVES[1], ("*",))


def test_receipt_with_one_disclosure_names_the_rest() -> None:
    value = json.loads(blocks(SPEC / "receipt.md")["receipt"])
    value |= json.loads(blocks(SPEC / "receipt.md")["one-disclosure"])
    found = Receipt.from_json(strictjson.parse(json.dumps(value).encode())).verify(POLICY)
    assert found.opened == {"amount": 150}
    assert found.hidden == ("action", "actor", "note", "resource")


def test_steps_are_those_of_the_code() -> None:
    """The numbered steps of the specification name the failure that the code reports at that step."""
    text = (SPEC / "receipt.md").read_text()
    steps = re.findall(r"^(\d)\. \*\*(.*?)\*\*", text, re.MULTILINE)
    in_code = re.findall(r"^ *(\d)\. (.*)$", Receipt.verify.__doc__ or "", re.MULTILINE)
    assert [number for number, _ in steps] == [number for number, _ in in_code] == ["1", "2", "3", "4", "5"]
    by_hand = re.findall(r"^### (\d)\. (.*)$", BY_HAND.read_text(), re.MULTILINE)
    assert by_hand == [(number, title.rstrip(".")) for number, title in steps]


def _flip(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flip_text(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


def _mutations() -> dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception]]]:
    """Return, by name, a change to the receipt's JSON and the error that this package reports for it."""

    def signature(value: dict[str, Any]) -> None:
        value["checkpoint"] = _flip_text(value["checkpoint"], len(value["checkpoint"]) - 20)

    def signed_root(value: dict[str, Any]) -> None:
        at = value["checkpoint"].index("\n3\n") + 5
        value["checkpoint"] = _flip_text(value["checkpoint"], at)

    def signed_size(value: dict[str, Any]) -> None:
        value["checkpoint"] = value["checkpoint"].replace("\n3\n", "\n4\n")
        value["inclusion"]["tree_size"] = 4

    def unsigned(value: dict[str, Any]) -> None:
        value["checkpoint"] = value["checkpoint"].partition("\n\n")[0] + "\n\n"

    def leaf(value: dict[str, Any]) -> None:
        value["leaf"] = b64(_flip(LEAVES[1], 20))

    def proof(value: dict[str, Any]) -> None:
        value["inclusion"]["hashes"][0] = _flip(RECEIPT.proof[0], 31).hex()

    def short_proof(value: dict[str, Any]) -> None:
        value["inclusion"]["hashes"].pop()

    def long_proof(value: dict[str, Any]) -> None:
        value["inclusion"]["hashes"].append("00" * 32)

    def short_hash(value: dict[str, Any]) -> None:
        value["inclusion"]["hashes"][0] = value["inclusion"]["hashes"][0][:-2]

    def digest(value: dict[str, Any]) -> None:
        value["commitment"]["members"]["actor"] = _flip_text(value["commitment"]["members"]["actor"], 7)

    def dropped_member(value: dict[str, Any]) -> None:
        del value["commitment"]["members"]["actor"]

    def disclosure(value: dict[str, Any]) -> None:
        texts = [event.Disclosure.parse(text) for text in value["disclosures"]]
        at = [member.name for member in texts].index("actor")
        value["disclosures"][at] = b64url(strictjson.canonical([texts[at].salt, "actor", "mallory"]))

    def twice(value: dict[str, Any]) -> None:
        value["disclosures"].append(value["disclosures"][0])

    def member(name: str, wrong: Any) -> Callable[[dict[str, Any]], None]:
        return lambda value: value.__setitem__(name, wrong)

    def tree_size(value: dict[str, Any]) -> None:
        value["inclusion"]["tree_size"] = 4

    return {
        "signature": (signature, BadSignature),
        "signed root": (signed_root, BadSignature),
        "signed size": (signed_size, BadSignature),
        "no signature line": (unsigned, FormatError),
        "origin": (member("origin", "spec.example/lag"), BadProof),
        "tree size": (tree_size, BadProof),
        "index": (member("index", 0), BadProof),
        "index beyond the tree": (member("index", 3), BadProof),
        "leaf": (leaf, BadProof),
        "inclusion hash": (proof, BadProof),
        "missing hash": (short_proof, BadProof),
        "one hash more": (long_proof, BadProof),
        "hash of 31 bytes": (short_hash, FormatError),
        "digest of a member": (digest, BadDisclosure),
        "member left out": (dropped_member, BadDisclosure),
        "disclosure": (disclosure, BadDisclosure),
        "disclosure twice": (twice, BadDisclosure),
        "type": (member("typ", "muniment/receipt@v2"), FormatError),
    }


def _mutated(name: str) -> str:
    value = json.loads(str(RECEIPT))
    _mutations()[name][0](value)
    return json.dumps(value)


@pytest.mark.parametrize("name", sorted(_mutations()))
def test_changed_receipt_is_refused(name: str) -> None:
    with pytest.raises(_mutations()[name][1]):
        Receipt.parse(_mutated(name)).verify(POLICY)


# --- verify-by-hand.md --------------------------------------------------------------------------------------------------


def _by_hand(folder: Path, receipt: str, policy: str) -> subprocess.CompletedProcess[str]:
    """Run the page's commands as a reader would, in a folder that holds nothing but the two files."""
    (folder / "receipt.json").write_text(receipt)
    (folder / "policy").write_text(policy)
    return subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", "\n".join(scripts(BY_HAND))],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


needs_openssl = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "sha256sum", "python3", "base64"))),
    reason="verify-by-hand.md needs openssl, sha256sum, base64 and python3 on the PATH",
)


@needs_openssl
def test_by_hand_accepts_the_example(tmp_path: Path) -> None:
    run = _by_hand(tmp_path, str(RECEIPT), str(POLICY))
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("step ")] == [
        f"step {step}: good" for step in range(1, 6)
    ]
    assert "BAD" not in run.stdout
    assert '"actor": "alice"' in run.stdout


BY_HAND_MUTATIONS = (
    "signature",
    "no signature line",
    "origin",
    "leaf",
    "inclusion hash",
    "member left out",
    "disclosure",
    "disclosure twice",
)
"""At least one for each step; running a page of shell is slow."""


@needs_openssl
@pytest.mark.parametrize("name", BY_HAND_MUTATIONS)
def test_by_hand_refuses_what_the_package_refuses(name: str, tmp_path: Path) -> None:
    run = _by_hand(tmp_path, _mutated(name), str(POLICY))
    assert run.returncode != 0, run.stdout


@needs_openssl
def test_by_hand_refuses_another_key(tmp_path: Path) -> None:
    other = SigningKey(ORIGIN, bytes(32)).vkey
    run = _by_hand(tmp_path, str(RECEIPT), str(Policy((LogKey(other),))))
    assert run.returncode != 0
    # The page must notice that the id and the key of a vkey do not belong together.
    mixed = f"{ORIGIN}+{KEY.vkey.key_id.hex()}+{str(other).split('+', 2)[2]}"
    run = _by_hand(tmp_path, str(RECEIPT), f"log {mixed}\nquorum none\n")
    assert run.returncode != 0
    with pytest.raises((BadSignature, PolicyNotMet)):
        RECEIPT.verify(Policy((LogKey(other),)))


@needs_openssl
def test_by_hand_works_for_the_only_leaf_of_a_tree(tmp_path: Path) -> None:
    """A tree of size 1 has an empty proof, and a genesis entry has neither commitment nor disclosures."""
    note = str(sign_checkpoint(Checkpoint(ORIGIN, 1, tree.grow(tree.Edge(), HASHES[:1]).edge.root()), KEY))
    alone = Receipt(ORIGIN, 0, LEAVES[0], 1, (), note)
    alone.verify(POLICY)
    run = _by_hand(tmp_path, str(alone), str(POLICY))
    assert run.returncode == 0, run.stdout + run.stderr


def test_by_hand_uses_only_the_standard_library() -> None:
    code = "\n".join(scripts(BY_HAND))
    imports = re.findall(r"^\s*(?:import|from) ([\w, ]+?)(?: import .*)?$", code, re.MULTILINE)
    modules = {name.strip() for line in imports for name in line.split(",")}
    assert modules
    assert modules <= sys.stdlib_module_names
    assert "muniment " not in code


# --- merkle.md ----------------------------------------------------------------------------------------------------------


def test_accumulated_constant_is_the_oracles() -> None:
    assert blocks(SPEC / "merkle.md")["constant"].strip() == oracle.ACCUMULATED
    assert f"each size `n` from 1 to {oracle.ACCUMULATED_SIZE} in turn" in (SPEC / "merkle.md").read_text()
    assert oracle.accumulate(*_tiled_trees()) == oracle.ACCUMULATED


def _tiled_trees() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return root, inclusion proof and consistency proof as the tiles of this package make them."""
    edges = [tree.Edge()]
    for at in range(oracle.ACCUMULATED_SIZE):  # below 256 leaves the whole tree lies in the right edge
        edges.append(tree.grow(edges[-1], [leaf_hash(bytes([at]))]).edge)
    return (
        lambda size: edges[size].root(),
        lambda index, size: tree.plan_inclusion(index, size).fold(edges[size].lookup),
        lambda first, size: tree.plan_consistency(first, size).fold(edges[size].lookup),
    )


def test_example_tile_is_the_leaf_hashes() -> None:
    tile = next(part for part in GROWN.tiles if part.level == 0)
    assert tile.data == b"".join(HASHES)
    assert sha256(b"\x01" + sha256(b"\x01" + HASHES[0] + HASHES[1]).digest() + HASHES[2]).digest() == _root(3)


# --- architecture.md ----------------------------------------------------------------------------------------------------


def test_architecture_names_every_folder_and_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in (ROOT / "client" / "muniment", ROOT / "service" / "muniment_server"):
        for path in package.iterdir():
            if path.suffix == ".py" and not path.stem.startswith("__"):
                assert f"`{path.stem}`" in text, f"docs/architecture.md does not name {path.relative_to(ROOT)}"
            if (path / "__init__.py").exists():
                assert f" {path.name}/ " in text, f"docs/architecture.md does not name {path.relative_to(ROOT)}/"


def test_architecture_draws_folders_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    above: list[str] = []
    drawn = 0
    for spaces, names in re.findall(r"^    ( *)((?:\w+/ )+)", text, re.MULTILINE):
        above = above[: len(spaces) // 2]
        for name in names.split():
            assert ROOT.joinpath(*above, name).is_dir(), f"docs/architecture.md draws {'/'.join([*above, name])}"
            drawn += 1
        above.append(names.split()[0])
    assert drawn > 20


def test_architecture_has_the_import_order_of_the_test() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package, order in ORDER.items():
        listed = re.search(rf"^    {package} +(.*)$", text, re.MULTILINE)
        assert listed
        assert listed[1].split() == [name for name in order if name != "__init__"]


def test_architecture_names_every_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "migrations").rglob("*.sql"):
        renamed = re.findall(r"^ALTER TABLE (\w+) RENAME TO", path.read_text(), re.MULTILINE)
        for table in set(re.findall(r"^CREATE TABLE (\w+)", path.read_text(), re.MULTILINE)) - set(renamed):
            assert f"| `{table}` |" in text, f"docs/architecture.md does not name table {table}"


DOCS = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("page", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, fragment = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert fragment in anchors, f"{page.name} links to {target}"


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    text = (folder / "README.md").read_text()
    for note in folder.glob("0*.md"):
        assert f"({note.name})" in text
        for heading in ("Context", "Decision", "Consequences", "What would make us change it"):
            assert f"## {heading}\n" in note.read_text()
