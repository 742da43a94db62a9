"""A verifier of bundles of receipts that was written from docs/spec alone, and imports nothing of ours.

It is here to show that the pages say enough: receipts.md, and what that refers to in receipt.md, event.md and genesis.md. Each bundle it
accepts it describes, each other one it refuses by raising Bad, with the number of the step that failed.
"""

from __future__ import annotations

import base64
import hashlib
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Bad(Exception):
    """The bundle does not hold: the step of receipts.md section 2 that fails, and the line."""

    def __init__(self, step: int, line: int, why: str) -> None:
        super().__init__(f"step {step}, line {line}: {why}")
        self.step = step


# --- receipts.md section 1, event.md section 1 --------------------------------------------------------------------------


def jcs(value: object) -> str:
    """RFC 8785, of values without fractions: those have no place in a line."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(jcs(name) + ":" + jcs(value[name]) for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(jcs, value)) + "]"
    if isinstance(value, float):
        raise ValueError("no fractions here")
    return json.dumps(value, ensure_ascii=False)


def line_value(line: bytes) -> dict:
    if len(line) > 8_388_608 or not line.endswith(b"\n"):
        raise ValueError("cut off, or too long")
    text = line[:-1].decode("utf-8")
    value = json.loads(text)
    if jcs(value) != text or not isinstance(value, dict):
        raise ValueError("not an object in the form of RFC 8785")
    return value


def has(value: dict, required: set, optional: set = frozenset()) -> None:  # type: ignore[assignment]
    if not required <= set(value) <= required | optional:
        raise ValueError(f"members {sorted(value)}")


def number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("not an integer from 0")
    return value


def base64_bytes(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("another spelling of base64")
    return data


def base64url_bytes(text: str) -> bytes:
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64url(data) != text:
        raise ValueError("another spelling of base64url")
    return data


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def hash_bytes(text: str) -> bytes:
    data = bytes.fromhex(text)
    if data.hex() != text or len(data) != 32:
        raise ValueError("not 64 lowercase hex digits")
    return data


# --- receipt.md section 2: policy and checkpoint ------------------------------------------------------------------------


def keys_of(policy: str) -> list[tuple[str, bytes, Ed25519PublicKey]]:
    found = []
    for line in policy.splitlines():
        words = line.split()
        if words[:1] == ["log"]:
            name, key_id, key = words[1].split("+", 2)
            data = base64_bytes(key)
            if data[0] != 1 or hashlib.sha256(name.encode() + b"\n" + data).digest()[:4].hex() != key_id:
                raise ValueError("a key of another kind")
            found.append((name, bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(data[1:])))
        elif line != "quorum none":
            raise ValueError("a policy that this verifier cannot evaluate")
    return found


def head_of(note: str, policy: str) -> tuple[str, int, bytes]:
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    origin, size, root, rest = text.split("\n", 3)
    if rest or not signatures.endswith("\n") or str(int(size)) != size:
        raise ValueError("not a checkpoint without extension lines")
    signed = False
    for line in signatures[:-1].split("\n"):
        dash, name, signature = line.split(" ")
        if dash != "\N{EM DASH}":
            raise ValueError("not a signature line")
        data = base64_bytes(signature)
        for key_name, key_id, key in keys_of(policy):
            if (key_name, key_id) == (name, data[:4]) and name == origin:
                key.verify(data[4:], text.encode())
                signed = True
    if not signed:
        raise ValueError("no key of the policy signed it")
    return origin, int(size), base64_bytes(root)


# --- receipt.md section 3, RFC 9162 section 2.1.3.2 ---------------------------------------------------------------------


def check_inclusion(index: int, size: int, leaf: bytes, hashes: list[bytes], root: bytes) -> None:
    fn, sn = index, size - 1
    r = hashlib.sha256(b"\x00" + leaf).digest()
    for p in hashes:
        if sn == 0:
            raise ValueError("too many hashes")
        if fn & 1 or fn == sn:
            r = hashlib.sha256(b"\x01" + p + r).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = hashlib.sha256(b"\x01" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    if sn or r != root:
        raise ValueError("does not lead to the root")


def opened(leaf: bytes, value: dict) -> tuple[dict, list[str]] | None:
    """The members that are opened, and the names of the others; None when the leaf is not an event."""
    event = None
    if leaf.startswith(b"{") and b'"typ":"muniment/event@v1"' in leaf:
        event = json.loads(leaf)
    if "commitment" not in value:
        if "disclosures" in value:
            raise ValueError("disclosures without a commitment")
        return None if event is None else ({}, ["*"])
    commitment = value["commitment"]
    has(commitment, {"alg", "members"})
    if event is None or base64url(hashlib.sha256(jcs(commitment).encode()).digest()) != event["commitment"]:
        raise ValueError("the commitment is not that of the leaf")
    found = {}
    for text in value.get("disclosures", []):
        _, name, member = json.loads(base64url_bytes(text))
        if commitment["members"].get(name) != base64url(hashlib.sha256(text.encode()).digest()) or name in found:
            raise ValueError("a disclosure that does not match, or twice")
        found[name] = member
    return found, sorted(set(commitment["members"]) - set(found))


# --- receipts.md section 2 ----------------------------------------------------------------------------------------------


def verify(data: bytes, policy: str) -> dict:
    """What the bundle proves: its indices, what each opens and hides, and what may be said of completeness."""
    lines = data.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    at = 1
    step = 1
    try:
        first = line_value(lines[0] if lines else b"")
        has(first, {"typ", "origin", "checkpoint"}, {"range"})
        if first["typ"] != "muniment/receipts@v1":
            raise ValueError("not a bundle")
        low, high = map(number, first["range"]) if "range" in first else (0, None)
        if high is not None and not low < high:
            raise ValueError("an empty range")
        step = 2
        origin, size, root = head_of(first["checkpoint"], policy)
        step = 3
        if origin != first["origin"] or (high is not None and high > size):
            raise ValueError("origin or range is not of the checkpoint")
        entries: dict[int, tuple[dict, list[str]] | None] = {}
        expected, erasures = low, 0
        for at, line in enumerate(lines[1:], 2):  # noqa: B007 - the error names the line
            step = 1
            value = line_value(line)
            if "typ" in value:
                break
            has(value, {"index", "leaf", "hashes"}, {"commitment", "disclosures", "erasures"})
            index, leaf = number(value["index"]), base64_bytes(value["leaf"])
            hashes = [hash_bytes(text) for text in value["hashes"]]
            erasures += "erasures" in value
            step = 4
            if index >= size or index < expected or (high is not None and (index != expected or index >= high)):
                raise ValueError("not an index that may stand here")
            expected = index + 1
            step = 5
            check_inclusion(index, size, leaf, hashes, root)
            step = 6
            entries[index] = opened(leaf, value)
        else:
            step, at = 7, len(lines) + 1
            raise ValueError("the last line is missing")
        has(value, {"typ", "count"})
        step = 4
        if high is not None and expected != high:
            raise ValueError("entries of the range are missing")
        step = 7
        if value["typ"] != "muniment/receipts-end@v1" or number(value["count"]) != len(entries) or at != len(lines):
            raise ValueError("another count, or something follows")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, InvalidSignature) as error:
        raise Bad(step, at, str(error)) from error
    return {"entries": entries, "said": said(len(entries), whole=high is not None), "erasures": erasures}


def said(count: int, *, whole: bool) -> str:
    """What section 3 lets a verifier say."""
    if not count:
        return "no entry proved: the bundle has none; nothing says there are no others"
    which = "1 entry" if count == 1 else f"all {count} entries" if whole else f"{count} entries"
    return f"{which} proved; {'none is missing' if whole else 'nothing says there are no others'}"
