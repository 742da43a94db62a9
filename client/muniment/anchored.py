"""The `anchors` of a receipt: checkpoints that were stamped, and the entry's place in them.

They are specified in docs/spec/receipt.md section 7. Only the shape is checked here, without any library;
:mod:`muniment.anchor.check` says what an anchor proves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from muniment import members
from muniment.encoding import b64, parse_b64, parse_hex
from muniment.members import expect

MAX_ANCHORS = 8
MAX_OTS = 65_536
MAX_HEIGHT = 2**28 - 1
HEADER_SIZE = 80


@dataclass(frozen=True, slots=True)
class AnchoredCheckpoint:
    """One member of `anchors` as it stands, nothing verified.

    `checkpoint` is the note whose bytes were stamped, `proof` leads from the receipt's leaf to its root at `tree_size`,
    `ots` is the detached OpenTimestamps file (at most 65,536 bytes), `height` the block it is said to be anchored in,
    in [0, 2**28), and `header` the 80 bytes of that block's header or None.
    """

    checkpoint: str
    tree_size: int
    proof: tuple[bytes, ...]
    ots: bytes = field(repr=False)
    height: int
    header: bytes | None = None

    @classmethod
    def from_json(cls, value: Any) -> AnchoredCheckpoint:
        """Return the anchor in a JSON value. Unknown members are ignored. Raises FormatError."""
        expect(isinstance(value, dict), "an anchor is not an object")
        tree_size, proof = members.inclusion(value)
        ots = parse_b64(members.text(value, "ots"), "ots")
        expect(len(ots) <= MAX_OTS, f"ots has more than {MAX_OTS} bytes")
        header = parse_hex(members.text(value, "header"), HEADER_SIZE, "header") if "header" in value else None
        height = members.integer(value, "height", MAX_HEIGHT)
        return cls(members.text(value, "checkpoint"), tree_size, proof, ots, height, header)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        value: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "inclusion": {"tree_size": self.tree_size, "hashes": [part.hex() for part in self.proof]},
            "ots": b64(self.ots),
            "height": self.height,
        }
        return value if self.header is None else value | {"header": self.header.hex()}
