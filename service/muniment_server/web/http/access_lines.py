"""A line for each request, and its id in the answer: the protocol that is used where `access_log` is on.

The plain one knows nothing of it, so that requests cost no more where it is off.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muniment_server.telemetry import bind_to_lines, get_logger
from muniment_server.web.http.exchanges import Exchange
from muniment_server.web.http.fast_path import FastPath
from muniment_server.web.http.protocol import Protocol
from muniment_server.web.messages import Answer, Pieces

FIELD = "x-request-id"
_PROCESS = secrets.token_hex(4)
_NUMBERS = itertools.count(1)


_KEY = re.compile(r"mk_[A-Za-z0-9_-]{20,}")
"""An API key, which has its place in a header field. One in a query is refused, and must not be kept in a log."""


class Line:
    """What is said of one request: its id and where it came from, and when it is answered, with what."""

    def __init__(self, method: str, target: bytes, client: Any) -> None:
        self.request = f"{_PROCESS}-{next(_NUMBERS)}"
        self._method, self._target = method, _KEY.sub("mk_...", target.decode("latin-1"))
        self._client = client[0] if client else "unix"
        self._started = time.perf_counter()

    def write(self, status: int) -> None:
        """Say it. `status` 0: the client left, or was cut off, before there was an answer."""
        get_logger().info(
            "request",
            request=self.request,
            method=self._method,
            target=self._target,
            status=status,
            seconds=round(time.perf_counter() - self._started, 6),
            client=self._client,
        )

    def mark(self, answer: Answer) -> Answer:
        """Return the answer with the id."""
        return answer._replace(fields=answer.fields + f"{FIELD}: {self.request}\r\n".encode())

    def of(self, answer: Answer | Response) -> Answer | Response:
        """Say that this is the answer, and return it with the id."""
        if isinstance(answer, Answer):
            self.write(answer.status)
            return self.mark(answer)
        self.write(answer.status_code)
        answer.headers[FIELD] = self.request
        return answer


class LoggedProtocol(Protocol):
    """Says of each request how it was answered. What is refused before it is a request has a line of its own."""

    _line: Line  # of the request that an exchange answers: one at a time

    def _answer_whole(self, fast_path: FastPath, data: bytes) -> bool:
        method, _, rest = data[: data.find(b"\r\n")].partition(b" ")
        self._line = Line(method.decode("latin-1"), rest.partition(b" ")[0], self.client)
        return super()._answer_whole(fast_path, data)

    def _find_exchange(self) -> Exchange | None:
        found = super()._find_exchange()
        if found is not None:  # else another one may be running, and its line is not said yet
            self._line = Line(self.parser.get_method().decode("latin-1"), self.url, self.client)
        return found

    def _respond(self, answer: Answer | Response) -> None:
        super()._respond(self._line.of(answer))

    async def _send_pieces(self, answer: Answer, pieces: Pieces) -> None:
        self._line.write(answer.status)
        await super()._send_pieces(self._line.mark(answer), pieces)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        super()._start_asgi_task(cycle, _logged(app))


def _logged(app: ASGIApp) -> ASGIApp:
    """Return the application with a line for each request. Lines that are written on the way have its id too."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        line, status = Line(scope["method"], target, scope["client"]), 0
        bind_to_lines(request=line.request)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (FIELD.encode(), line.request.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        finally:
            line.write(status)

    return answer
