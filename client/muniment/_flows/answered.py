"""Whether the receipts in an answer prove what was sent: one strict way, and for the receipts of a batch a shorter one.

The short way never refuses by itself: where it cannot tell, the strict one decides. Tests hold the two together.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from hashlib import sha256

from muniment import strictjson
from muniment.checkpoint import Checkpoint
from muniment.encoding import b64url
from muniment.errors import EventRefused, NotWhatWasSent
from muniment.event import EventLeaf, may_be_reserved, parse_leaf
from muniment.paths import Paths
from muniment.policy import Policy
from muniment.receipt import Receipt

_HEAD = 32
"""Characters of a disclosure that spell ``["`` and a salt of 22 characters: 24 bytes, so the rest spells itself."""
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
        self._heads: dict[str, tuple[Checkpoint, Paths]] = {}

    def check_sent(self, body: bytes, receipt: Receipt, *, is_event: bool) -> None:
        """Check one. Raises what the strict check raises."""
        if not self._surely(body, receipt, is_event=is_event):
            check_sent(self._policy, body, receipt, is_event=is_event)

    def _surely(self, body: bytes, receipt: Receipt, *, is_event: bool) -> bool:
        signed, paths = self._heads.get(receipt.checkpoint) or self._head(receipt.checkpoint)
        if (signed.origin, signed.size) != (receipt.origin, receipt.tree_size):
            return False
        paths.verify(receipt.index, receipt.leaf_hash, receipt.proof)
        if not is_event:
            plain = receipt.commitment is None and receipt.disclosures is None and not may_be_reserved(body)
            return plain and receipt.leaf == body
        commitment, entry = receipt.commitment, parse_leaf(receipt.leaf)
        if commitment is None or not isinstance(entry, EventLeaf):
            return False
        return opened_digest(receipt.disclosures or (), commitment.members, body) == entry.commitment

    def _head(self, note: str) -> tuple[Checkpoint, Paths]:
        signed = self._policy.verify(note).checkpoint
        found = self._heads[note] = signed, Paths(signed.size, signed.root)
        return found


# --- disclosures ------------------------------------------------------------------------------------------------------


def opened_digest(disclosures: Sequence[str], members: dict[str, str] | None, body: bytes) -> str:
    """Return the digest of the commitment object when disclosures open each member of an event, else the empty text.

    The opened members are the event with the canonical form `body`. `members` are those of the commitment object, which
    have to be the same; None when the caller does not compare them.

    What is known of a disclosure beforehand is everything but its salt. So each is compared with what it must be,
    instead of being taken apart. The empty text also means that this cannot be told: a salt of another form, names that
    are not ASCII, another order.
    """
    parts = _parts(body)
    if not 0 < len(parts) == len(disclosures) or not _are_heads(disclosures):
        return ""
    # In one piece for all: a zero byte fills the base64 of each hash up to 44 characters, of which the last is "A".
    digests = b64url(b"".join([sha256(text.encode("utf-8", "surrogatepass")).digest() + b"\0" for text in disclosures]))
    committed, opened = [], {}
    for at, ((name, quoted, value), text) in enumerate(zip(parts, disclosures, strict=True)):
        digest = digests[44 * at : 44 * at + 43]
        if text[_HEAD:] != b64url(f'",{quoted},{value}]'.encode()):
            return ""
        opened[name] = digest
        committed.append(f'{quoted}:"{digest}"')
    if members is not None and members != opened:
        return ""
    # The canonical form of the commitment object: names in ASCII, in order, and digests that need no escape.
    return b64url(sha256(f'{{"alg":"sha-256","members":{{{",".join(committed)}}}}}'.encode()).digest())


def _parts(body: bytes) -> list[tuple[str, str, str]]:
    """Return name, canonical name and canonical value of each member; none unless `body` is surely a canonical form."""
    try:
        text = body.decode()
        event = json.loads(text)
        parts = [
            (name, _quoted(name), _quoted(value) if type(value) is str else strictjson.canonical(value).decode())
            for name, value in event.items()
        ]
    except (ValueError, AttributeError, RecursionError, EventRefused):
        return []
    names = list(event)
    whole = f"{{{','.join([f'{quoted}:{value}' for _, quoted, value in parts])}}}"
    return parts if whole == text and names == sorted(names) and all(map(str.isascii, names)) else []


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
