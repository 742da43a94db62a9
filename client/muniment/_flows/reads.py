"""Flows that read. Each returns only what it has verified against the policy and the signed tree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from muniment._flows import fields
from muniment._flows.proving import check_prefix, find_evidence, prove, prove_shown
from muniment._flows.results import ConsistencyProof, Entry, InclusionProof, LogInfo
from muniment._flows.steps import MEBIBYTE, Flow, Request, Retries, Sleep, json_of, send
from muniment._flows.tilereader import TileReader, check_leaves
from muniment._flows.trust import Trust
from muniment.encoding import parse_b64
from muniment.errors import BadProof, Behind, FormatError, NotWhatWasSent, PolicyNotMet, Refused
from muniment.evidence import Evidence
from muniment.hashing import HASH_SIZE, LeafHash, RootHash
from muniment.names import format_names, name_set
from muniment.note import MAX_NOTE, VerifierKey
from muniment.policy import LogKey, Policy, VerifiedCheckpoint
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.receipt import Receipt, Verified
from muniment.tiles import TILE_WIDTH

T = TypeVar("T")
PAGE_TILES = 3
"""Tiles per page of entries: 768 entries, within the server's limit of 1,000, and no tile is split between pages."""
PAGE_LIMIT = 192 * MEBIBYTE
"""More than 768 of the largest events take with their disclosures."""


@dataclass(frozen=True, slots=True)
class Session:
    """What the flows of one client share."""

    trust: Trust
    tiles: TileReader
    retries: Retries


def _json(
    session: Session, path: str, query: Mapping[str, str | int], limit: int = 4 * MEBIBYTE
) -> Flow[dict[str, Any]]:
    request = Request("GET", path, query, headers={"Accept": "application/json"}, limit=limit)
    return json_of((yield from send(request, session.retries)))


def caught_up(session: Session, ask: Callable[[], Flow[T]]) -> Flow[T]:
    """Return what `ask` does, asking anew while the server is behind what was seen. Raises Behind when it stays so."""
    for attempt in count(1):
        try:
            return (yield from ask())
        except Behind:
            delay = session.retries.delay(attempt, None)
            if delay is None or not (yield Sleep(delay)):
                raise
    raise AssertionError("count() ended")


# --- heads ------------------------------------------------------------------------------------------------------------


def checkpoint(session: Session) -> Flow[VerifiedCheckpoint]:
    """Return the published checkpoint."""
    return (yield from caught_up(session, lambda: _checkpoint(session)))


def _checkpoint(session: Session) -> Flow[VerifiedCheckpoint]:
    response = yield from send(Request("GET", "/checkpoint", limit=MAX_NOTE), session.retries)
    try:
        note = response.body.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the checkpoint is not UTF-8") from error
    return (yield from session.trust.observe(note))


def head(session: Session) -> Flow[VerifiedCheckpoint]:
    """Return the largest checkpoint known: the published one, or what an append of this client was answered since."""
    published = yield from checkpoint(session)
    return session.trust.largest or published


def consistency(session: Session, since: VerifiedCheckpoint | Receipt | str) -> Flow[ConsistencyProof]:
    """Return the proof that the published checkpoint and `since` belong to one growing tree."""
    saved = session.trust.policy.verify(_note(since))
    session.trust.check_origin(saved.checkpoint.origin)
    return (yield from caught_up(session, lambda: _consistency(session, saved)))


def _note(head: VerifiedCheckpoint | Receipt | str) -> str:
    return head if isinstance(head, str) else head.note if isinstance(head, VerifiedCheckpoint) else head.checkpoint


def evidence(
    session: Session, one: VerifiedCheckpoint | Receipt | str, other: VerifiedCheckpoint | Receipt | str
) -> Flow[Evidence | None]:
    """Return evidence that two signed heads of this log contradict each other, None when it proves that they agree."""
    return (yield from find_evidence(session.trust.policy, _note(one), _note(other), session.retries))


def _consistency(session: Session, saved: VerifiedCheckpoint) -> Flow[ConsistencyProof]:
    latest = yield from _checkpoint(session)
    if latest.checkpoint.size < saved.checkpoint.size:
        return ConsistencyProof(latest, saved, (yield from prove_shown(latest, saved, session.retries)))
    return ConsistencyProof(saved, latest, (yield from prove(saved, latest, session.retries)))


