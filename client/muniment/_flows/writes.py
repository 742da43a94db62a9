"""Flows that append, each sure in the end that the log holds exactly what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from uuid import uuid4

from muniment._flows import fields
from muniment._flows.answered import Receipts, check_sent
from muniment._flows.reads import Session
from muniment._flows.steps import MEBIBYTE, Call, Flow, Request, Response, json_of, send
from muniment._flows.values import Default, event_body
from muniment.encoding import MAX_SIZE
from muniment.errors import FormatError, MunimentError, NotWhatWasSent
from muniment.receipt import Receipt
from muniment.tiles import MAX_ENTRY, encode_bundle

Entryish = Mapping[str, Any] | bytes
"""What can be appended: an event as a mapping, or the bytes of a raw leaf."""

_KEY = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class PreparedEntry:
    """An entry ready to be sent: the canonical form of an event, or the bytes of a raw leaf."""

    body: bytes
    is_event: bool

    @classmethod
    def of(cls, entry: Entryish, default: Default | None = None) -> PreparedEntry:
        """Return `entry` prepared. Raises EventRefused, or FormatError for a raw leaf of a wrong length.

        `default` returns a JSON value for one that is none.
        """
        if not isinstance(entry, bytes | bytearray | memoryview):
            return cls(event_body(entry, default), is_event=True)
        if not 1 <= len(entry) <= MAX_ENTRY:
            raise FormatError(f"a raw leaf has 1 to {MAX_ENTRY} bytes, not {len(entry)}: log a digest of it instead")
        return cls(bytes(entry), is_event=False)


def new_key() -> str:
    """Return an Idempotency-Key that no client has used."""
    return str(uuid4())


def _headers(content_type: str, key: str | None) -> dict[str, str]:
    headers = {"Content-Type": content_type, "Accept": "application/json"}
    if key is not None:
        if not _KEY.fullmatch(key):
            raise FormatError('an Idempotency-Key is 1 to 255 printable ASCII characters without " and \\')
        headers["Idempotency-Key"] = f'"{key}"'
    return headers


@contextmanager
def told(key: str | None, receipts: Sequence[Receipt] = ()) -> Iterator[None]:
    """Let every error say under which Idempotency-Key entries were sent, and which receipts hold by themselves."""
    try:
        yield
    except MunimentError as error:
        error.idempotency_key = key or error.idempotency_key
        error.receipts = error.receipts or tuple(receipts)
        raise


def append(session: Session, entry: PreparedEntry, key: str) -> Flow[Receipt]:
    """Append one entry and return its receipt, verified and of exactly what was sent."""
    # A raw leaf needs no key: an equal leaf is the same entry.
    headers = _headers("application/json", key) if entry.is_event else _headers("application/octet-stream", None)
    limit = MEBIBYTE + 8 * len(entry.body)
    request = Request("POST", "/entries", body=entry.body, headers=headers, limit=limit)
    with told(key if entry.is_event else None):
        yield from session.trust.check_memory()
        receipt = Receipt.from_json(json_of((yield from send(request, session.retries))))
        check_sent(session.trust.policy, entry.body, receipt, is_event=entry.is_event)
        with told(None, [receipt]):
            yield from session.trust.observe_answer(receipt.checkpoint, [receipt])
    return receipt


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Batcher:
    """Collects prepared entries into batches of at most `max_entries` entries and `max_bytes` bytes of body."""

    max_entries: int
    max_bytes: int
    _entries: list[PreparedEntry] = field(default_factory=list)
    _size: int = 0

    def add(self, entry: PreparedEntry) -> Iterator[list[PreparedEntry]]:
        """Take an entry; yield the batch that became full, if one did."""
        if self._entries and entry.is_event != self._entries[0].is_event:
            raise FormatError("a log takes either events (mappings) or raw leaves (bytes), not both")
        size = len(entry.body) + 2  # at most: a newline, or the length of a raw leaf
        if self._entries and self._size + size > self.max_bytes:
            yield self.take()
        self._entries.append(entry)
        self._size += size
        if len(self._entries) >= self.max_entries:
            yield self.take()

    def take(self) -> list[PreparedEntry]:
        """Return what has been collected, perhaps nothing, and start anew."""
        entries, self._entries, self._size = self._entries, [], 0
        return entries


def append_batch(session: Session, entries: Sequence[PreparedEntry], key: str) -> Flow[list[Receipt]]:
    """Append entries, all or none, and return their receipts in the order sent.

    Requires at least one, all of one kind.
    """
    answer = yield from send_batch(session, entries, key)
    with told(key if entries[0].is_event else None):
        return (yield from check_batch(session, entries, answer))


def send_batch(
    session: Session, entries: Sequence[PreparedEntry], key: str, *, receipts: bool = True
) -> Flow[Response]:
    """Send a batch until the log answers that it holds it, and return the answer.

    The answer proves nothing until it is checked. Without `receipts` the answer has the indices and the checkpoint
    alone.
    """
    bodies = [entry.body for entry in entries]
    if entries[0].is_event:
        body, headers = b"".join(part + b"\n" for part in bodies), _headers("application/x-ndjson", key)
    else:
        body, headers = encode_bundle(bodies), _headers("application/octet-stream", None)
    limit = MEBIBYTE + 8 * len(body) + 64 * 1024 * len(entries)
    request = Request("POST", "/entries/batch", {"receipts": "true"} if receipts else {}, body, headers, limit)
    with told(key if entries[0].is_event else None):
        yield from session.trust.check_memory()
        return (yield from send(request, session.retries))


def check_batch(session: Session, entries: Sequence[PreparedEntry], answer: Response) -> Flow[list[Receipt]]:
    """Return the receipts in the answer to a batch, each verified and of exactly what was sent."""
    # As a call, so that an event loop goes on meanwhile: this is as much work as the log's own.
    receipts: list[Receipt] = yield Call(lambda: _checked(session, entries, answer))
    with told(None, receipts):
        for note in dict.fromkeys(receipt.checkpoint for receipt in receipts):
            yield from session.trust.observe_answer(note, receipts)
    return receipts


def _checked(session: Session, entries: Sequence[PreparedEntry], answer: Response) -> list[Receipt]:
    value = json_of(answer)
    receipts = [Receipt.from_json(item) for item in fields.objects(value, "receipts")]
    if [receipt.index for receipt in receipts] != list(chain(*ranges_of(value, len(entries)))):
        raise NotWhatWasSent("the receipts of a batch are not of the indices the log assigned to it")
    answered = Receipts(session.trust.policy)
    for entry, receipt in zip(entries, receipts, strict=True):
        answered.check_sent(entry.body, receipt, is_event=entry.is_event)
    return receipts


def ranges_of(answer: dict[str, Any], count: int) -> list[range]:
    """Return the indices of the entries of a batch. Raises FormatError unless the ranges hold exactly `count`."""
    ranges = answer.get("indices")
    if not isinstance(ranges, list) or not all(map(_is_range, ranges)):
        raise FormatError("answer: indices is not a list of ranges")
    if sum(high - low for low, high in ranges) != count:
        raise FormatError(f"answer: the log assigned another number of indices than the {count} entries sent")
    return [range(low, high) for low, high in ranges]


def _is_range(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)
    return whole and 0 <= value[0] < value[1] <= MAX_SIZE


def batches(
    entries: Iterable[Entryish], batcher: Batcher, default: Default | None = None
) -> Iterator[list[PreparedEntry]]:
    """Yield the batches of an iterable, reading no further than the batch at hand.

    When an entry cannot be logged, or the iterable fails, what came before is yielded before the error is raised.
    """
    try:
        for entry in entries:
            yield from batcher.add(PreparedEntry.of(entry, default))
    except Exception:
        if rest := batcher.take():
            yield rest
        raise
    if rest := batcher.take():
        yield rest
