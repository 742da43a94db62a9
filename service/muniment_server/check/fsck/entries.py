"""The check of a row of entries with their payloads and Idempotency-Keys.

Pure: it is given rows, and returns what is wrong with them.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

from muniment.errors import EventRefused, FormatError
from muniment.event import GENESIS_TYPE, SEED_SIZE, EventLeaf, event_leaf, may_be_reserved, parse_leaf, parse_time
from muniment_server.check.fsck.commitment import commitment_of
from muniment_server.check.fsck.report import Finding
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import IdempotencyRow, StoredPayload, leaf_key

ERASURE_TYPE = "muniment/erasure@v1"
_EVENT_LEAF = 125  # bytes: see muniment.event.event_leaf


@dataclass(slots=True)
class Checked:
    """What a row of entries turned out to be.

    `hashes` has the leaf hash of each index, None where there is no entry. `lacking` are events without a payload: fine
    only for those that an erasure entry names, which may stand anywhere behind them; `erased` are the indices named
    here. `first_time` and `last_time` are the 24 characters of `logged_at`, None when no entry here has one.
    """

    hashes: list[bytes | None] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)
    erased: set[int] = field(default_factory=set)
    first_time: str | None = None
    last_time: str | None = None

    def add(self, code: str, index: int, detail: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(code, index, detail))


def check_entries(
    log: LogRow, start: int, stop: int, rows: Sequence[Sequence[Any]], payloads: Mapping[int, StoredPayload]
) -> Checked:
    """Check the stored rows of [start, stop), see Inspect.entry_rows, and the payloads stored under these indices."""
    checked = Checked()
    seen = {row[0]: row for row in rows} if len(rows) != stop - start else None
    for index in range(start, stop):
        if seen is None:
            _, leaf, *keys = rows[index - start]
        elif index in seen:
            _, leaf, *keys = seen[index]
        else:
            checked.hashes.append(None)
            checked.add("entry_missing", index, f"entry {index} is below the head, but not stored")
            continue
        value = sha256(b"\0" + leaf).digest()
        checked.hashes.append(value)
        if keys and keys[0] != leaf_key(value):
            checked.add("leaf_key", index, f"the look-up key of entry {index} is not the start of its leaf hash")
        _check_leaf(checked, log, index, leaf, payloads.get(index))
    return checked


def _check_leaf(checked: Checked, log: LogRow, index: int, leaf: bytes, payload: StoredPayload | None) -> None:
    if log.kind == "event" and index:
        said = _event(leaf)
        if said is not None:
            _check_time(checked, index, said[1])
            _check_payload(checked, index, said[0], payload)
            return
    elif index and not may_be_reserved(leaf):
        if payload is not None:
            checked.add("payload_extra", index, f"entry {index} is not an event, but has a payload")
        return
    _check_other(checked, log, index, leaf, payload)


def _event(leaf: bytes) -> tuple[str, str] | None:
    """Return (commitment, logged_at) of an event's leaf, or None when it is another one. Times are not checked yet."""
    if len(leaf) != _EVENT_LEAF or not leaf.isascii():
        return None
    commitment, logged_at = leaf[15:58].decode(), leaf[73:97].decode()
    return (commitment, logged_at) if event_leaf(commitment, logged_at) == leaf else None


def _check_time(checked: Checked, index: int, logged_at: str) -> None:
    if logged_at == checked.last_time:
        return
    try:
        parse_time(logged_at)
    except FormatError as error:
        checked.add("leaf_format", index, f"entry {index}: {error}")
        return
    if checked.last_time is not None and logged_at < checked.last_time:  # of one width, so text compares as time does
        checked.add(
            "time_went_back", index, f"entry {index} was logged at {logged_at}, one before it at {checked.last_time}"
        )
    checked.first_time = checked.first_time or logged_at
    checked.last_time = logged_at


