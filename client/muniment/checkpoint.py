"""C2SP tlog-checkpoint: a tree head as the text of a signed note."""

from __future__ import annotations

from dataclasses import dataclass

from muniment.encoding import b64, parse_b64, parse_decimal
from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash
from muniment.note import Note, SigningKey, is_key_name

MAX_ORIGIN = 255


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head: `size` leaves with `root` in the log called `origin`. Our own logs add no extension lines."""

    origin: str
    size: int
    root: RootHash
    extensions: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the text of the note, final newline included."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, b64(self.root), *self.extensions))


def check_origin(origin: str) -> str:
    """Return `origin` when one of our logs may be called so: a key name of at most 255 UTF-8 bytes.

    Raises FormatError.
    """
    if not is_key_name(origin) or len(origin.encode()) > MAX_ORIGIN:
        raise FormatError(f"an origin is 1 to {MAX_ORIGIN} bytes without white space and plus signs: {origin[:80]!r}")
    return origin


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the head in the text of a note. Raises FormatError unless formatting it gives `text` again.

    The origin is any line that is not empty: logs of others have spaces in theirs. :func:`check_origin` is for ours.
    """
    origin, size, root, *extensions = _lines(text)
    checkpoint = Checkpoint(
        origin,
        parse_decimal(size, "tree size"),
        RootHash(parse_b64(root, "root hash", HASH_SIZE)),
        tuple(extensions),
    )
    if not checkpoint.size and checkpoint.root != EMPTY_ROOT:
        raise FormatError("the root of the empty tree is not SHA-256 of nothing")
    return checkpoint


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise FormatError("a checkpoint is three or more lines, none of them empty")
    return lines


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> Note:
    """Return the checkpoint as a note with one signature line. Requires the key to be named like the origin."""
    if key.vkey.name != checkpoint.origin:
        raise AssertionError(f"key of {key.vkey.name} must not sign for {checkpoint.origin}")
    text = str(checkpoint)
    return Note(text, (key.sign(text),))
