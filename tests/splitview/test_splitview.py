"""The client meets a log that misbehaves, in each way of the table: what it can catch it catches, under the right name.

And no more: what harms no reader is taken, and what a client cannot see is said in docs/threat-model.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from muniment import Client
from muniment.client import Retries
from muniment.errors import Inconsistent, VerificationError
from muniment.evidence import verify
from muniment.state import MemoryState, State
from tests.splitview.liar import SIZE, Liar, lying
from tests.splitview.misbehaviours import OTHER_ADDRESS, OTHER_KEY, OTHER_READER, TABLE, Misbehaviour

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
ROWS = [pytest.param(row, id=row.name) for row in TABLE.values()]


def of(*caught: str) -> list[Misbehaviour]:
    return [row for row in TABLE.values() if row.caught in caught]


def reader(liar: Liar, url: str, state: State | None = None, **options: object) -> Client:
    retries = Retries(tries=2, first_delay=0.0)
    return Client(url, policy=liar.policy, state=state, retries=retries, **options)  # type: ignore[arg-type]


@pytest.fixture
def met(request: pytest.FixtureRequest) -> Iterator[tuple[Misbehaviour, Liar, Client]]:
    """A log that misbehaves since its client has seen it honest."""
    row: Misbehaviour = request.param
    with lying(row) as (liar, url), reader(liar, url) as client:
        client.checkpoint()
        row.before(client)
        liar.begin()
        yield row, liar, client


@pytest.mark.parametrize("met", [row for row in ROWS if row.values[0].caught == "client"], indirect=True)
def test_what_a_client_can_catch_it_catches(met: tuple[Misbehaviour, Liar, Client]) -> None:
    row, liar, client = met
    assert row.error is not None
    with pytest.raises(row.error) as caught:
        row.meets(client)
    assert type(caught.value) is row.error or not isinstance(caught.value, VerificationError)
    if isinstance(caught.value, Inconsistent):
        assert verify(caught.value.evidence, liar.policy).first.origin == liar.honest.origin
    with pytest.raises(row.error):
        row.meets(client)  # nothing of it was taken: it is caught as often as it is met


@pytest.mark.parametrize("met", [row for row in ROWS if row.values[0].caught != "client"], indirect=True)
def test_what_a_client_cannot_see_or_need_not(met: tuple[Misbehaviour, Liar, Client]) -> None:
    row, _, client = met
    assert row.error is None
    row.meets(client)


def test_an_honest_log_is_not_accused() -> None:
    """What a client does to notice a misbehaviour goes well where there is none."""
    with lying() as (liar, url):
        for row in TABLE.values():
            with reader(liar, url) as client:
                row.before(client)
                row.meets(client)


OTHERS = {
    "equivocates-by-key": {"api_key": OTHER_KEY.removeprefix("Bearer ")},
    "equivocates-by-user-agent": {"transport": OTHER_READER},
    "equivocates-by-address": {"transport": OTHER_ADDRESS},
}


def other_reader(liar: Liar, url: str, row: Misbehaviour, state: State) -> Client:
    """The reader who is shown the other history."""
    options = dict(OTHERS[row.name])
    if options.get("transport") == OTHER_ADDRESS:
        options["transport"] = httpx.HTTPTransport(local_address=OTHER_ADDRESS)  # type: ignore[assignment]
    elif "transport" in options:
        options["transport"] = Disguised()  # type: ignore[assignment]
    return reader(liar, url, state, **options)


class Disguised(httpx.HTTPTransport):
    """Sends under another name."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["User-Agent"] = OTHER_READER
        return super().handle_request(request)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in of("witnesses")])
def test_each_sees_one_history_and_both_together_see_two(row: Misbehaviour) -> None:
    one, other = MemoryState(), MemoryState()
    with lying(row) as (liar, url):
        with reader(liar, url, one) as first:
            liar.begin()
            mine = first.checkpoint()
            list(first.entries(SIZE - 5))
        with other_reader(liar, url, row, other) as second:
            theirs = second.checkpoint()
            list(second.entries(theirs.checkpoint.size - 5))
            evidence = second.evidence(mine, theirs)
            assert evidence is not None
            assert verify(evidence, liar.policy).second == theirs.checkpoint
        with other_reader(liar, url, row, one) as both, pytest.raises(Inconsistent):
            both.checkpoint()


def test_the_page_says_what_cannot_be_caught_without_others() -> None:
    section = PAGE.read_text().partition("## What a log can do unseen")[2]
    for row in of("monitor", "witnesses"):
        assert f"| `{row.name}` | {row.what} |" in section
    for row in of("client", "none"):
        assert f"`{row.name}`" not in section
