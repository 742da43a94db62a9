"""Whether the receipts in an answer prove what was sent: one strict way, and for the receipts of a batch a shorter one.

The short way never refuses by itself: where it cannot tell, the strict one decides. Tests hold the two together.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from typing import Any

from muniment import strictjson
from muniment.encoding import MAX_SIZE, b64url
from muniment.errors import EventRefused, NotWhatWasSent
from muniment.event import EventLeaf, digest_of, may_be_reserved, parse_leaf
from muniment.hashing import HASH_SIZE, LeafHash, RootHash, node_hash
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.tree import verify_inclusion

_HEAD = 32
"""Characters of a disclosure that spell ``["`` and a salt of 22 characters: 24 bytes, so that what follows is spelled by itself."""
_HEADS = re.compile(rb'(?:\["[A-Za-z0-9_-]{22})+')


def check_sent(policy: Policy, body: bytes, receipt: Receipt, *, is_event: bool) -> None:
    """Check an answer to an append.

    1. The receipt holds: the log's key signed, the leaf is included, what is opened matches the leaf.
    2. It is of an event when an event was sent, and opens every member.
    3. What it opens, or the raw leaf, is byte for byte what was sent.
    """
    verified = receipt.verify(policy)  # 1
    if not is_event:
        if verified.leaf != body:  # 3
            raise NotWhatWasSent(f"the log answers with another leaf, at index {receipt.index}")
        return
    if not isinstance(verified.entry, EventLeaf) or not verified.complete:  # 2
        raise NotWhatWasSent(f"the log answers with entry {receipt.index}, which is no event or hides some of it")
    if strictjson.canonical(verified.opened) != body:  # 3
        raise NotWhatWasSent(f"the log answers with entry {receipt.index}, which is another event")


class Receipts:
    """Checks the receipts of one answer like :func:`check_sent`; what they have in common is worked out once."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._paths: dict[tuple[int, RootHash], Paths] = {}

    def check_sent(self, body: bytes, receipt: Receipt, *, is_event: bool) -> None:
        """Check one. Raises what the strict check raises."""
        if not self._surely(body, receipt, is_event=is_event):
            check_sent(self._policy, body, receipt, is_event=is_event)

    def _surely(self, body: bytes, receipt: Receipt, *, is_event: bool) -> bool:
        signed = self._policy.verify(receipt.checkpoint).checkpoint
        if (signed.origin, signed.size) != (receipt.origin, receipt.tree_size):
            return False
        key = signed.size, signed.root
        paths = self._paths.get(key) or self._paths.setdefault(key, Paths(*key))
        paths.verify(receipt.index, receipt.leaf_hash, receipt.proof)
        if not is_event:
            plain = receipt.commitment is None and receipt.disclosures is None and not may_be_reserved(body)
            return plain and receipt.leaf == body
        commitment, entry = receipt.commitment, parse_leaf(receipt.leaf)
        return (
            isinstance(entry, EventLeaf)
            and commitment is not None
            and commitment.digest() == entry.commitment
            and opens(receipt.disclosures or (), commitment.members, body)
        )


# --- inclusion ----------------------------------------------------------------------------------------------------------


class Paths:
    """Checks inclusion proofs in one tree.

    From a node on, the way to the root is fixed by the node's place and hash and by the rest of the proof. So when an earlier proof
    that led to the root came by the same place with the same hash and the same rest, this one leads there too.
    """

    def __init__(self, size: int, root: RootHash) -> None:
        self._size = size
        self._root = root
        self._proved: dict[tuple[int, int], tuple[bytes, tuple[bytes, ...]]] = {}

    def verify(self, index: int, leaf: LeafHash, proof: tuple[bytes, ...]) -> None:
        """Check that `leaf` is leaf `index`. Raises BadProof exactly when :func:`muniment.tree.verify_inclusion` does."""
        steps = list[tuple[int, int, bytes]]()
        if not self._joins(index, leaf, proof, steps):
            verify_inclusion(index, self._size, leaf, proof, self._root)
        for at, (node, last, value) in enumerate(steps):
            self._proved[node, last] = value, proof[at:]

    def _joins(self, index: int, leaf: bytes, proof: Sequence[bytes], steps: list[tuple[int, int, bytes]]) -> bool:
        """Climb as in RFC 9162 section 2.1.3.2 until on a proved way. Adds each (node, last, hash) before that to `steps`."""
        node, last, value = index, self._size - 1, leaf
        if not 0 <= index < self._size <= MAX_SIZE or len(leaf) != HASH_SIZE:
            return False
        for at, sibling in enumerate(proof):
            known = self._proved.get((node, last))
            if known is not None and known[0] == value and known[1] == proof[at:]:
                return True
            if not last or len(sibling) != HASH_SIZE:
                return False
            steps.append((node, last, value))
            if node & 1 or node == last:
                value = node_hash(sibling, value)
                while node and not node & 1:
                    node, last = node >> 1, last >> 1
            else:
                value = node_hash(value, sibling)
            node, last = node >> 1, last >> 1
        return False


# --- disclosures --------------------------------------------------------------------------------------------------------


def opens(disclosures: Sequence[str], members: dict[str, str], body: bytes) -> bool:
    """Tell whether disclosures open each of the committed members, and these are the event with the canonical form `body`.

    What is known of a disclosure beforehand is everything but its salt. So each is compared with what it must be, instead of being
    taken apart. False also means that this cannot be told: a salt of another form, names that are not ASCII, another order.
    """
    parts = _parts(body)
    if not len(parts) == len(members) == len(disclosures) > 0 or not _are_heads(disclosures):
        return False
    for (name, quoted, value), text in zip(parts, disclosures, strict=True):
        if text[_HEAD:] != b64url(b'",%b,%b]' % (quoted, value)) or members.get(name) != digest_of(text):
            return False
    return True


def _parts(body: bytes) -> list[tuple[str, bytes, bytes]]:
    """Return name, canonical name and canonical value of each member; none unless `body` is surely a canonical form."""
    try:
        event = json.loads(body)
        parts = [(name, _canonical(name), _canonical(value)) for name, value in event.items()]
    except (ValueError, AttributeError, RecursionError, EventRefused):
        return []
    names = list(event)
    whole = b"{%b}" % b",".join([b"%b:%b" % part[1:] for part in parts])
    return parts if whole == body and names == sorted(names) and all(map(str.isascii, names)) else []


def _are_heads(disclosures: Sequence[str]) -> bool:
    """Tell whether each text begins with the one spelling of ``["`` and a salt."""
    heads = "".join([text[:_HEAD] for text in disclosures])
    if not heads.isascii() or len(heads) != _HEAD * len(disclosures):
        return False
    try:
        data = a2b_base64(heads.replace("-", "+").replace("_", "/"))
    except ValueError:
        return False
    return b64url(data) == heads and _HEADS.fullmatch(data) is not None


_quoted: Callable[[str], str] = json.encoder.encode_basestring


def _canonical(value: Any) -> bytes:
    return _quoted(value).encode() if type(value) is str else strictjson.canonical(value)
