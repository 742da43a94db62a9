"""The signature lines of a checkpoint that go on with a part of a receipt or a bundle: docs/spec/receipt.md section 8.

A note may have lines of keys that its reader does not know, and verifiers skip them. So a value that is to be hidden
could stand in one, as a name or as its base64, and no check would tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from muniment.checkpoint import MAX_ORIGIN, parse_checkpoint
from muniment.errors import BadSignature, CannotHide, FormatError
from muniment.note import Note, SignatureLine, parse_note

_ED25519 = 64
_COSIGNATURES = (8 + 64, 8 + 2420)
"""Bytes of a time and a signature: Ed25519 (0x04) and ML-DSA-44 (0x06) of C2SP tlog-cosignature."""


class PassedOn(NamedTuple):
    """A checkpoint as it goes on: the note, how many lines were left out, and the names of those who cosigned."""

    note: str
    left_out: int
    cosigners: tuple[str, ...]


def passed_on(checkpoint: str) -> PassedOn:
    """Return a checkpoint with the signature lines that a log or a witness can have written, and no others.

    Nothing is verified: what verifies before does so afterwards. Raises FormatError when it is no checkpoint,
    BadSignature when none of the lines can be of its log, and CannotHide when it has extension lines: they are signed.
    """
    note = parse_note(checkpoint)
    head = parse_checkpoint(note.text)
    if head.extensions:
        raise CannotHide("the checkpoint has extension lines, which can hold anything, and which its signature covers")
    kept = tuple(_kept(note, head.origin))
    if all(line.name != head.origin for line in kept):
        raise BadSignature("the checkpoint has no signature of its log")
    cosigners = tuple(line.name for line in kept if line.name != head.origin)
    return PassedOn(str(Note(note.text, kept)), len(note.signatures) - len(kept), cosigners)


def is_passed_on(checkpoint: str) -> bool:
    """Tell whether all of a checkpoint may go on. For one whose bytes were stamped, and so must stay as they are."""
    try:
        return not passed_on(checkpoint).left_out
    except (FormatError, BadSignature, CannotHide):
        return False


def _kept(note: Note, origin: str) -> Iterator[SignatureLine]:
    """Yield the lines to keep: of several of one key the first, since verifiers look at no other."""
    seen = set()
    for line in note.signatures:
        lengths = (_ED25519, *_COSIGNATURES) if line.name == origin else _COSIGNATURES
        known = len(line.signature) in lengths and len(line.name.encode()) <= MAX_ORIGIN
        if known and (line.name, line.key_id) not in seen:
            yield line
        seen.add((line.name, line.key_id))
