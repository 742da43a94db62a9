"""The steps a flow is made of, and the one way in which a request is sent and sent again.

A *flow* is a generator: it yields a step, gets the step's outcome back, and returns its result. It never waits itself,
so the same flow serves a blocking client and an event loop; each has one short driver that performs steps.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from time import time
from typing import Any, Literal, TypeVar

from muniment.errors import FormatError, Refused, RequestError, Unavailable, Unreachable

T = TypeVar("T")
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A step: send this to the log. Its outcome is a Response or Lost.

    `path` starts with "/" and is below the log's own URL. `limit` is the largest body, in bytes, that the answer may
    have. How long it may take is for the client to say, which knows what is left of the call.
    """

    method: Literal["GET", "POST"]
    path: str
    query: Mapping[str, str | int] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    limit: int = 4 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Response:
    """What the server answered. Header names are lowercase."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No usable answer: `reason` is for people; `again` tells whether the same request may do better."""

    reason: str
    again: bool = True


@dataclass(frozen=True, slots=True)
class Sleep:
    """A step: wait so many seconds. Its outcome tells whether the call has the time; if not, nothing was waited for."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """A step: call this function, which may block on a disk or compute for long.

    Its outcome is what the function returns or raises.
    """

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Exclusive:
    """A step: run this flow while no other exclusive flow of the same client runs.

    Flows in it must not nest another.
    """

    flow: Flow[Any]


Step = Request | Sleep | Call | Exclusive
Flow = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and how patiently, a request is sent again.

    A request is sent at most `tries` times. Waits start at about `first_delay` seconds and double up to
    `longest_delay`, each shortened at random by up to half so that clients do not return in step. A server that asks
    for more (Retry-After) gets it, up to `patience` seconds. Beyond that, or when the whole call has no time for it,
    the error is raised at once and carries `retry_after`.
    """

    tries: int = 6
    first_delay: float = 0.2
    longest_delay: float = 10.0
    patience: float = 60.0

    def delay(self, attempt: int, asked: float | None) -> float | None:
        """Return the seconds to wait after failed attempt number `attempt` (from 1), or None to give up."""
        if attempt >= self.tries or (asked or 0) > self.patience:
            return None
        backoff = min(self.longest_delay, self.first_delay * 2.0 ** (attempt - 1))
        return max(asked or 0.0, backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing


def send(request: Request, retries: Retries) -> Flow[Response]:
    """Return the first answer with a status in [200, 299].

    Every request of this package can be repeated without harm: reads are reads, and writes carry an Idempotency-Key or
    are of a raw log, where an equal leaf is the same entry. So whatever may have been bad luck is tried again.

    Raises Unreachable, Unavailable or Refused.
    """
    for attempt in count(1):
        outcome: Response | Lost = yield request
        if isinstance(outcome, Response) and 200 <= outcome.status < 300:
            return outcome
        failure, passing = _failure(outcome)
        delay = retries.delay(attempt, getattr(failure, "retry_after", None)) if passing else None
        if delay is None or not (yield Sleep(delay)):
            raise failure
    raise AssertionError("count() ended")


def _failure(outcome: Response | Lost) -> tuple[RequestError, bool]:
    """Return the error that an outcome is, and whether it may pass by itself."""
    if isinstance(outcome, Lost):
        return Unreachable(outcome.reason), outcome.again
    status = outcome.status
    if not 400 <= status < 600:  # a redirect may lead anywhere, and would take the API key along
        where = f" to {outcome.headers['location'][:200]}" if "location" in outcome.headers else ""
        return Unreachable(f"the server answers {status}{where}; use the URL of the log itself"), False
    problem = _problem(outcome)
    retry_after = _retry_after(outcome.headers.get("retry-after", ""))
    if status == 429 or status >= 500:
        return Unavailable(status, problem, retry_after), status in (429, 502, 503, 504) and not _stands(problem)
    return Refused(status, problem, retry_after), problem.get("code") in _PASSING


_PASSING = {"not_published_yet", "idempotency_running"}
"""Codes of 4xx answers that say "not yet"."""

_STANDING = {
    "clock",
    "damaged",
    "database_behind",
    "database_damaged",
    "database_replaced",
    "key_unreadable",
    "read_only",
    "signature",
    "witness_ahead",
    "witness_root",
}
"""Codes of 503 answers that last until an operator acts, besides those of the guard."""


def _stands(problem: Mapping[str, Any]) -> bool:
    code = str(problem.get("code", ""))
    return code.startswith("guard_") or code in _STANDING


def _problem(response: Response) -> dict[str, Any]:
    """Return the problem document of an error, or what stands for one when the answer is not ours."""
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    text = response.body[:200].decode("utf-8", "replace").strip()
    return {"detail": "".join(c if c.isprintable() else " " for c in text) or "no explanation given"}


def _retry_after(text: str) -> float | None:
    """Return the seconds a Retry-After header asks for, None when there is none that makes sense."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def json_of(response: Response) -> dict[str, Any]:
    """Return the JSON object an answer holds.

    Raises Unreachable when it is something else entirely, and FormatError when it is damaged. Nothing in an answer
    counts until it is verified, so how strictly the wrapping is read does not matter.
    """
    kind = response.headers.get("content-type", "no content type").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Unreachable(f"the answer is {kind}, not JSON: is this the URL of a Muniment log?")
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError) as error:
        raise FormatError("the server's answer is not JSON") from error
    if not isinstance(value, dict):
        raise FormatError("the server's answer is not a JSON object")
    return value
