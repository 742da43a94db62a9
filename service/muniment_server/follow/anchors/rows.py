"""How an anchor changes: from what is stored of it, and what just happened, to what is to be stored. Pure.

========== =========================================================================================================
queued     the bytes are frozen, and no calendar has them yet
pending    a calendar has them: a promise, which proves nothing yet
complete   there is a path to the Merkle root of a block, which is not six deep yet, or could not be looked up here
confirmed  that block's header was checked, with its proof of work, six deep or more
superseded no calendar ever had them, and a newer checkpoint was anchored instead
========== =========================================================================================================

A reorganisation, and only that, takes an anchor back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from muniment.anchor.check import AnchorCheck
from muniment.anchor.proof import Pending, merge_submission, merge_upgrade, reply_attestations, submission
from muniment.anchor.uri import origin_of
from muniment.errors import BadTimestamp
from muniment_server.follow.anchors.schedule import MAX_ATTEMPTS, block_delay, poll_delay, retry_delay
from muniment_server.storage.anchors import AnchorRow, CalendarRow

MIN_DEPTH = 6


# --- submitting -------------------------------------------------------------------------------------------------------


def taken(row: AnchorRow, calendar: CalendarRow, reply: bytes, now: int, rng: Random) -> tuple[AnchorRow, CalendarRow]:
    """Return both with the reply to a submission merged. Raises BadTimestamp when it is not one.

    A pending URI that is not the calendar's own stays in the proof, and is never asked.
    """
    message = submission(row.digest, row.nonce)
    found = reply_attestations(message, reply)
    if found.bitcoin or not found.pending:  # an attestation so early is a lie, and must not be merged
        raise BadTimestamp("the reply to a submission is a promise, and nothing else")
    ots = merge_submission(row.ots, row.digest, row.nonce, reply)
    own = next((one for one in found.pending if _is_at(one, calendar.url)), None)
    promise = own or found.pending[0]
    new = replace(row, ots=ots, state="pending" if row.state == "queued" else row.state, last_error=None)
    return replace(new, submitted_at=row.submitted_at or now), replace(
        calendar,
        state="pending" if own else "unlisted",
        attempts=0,
        next_at=now + poll_delay(0, rng) if own else None,
        submitted_at=now,
        pending_uri=promise.uri,
        commitment=promise.commitment,
        last_reason=None if own else "its promise names another place, which is not on the list of calendars",
        height=None,
    )


def _is_at(promise: Pending, url: str) -> bool:
    try:
        return origin_of(promise.uri) == url
    except BadTimestamp:
        return False


def refused(calendar: CalendarRow, reason: str, now: int, rng: Random) -> CalendarRow:
    """Return the row after a request that failed.

    A submission is given up after two days; a promise is asked for ever.
    """
    attempts = calendar.attempts + 1
    if calendar.state == "queued" and attempts >= MAX_ATTEMPTS:
        return replace(calendar, state="given_up", attempts=attempts, next_at=None, last_reason=reason)
    return replace(calendar, attempts=attempts, next_at=now + retry_delay(attempts, rng), last_reason=reason)


def superseded(row: AnchorRow, calendars: Sequence[CalendarRow]) -> tuple[AnchorRow, list[CalendarRow]]:
    """Return an anchor that no calendar has, and its calendars, as superseded: no step looks at them any more."""
    gone = [replace(one, state="superseded", next_at=None) for one in calendars]
    return replace(row, state="superseded"), gone


# --- polling ----------------------------------------------------------------------------------------------------------


def not_yet(calendar: CalendarRow, reason: str, now: int, rng: Random) -> CalendarRow:
    """Return the row of a calendar that has no proof yet."""
    age = now - (calendar.submitted_at or now)
    return replace(calendar, attempts=calendar.attempts + 1, next_at=now + poll_delay(age, rng), last_reason=reason)


def again(calendar: CalendarRow, reason: str, now: int) -> CalendarRow:
    """Return the row of a calendar that is to be given the same bytes once more."""
    return replace(calendar, state="queued", attempts=0, next_at=now, last_reason=reason, height=None)


def false_attestation(calendar: CalendarRow, reason: str, now: int, rng: Random) -> CalendarRow:
    """Return the row of a calendar whose attestation is not true. It is asked on: nothing of that answer was kept."""
    return replace(not_yet(calendar, reason, now, rng), state="bad_attestation")


def upgraded(
    row: AnchorRow, calendar: CalendarRow, reply: bytes, height: int, now: int
) -> tuple[AnchorRow, CalendarRow]:
    """Return both with the proof of a calendar merged, after every attestation in `reply` was checked.

    Raises BadTimestamp. `height` is that of its earliest block. The row's own block is for :func:`settled`.
    """
    if row.ots is None or calendar.commitment is None:
        raise BadTimestamp("there is no promise that this could be the proof of")
    ots = merge_upgrade(row.ots, calendar.commitment, reply)
    done = replace(calendar, state="complete", attempts=0, next_at=None, last_reason=None, height=height)
    new = replace(row, ots=ots, state=row.state if row.state == "confirmed" else "complete", last_error=None)
    return replace(new, next_at=now), done


# --- blocks -----------------------------------------------------------------------------------------------------------


def settled(
    row: AnchorRow, calendars: Sequence[CalendarRow], check: AnchorCheck, now: int
) -> tuple[AnchorRow, list[CalendarRow]]:
    """Return an anchor with what a check of its proof said, and those of its calendars that change.

    When no attestation holds any more, the chain was reorganised: the same bytes are submitted again.
    """
    if check.found is not None:
        found, confirmed = check.found, check.state == "confirmed"
        delay = block_delay(found.depth, MIN_DEPTH)
        return replace(
            row,
            state="confirmed" if confirmed else "complete",
            confirmed_at=(row.confirmed_at or now) if confirmed else None,
            height=found.height,
            block_hash=found.header.hash,
            header=found.header.raw,
            block_time=found.header.time,
            next_at=None if delay is None else now + delay,
            last_error=None,
        ), []
    if check.state == "mismatch":
        gone = replace(row, state="pending", confirmed_at=None, next_at=None, last_error=check.claim[:300])
        gone = replace(gone, height=None, block_hash=None, header=None, block_time=None)
        return gone, [again(one, "the chain was reorganised", now) for one in calendars if one.state == "complete"]
    # The source is away, or does not know the block (yet): what is known stays.
    return replace(row, next_at=now + (block_delay(0, MIN_DEPTH) or 0), last_error=check.claim[:300]), []
