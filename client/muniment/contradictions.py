"""Do the heads of one log contradict each other, as far as verified receipts show it? Pure, and offline.

An inclusion proof fixes the hash of each complete subtree that it passes. Such a subtree is the same in every tree of
the log that has its leaves, whatever the size: two hashes for one come from two histories. And the root of a tree is
what its complete subtrees fold to, where receipts of other trees have them all.

What is found is a contradiction; that nothing is found proves nothing. Only a consistency proof ties two heads of
different sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from muniment.checkpoint import Checkpoint
from muniment.hashing import node_hash
from muniment.receipt import Receipt
from muniment.tree import Node, fold, nodes_of, plan_inclusion


class Contradiction(NamedTuple):
    """Signed heads of one log that cannot all be true. `names` are of what showed them: together the evidence."""

    origin: str
    names: tuple[str, ...]
    detail: str


@dataclass(slots=True)
class Heads:
    """What is known of one log. Filled and read by one caller; `names` say where each thing came from."""

    origin: str
    _heads: list[tuple[Checkpoint, str]] = field(default_factory=list)
    _nodes: dict[Node, tuple[bytes, Checkpoint, str]] = field(default_factory=dict)
    _found: dict[frozenset[str], Contradiction] = field(default_factory=dict)

    def add_head(self, head: Checkpoint, name: str) -> None:
        """Take a head that a key of this log signed."""
        for known, other in self._heads:
            if known.size == head.size and known.root != head.root:
                self._contradict([known, head], [other, name])
        if not any(known == head for known, _ in self._heads):
            self._heads.append((head, name))

    def add_receipt(self, receipt: Receipt, head: Checkpoint, name: str) -> None:
        """Take a receipt that was verified at `head`."""
        self.add_head(head, name)
        for node, value in _fixed(receipt):
            known, older, other = self._nodes.setdefault(node, (value, head, name))
            if known != value:
                self._contradict([older, head], [other, name])

    def contradictions(self) -> list[Contradiction]:
        """Return what was found, in the order in which it was."""
        for head, name in self._heads:
            parts = self._parts(head.size)
            if parts and fold([value for value, _, _ in parts]) != head.root:
                self._contradict([head, *(at for _, at, _ in parts)], [name, *(other for _, _, other in parts)])
        return list(self._found.values())

    def compared(self, head: Checkpoint) -> bool:
        """Tell whether anything here would have contradicted `head`, had the log another history."""
        return any(known.size == head.size for known, _ in self._heads) or bool(self._parts(head.size))

    def _parts(self, size: int) -> list[tuple[bytes, Checkpoint, str]]:
        """Return the complete subtrees of the tree of `size`, left to right; none unless all are known."""
        nodes = nodes_of(0, size)
        return [self._nodes[node] for node in nodes] if all(node in self._nodes for node in nodes) else []

    def _contradict(self, heads: list[Checkpoint], names: list[str]) -> None:
        if any(known <= frozenset(names) for known in self._found):
            return  # said already, of fewer
        shown = dict.fromkeys(f"of size {head.size} with root {head.root.hex()}" for head in heads)
        detail = f"the log {self.origin} signed trees that contradict each other, {' and '.join(shown)}"
        self._found[frozenset(names)] = Contradiction(self.origin, tuple(dict.fromkeys(names)), detail)


def _fixed(receipt: Receipt) -> Iterator[tuple[Node, bytes]]:
    """Yield each complete subtree on the way of a verified inclusion proof, with its hash."""
    own: Node | None = Node(0, receipt.index)
    value: bytes = receipt.leaf_hash
    yield Node(0, receipt.index), value
    parts = plan_inclusion(receipt.index, receipt.tree_size).parts
    for part, sibling in zip(parts, receipt.proof, strict=True):
        if len(part) == 1:
            yield part[0], sibling
        left = part[0].index << part[0].height < receipt.index
        value = node_hash(sibling, value) if left else node_hash(value, sibling)
        own = Node(own.height + 1, own.index >> 1) if own and part == (Node(own.height, own.index ^ 1),) else None
        if own:
            yield own, value
