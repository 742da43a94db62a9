"""Answers of unknown length: each piece is read before the next one is made, and what is cut off shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from muniment_server.settings import Settings
from muniment_server.web.messages import OCTETS, Answer
from muniment_server.web.room import Budget, Rooms


class Pieces:
    """Three pieces that take room, or fewer when it `breaks`; notes when each is asked for."""

    length = None

    def __init__(self, seen: list[str], *, breaks: bool = False) -> None:
        self._seen = seen
        self._breaks = breaks

    async def pieces(self, budget: Budget) -> AsyncGenerator[bytes]:
        try:
            for number in range(3):
                if self._breaks and number:
                    raise ValueError("it is gone")
                budget.give_back()
                assert budget.cover(100_000)
                self._seen.append(f"made {number}")
                yield b"%d" % number
        finally:
            self._seen.append("closed")


async def exchange(answer: Answer, seen: list[str], *, method: str = "GET", leaves_after: int = 99) -> Rooms:
    """Have an answer sent to a client that reads, and leaves after a number of pieces."""
    rooms = Rooms.of(Settings(data=Path("/nonexistent")))

    async def drained() -> None:
        await asyncio.sleep(0)
        seen.append("read")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = [name.decode() for name, _ in message["headers"]]
            seen.append(f"{message['status']} {' '.join(names)}")
        else:
            seen.append(f"sent {message['body'].decode()}" if message.get("more_body") else "end")

    budget = Budget(rooms, ("192.0.2.1", 1), drained, lambda: seen.count("read") >= leaves_after)
    await answer.response(budget)({"type": "http", "method": method}, None, send)  # type: ignore[arg-type]
    return rooms


HEAD = "200 etag content-type"


async def test_each_piece_is_read_before_the_next_is_made() -> None:
    seen: list[str] = []
    rooms = await exchange(Answer(b"", OCTETS, 200, b"etag: x\r\n", Pieces(seen)), seen)
    pieces = [step for n in range(3) for step in (f"made {n}", f"sent {n}", "read")]
    assert seen == [HEAD, *pieces, "closed", "end"]
    assert rooms.answers.taken == 0


@pytest.mark.parametrize("breaks", [True, False])
async def test_what_is_cut_off_has_no_end(*, breaks: bool) -> None:
    """The server closes the connection then, and the client sees that something is missing."""
    seen: list[str] = []
    answer = Answer(b"", OCTETS, 200, b"etag: x\r\n", Pieces(seen, breaks=breaks))
    rooms = await exchange(answer, seen, leaves_after=99 if breaks else 1)
    assert seen == [HEAD, "made 0", "sent 0", "read", "closed"]
    assert rooms.answers.taken == 0


async def test_nothing_is_made_for_a_client_that_asks_for_the_head() -> None:
    seen: list[str] = []
    await exchange(Answer(b"", OCTETS, 200, b"etag: x\r\n", Pieces(seen)), seen, method="HEAD")
    assert seen == [HEAD, "end"]
