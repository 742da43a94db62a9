"""C2SP signed-note: texts with Ed25519 signature lines, and the keys that make and check them.

A note is a text that ends in a newline, an empty line, and one or more signature lines ``— <name> <base64(key id ||
signature)>``. What is signed is the text with its final newline and without the empty line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from muniment.encoding import b64, decode_utf8, parse_b64, parse_hex
from muniment.errors import BadSignature, FormatError

ED25519 = 0x01
MAX_NOTE = 1_000_000
MAX_SIGNATURES = 100
"""The specification asks for at least 16; more than 100 lines is an attack, not a note."""

_KEY_NAME = re.compile(r"[^\s+\x00-\x1f\ud800-\udfff]+")
_BAD_CHARACTER = re.compile("[\x00-\x09\x0b-\x1f\ud800-\udfff]")

_P = 2**255 - 19
# The eight points whose order divides 8, as y coordinates: with such a "key" anyone can sign (RFC
# 8032 section 5.1.7, note).
_Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """One signature line: key name, 4-byte key id, and the signature bytes as the key's type defines them."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        """Return the line with its newline."""
        return f"— {self.name} {b64(self.key_id + self.signature)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it stands, nothing verified. `text` ends in a newline."""

    text: str
    signatures: tuple[SignatureLine, ...]

    def __str__(self) -> str:
        """Return the note, byte for byte what :func:`parse_note` took."""
        return f"{self.text}\n{''.join(map(str, self.signatures))}"


def is_key_name(name: str) -> bool:
    """Tell whether `name` may name a key: not empty, no white space, no control character, no plus sign."""
    return _KEY_NAME.fullmatch(name) is not None


def parse_note(data: bytes | str) -> Note:
    """Return the note in `data`. Raises FormatError unless formatting the result gives `data` again."""
    text = decode_utf8(data, "note") if isinstance(data, bytes) else data
    if len(text) > MAX_NOTE:
        raise FormatError(f"a note is at most {MAX_NOTE} characters")
    if _BAD_CHARACTER.search(text):
        raise FormatError("note holds a control character or half of a UTF-16 pair")
    split = text.rfind("\n\n")
    if split < 0 or not text.endswith("\n"):
        raise FormatError("not a signed note: no empty line before the signatures, or no newline at the end")
    lines = text[split + 2 :].split("\n")[:-1]
    if not 1 <= len(lines) <= MAX_SIGNATURES:
        raise FormatError(f"note has {len(lines)} signature lines, not 1 to {MAX_SIGNATURES}")
    return Note(text[: split + 1], tuple(map(_parse_line, lines)))


def _parse_line(line: str) -> SignatureLine:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—" or not is_key_name(name):
        raise FormatError(f"not a signature line: {line[:80]!r}")
    decoded = parse_b64(encoded, "signature")
    if len(decoded) < 5:
        raise FormatError(f"signature line of {name} is too short")
    return SignatureLine(name, decoded[:4], decoded[4:])


@lru_cache(256)
def key_id_of(name: str, kind: int, public_key: bytes) -> bytes:
    """Return SHA-256(name || 0x0A || kind || public key)[:4]."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]


def split_vkey(text: str) -> tuple[str, bytes, bytes]:
    """Return name, key id and key (its type byte first) of a vkey of any type. Raises FormatError.

    How the id is made of the key, the type decides: that is for the caller to check.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not is_key_name(parts[0]):
        raise FormatError(f"not a vkey (name+id+key): {text[:80]!r}")
    key_id, key = parse_hex(parts[1], 4, "key id"), parse_b64(parts[2], "vkey")
    if not key:
        raise FormatError(f"vkey without a key: {text[:80]!r}")
    return parts[0], key_id, key


def _is_weak(public_key: bytes) -> bool:
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    return y >= _P or y in _SMALL_ORDER_Y


