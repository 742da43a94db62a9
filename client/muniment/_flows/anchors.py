"""Flows that read anchors. An anchor's state is the server's word; the files it hands out are for checking."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from muniment._flows import fields
from muniment._flows.proving import check_prefix
from muniment._flows.reads import Session, head
from muniment._flows.steps import MEBIBYTE, Flow, Request, json_of, send
from muniment.anchored import MAX_OTS
from muniment.encoding import decode_utf8
from muniment.errors import FormatError, NotWhatWasSent
from muniment.note import MAX_NOTE
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt

PAGE = 100


@dataclass(frozen=True, slots=True)
class AnchorBlock:
    """The block that the server found an anchor in. `time` is in Unix seconds, by the header."""

    height: int
    hash: str
    time: int


@dataclass(frozen=True, slots=True)
class AnchorCalendar:
    """How far a calendar is with an anchor, as the server says."""

    url: str
    state: str
    attempts: int
    last_reason: str | None


@dataclass(frozen=True, slots=True)
class AnchorInfo:
    """What the server says of the anchor at `tree_size`.

    Nothing here is verified: :meth:`Client.anchor_files` is for that. `state` is queued, pending, complete, confirmed
    or superseded, and `explanation` says what that means. Times are as the server spells them.
    """

    tree_size: int
    root: bytes
    digest: bytes
    state: str
    explanation: str
    degraded: bool
    created_at: str
    submitted_at: str | None
    confirmed_at: str | None
    block: AnchorBlock | None
    calendars: tuple[AnchorCalendar, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AnchorInfo:
        """Return the anchor in a JSON value. Raises FormatError."""
        return cls(
            tree_size=fields.integer(value, "tree_size"),
            root=fields.digest(value, "root"),
            digest=fields.digest(value, "digest"),
            state=fields.text(value, "state"),
            explanation=fields.text(value, "explanation"),
            degraded=fields.boolean(value, "degraded"),
            created_at=fields.text(value, "created_at"),
            submitted_at=fields.optional_text(value, "submitted_at"),
            confirmed_at=fields.optional_text(value, "confirmed_at"),
            block=None if value.get("block") is None else _block(fields.json_object(value, "block")),
            calendars=tuple(map(_calendar, fields.objects(value, "calendars"))),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return asdict(self) | {
            "root": self.root.hex(),
            "digest": self.digest.hex(),
            "calendars": [asdict(calendar) for calendar in self.calendars],
        }


def _block(value: dict[str, Any]) -> AnchorBlock:
    return AnchorBlock(
        fields.integer(value, "height"), fields.digest(value, "hash").hex(), fields.integer(value, "time")
    )


def _calendar(value: dict[str, Any]) -> AnchorCalendar:
    return AnchorCalendar(
        fields.text(value, "url"),
        fields.text(value, "state"),
        fields.integer(value, "attempts"),
        fields.optional_text(value, "last_reason"),
    )


@dataclass(frozen=True, slots=True)
class AnchorFiles:
    """The stamped bytes of a checkpoint, signed by the log and of its tree, and the proof about them, not looked at."""

    checkpoint: VerifiedCheckpoint
    note: bytes
    ots: bytes


class AnchorPages:
    """The anchors of sizes in [start, ...), oldest first, page by page."""

    def __init__(self, session: Session, start: int) -> None:
        self._session = session
        self._at: int | None = start

    def next_page(self) -> Flow[list[AnchorInfo]]:
        """Return the next page; an empty one is the end."""
        if self._at is None:
            return []
        answer = yield from _json(self._session, "/anchors", {"start": self._at, "limit": PAGE})
        page = [AnchorInfo.from_json(row) for row in fields.objects(answer, "anchors")]
        following = fields.optional_integer(answer, "next")
        sizes = [one.tree_size for one in page]
        if sizes != sorted(set(sizes)) or any(size < self._at for size in sizes):
            raise FormatError("the anchors of a page are not in order of size")
        if following is not None and (not sizes or following <= sizes[-1]):
            raise FormatError("the next page of anchors does not follow this one")
        self._at = following
        return page


def anchor(session: Session, size: int) -> Flow[AnchorInfo]:
    """Return what the server says of the anchor at `size`."""
    found = AnchorInfo.from_json((yield from _json(session, f"/anchors/{size}", {})))
    if found.tree_size != size:
        raise NotWhatWasSent(f"asked for the anchor of size {size}, got that of size {found.tree_size}")
    return found


def anchor_files(session: Session, size: int) -> Flow[AnchorFiles]:
    """Return the files of the anchor at `size`.

    1. A log key of the policy signed the checkpoint, and its origin is that of the log. (Witnesses may have signed
       after it was frozen: the quorum is not asked of it.)
    2. It has the size that was asked for.
    3. It is of the tree of the largest checkpoint known.
    """
    note = (yield from send(Request("GET", f"/anchors/{size}/checkpoint", limit=MAX_NOTE), session.retries)).body
    signed = Policy(session.trust.policy.logs).verify(decode_utf8(note, "the checkpoint"))  # 1
    session.trust.check_origin(signed.checkpoint.origin)
    if signed.checkpoint.size != size:  # 2
        raise NotWhatWasSent(
            f"asked for the anchored checkpoint of size {size}, got one of size {signed.checkpoint.size}"
        )
    yield from _check_tree(session, signed)  # 3
    request = Request("GET", f"/anchors/{size}/checkpoint.ots", limit=MAX_OTS)
    return AnchorFiles(signed, note, (yield from send(request, session.retries)).body)


def _check_tree(session: Session, signed: VerifiedCheckpoint) -> Flow[None]:
    known, found = (yield from head(session)), signed.checkpoint
    if found.size > known.checkpoint.size:
        yield from session.trust.observe(signed.note)
    elif found.size:  # an empty tree has one root only, and parsing checked it
        yield from check_prefix(signed, known, session.tiles)


def anchored_receipt(session: Session, index: int) -> Flow[Receipt]:
    """Return the receipt of an entry with the earliest confirmed anchor that covers it. Its proof is not looked at."""
    found = Receipt.from_json((yield from _json(session, f"/entries/{index}/receipt", {"anchored": "true"})))
    found.verify(session.trust.policy)
    if found.index != index or not found.anchors:
        raise NotWhatWasSent(
            f"asked for the anchored receipt of entry {index}, got one of entry {found.index}, or without anchors"
        )
    yield from session.trust.observe_part(found.checkpoint, [found])
    return found


def _json(session: Session, path: str, query: dict[str, str | int]) -> Flow[dict[str, Any]]:
    request = Request("GET", path, query, headers={"Accept": "application/json"}, limit=4 * MEBIBYTE)
    return json_of((yield from send(request, session.retries)))