def _check_payload(checked: Checked, index: int, commitment: str, stored: StoredPayload | None) -> None:
    if stored is None:
        checked.lacking.append(index)
        return
    if len(stored.seed) != SEED_SIZE:
        checked.add("payload", index, f"the seed of event {index} has {len(stored.seed)} bytes, not {SEED_SIZE}")
        return
    try:
        made = commitment_of(stored.payload, stored.seed)
    except EventRefused as error:
        checked.add("payload", index, f"the payload of event {index} is not an event: {error.detail}")
        return
    if made is None:
        checked.add("payload", index, f"the payload of event {index} is not in canonical form")
    elif made != commitment:
        checked.add("commitment", index, f"payload and seed of event {index} do not make the commitment in its leaf")


def _check_other(checked: Checked, log: LogRow, index: int, leaf: bytes, payload: StoredPayload | None) -> None:
    """Check what is not an event where events are, nor anything of a submitter in a raw log: the log's own entries."""
    if payload is not None:
        checked.add("payload_extra", index, f"entry {index} is not an event, but has a payload")
    try:
        content = parse_leaf(leaf)
    except FormatError as error:
        checked.add("leaf_format", index, f"entry {index}: {error}")
        return
    if content is None or isinstance(content, EventLeaf):
        if index and content is None and log.kind == "raw":
            return
        wanted = "the genesis" if not index else "of this log's kind"
        checked.add("leaf_kind" if index else "genesis", index, f"entry {index} is not {wanted}")
        return
    _check_own(checked, log, index, content.typ, content.value)


def _check_own(checked: Checked, log: LogRow, index: int, typ: str, value: dict[str, Any]) -> None:
    _check_time(checked, index, str(value.get("logged_at")))
    if (typ == GENESIS_TYPE) is not (index == 0):
        checked.add("genesis", index, f"entry {index} is {typ}: the genesis stands at index 0, and nowhere else")
    elif not index and (value.get("origin"), value.get("kind")) != (log.origin, log.kind):
        checked.add("genesis", 0, "the genesis names another origin or kind than the logs table")
    if typ == ERASURE_TYPE:
        checked.erased |= erased_by(value) or set()


def erased_by(value: dict[str, Any]) -> frozenset[int] | None:
    """Return the indices an erasure entry names, or None when it names none that this release can read.

    What else erasure leaves is not stored yet, so only the absence of a payload is excused.
    """
    named = value["indices"] if "indices" in value else [value.get("index")]
    if not isinstance(named, list) or not named or not all(type(index) is int and index >= 0 for index in named):
        return None
    return frozenset(named)


# --- Idempotency-Keys -------------------------------------------------------------------------------------------------


def check_keys(
    log: LogRow,
    size: int,
    rows: Sequence[IdempotencyRow],
    payloads: Mapping[int, StoredPayload],
    bad: Collection[int | None] = (),
) -> Iterator[Finding]:
    """Yield what is wrong with idempotency rows.

    Given are every stored payload they stand for, and which of these are `bad`.
    """
    for row in rows:
        stop = row.first_index + row.count
        if log.kind != "event":
            yield Finding("idempotency", row.first_index, "an Idempotency-Key is stored, but raw logs have none")
        elif row.count < 1 or row.first_index < 1 or stop > size:
            yield Finding("idempotency", row.first_index, f"an Idempotency-Key stands for [{row.first_index}, {stop})")
        else:
            opened = [payloads[index] for index in range(row.first_index, stop) if index in payloads]
            if len(opened) < row.count:
                # Erased, and with it what the fingerprint was made of; or missing, which is a finding of its own.
                continue
            if any(index in bad for index in range(row.first_index, stop)):
                continue  # named already
            mark = hmac.digest(opened[0].seed, b"\n".join(one.payload for one in opened), "sha256")
            if mark != row.fingerprint:
                detail = f"an Idempotency-Key for [{row.first_index}, {stop}) has the fingerprint of another body"
                yield Finding("idempotency", row.first_index, detail)


def check_overlaps(rows: Sequence[IdempotencyRow]) -> Iterator[Finding]:
    """Yield idempotency rows, given by first index, that stand for the same entries as another one."""
    for one, other in pairwise(rows):
        if other.first_index < one.first_index + one.count:
            yield Finding("idempotency", other.first_index, f"two Idempotency-Keys stand for entry {other.first_index}")
