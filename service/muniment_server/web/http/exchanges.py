"""The ways to answer one of the busiest requests: from memory, once tiles were read, or once a batch was committed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from starlette.responses import Response

from muniment_server.access.callers import ANONYMOUS, Caller
from muniment_server.errors import Refused
from muniment_server.log import Log
from muniment_server.read.flow import Ask, Flow, Step, run
from muniment_server.web.handlers import write
from muniment_server.web.messages import Answer, Request
from muniment_server.web.routes import ROUTES, Route
from muniment_server.web.service import Service
from muniment_server.write.submission import Outcome

Respond = Callable[[Answer | Response], None]

_BY_PATH = {(route.method, route.path): route for route in ROUTES}
TILE, PROOF = _BY_PATH["GET", "/tile/{path:path}"], _BY_PATH["GET", "/proof/inclusion"]


class Exchange(Protocol):
    """A request that is answered here. `owner` is the key that its body comes with, if there is one."""

    @property
    def owner(self) -> str | None:
        """See above."""

    def run(self, body: bytes, respond: Respond) -> None:
        """Answer it, now or later, by calling `respond` once. Never raises."""


class Ready:
    """An answer from memory."""

    __slots__ = ("_answer", "_log", "_route", "_service", "_started")
    owner = None

    def __init__(self, service: Service, route: Route, log: Log, answer: Answer, started: float) -> None:
        self._service, self._route, self._log = service, route, log
        self._answer, self._started = answer, started

    def run(self, body: bytes, respond: Respond) -> None:  # noqa: ARG002 - it has none
        """Send it."""
        respond(self._answer)
        self._service.count(self._route, self._log.row.name, self._answer.status, self._started)


class Cold:
    """A read of what is not in memory. It goes on where reads that share its query call back, or else in a task."""

    __slots__ = ("_flow", "_log", "_respond", "_route", "_service", "_started")
    owner = None

    def __init__(self, service: Service, route: Route, log: Log, flow: Flow[Answer], started: float) -> None:
        self._service, self._route, self._log = service, route, log
        self._flow, self._started = flow, started

    def run(self, body: bytes, respond: Respond) -> None:  # noqa: ARG002 - it has none
        """Begin to read."""
        self._respond = respond
        self._go_on(None)

    def _go_on(self, found: Any) -> None:
        """Give the flow what it asked for, or nothing at first."""
        try:
            step = self._flow.throw(found) if isinstance(found, Exception) else self._flow.send(found)
            if isinstance(step, Ask):
                step.start(self._go_on)
            else:
                self._service.spawn(self._wait(step))
        except StopIteration as done:
            self._finish(done.value, done.value.status)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)

    async def _wait(self, step: Step) -> None:
        try:
            answer = await run(self._flow, step)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)
        else:
            self._finish(answer, answer.status)

    def _fail(self, error: Exception) -> None:
        response = self._service.fail(self._route, self._log.row.name, error)
        self._finish(response, response.status_code)

    def _finish(self, answer: Answer | Response, status: int) -> None:
        self._respond(answer)
        self._service.count(self._route, self._log.row.name, status, self._started)


class Post(NamedTuple):
    """Who posts what where: all that requests with the same head have in common."""

    service: Service
    request: Request
    log: Log
    caller: Caller


class AppendExchange(ABC):
    """An append: it waits for its batch, and is answered from there."""

    __slots__ = ("_respond", "_started", "_submission", "post")
    route: Route

    def __init__(self, post: Post) -> None:
        self.post = post
        self._started = time.perf_counter()

    @property
    def owner(self) -> str | None:
        """The key's name."""
        name = self.post.caller.name
        return None if name == ANONYMOUS else name

    def run(self, body: bytes, respond: Respond) -> None:
        """Submit the entry."""
        self._respond = respond
        _, request, log, caller = self.post
        try:
            self._submission = write.entry_submission(request, log, caller, body)
            log.writer.put(self._submission, self._done)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)

    def _done(self, found: Outcome | Refused) -> None:
        if isinstance(found, Refused):
            self._fail(found)
            return
        try:
            answer = None if self.post.log.traced else self._now(found)
        except Exception as error:  # noqa: BLE001 - the entry is in the log, and its client waits
            self._fail(error)
            return
        if answer is None:
            self.post.service.spawn(self._later(found))
            return
        self._respond(answer)
        self.post.service.count(self.route, self.post.log.row.name, answer.status, self._started)

    @abstractmethod
    def _now(self, outcome: Outcome) -> Answer | None:
        """Return the answer; None when that needs the database."""

    @abstractmethod
    async def _slow(self, outcome: Outcome) -> Answer:
        """Return the answer, whatever it takes."""

    async def _later(self, outcome: Outcome) -> None:
        """Answer a retry, or an entry that was known: its proof needs the database. So may a line of the trace."""
        try:
            await self.post.log.note_answers(self._submission, outcome)
            answer = await self._slow(outcome)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)
            return
        self._respond(answer)
        self.post.service.count(self.route, self.post.log.row.name, answer.status, self._started)

    def _fail(self, error: Exception) -> None:
        response = self.post.service.fail(self.route, self.post.log.row.name, error)
        self._respond(response)
        self.post.service.count(self.route, self.post.log.row.name, response.status_code, self._started)


class Entry(AppendExchange):
    """POST /entries."""

    __slots__ = ()
    route = _BY_PATH["POST", "/entries"]

    def _now(self, outcome: Outcome) -> Answer | None:
        return write.entry_now(self.post.request, self.post.log, self._submission, outcome)

    async def _slow(self, outcome: Outcome) -> Answer:
        return await run(write.entry(self.post.request, self.post.log, self._submission, outcome))


class Plain(AppendExchange):
    """POST /add."""

    __slots__ = ()
    route = _BY_PATH["POST", "/add"]

    def _now(self, outcome: Outcome) -> Answer:
        return write.plain(outcome)

    async def _slow(self, outcome: Outcome) -> Answer:
        return write.plain(outcome)