class CheckpointPages:
    """The published checkpoints of sizes in [start, ...), page by page."""

    def __init__(self, session: Session, start: int) -> None:
        self._session = session
        self._at: int | None = start

    def next_page(self) -> Flow[list[VerifiedCheckpoint]]:
        """Return the next page; an empty one is the end."""
        if self._at is None:
            return []
        answer = yield from _json(self._session, "/checkpoints", {"start": self._at, "limit": 100}, 128 * MEBIBYTE)
        trust = self._session.trust
        page = [trust.policy.verify(fields.text(row, "checkpoint")) for row in fields.objects(answer, "checkpoints")]
        sizes = [signed.checkpoint.size for signed in page]
        following = fields.optional_integer(answer, "next")
        if sizes != sorted(set(sizes)) or any(size < self._at for size in sizes):
            raise FormatError("the checkpoints of a page are not in order of size")
        if following is not None and (not sizes or following <= sizes[-1]):
            raise FormatError("the next page of checkpoints does not follow this one")
        self._at = following
        for signed in page:
            yield from self._check(signed)
        return page

    def _check(self, signed: VerifiedCheckpoint) -> Flow[None]:
        """Check that a checkpoint is of the tree of the largest one known."""
        session, found = self._session, signed.checkpoint
        known = session.trust.largest or (yield from checkpoint(session))
        if found.size > known.checkpoint.size:
            yield from session.trust.observe(signed.note)
            return
        session.trust.check_origin(found.origin)
        if found.size:  # an empty tree has one root only, and parsing checked it
            yield from check_prefix(signed, known, session.tiles)


# --- entries ----------------------------------------------------------------------------------------------------------


def verified_receipt(
    session: Session, index: int, tree_size: int | None, members: set[str] | None = None
) -> Flow[tuple[Receipt, Verified]]:
    """Return the receipt of an entry with what it proves.

    A server that is behind has one too, of the entries that its smaller tree covers.
    """
    try:
        found, verified = yield from _asked_receipt(session, index, tree_size, members)
    except Refused as refused:
        if refused.status != 404 or index >= (yield from session.trust.seen_size()):
            raise
        yield from checkpoint(session)  # the entry was seen: wait until this server has it too, or raise Behind
        found, verified = yield from _asked_receipt(session, index, tree_size, members)
    yield from session.trust.observe_part(found.checkpoint, [found])
    return found, verified


def _asked_receipt(
    session: Session, index: int, tree_size: int | None, members: set[str] | None
) -> Flow[tuple[Receipt, Verified]]:
    """Return the receipt in an answer, with what it proves by itself."""
    query: dict[str, str | int] = {} if tree_size is None else {"tree_size": tree_size}
    if members is not None:
        query["members"] = format_names(sorted(members))
    answer = yield from _json(session, f"/entries/{index}/receipt", query)
    found = Receipt.from_json(answer)
    verified = found.verify(session.trust.policy)
    if found.index != index or tree_size not in (None, found.tree_size):
        raise NotWhatWasSent(
            f"asked for the receipt of entry {index}{'' if tree_size is None else f' at size {tree_size}'},"
            f" got that of entry {found.index} at size {found.tree_size}"
        )
    return found, verified


def receipt(session: Session, index: int, tree_size: int | None, members: Collection[str] | None) -> Flow[Receipt]:
    """Return the receipt of an entry, opened as far as `members` says.

    A server that opens more than it was asked for, or less, is not relied on.
    """
    names = None if members is None else name_set(members)
    found, _ = yield from verified_receipt(session, index, tree_size, names)
    return found if names is None else found.disclose(names)


def entry(session: Session, index: int) -> Flow[Entry]:
    """Return an entry, by way of its receipt: nothing else holds what opens an event's members."""
    return Entry.of(*(yield from verified_receipt(session, index, None)))


