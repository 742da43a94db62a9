"""Follows many logs at once, until it is told to end, or one look at each."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from muniment.errors import RequestError, StateError, StateUnavailable
from muniment.event import format_time
from muniment.monitor import metrics
from muniment.monitor.follower import Follower, Status, contradicts
from muniment.monitor.hooks import Webhook
from muniment.monitor.reading import Absent, Mismatch
from muniment.monitor.reporter import Say

PATIENT = 60.0
"""Seconds between two looks, at least, while each reads much again to find the same: after a fork, on a wrong root."""
METRICS_EVERY = 5.0


class Running:
    """All logs of one monitor. Belongs to one event loop."""

    def __init__(
        self, followers: Sequence[Follower], webhook: Webhook | None, metrics_file: Path | None, say: Say
    ) -> None:
        self.followers = followers
        self._webhook = webhook
        self._metrics_file = metrics_file
        self._say = say

    async def once(self) -> int:
        """Look at every log once, send what was found, and return the exit code. Raises StateError."""
        await asyncio.gather(*(self._look(one) for one in self.followers))
        if self._webhook:
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await self._webhook.deliver_all()
        self._write_metrics()
        return self.exit_code()

    def exit_code(self) -> int:
        """Return the exit code of what was found: a finding first, then what kept from looking."""
        found = [one.status or Status.GOOD for one in self.followers]
        if Status.FOUND in found or any(one.reporter.bad for one in self.followers):
            return Status.FOUND
        return max(found, default=Status.GOOD)

    async def forever(self, interval: float) -> None:
        """Look at every log again and again, until cancelled. Raises StateError when what is remembered is damaged."""
        async with asyncio.TaskGroup() as tasks:
            for one in self.followers:
                tasks.create_task(self._follow(one, interval))
            if self._webhook:
                tasks.create_task(self._webhook.run())
            tasks.create_task(self._keep_metrics())

    def save(self) -> None:
        """Keep what was read so far; what cannot be kept is read again."""
        for one in self.followers:
            with suppress(StateUnavailable):
                one.book.save()

    async def _follow(self, one: Follower, interval: float) -> None:
        full = ""
        while True:
            try:
                await self._look(one)
                full = ""
            except StateUnavailable as error:  # a full disk: what is found is said all the same, and looked at again
                if str(error) != full:
                    full = str(error)
                    self._say(_status(one, "state", full))
            await asyncio.sleep(max(interval, PATIENT) if one.costly and self._known(one) else interval)

    def _known(self, one: Follower) -> bool:
        """Tell whether what is wrong with a log was reported already: then there is no hurry to see it again."""
        return bool(one.book.memory.forked) or any(known["told"] for known in one.book.memory.suspicions.values())

    async def _look(self, one: Follower) -> None:
        before = one.book.memory.note
        await one.look()
        if one.book.memory.note != before or not before:
            await self._compare(one)

    async def _compare(self, one: Follower) -> None:
        """Compare a log with the same log at other URLs: two readers may be shown two histories."""
        known = one.book.known()
        for other in self.followers:
            theirs = other.book.known()
            if other is one or not known or not theirs or known.checkpoint.origin != theirs.checkpoint.origin:
                continue
            larger, smaller = (one, theirs) if known.checkpoint.size >= theirs.checkpoint.size else (other, known)
            # What cannot be had now is compared when either has grown.
            with suppress(Absent, Mismatch, RequestError):
                fork = await contradicts(larger.source, larger.book, smaller)
                if fork:
                    for each in (one, other):
                        each.forked(fork, each.clock())
                        each.book.save()

    async def _keep_metrics(self) -> None:
        while self._metrics_file:
            with suppress(StateUnavailable):
                self._write_metrics()
            await asyncio.sleep(METRICS_EVERY)

    def _write_metrics(self) -> None:
        if self._metrics_file:
            metrics.write(self._metrics_file, self.followers, self._webhook)


def _status(one: Follower, status: str, detail: str) -> dict[str, Any]:
    line = {"event": "status", "url": one.source.url, "origin": one.book.memory.origin, "status": status}
    return line | {"detail": detail, "seen_at": format_time(one.clock())}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other monitors out of a folder, which is made. Raises StateError."""
    try:
        for made in (folder, folder / "logs"):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnavailable(f"cannot use {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StateError(f"another monitor works in {folder}: each needs a folder of its own") from None
    finally:
        os.close(descriptor)
