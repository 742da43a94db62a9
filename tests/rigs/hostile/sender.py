"""Sends cases to a server and judges each answer by itself: status, form, time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from muniment_server.web.problems import CODES
from tests.rigs.hostile.case import Case
from tests.service.http_raw import Answer, address

LANES = 4
SLOW_SECONDS = 0.1
TOO_SLOW_SECONDS = 1.0
WAIT_SECONDS = 30.0
_CLOSED = (OSError, asyncio.IncompleteReadError)
RAW = "raw"


@dataclass
class Tally:
    """What came back. `announced` are the indices that answers named, by origin; /add names none, so it counts as RAW."""

    counts: Counter[str] = field(default_factory=Counter)
    announced: dict[str, set[int]] = field(default_factory=dict)
    slowest: float = 0.0
    slowest_case: str = ""
    lost: int = 0  # connections that ended without an answer

    def time(self, case: Case, seconds: float) -> None:
        self.counts["over 100 ms"] += seconds > SLOW_SECONDS
        if seconds > self.slowest:
            self.slowest, self.slowest_case = seconds, case.name

    def announce(self, origin: str, indices: Sequence[int]) -> None:
        self.announced.setdefault(origin, set()).update(indices)


async def send_all(url: str, cases: Sequence[Case], tally: Tally) -> None:
    """Send every case; those that need a connection of their own side by side with the others."""
    waiting = deque(case for case in cases if not case.alone)
    gate = asyncio.Semaphore(64)
    lanes = [_lane(url, waiting, tally) for _ in range(LANES)]
    await asyncio.gather(*lanes, *(exclusive(url, case, tally, gate) for case in cases if case.alone))


async def _lane(url: str, waiting: deque[Case], tally: Tally) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while waiting:
        case = waiting.popleft()
        connection, seconds = await _once(url, case, tally, connection)
        for _ in range(3):  # the machine is shared: only what is slow again and again is slow
            if seconds <= TOO_SLOW_SECONDS:
                break
            tally.counts["sent again"] += 1
            connection, seconds = await _once(url, case, tally, connection)
        else:
            raise AssertionError(f"{case.name}: takes {seconds:.1f} s")
    if connection:
        connection[1].close()


async def _once(
    url: str, case: Case, tally: Tally, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None
) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, float]:
    for attempt in range(3):  # this process may have stood still, and the connection was idle for too long
        reader, writer = connection or await asyncio.open_connection(*address(url), limit=2**26)
        started = time.perf_counter()
        try:
            writer.write(case.data)
            answer = await asyncio.wait_for(_answer(reader, head=case.head), WAIT_SECONDS)
            break
        except _CLOSED as error:
            connection = None
            tally.lost += 1
            tally.counts["sent again"] += 1
            if attempt == 2:
                raise AssertionError(f"{case.name}: closed without an answer ({error!r})") from error
    seconds = time.perf_counter() - started
    tally.time(case, seconds)
    judge(case, answer, tally)
    if answer.headers.get("connection") == "close":
        writer.close()
        return None, seconds
    return (reader, writer), seconds


async def exclusive(url: str, case: Case, tally: Tally, gate: asyncio.Semaphore) -> None:
    async with gate:
        reader, writer = await asyncio.open_connection(*address(url), limit=2**26)
        answers = 0
        try:
            writer.write(case.data)
            while not reader.at_eof():
                answer = await asyncio.wait_for(_answer(reader, head=case.head), WAIT_SECONDS)
                answers += 1
                judge(case, answer, tally)
        except _CLOSED:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        tally.lost += not answers
        tally.counts["closed without an answer"] += not answers


async def _answer(reader: asyncio.StreamReader, *, head: bool) -> Answer:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.rstrip("\r\n").split("\r\n")
    status = int(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status == 100:
        return await _answer(reader, head=head)
    length = 0 if head or status in (204, 304) else int(headers.get("content-length", "0"))
    assert "transfer-encoding" not in headers, "no route streams"
    return Answer(status, headers, await reader.readexactly(length))


# --- judging ------------------------------------------------------------------------------------------------------------


_NOT_SPOKEN = (501, 505)
"""What RFC 9110 has for transfer codings and versions of HTTP that a server does not speak."""


def judge(case: Case, answer: Answer, tally: Tally) -> None:
    """Assert that an answer is one the case may get. Counts it."""
    where = f"{case.name}: {answer.status} {answer.body[:300]!r} to {case.data[:300]!r}"
    assert answer.status < 500 or answer.status in _NOT_SPOKEN, where
    assert not case.expect or answer.status in case.expect, f"{where}; expected {sorted(case.expect)}"
    tally.counts[f"{answer.status // 100}xx"] += 1
    if answer.status >= 400:
        _check_refusal(case, answer, where)
    else:
        assert answer.status in (200, 201, 204, 304), where
        _check_taken(case, answer, tally, where)


def _check_refusal(case: Case, answer: Answer, where: str) -> None:
    if case.head:
        return
    assert answer.headers.get("cache-control") == "no-store", where
    if answer.headers["content-type"].startswith("text/plain"):
        target = case.data.lstrip().split(b"\r\n", 1)[0]
        assert any(part in target for part in (b"tile", b"checkpoint", b"add", b"%")), f"C2SP text elsewhere: {where}"
        assert answer.body.endswith(b"\n"), where
        assert answer.body.count(b"\n") == 1, where
        return
    assert answer.headers["content-type"] == "application/problem+json", where
    value = json.loads(answer.body)
    assert value["status"] == answer.status, where
    assert value["code"] in CODES, where
    assert value["code"] != "internal", where
    assert value["hint"], where
    assert value["detail"], where
    assert (answer.status == 405) == ("allow" in answer.headers), where
    assert (answer.status == 401) == ("www-authenticate" in answer.headers), where


def _check_taken(case: Case, answer: Answer, tally: Tally, where: str) -> None:
    if case.head or answer.status == 304:
        return
    kind = answer.headers.get("content-type", "")
    if case.lie:
        assert json.loads(answer.body)["verified"] is False, f"A LIE WAS BELIEVED: {where}"
    elif kind == "application/json" and case.data.startswith(b"POST"):
        _announce(json.loads(answer.body), tally)
    elif kind.startswith("text/plain") and case.data.startswith(b"POST"):
        _announce_text(answer.body.decode(), tally)


def _announce(value: dict[str, object], tally: Tally) -> None:
    if isinstance(value.get("index"), int) and "origin" in value:
        tally.announce(str(value["origin"]), [int(str(value["index"]))])
    elif "indices" in value and "checkpoint" in value:
        ranges: list[list[int]] = value["indices"]  # type: ignore[assignment]
        indices = [index for low, high in ranges for index in range(low, high)]
        tally.announce(str(value["checkpoint"]).split("\n", 1)[0], indices)


def _announce_text(text: str, tally: Tally) -> None:
    if text.isdecimal():
        tally.announce(RAW, [int(text)])
        return
    lines = text.split("\n")
    index = next(int(line.removeprefix("index ")) for line in lines if line.startswith("index "))
    tally.announce(lines[lines.index("") + 1], [index])