class EntryPages:
    """The entries [start, stop) of a tree, page by page: that of `head`, or the largest known.

    Each leaf is compared with the authenticated tiles.
    """

    def __init__(self, session: Session, start: int, stop: int | None, head: VerifiedCheckpoint | None = None) -> None:
        self._session = session
        self._at = start
        self._stop = stop
        self.head = head

    def next_page(self) -> Flow[list[Entry]]:
        """Return the next page; an empty one is the end."""
        if self.head is None:
            self.head = yield from head(self._session)
        stop = min(self.head.checkpoint.size, self.head.checkpoint.size if self._stop is None else self._stop)
        if self._at >= stop:
            return []
        wanted = min(stop, (self._at // TILE_WIDTH + PAGE_TILES) * TILE_WIDTH) - self._at
        answer = yield from _json(self._session, "/entries", {"start": self._at, "limit": wanted}, PAGE_LIMIT)
        rows = fields.objects(answer, "entries")[:wanted]
        page = yield from self._open(rows)
        self._at += len(page)
        return page

    def _open(self, rows: list[dict[str, Any]]) -> Flow[list[Entry]]:
        if not rows or [fields.integer(row, "index") for row in rows] != list(range(self._at, self._at + len(rows))):
            raise FormatError(f"the page from index {self._at} is empty or has gaps")
        leaves = [parse_b64(fields.text(row, "leaf"), "leaf") for row in rows]
        hashes = yield from self._hashes(self._at, self._at + len(rows))
        check_leaves(leaves, hashes, self._at)
        found: list[Entry] = []
        for index, (row, leaf) in enumerate(zip(rows, leaves, strict=True), self._at):
            # A payload without the disclosures that open the commitment proves nothing; the receipt has them.
            bare = "event" in row and "disclosures" not in row
            found.append((yield from self._by_receipt(index, leaf)) if bare else Entry.open(index, leaf, row))
        return found

    def _by_receipt(self, index: int, leaf: bytes) -> Flow[Entry]:
        found = yield from entry(self._session, index)
        if found.leaf != leaf:  # a receipt may be of a smaller tree, which is not compared with this one yet
            raise BadProof(f"the receipt of entry {index} is of another leaf than the signed tree has there")
        return found

    def _hashes(self, low: int, high: int) -> Flow[bytes]:
        """Return the authenticated leaf hashes [low, high)."""
        if self.head is None:
            raise AssertionError("no page without a head")
        first = low // TILE_WIDTH
        found = b""
        for index in range(first, (high - 1) // TILE_WIDTH + 1):
            found += yield from self._session.tiles.hashes(self.head.checkpoint, 0, index)
        skip = first * TILE_WIDTH
        return found[(low - skip) * HASH_SIZE : (high - skip) * HASH_SIZE]


# --- proofs and tiles -------------------------------------------------------------------------------------------------


def inclusion(
    session: Session, index: int | None, leaf_hash: bytes | None, tree_size: int | None
) -> Flow[InclusionProof]:
    """Return the inclusion proof of a leaf, named by index or by leaf hash."""
    query: dict[str, str | int] = {}
    if index is not None:
        query["index"] = index
    if leaf_hash is not None:
        query["leaf_hash"] = leaf_hash.hex()
    if tree_size is not None:
        query["tree_size"] = tree_size
    if (index is None) == (leaf_hash is None):
        raise FormatError("name the leaf by its index or by its leaf hash, one of them")
    answer = yield from _json(session, "/proof/inclusion", query)
    found = yield from _tied(session, answer)
    for asked, got in ((index, found.index), (leaf_hash, found.leaf_hash), (tree_size, found.tree_size)):
        if asked not in (None, got):
            raise NotWhatWasSent("the inclusion proof is of another leaf or tree than asked for")
    return found


def _tied(session: Session, answer: dict[str, Any]) -> Flow[InclusionProof]:
    """Return the proof in an answer.

    1. The checkpoint is accepted.
    2. The consistency proof ties the tree of the inclusion proof to it.
    3. The inclusion proof leads to the root of that tree.
    """
    signed = yield from session.trust.observe_part(fields.text(answer, "checkpoint"))  # 1
    head = signed.checkpoint
    size, root = fields.integer(answer, "tree_size"), RootHash(fields.digest(answer, "root"))
    tie = fields.proof(fields.json_object(answer, "consistency"))
    verify_consistency(size, head.size, root, head.root, tie)  # 2
    index, leaf = fields.integer(answer, "index"), LeafHash(fields.digest(answer, "leaf_hash"))
    hashes = fields.proof(answer)
    verify_inclusion(index, size, leaf, hashes, root)  # 3
    return InclusionProof(index, leaf, size, root, hashes, signed)


def tile(session: Session, level: int, index: int) -> Flow[list[bytes]]:
    """Return the hashes of a tile."""
    known = yield from head(session)
    data = yield from session.tiles.hashes(known.checkpoint, level, index)
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def bundle(session: Session, index: int) -> Flow[list[bytes]]:
    """Return the leaves of an entry bundle."""
    known = yield from head(session)
    return (yield from session.tiles.leaves(known.checkpoint, index))


# --- the server about itself ------------------------------------------------------------------------------------------


def log_info(session: Session) -> Flow[LogInfo]:
    """Return what the server says of itself, when its origin and one of its keys are the policy's."""
    info = LogInfo.from_json((yield from _json(session, "/log", {})))
    session.trust.check_origin(info.origin)
    trusted = {str(log.vkey) for log in session.trust.policy.logs if log.vkey.name == info.origin}
    if trusted.isdisjoint(info.vkeys):
        raise PolicyNotMet(f"none of the keys the server names for {info.origin!r} is in the policy")
    return info


def first_use(url: str, retries: Retries) -> Flow[Policy]:
    """Return a policy that trusts the Ed25519 keys the server itself names.

    Trust on first use, and no better than that.
    """
    answer = json_of((yield from send(Request("GET", "/log"), retries)))
    origin = fields.text(answer, "origin")
    keys = [key for key in map(_ed25519, fields.texts(answer, "vkeys")) if key is not None and key.name == origin]
    if not keys:
        raise PolicyNotMet(f"the server names no Ed25519 key for {origin[:80]!r}")
    return Policy(tuple(LogKey(key, url) for key in keys))


def _ed25519(text: str) -> VerifierKey | None:
    try:
        return VerifierKey.parse(text)
    except FormatError:
        return None  # of a type this version does not know
