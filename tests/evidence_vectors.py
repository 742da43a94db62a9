"""Evidence of a fork, good and spoiled: what docs/spec/vectors/evidence.json is made of (`make docs`).

The trees are the oracle's. Each case names the step of docs/spec/evidence.md section 2 that refuses it, or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from muniment import strictjson
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.encoding import b64
from muniment.evidence import Evidence, make
from muniment.hashing import RootHash
from muniment.note import SigningKey, parse_note
from muniment.policy import LogKey, Policy
from muniment.proofs import whole_proof
from tests.oracle import Tree

ORIGIN = "log.example/sample"
KEY = SigningKey(ORIGIN, bytes(range(32)))
SECOND_KEY = SigningKey(ORIGIN, b"2" * 32)
STRANGER = SigningKey("other.example/log", b"s" * 32)
UNKNOWN = SigningKey("witness.example", b"w" * 32)
POLICY = Policy((LogKey(KEY.vkey),))
LARGEST = 40
MINE = Tree([b"%d" % n for n in range(LARGEST)])
THEIRS = Tree([b"other", *(b"%d" % n for n in range(1, LARGEST))])


def signed(tree: Tree, size: int, key: SigningKey = KEY, extensions: tuple[str, ...] = ()) -> str:
    """The head of `tree` at a size, signed."""
    return str(sign_checkpoint(Checkpoint(key.vkey.name, size, RootHash(tree.root(size)), extensions), key))


def proof(tree: Tree, first: int, second: int) -> tuple[bytes, ...]:
    """The consistency proof, its first node explicit."""
    return whole_proof(first, tree.root(first), tree.proof(first, second))


def fork(first: int = 5, second: int = 9) -> Evidence:
    """Evidence of a head of one tree, and one of the other."""
    hashes = proof(THEIRS, first, second) if first < second else ()
    return make(signed(MINE, first), signed(THEIRS, second), hashes, POLICY)[0]


def cosigned(note: str) -> str:
    """`note` with one more signature line, of a key that no policy lists."""
    return note + str(UNKNOWN.sign(parse_note(note).text))


def padded(note: str) -> str:
    """`note` with the signature of another text before the good one, under the same name and key id."""
    text, _, lines = note.partition("\n\n")
    return f"{text}\n\n{KEY.sign('another text' + chr(10))}{lines}"


class Case(NamedTuple):
    """A file, and which step refuses it: 0 for none."""

    name: str
    data: bytes
    step: int


def _edited(evidence: Evidence, **members: Any) -> bytes:
    value = json.loads(bytes(evidence)) | members
    return strictjson.canonical({name: member for name, member in value.items() if member is not ...}) + b"\n"


def good() -> Iterator[Case]:
    """Yield evidence that proves a fork."""
    for first, second in ((1, 1), (7, 7), (1, 2), (4, 5), (5, 9), (8, 9), (8, 40), (31, 32), (39, 40)):
        yield Case(f"sizes {first} and {second}", bytes(fork(first, second)), 0)
    base = fork()
    yield Case("a signature line of an unknown key", _edited(base, first=cosigned(base.first)), 0)
    extended, hashes = signed(MINE, 5, extensions=("an extension line",)), proof(THEIRS, 5, 9)
    yield Case("an extension line", bytes(make(extended, base.second, hashes, POLICY)[0]), 0)


def of_the_form() -> Iterator[Case]:
    """Yield what step 1 refuses."""
    data, hashes = bytes(fork()), json.loads(bytes(fork()))["hashes"]
    yield Case("nothing", b"", 1)
    yield Case("another type", _edited(fork(), typ="muniment/evidence@v2"), 1)
    yield Case("a member too many", _edited(fork(), verified=True), 1)
    yield Case("without an origin", _edited(fork(), origin=...), 1)
    yield Case("a note that is no text", _edited(fork(), first=7), 1)
    yield Case("hashes that are no list", _edited(fork(), hashes=hashes[0]), 1)
    yield Case("no hashes in the list", _edited(fork(), hashes=[]), 1)
    yield Case("null for hashes", _edited(fork(7, 7), hashes=None), 1)
    yield Case("more than 64 hashes", _edited(fork(), hashes=["00" * 32] * 65), 1)
    yield Case("a hash in capitals", _edited(fork(), hashes=[hashes[0].upper(), *hashes[1:]]), 1)
    yield Case("a hash of 31 bytes", _edited(fork(), hashes=[hashes[0][2:], *hashes[1:]]), 1)
    yield Case("a hash that is a number", _edited(fork(), hashes=[7, *hashes[1:]]), 1)
    yield Case("no newline", data[:-1], 1)
    yield Case("a space in the place of the newline", data[:-1] + b" ", 1)
    yield Case("a carriage return in the place of the newline", data[:-1] + b"\r", 1)
    yield Case("two newlines", data + b"\n", 1)
    yield Case("a space", data.replace(b'"hashes":', b'"hashes": '), 1)
    yield Case("members in another order", json.dumps(dict(reversed(json.loads(data).items()))).encode() + b"\n", 1)
    yield Case("a name twice", data.replace(b'{"first"', b'{"typ":"muniment/evidence@v1","first"'), 1)


def of_the_heads() -> Iterator[Case]:
    """Yield what steps 2 and 3 refuse."""
    base, empty = fork(), signed(MINE, 0)
    text, _, lines = base.first.partition("\n\n")
    zeros = f"{ORIGIN}\n05\n{b64(MINE.root(5))}\n"
    yield Case("a note that is none", _edited(base, first="x"), 2)
    yield Case("a note without its signature", _edited(base, first=f"{text}\n"), 2)
    yield Case(
        "a signature by an unknown key alone", _edited(base, first=f"{text}\n\n{UNKNOWN.sign(text + chr(10))}"), 2
    )
    yield Case("a bad signature before the good one", _edited(base, first=padded(base.first)), 2)
    yield Case("another size", _edited(base, first=base.first.replace("\n5\n", "\n6\n")), 2)
    yield Case("a size with a leading zero", _edited(base, first=f"{zeros}\n{KEY.sign(zeros)}"), 2)
    yield Case("another root", _edited(base, first=f"{signed(THEIRS, 5).partition(chr(10) * 2)[0]}\n\n{lines}"), 2)
    yield Case("another origin", _edited(base, origin="other.example/log"), 2)
    others = {"first": signed(MINE, 5, STRANGER), "second": signed(THEIRS, 9, STRANGER), "origin": STRANGER.vkey.name}
    yield Case("a log that is not trusted", _edited(base, **others), 2)
    yield Case("a key that is not trusted", _edited(base, first=signed(MINE, 5, SECOND_KEY)), 2)
    yield Case("the notes swapped", _edited(base, first=base.second, second=base.first), 3)
    yield Case("the empty tree first", _edited(base, first=empty), 3)
    yield Case("the empty tree twice", _edited(base, first=empty, second=empty, hashes=...), 3)


def of_the_roots() -> Iterator[Case]:
    """Yield what steps 4 and 5 refuse: also two honest heads with whatever hashes."""
    same, base = fork(7, 7), fork()
    hashes, honest = json.loads(bytes(base))["hashes"], [value.hex() for value in proof(MINE, 5, 9)]
    yield Case("one size, in the other order", _edited(same, first=same.second, second=same.first), 4)
    yield Case("one size, with hashes", _edited(same, hashes=hashes), 4)
    yield Case("one note twice", _edited(same, first=same.second), 4)
    extended = signed(THEIRS, 7, extensions=("x",))
    yield Case("one root, and an extension line", _edited(same, first=signed(THEIRS, 7), second=extended), 4)
    yield Case("two sizes without hashes", _edited(base, hashes=...), 5)
    yield Case("the first hash left out", _edited(base, hashes=hashes[1:]), 5)
    yield Case("the last hash left out", _edited(base, hashes=hashes[:-1]), 5)
    yield Case("a hash too many", _edited(base, hashes=[*hashes, "00" * 32]), 5)
    yield Case("another hash", _edited(base, hashes=["00" * 32, *hashes[1:]]), 5)
    yield Case("the hashes of the other tree", _edited(base, hashes=honest), 5)
    two = {"second": signed(MINE, 9)}
    yield Case("two honest heads and their proof", _edited(base, hashes=honest, **two), 5)
    yield Case("two honest heads and garbage", _edited(base, hashes=["00" * 32, *honest[1:]], **two), 5)
    yield Case("two honest heads and hashes of another tree", _edited(base, **two), 5)
    power = {"first": signed(MINE, 8), "second": signed(MINE, 9)}
    left_out = [value.hex() for value in MINE.proof(8, 9)]
    yield Case("two honest heads and the proof as the RFC has it", _edited(base, hashes=left_out, **power), 5)
    garbage = ["11" * 32, *left_out]
    yield Case("two honest heads and garbage for the first root", _edited(base, hashes=garbage, **power), 5)


CASES = [case for cases in (good, of_the_form, of_the_heads, of_the_roots) for case in cases()]


def page() -> str:
    """Return the file of vectors."""
    about = "Evidence of a fork (docs/spec/evidence.md). step: which step of section 2 refuses it; 0: it proves a fork."
    cases = [{"name": case.name, "evidence": case.data.decode(), "step": case.step} for case in CASES]
    return json.dumps({"about": about, "policy": str(POLICY), "cases": cases}, indent=1, ensure_ascii=False) + "\n"
