"""C2SP tlog-proof text: one inclusion proof with its checkpoint, for verifiers that know nothing of this log.

::

    c2sp.org/tlog-proof@v1
    extra <base64>
    index <decimal>
    <base64 of a 32-byte hash>

    <checkpoint>

`extra` may be missing, and nothing vouches for it. A log of ours writes the leaf there. Specified in
docs/spec/receipt.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from muniment.checkpoint import parse_checkpoint
from muniment.encoding import b64, decode_utf8, parse_b64, parse_decimal
from muniment.errors import FormatError
from muniment.hashing import HASH_SIZE
from muniment.note import parse_note
from muniment.proofs import MAX_PROOF

TLOG_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
MAX_LINE = 65_536
"""With its newline. Go's bufio.Scanner, as it comes, stops at a longer line, and the whole proof is lost."""


@dataclass(frozen=True, slots=True)
class TlogProof:
    """A tlog-proof as it stands, nothing verified. `extra` is None where the text has no such line."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    @classmethod
    def with_leaf(cls, index: int, leaf: bytes, hashes: tuple[bytes, ...], checkpoint: str) -> TlogProof:
        """Return the proof of `leaf`, which is its extra data unless the line would be too long for stock readers."""
        extra = leaf if len(_extra_line(leaf)) < MAX_LINE else None
        return cls(index, hashes, checkpoint, extra)

    def __str__(self) -> str:
        """Return the text."""
        extra = [] if self.extra is None else [_extra_line(self.extra)]
        lines = [TLOG_PROOF_HEADER, *extra, f"index {self.index}", *map(b64, self.hashes)]
        return "\n".join(lines) + f"\n\n{self.checkpoint}"

    @classmethod
    def parse(cls, data: bytes) -> TlogProof:
        """Return the proof in `data`, with a checkpoint that parses.

        Raises FormatError unless formatting the result gives `data` again.
        """
        head, separator, note = decode_utf8(data, "tlog-proof").partition("\n\n")
        header, *lines = head.split("\n")
        if not separator or header != TLOG_PROOF_HEADER:
            raise FormatError("not a tlog-proof")
        extra = parse_b64(lines.pop(0)[6:], "extra") if lines and lines[0].startswith("extra ") else None
        if not 1 <= len(lines) <= 1 + MAX_PROOF or not lines[0].startswith("index "):
            raise FormatError("tlog-proof lacks its index line, or has too many lines")
        index, hashes = lines[0][6:], tuple(parse_b64(line, "proof hash", HASH_SIZE) for line in lines[1:])
        parse_checkpoint(parse_note(note).text)
        proof = cls(parse_decimal(index, "index"), hashes, note, extra)
        if str(proof).encode() != data:
            raise FormatError("tlog-proof is not in canonical form")
        return proof


def _extra_line(extra: bytes) -> str:
    return f"extra {b64(extra)}"
