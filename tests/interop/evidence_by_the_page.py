"""A verifier of evidence of a fork that was written from docs/spec/evidence.md alone, and imports nothing of ours.

It is here to show that the page says enough. It returns both sizes of what holds, and raises Bad for all else, with the
step that failed.
"""

from __future__ import annotations

import base64
import hashlib
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Bad(Exception):
    """The evidence shows nothing: the step of section 2 that fails."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"step {step}: {why}")
        self.step = step


def need(condition: bool, why: str) -> None:
    if not condition:
        raise ValueError(why)


def base64_bytes(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text, "another spelling of base64")
    return data


def form(data: bytes) -> dict:
    """Section 1."""
    need(len(data) <= 16_777_216 and data.endswith(b"\n"), "too long, or no newline")
    text = data[:-1].decode("utf-8")
    value = json.loads(text)
    need(isinstance(value, dict), "not an object")
    # All names are in ASCII, and there are no numbers: so this is the form of RFC 8785.
    need(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")) == text, "not canonical")
    need(set(value) - {"hashes"} == {"typ", "origin", "first", "second"}, "other members")
    need(all(type(value[name]) is str for name in ("typ", "origin", "first", "second")), "not texts")
    need(value["typ"] == "muniment/evidence@v1", "another type")
    if "hashes" in value:
        hashes = value["hashes"]
        need(isinstance(hashes, list) and 1 <= len(hashes) <= 64, "not 1 to 64 hashes")
        for part in hashes:
            need(type(part) is str and len(part) == 64 and bytes.fromhex(part).hex() == part, "not a hash")
    return value


def keys_of(policy: str) -> list[tuple[str, bytes, Ed25519PublicKey]]:
    found = []
    for line in policy.splitlines():
        if line.startswith("log "):
            name, key_id, key = line.split()[1].split("+", 2)
            data = base64_bytes(key)
            found.append((name, bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(data[1:])))
    return found


def head_of(note: str, origin: str, policy: str) -> tuple[int, bytes]:
    """Size and root of a head that a log key of the policy signed."""
    at = note.rfind("\n\n")
    need(at > 0 and note.endswith("\n"), "not a note")
    text, lines = note[: at + 1], note[at + 2 : -1].split("\n")
    signed_origin, size, root = text.split("\n")[:3]
    need(signed_origin == origin, "of another log")
    need(str(int(size)) == size and size.isascii(), "another spelling of a size")
    signers = set()
    for line in lines:
        dash, name, signature = line.split(" ")
        need(dash == "\N{EM DASH}", "not a signature line")
        data = base64_bytes(signature)
        for key_name, key_id, key in keys_of(policy):
            if (key_name, key_id) == (name, data[:4]) and name == origin and (name, key_id) not in signers:
                key.verify(data[4:], text.encode())
                signers.add((name, key_id))
    need(bool(signers), "no key of the policy signed it")
    need(len(base64_bytes(root)) == 32, "not a root")
    return int(size), base64_bytes(root)


def both_roots(m: int, n: int, hashes: list[bytes]) -> tuple[bytes, bytes]:
    """RFC 9162 section 2.1.4.2, from step 3 on: the first node is there already."""
    fn, sn = m - 1, n - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = hashes[0]
    for c in hashes[1:]:
        need(sn != 0, "too many hashes")
        if fn & 1 or fn == sn:
            fr, sr = (hashlib.sha256(b"\x01" + c + r).digest() for r in (fr, sr))
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = hashlib.sha256(b"\x01" + sr + c).digest()
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "too few hashes")
    return fr, sr


def verify(data: bytes, policy: str) -> tuple[int, int]:
    """The sizes of the two heads that contradict each other."""
    step = 1
    try:
        value = form(data)
        step = 2
        (m, first), (n, second) = (head_of(value[name], value["origin"], policy) for name in ("first", "second"))
        step = 3
        need(1 <= m <= n, "not 1 <= m <= n")
        step = 4 if m == n else 5
        if m == n:
            need("hashes" not in value and first != second, "one root, or hashes")
            need(value["first"].encode() < value["second"].encode(), "the other order")
        else:
            fr, sr = both_roots(m, n, [bytes.fromhex(part) for part in value["hashes"]])
            need(sr == second and fr != first, "the hashes do not show it")
    except (ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise Bad(step, str(error)) from error
    return m, n
