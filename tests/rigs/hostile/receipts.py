"""Receipts and tlog-proofs posted to /verify: each part removed, added, swapped, moved, or with a bit flipped. None may verify."""

# ruff: noqa: RUF001 - look-alikes are the point
from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tests.rigs.hostile.case import JSON, Case, Referred, request

TEXT = ("Content-Type", "text/plain")
_ANSWERS = frozenset({200, 422})


def _case(name: str, value: Any, *, lie: bool = True) -> Case:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Case(f"receipt: {name}", request("POST", "/verify", body, [JSON]), _ANSWERS, lie=lie)


def _with(receipt: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(receipt) | changes


def _flip_hex(text: str, bit: int) -> str:
    data = bytearray.fromhex(text)
    data[bit // 8] ^= 1 << bit % 8
    return data.hex()


def _proofs(receipt: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield (what was done, the hashes after it)."""
    good = receipt["inclusion"]["hashes"]
    for at, one in enumerate(good):
        yield f"hash {at} removed", good[:at] + good[at + 1 :]
        yield f"hash {at} doubled", good[: at + 1] + good[at:]
        yield f"hash {at} zero", [*good[:at], "00" * 32, *good[at + 1 :]]
        for bit in (0, 1, 7, 8, 100, 128, 255):
            yield f"bit {bit} of hash {at}", [*good[:at], _flip_hex(one, bit), *good[at + 1 :]]
        for other in range(at):
            swapped = list(good)
            swapped[at], swapped[other] = swapped[other], swapped[at]
            yield f"hashes {other} and {at} swapped", swapped
    for at in range(len(good) + 1):
        yield f"a hash added at {at}", [*good[:at], "ab" * 32, *good[at:]]
    yield "none", []
    yield "64 more", good + ["cd" * 32] * 64
    yield "100,000", ["00" * 32] * 10_000
    if len(good) > 1:
        yield "reversed", good[::-1]


def _spelled(receipt: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield hashes that are no hex as it must be."""
    for text in (
        "",
        "ab",
        "ab" * 31,
        "ab" * 33,
        "AB" * 32,
        "zz" * 32,
        " " + "ab" * 32,
        "0x" + "ab" * 31,
        "ab" * 31 + "a\n",
        "q6ur" * 11,
        None,
        1,
        [],
        {},
        "١" * 64,
    ):
        yield f"a hash spelled {str(text)[:12]!r}", [text, *receipt["inclusion"]["hashes"][1:]]


def _parts(receipt: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    size, index = receipt["inclusion"]["tree_size"], receipt["index"]
    for name in ("typ", "origin", "index", "leaf", "inclusion", "checkpoint"):
        yield f"{name} missing", {key: value for key, value in receipt.items() if key != name}
        for odd in (None, -1, 1.5, "", "x", [], {}, True, 2**64, "\ud800", "a" * 10_000):
            if receipt[name] != odd:
                yield f"{name} is {str(odd)[:9]!r}", _with(receipt, **{name: odd})
    for other in (index - 1, index + 1, index ^ 2, index * 2 + 1, size, size - 1, 2**53, 2**63, -index - 1):
        if other != index:
            yield f"index {other}", _with(receipt, index=other)
    for other in (0, 1, size - 1, size + 1, size * 2, size // 2, size ^ 2, 2**63, -size):
        if other != size:
            yield f"tree size {other}", _with(receipt, inclusion=receipt["inclusion"] | {"tree_size": other})
    yield "another origin", _with(receipt, origin="example.org/other")
    yield "another type", _with(receipt, typ="muniment/receipt@v2")
    leaf = base64.b64decode(receipt["leaf"])
    for at in range(0, len(leaf) * 8, max(1, len(leaf))):
        changed = bytearray(leaf)
        changed[at // 8] ^= 1 << at % 8
        yield f"bit {at} of the leaf", _with(receipt, leaf=base64.b64encode(changed).decode())
    for spelling in (
        receipt["leaf"] + "=",
        receipt["leaf"].rstrip("=") + "!",
        receipt["leaf"] + "\n",
        " " + receipt["leaf"],
        receipt["leaf"] + "QQ==",
    ):
        yield "another spelling of the leaf", _with(receipt, leaf=spelling)


def _notes(receipt: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    note: str = receipt["checkpoint"]
    body, _, signatures = note.partition("\n\n")
    lines = body.split("\n")
    kinds = {
        "no final newline": note[:-1],
        "CRLF": note.replace("\n", "\r\n"),
        "no signature": body + "\n\n",
        "no body": "\n\n" + signatures,
        "no blank line": body + "\n" + signatures,
        "two blank lines": body + "\n\n\n" + signatures,
        "a hyphen for the dash": note.replace("—", "-"),
        "an en dash": note.replace("—", "–"),
        "a horizontal bar": note.replace("—", "―"),
        "size with a zero": note.replace(f"\n{lines[1]}\n", f"\n0{lines[1]}\n", 1),
        "size with a sign": note.replace(f"\n{lines[1]}\n", f"\n+{lines[1]}\n", 1),
        "another size": note.replace(f"\n{lines[1]}\n", f"\n{int(lines[1]) + 1}\n", 1),
        "an extension line": body + "\nx" + "\n\n" + signatures,
        "a NUL": note.replace("\n", "\x00\n", 1),
        "a BOM": "\ufeff" + note,
        "line separators": note.replace("\n", "\u2028"),
        "other name on the signature": note.replace("— ", "— x", 1),
        "1 MB of nothing": note + "x" * 500_000,
        "200 signatures": body + "\n\n" + "— x AAAAAAAA\n" * 200,
        "spaces at the end": note.replace("\n", " \n"),
        "upside down": "\n".join(note.split("\n")[::-1]),
    }
    for name, text in kinds.items():
        if text != note:
            yield f"note with {name}", _with(receipt, checkpoint=text)
    for at in range(0, len(note), max(1, len(note) // 40)):
        for bit in (0, 5):
            changed = note[:at] + chr(ord(note[at]) ^ 1 << bit) + note[at + 1 :]
            yield f"note with bit {bit} of character {at} flipped", _with(receipt, checkpoint=changed)


def _disclosed(receipt: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "commitment" not in receipt:
        return
    members = receipt["commitment"]["members"]
    opened = receipt["disclosures"]
    for name, digest in members.items():
        for bad in (digest[:-1], digest + "=", "A" * 43, digest[::-1], "", None, 1, [digest]):
            changed = receipt["commitment"] | {"members": members | {name: bad}}
            if bad != digest:
                yield f"member {name} is {str(bad)[:8]!r}", _with(receipt, commitment=changed)
        fewer = {key: value for key, value in members.items() if key != name}
        yield f"member {name} missing", _with(receipt, commitment=receipt["commitment"] | {"members": fewer})
    yield "a member more", _with(receipt, commitment=receipt["commitment"] | {"members": members | {"zz": "A" * 43}})
    yield "another algorithm", _with(receipt, commitment=receipt["commitment"] | {"alg": "sha-512"})
    for at, one in enumerate(opened):
        for bad in (one[:-1], one + "A", one + "=", "", "e30", one[::-1], None):
            yield (
                f"disclosure {at} is {str(bad)[:8]!r}",
                _with(receipt, disclosures=[*opened[:at], bad, *opened[at + 1 :]]),
            )
        yield f"disclosure {at} twice", _with(receipt, disclosures=[*opened, one])
    yield "no commitment", {key: value for key, value in receipt.items() if key != "commitment"}


def _texts(proof: str) -> Iterator[Case]:
    lines = proof.split("\n")
    for at in range(len(lines) - 1):
        yield _text(f"line {at} removed", "\n".join(lines[:at] + lines[at + 1 :]))
        if lines[at]:
            yield _text(f"line {at} empty", "\n".join([*lines[:at], "", *lines[at + 1 :]]))
            twice = "\n".join([*lines[: at + 1], *lines[at:]])  # a signature that stands there twice counts once
            yield _text(f"line {at} twice", twice, lie=not lines[at].startswith("— "))
            yield _text(f"line {at} cut", "\n".join([*lines[:at], lines[at][:-1], *lines[at + 1 :]]))
    for at in range(0, len(proof), max(1, len(proof) // 30)):
        yield _text(f"character {at} changed", proof[:at] + chr(ord(proof[at]) ^ 1) + proof[at + 1 :])
    for name, text in {
        "CRLF": proof.replace("\n", "\r\n"),
        "cut": proof[: len(proof) // 2],
        "doubled": proof + proof,
        "NUL": proof + "\x00",
    }.items():
        yield _text(name, text)


def _text(name: str, text: str, *, lie: bool = True) -> Case:
    return Case(f"tlog-proof: {name}", request("POST", "/verify", text.encode(), [TEXT]), _ANSWERS, lie=lie)


def table(world: Referred) -> Iterator[Case]:
    """Yield every case of this class."""
    for receipt in world.receipts:
        yield _case("as it is", receipt, lie=False)
        for name, hashes in [*_proofs(receipt), *_spelled(receipt)]:
            if hashes != receipt["inclusion"]["hashes"]:
                yield _case(name, _with(receipt, inclusion=receipt["inclusion"] | {"hashes": hashes}))
        for name, value in [*_parts(receipt), *_notes(receipt), *_disclosed(receipt)]:
            yield _case(name, value)
        for other in world.receipts:
            for part in ("checkpoint", "leaf", "inclusion"):
                if other[part] != receipt[part]:
                    yield _case(f"{part} of another", _with(receipt, **{part: other[part]}))
    for proof in world.proofs:
        yield from _texts(proof)


def random_case(rng: random.Random, world: Referred) -> Case:
    """A bit of the leaf, the root path or the index of a receipt flipped, or its JSON damaged."""
    receipt = copy.deepcopy(rng.choice(world.receipts))
    match rng.randrange(3):
        case 0 if receipt["inclusion"]["hashes"]:
            hashes = receipt["inclusion"]["hashes"]
            at = rng.randrange(len(hashes))
            hashes[at] = _flip_hex(hashes[at], rng.randrange(256))
        case 1:
            leaf = bytearray(base64.b64decode(receipt["leaf"]))
            leaf[rng.randrange(len(leaf))] ^= 1 << rng.randrange(8)
            receipt["leaf"] = base64.b64encode(leaf).decode()
        case _:
            receipt["index"] ^= 1 << rng.randrange(40)
    return _case("random damage", receipt)
