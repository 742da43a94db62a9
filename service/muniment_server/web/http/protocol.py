"""HTTP/1.1 with deadlines: uvicorn's protocol, which has none for a client that sends or reads slowly.

What a client must do in time, with `client_seconds` (S) and MIN_RATE:

- send the whole header block within S of the opening, or of the first byte of a later request;
- send the body without a pause longer than S, and at MIN_RATE bytes per second or more after that;
- read the answer the same way;
- on a connection kept open, begin the next request within `keep_alive_seconds`.

What comes too late is answered 408 where the client still waits for an answer, and the connection is closed. A refusal
never overtakes the answers of requests before it: a client would take it for theirs, and log again what was logged.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Hashable
from typing import Any, NoReturn

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from muniment_server.web import problems
from muniment_server.web.http.connections import Connections, Rank
from muniment_server.web.http.cycle import Short
from muniment_server.web.http.exchanges import Exchange
from muniment_server.web.http.fast_path import FastPath
from muniment_server.web.http.framing import MAX_FIELDS, MAX_URL, Framing, body_length
from muniment_server.web.http.head import fault_of, of_target, without_upgrade
from muniment_server.web.http.kept import Kept
from muniment_server.web.http.refusals import MAX_PIPELINED, MIN_RATE, refusal
from muniment_server.web.http.unread import Unread, send_pieces
from muniment_server.web.http.wire import encode, is_reset
from muniment_server.web.messages import Answer, Pieces
from muniment_server.web.room import CLIENT, DRAINED, ENDLESS, GONE, LARGE, Budget, Hold, busy, peer_or_connection

_LINGER = 2.0
_FOREVER = float("inf")
_AT_ONCE = struct.pack("ii", 1, 0)
_STALLED = 1.5  # seconds without progress, or less where there are few, after which a connection gives way to a new one
_HEAVY = 8192  # bytes of an entry whose answer may be LARGE


# What the client is to send next. Plain numbers: each is named several times a request, and to name a member of an
# Enum costs ten times as much.
_OPENED = 0  # anything at all
_HEAD = 1  # the rest of a request line and header
_BODY = 2  # the rest of a body
_ANSWER = 3  # nothing: it waits for its answer
_IDLE = 4  # another request, if it likes
_REFUSED = 5  # nothing that is looked at


def _nothing() -> None:
    """Stand for what follows an answer that is never made."""


class Protocol(HttpToolsProtocol):
    """One connection.

    The sweep of `connections` calls `check` about once a second; nothing here has a timer of its own.
    """

    def __init__(self, *args: Any, connections: Connections, fast_path: FastPath | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = connections
        self._fast_path = fast_path
        self._exchange: Exchange | None = None  # while its body is being received
        self._first = b""  # what came in one piece with the first byte of the request that is being parsed
        self._again = b""  # a head that is to be parsed again, without what the parser would stop at
        self._body = b""
        self._short = Short()
        self._running: Any = None  # the cycle of the request that the application answers; later ones wait behind it
        self._grace = connections.client_seconds
        self._phase = _OPENED
        self._deadline = _FOREVER  # of what the client is to send, on the event loop's clock
        self._framing = Framing()
        self._trailers = 0
        self._busy = False  # whether a request is being answered
        self._refusal: bytes | None = None  # sent after the answers before it; nothing is read any more
        self._peer: Hashable = None  # whose memory this connection takes
        self._unread: Unread  # answers
        self._kept: Kept  # requests that are not complete, or not begun
        self._owed: Hold | None = None  # for a large answer of an exchange, until it is read
        self._waits = False  # whether the next request waits until the answer before it is read
        self._sending: asyncio.Task[None] | None = None  # pieces of an answer
        self._dropping = True  # whether what comes for nothing is read, or waits for the next sweep
        self._end: Callable[[], None] | None = None  # ends the answer, where it has no end by itself
        self._endless_since = 0.0
        self._stopping = False  # whether the server stops

    # --- the connection ---

    def connection_made(self, transport: Any) -> None:
        """Count the connection, or answer 503 and close it."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(LARGE)
        self._peer = peer_or_connection(self.client)
        self._unread = Unread(transport, self._grace)
        self._kept = Kept(self._all.rooms, self._peer)
        self._deadline = self.loop.time() + self._grace
        reason = self._all.admit(self, self.client[0] if self.client else None)
        if reason:
            self._all.refused(reason)
            self._refusal = refusal(reason, self._grace)
            transport.write(self._refusal)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take it off the count."""
        self._all.closed(self)
        self._kept.forget()
        self._owe(0)
        if self._end is not None:
            self._end()
        if self._running is not None:  # uvicorn tells the last one that came, and this one would go on for no client
            self._running.disconnected = True
            self._running.message_event.set()
        for cycle, _ in self.pipeline:
            cycle.on_response = _nothing  # it never runs, and would keep this connection in memory, which keeps it
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. Never raises; whatever is not HTTP is refused."""
        if self._refusal is not None:
            self._drop(len(data))
            return
        if self._phase in (_OPENED, _IDLE):
            if self._fast_path is not None and self._answer_whole(self._fast_path, data):
                return
            self._first = data
        try:
            self._parse(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # the parser reads no further, and no protocol to change to is offered
        except httptools.HttpParserError:
            if self._refusal is None:
                self._reject("bad_request")
        self._first = b""  # otherwise it would stay in memory for as long as a head takes
        self._count_what_waits(len(data))

    def _parse(self, data: bytes) -> None:
        """Parse a segment, cut where its parts end: only then is it known how much of it is no body."""
        at, view = 0, memoryview(data)
        while at < len(data) and self._refusal is None:
            end = self._framing.piece(data, at, fresh=self._phase not in (_HEAD, _BODY))
            if end == at:
                self._refuse_framing()
                return
            try:
                self.parser.feed_data(view[at:end])
            except httptools.HttpParserUpgrade as stopped:
                self._parse_again(view[at + stopped.args[0] : end])
            at = end

    def _parse_again(self, rest: memoryview) -> None:
        """Begin anew with a head that asked for another protocol: none is offered, and the body belongs to it.

        CONNECT has no body, and nothing of what follows it is for this server.
        """
        again, self._again = self._again, b""
        if not again:
            raise httptools.HttpParserUpgrade(0)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(again)
        self.parser.feed_data(rest)

    def _count_what_waits(self, came: int) -> None:
        if self._refusal is None and (
            self._phase == _HEAD or self._exchange is not None or self.pipeline or self._kept
        ):
            self._count_kept(came)

    def _count_kept(self, came: int) -> None:
        """Count what is in memory of requests that are not complete or not begun, or refuse it."""
        exchange = self._exchange
        if self.pipeline:  # nothing more is read until they have begun
            self._kept.queue_bytes(came)
        if exchange is not None:
            kept = self._kept.is_entry(len(self._body), exchange.owner)
        elif self._phase == _HEAD:
            kept = self._kept.is_head(self._framing.sent, len(self.headers))
        else:
            kept = self._kept.is_head(0, 0)
        if not kept:
            if self.pipeline:
                self.pipeline.clear()
                self._phase = _ANSWER
            self._reject("busy")

    def _answer_whole(self, fast_path: FastPath, data: bytes) -> bool:
        """Answer a plain request without the parser.

        Such a request is here from its first byte to its last, and its fields are known.
        """
        found = None if self.flow.write_paused else fast_path.find_whole(data)
        if found is None:
            return False
        self.cycle = self._short = Short()  # type: ignore[assignment]  # not uvicorn's own
        self._busy = True
        self._phase = _ANSWER
        self._deadline = _FOREVER
        self._run(*found)
        return True

    def _run(self, exchange: Exchange, body: bytes) -> None:
        """Have an exchange answer.

        Who appends a large entry has to have room for its answer first: it must be sent then.
        """
        if len(body) > _HEAVY and not self._owe(2 * len(body)):
            self._all.refused("busy")
            self._respond(problems.answer(busy()))
        else:
            exchange.run(body, self._respond if body else self._respond_read)

    def _owe(self, size: int) -> bool:
        """Hold room for an answer, of `size` bytes until it is read. Returns False where there is none.

        A client that has left, while its answer was made, reads nothing: what were held for it now would stay so.
        """
        if self._owed is None:
            if not size or self.transport.is_closing():
                return True
            self._owed = Hold(self._all.rooms.answers, self._peer)
        held = self._owed.grow(size)
        if not self._owed.size:
            self._owed = None
        return held

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """Start the clock of a request."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        if self._phase != _OPENED:
            self._deadline = self.loop.time() + self._grace
        self._phase = _HEAD
        self._trailers = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field, and drop a trailer: the request was handed on without it, unless it all came at once."""
        if self._phase != _HEAD:
            self._trailers += 1
            if self._trailers > MAX_FIELDS:
                self._stop("framing_too_large")
            return
        name, value = name.lower(), value.rstrip(b" \t")  # the parser takes off only what stands before it
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_FIELDS:
            self._stop("headers_too_large")

    def on_chunk_header(self) -> None:
        """Take note of where a chunk begins."""
        self._framing.chunk_begins()

    def on_headers_complete(self) -> None:
        """Hand the request to the application, or queue it behind the one being answered."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            head = self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
            self._again = without_upgrade(*head)
            return
        self._check_head()
        self._framing.head_ends(body_length(self.headers))
        self._exchange = self._find_exchange()
        self._first = b""
        if self._exchange is not None:
            self._body = b""
            self.cycle = self._short = Short()  # type: ignore[assignment]  # not uvicorn's own
        else:
            self._hand_over()
            if self.pipeline:
                self._kept.queue_request(len(self.headers))
        self._busy = True
        self._phase = _BODY
        self._deadline = self.loop.time() + self._grace

    def _check_head(self) -> None:
        """Refuse what the parser takes, and others would not."""
        if len(self.url) > MAX_URL:
            self._stop("url_too_long")
        if b"#" in self.url:  # uvicorn drops it, and a tile would have many URLs
            self._stop("fragment")
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop("pipelining")
        reason = fault_of(self.parser.get_http_version(), self.headers)
        if reason:
            self._stop(reason)
        if self.url[:1] not in b"/*" and self.parser.get_method() != b"CONNECT":
            self.headers = of_target(self.url, self.headers) or self._stop("host")

    def _find_exchange(self) -> Exchange | None:
        """Return how to answer this request here.

        Not while another one is being answered, or its answer not yet read.
        """
        before: Any = self.cycle  # None on a connection that had no request yet
        idle = before is None or before.response_complete
        if self._fast_path is None or not idle or self.flow.write_paused or not self.parser.should_keep_alive():
            return None
        if self.parser.get_http_version() != "1.1":
            return None
        head = self._fast_path.head(self.headers)
        exchange = self._fast_path.find(self.parser.get_method(), self.url, head)
        if exchange is not None and self._first:
            self._fast_path.remember(self._first, head)
        return exchange

    def _hand_over(self) -> None:
        """Give the request to the application."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, which nothing else needs
        self.url, self.headers, self.expect_100_continue = url, headers, expect
        self.scope["headers"] = headers
        self.scope["extensions"] = {
            CLIENT: {DRAINED: self.flow.drain, GONE: self.transport.is_closing, ENDLESS: self._be_endless}
        }
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, and give the client time for the next."""
        if self.cycle.response_complete:
            self._drop(len(body))  # a client that was answered already is not given more time to go on sending
            return
        if self._exchange is not None:
            self._body += body  # no longer than its Content-Length, which was looked at
        else:
            super().on_body(body)
        self._deadline = min(self._deadline + len(body) / MIN_RATE, self.loop.time() + self._grace)

    def on_message_complete(self) -> None:
        """Stop the clock: now the client waits for this server."""
        if self._again:
            return
        self._framing.message_ends()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._phase = _ANSWER
            self._deadline = _FOREVER
            self._run(exchange, self._body)
            return
        super().on_message_complete()
        if self._busy:
            self._phase = _ANSWER
            self._deadline = _FOREVER
        else:
            self._rest()

    def _respond(self, answer: Answer | Response) -> None:
        """Send the answer of the exchange that runs on this connection.

        There is one at a time, and later requests wait behind it.
        """
        short = self._short
        short.response_complete = True
        if self.transport.is_closing():
            return
        data = encode(answer, self.server_state.default_headers, keep_alive=short.keep_alive)
        if short.keep_alive and len(data) <= LARGE:
            self._all.outbox.add(self.transport, data)
        else:
            self._write_at_once(data)
        if self._owed is not None and not self.flow.write_paused:
            self._owe(0)
        if not short.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _respond_read(self, answer: Answer | Response) -> None:
        """As :meth:`_respond`, to what changed nothing: it may be refused where there is no room until it is read."""
        if isinstance(answer, Answer) and answer.pieces and not self.transport.is_closing():
            self._sending = self.loop.create_task(self._send_pieces(answer, answer.pieces))
        elif isinstance(answer, Answer) and len(answer.body) > LARGE and not self._owe(len(answer.body)):
            self._all.refused("busy")
            self._respond(problems.plain(busy()))
        else:
            self._respond(answer)

    async def _send_pieces(self, answer: Answer, pieces: Pieces) -> None:
        """Send an answer as it is read: no more than a piece of it is in memory."""
        short = self._short
        self._write_at_once(encode(answer, self.server_state.default_headers, keep_alive=short.keep_alive))
        if not await send_pieces(self.transport, self.flow.drain, pieces, Budget(self._all.rooms, self.client)):
            if not self.transport.is_closing():
                self.reset()
            return
        short.response_complete = True
        if not short.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request. Instead of uvicorn's own, which makes a timer for each answer."""
        self.server_state.total_requests += 1
        self._running = self._end = None
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._waits = self.flow.write_paused
            if not self._waits:
                self._begin_next()
            return
        self._busy = False
        if self._refusal is not None:
            self._send_refusal()
            return
        if self.flow.write_paused:
            self.flow.pause_reading()  # a client that does not read is not listened to
        elif self.flow.read_paused:
            self.flow.resume_reading()
        if self._phase == _ANSWER:
            self._rest()
        elif self._phase == _BODY:
            self._deadline = (
                self.loop.time() + self._grace
            )  # answered before the body was here: it is dropped, but not for ever

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _begin_next(self) -> None:
        """Begin the first of the requests that wait. Only behind the last one more of them are read."""
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self._kept.begun()
            self.flow.resume_reading()
        self._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        """Go on with the connection: its answers are read."""
        super().resume_writing()
        if self._owed is not None:
            self._owe(0)
        if self._waits:
            self._waits = False
            self._begin_next()
        elif not self._busy:
            self.flow.resume_reading()

    def _write_at_once(self, data: bytes) -> None:
        self._all.outbox.flush()  # an answer to an earlier request may wait there
        self.transport.write(data)

    def shutdown(self) -> None:
        """End the connection, once what is being answered is. An answer without an end is ended."""
        self._stopping = True
        self._all.outbox.flush()
        super().shutdown()
        if self._end is not None:
            self._end_at_once(self._end)

    def _be_endless(self, end: Callable[[], None]) -> Callable[[bytes], bool] | None:
        """Take note that the answer which begins has no end, and of what ends it.

        The kernel keeps little of it for a client that does not read; else it would keep megabytes for each.
        """
        self._end, self._endless_since = end, self.loop.time()
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE)
        if self._stopping or self.transport.is_closing():
            end()
        return self._write_chunk

    def _write_chunk(self, data: bytes) -> bool:
        """Send a piece of an endless answer, as uvicorn would. Returns False where one before it is not sent."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size() or not self._running.chunked_encoding:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _end_at_once(self, end: Callable[[], None]) -> None:
        """End an answer without waiting for a client that has not read what it was sent: it can go on with the next."""
        if self.transport.get_write_buffer_size():
            self.reset()
        else:
            end()

    def _rest(self) -> None:
        self._phase = _IDLE
        self._deadline = self.loop.time() + self._all.keep_alive_seconds

    # --- deadlines ---

    def check(self, now: float) -> None:
        """End what took too long."""
        self._all.outbox.flush()
        if not self._dropping:
            self._dropping = True
            self.flow.resume_reading()
        if self.flow.read_paused and is_reset(self.transport.get_extra_info("socket")):
            self.transport.abort()  # the event loop does not look at it while nothing is read from it
            return
        if now > self._deadline:
            self._late(now)
        if self._unread.is_late(now):
            self._all.refused("slow_reader")
            self.reset()

    def rank(self, now: float) -> Rank | None:
        """See Watched.

        First a client that asked nothing, then one that was answered, then one that neither sends nor reads. Last one
        that follows a log: it can go on later.
        """
        late = now + self._grace - min(_STALLED, self._grace / 2)
        if self.transport.get_write_buffer_size():
            return (2, self._unread.by) if self._unread.by < late else None
        if self._phase == _BODY:
            waits = self.pipeline or (self._busy and (self.flow.read_paused or self.cycle.waiting_for_100_continue))
            return (2, self._deadline) if self._deadline < late and not waits else None
        if self._busy:
            return None if self._end is None else (3, self._endless_since)
        return (1 if self._phase == _IDLE else 0, self._deadline)

    def give_way(self) -> None:
        """Close; a client in the middle of a request is told why."""
        if self.transport.get_write_buffer_size():
            self.reset()
            return
        if self._phase == _HEAD or (self._phase == _BODY and self._drop_request()):
            self._write_at_once(refusal("too_many", self._grace))
        self._refusal = b""  # nothing is read any more
        self.transport.close()

    def reset(self) -> None:
        """Drop the connection with what is unsent.

        Otherwise the kernel would keep megabytes for a reader that never reads.
        """
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _late(self, now: float) -> None:
        if self._phase == _IDLE:
            self.transport.close()
        elif self._phase == _REFUSED:
            self.reset()
        elif self._phase == _OPENED:
            self._all.refused("silent")
            self.transport.close()
        elif self._phase == _HEAD:
            self._reject("header_timeout")
        elif self._busy and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self._deadline = now + self._grace  # it is this server that takes its time
        else:
            self._reject("body_timeout")

    # --- refusals ---

    def _stop(self, reason: str) -> NoReturn:
        """Refuse what the parser is at. Raises ValueError: it stops for nothing else."""
        self._reject(reason)
        raise ValueError(reason)

    def _refuse_framing(self) -> None:
        """Refuse what is beyond the limit of everything that is no body."""
        if self._phase == _BODY:
            self._reject("framing_too_large")
        elif self._phase == _HEAD:
            self._reject("url_too_long" if len(self.url) > MAX_URL else "headers_too_large")
        else:
            self._reject("blank_lines")

    def _reject(self, reason: str) -> None:
        """Refuse what is being received, and read nothing more. Requests before it get their answers first."""
        self._all.refused(reason)
        self._refusal = refusal(reason, self._grace)
        self._deadline = _FOREVER
        self.headers = []  # it lingers for seconds, and there may be thousands of them
        self._body = b""
        if not self.pipeline:
            self._kept.forget()
        if self._phase == _BODY and not self._drop_request():
            return
        if self._busy:
            self.flow.pause_reading()
        else:
            self._send_refusal()

    def _drop(self, size: int) -> None:
        """Take note that bytes came for nothing. Those who send much of that would take all the time of the others."""
        if not self._all.may_drop(size):
            self._dropping = False
            self.flow.pause_reading()

    def _drop_request(self) -> bool:
        """Forget the request whose body does not come.

        False when it was answered already: then there is nothing to say.
        """
        cycle = self.cycle
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # it has not begun
            return True
        self._busy = False
        if cycle.response_started:
            self.reset()
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _send_refusal(self) -> None:
        """Send it, and drop what still comes for a while.

        Closing at once would reset the connection, and the answer be lost.
        """
        self._phase = _REFUSED
        self._deadline = self.loop.time() + min(_LINGER, self._grace)
        self._write_at_once(self._refusal or b"")
        self.transport.write_eof()
        self.flow.resume_reading()