@lru_cache(64)
def _public(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: ``<name>+<key id>+<base64(type || key)>``. Only Ed25519 (type 0x01), 32 bytes."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        """Raise FormatError when name or key cannot be those of a signer."""
        if not is_key_name(self.name):
            raise FormatError(f"not a key name: {self.name[:80]!r}")
        if len(self.public_key) != 32:
            raise FormatError(f"an Ed25519 key has 32 bytes, not {len(self.public_key)}")
        # A key of small order accepts signatures that no signer made; one with y >= p has a second spelling.
        if _is_weak(self.public_key):
            raise FormatError("Ed25519 key is of small order or not canonical")

    @property
    def key_id(self) -> bytes:
        """The 4-byte key id."""
        return key_id_of(self.name, ED25519, self.public_key)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Return the key spelled by a vkey. Raises FormatError, also on a key id that is not this key's."""
        name, key_id, key = split_vkey(text)
        if key[0] != ED25519:
            raise FormatError("vkey is not of type 0x01 (Ed25519)")
        parsed = cls(name, key[1:])
        if parsed.key_id != key_id:
            raise FormatError(f"key id of vkey {text[:80]!r} does not match its key")
        return parsed

    def __str__(self) -> str:
        """Return the vkey."""
        return f"{self.name}+{self.key_id.hex()}+{b64(bytes([ED25519]) + self.public_key)}"

    def verify(self, text: str, signature: bytes) -> None:
        """Check an Ed25519 signature over the UTF-8 bytes of `text`. Raises BadSignature."""
        try:
            _public(self.public_key).verify(signature, text.encode())
        except (InvalidSignature, ValueError) as error:
            raise BadSignature(f"signature of {self.name} does not verify") from error


class SigningKey:
    """An Ed25519 private key with its name: ``PRIVATE+KEY+<name>+<key id>+<base64(type || seed)>``.

    Never prints itself.
    """

    __slots__ = ("_private", "_seed", "vkey")

    def __init__(self, name: str, seed: bytes) -> None:
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.vkey = VerifierKey(name, self._private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """Return a new key from the system's randomness."""
        return cls(name, os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Return the key in the text of a key file, without its final newline.

        Raises FormatError, never quoting the key.
        """
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise FormatError("not a signing key (PRIVATE+KEY+name+id+key)")
        try:
            decoded = parse_b64(parts[4], "signing key", 33)
        except FormatError:
            raise FormatError("signing key is not canonical base64 of 33 bytes") from None
        if decoded[0] != ED25519 or not is_key_name(parts[2]):
            raise FormatError("signing key has a bad name or is not of type 0x01 (Ed25519)")
        key = cls(parts[2], decoded[1:])
        if key.reveal() != text:
            raise FormatError("key id of the signing key does not match its key")
        return key

    def reveal(self) -> str:
        """Return the text for the key file. The only way to see the secret."""
        return f"PRIVATE+KEY+{self.vkey.name}+{self.vkey.key_id.hex()}+{b64(bytes([ED25519]) + self._seed)}"

    def __repr__(self) -> str:
        """Name the key without showing it."""
        return f"<SigningKey {self.vkey.name}+{self.vkey.key_id.hex()}>"

    def sign(self, text: str) -> SignatureLine:
        """Return the signature line over `text`. Requires `text` to end in a newline."""
        if not text.endswith("\n"):
            raise AssertionError("a note's text ends in a newline")
        return SignatureLine(self.vkey.name, self.vkey.key_id, self._private.sign(text.encode()))


def verify_note(note: Note, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
    """Return the keys among `keys` that signed `note`, each once. Lines of unknown keys are ignored, repeated or not.

    Of several lines of a known key the first decides and the others are skipped, as Go's sumdb/note does: two verifiers
    that differ here would differ on which notes are good. Raises BadSignature when that line does not verify, or when
    no known key signed at all.
    """
    known: Mapping[tuple[str, bytes], VerifierKey] = {(key.name, key.key_id): key for key in keys}
    signers: list[VerifierKey] = []
    for line in note.signatures:
        key = known.get((line.name, line.key_id))
        if key is not None and key not in signers:
            key.verify(note.text, line.signature)
            signers.append(key)
    if not signers:
        raise BadSignature("the note is not signed by a known key")
    return signers
