"""The busiest requests, answered without the ASGI application: it costs several times what the log itself does.

Only what is plain and well-formed is answered here, by the very functions that the application calls. Whatever is odd
in any way is left to the application, which says what is wrong with it. A read of what is not in memory goes on by
call-back: :class:`muniment_server.web.http.exchanges.Cold`.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Collection
from typing import NamedTuple

from muniment.errors import FormatError
from muniment.tiles import Bundle, Tile, parse_tile_path
from muniment_server.access.asking import Asking
from muniment_server.errors import Refused
from muniment_server.instance.registry import DEFAULT_LOG, LOG_NAME
from muniment_server.log import Log
from muniment_server.web.grammar import pattern
from muniment_server.web.handlers import read, write
from muniment_server.web.http.exchanges import (
    PROOF,
    TILE,
    AppendExchange,
    Cold,
    Entry,
    Exchange,
    Plain,
    Post,
    Ready,
)
from muniment_server.web.messages import MAX_HEADERS, Headers, Request
from muniment_server.web.request import takes_gzip
from muniment_server.web.service import Service

_POSTS = {exchange: re.compile(pattern(exchange.route, log=LOG_NAME.pattern).encode()) for exchange in (Entry, Plain)}
_FILE = re.compile(pattern(TILE, log=LOG_NAME.pattern, path="[0-9a-z/.]+").encode())
_QUESTION = re.compile((pattern(PROOF, log=LOG_NAME.pattern) + r"\?index=(?P<index>0|[1-9][0-9]{0,17})").encode())
_LINE = re.compile(rb"(GET|POST) (/[a-z0-9/._?=&-]*) HTTP/1\.1")
_MAX_BLOCK, _MAX_BLOCKS = 1024, 256
"""Bytes of a block of header fields that is remembered, and how many of them."""
_MAX_POSTS = 1024
"""Heads of POSTs that are remembered: one for each length of a body."""
_MAX_PATH = 256
"""Bytes of a URL that is worth a look.

What is made of it is kept by URL, and thousands of long ones would take megabytes for good.
"""
_LENGTH = re.compile(rb"[0-9]{1,8}")
_ODD = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
"""Fields that ask for something this path does not do."""


class RequestHead(NamedTuple):
    """A block of header fields, and what they say of who sends it.

    `length` is that of the body; None when a field asks for something that is not done here. `gzip` is whether the
    answer may be that.
    """

    headers: Headers
    length: int | None
    asking: Asking
    gzip: bool


class _Parsed(NamedTuple):
    """What the head of a POST says that came before, byte for byte. Who may do it is decided each time."""

    exchange: type[AppendExchange]
    request: Request
    log: Log
    asking: Asking
    length: int


class FastPath:
    """Tells which requests are answered here, and how."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._blocks: dict[bytes, RequestHead] = {}
        self._posts: dict[bytes, _Parsed] = {}
        self._odd = _ODD | ({b"origin"} if service.settings.cors_origins else set())

    def head(self, headers: Headers) -> RequestHead:
        """Return what the fields of a request ask for."""
        asking = self._service.access.asking(headers)
        return RequestHead(headers, _plain(headers, self._odd), asking, takes_gzip(headers))

    def find(self, method: bytes, url: bytes, head: RequestHead) -> Exchange | None:
        """Return how to answer a request whose head is complete; None leaves it to the application."""
        if head.length is None or len(url) > _MAX_PATH:
            return None
        try:
            if method == b"POST":
                return self._append(url, head, head.length)
            if method == b"GET" and not head.length:
                return self._read(url, head)
        except Exception:  # noqa: BLE001 - whatever it is, the application meets it too, and says so
            return None
        return None

    def find_whole(self, data: bytes) -> tuple[Exchange, bytes] | None:
        """Return how to answer a request that came in one piece, and its body.

        Only if its header fields are known byte for byte. A connection mostly sends the same block again and again.
        What the parser made of it once, it would make of it again.
        """
        end = data.find(b"\r\n\r\n") + 4
        parsed = self._posts.get(data[:end])
        if parsed is not None and len(data) == end + parsed.length:
            append = self._admitted(parsed.exchange, parsed.request, parsed.log, parsed.asking)
            return (append, data[end:]) if append else None
        at = data.find(b"\r\n")
        head = self._blocks.get(data[at:end])
        if head is None or len(data) != end + (head.length or 0):
            return None
        line = _LINE.fullmatch(data, 0, at)
        exchange = line and self.find(line[1], line[2], head)
        if isinstance(exchange, AppendExchange):
            self._remember_post(data[:end], len(data) - end, exchange, head.asking)
        return (exchange, data[end:]) if exchange else None

    def remember(self, data: bytes, head: RequestHead) -> None:
        """Remember the fields of a request that the parser took, and whose bytes begin with `data`."""
        at = data.find(b"\r\n")
        end = data.find(b"\r\n\r\n", at) + 4
        block = data[at:end]
        # Only what looks the same to every reader: one line a field, nothing folded, no other space, no bare CR or LF.
        plain = b"".join([b"\r\n%b: %b" % field for field in head.headers]) + b"\r\n\r\n"
        if len(block) <= _MAX_BLOCK and block.lower() == plain.lower():
            if len(self._blocks) >= _MAX_BLOCKS:
                self._blocks.clear()
            self._blocks[block] = head

    def _remember_post(self, head: bytes, length: int, exchange: AppendExchange, asking: Asking) -> None:
        if len(self._posts) >= _MAX_POSTS:
            self._posts.clear()
        self._posts[head] = _Parsed(type(exchange), exchange.post.request, exchange.post.log, asking, length)

    def _log(self, name: bytes | None) -> Log | None:
        return self._service.registry.opened(name.decode() if name else DEFAULT_LOG)

    def _append(self, url: bytes, head: RequestHead, length: int) -> Exchange | None:
        found = _posted(url)
        log = None if found is None else self._log(found[0])
        if found is None or log is None:
            return None
        _, path, exchange = found
        request = Request(path, url, b"", head.headers, {})
        made = self._admitted(exchange, request, log, head.asking)
        limit = write.check_entry(request, log) if exchange is Entry else write.check_plain(log)
        return made if length <= limit else None

    def _admitted(
        self, exchange: type[AppendExchange], request: Request, log: Log, asking: Asking
    ) -> AppendExchange | None:
        """Return an append whose caller may do it; None leaves it to the application, which says what is missing."""
        try:
            caller = self._service.access.admit_now(asking, log.row, exchange.route.needs)
        except Refused:
            return None
        return None if caller is None else exchange(Post(self._service, request, log, caller))

    def _read(self, url: bytes, head: RequestHead) -> Exchange | None:
        started = time.perf_counter()
        found = _file(url) if b"/tile/" in url else _proof(url)
        log = None if found is None else self._log(found[0])
        if found is None or log is None:
            return None
        wanted = found[1]
        route = PROOF if isinstance(wanted, int) else TILE
        if self._service.access.admit_now(head.asking, log.row, route.needs) is None:
            return None
        if isinstance(wanted, int):
            answer = read.inclusion_now(log, wanted)
        else:
            answer = read.file_now(log, wanted, gzip=head.gzip)
        if answer is not None:
            return Ready(self._service, route, log, answer, started)
        if isinstance(wanted, int):
            return Cold(self._service, route, log, read.inclusion(log, wanted), started)
        turn = self._service.rooms.turns.of(lambda: False)
        return Cold(self._service, route, log, read.file(log, wanted, turn, gzip=head.gzip), started)


@functools.lru_cache(4096)
def _file(url: bytes) -> tuple[bytes | None, Tile | Bundle] | None:
    """Return the log and the tile or bundle that a URL names; None for one that names neither."""
    found = _FILE.fullmatch(url)
    try:
        return found and (found["log"], parse_tile_path(found["path"].decode()))
    except FormatError:
        return None


def _proof(url: bytes) -> tuple[bytes | None, int] | None:
    """Return the log and the index that a proof is asked of, in its latest tree; None for every other question."""
    found = _QUESTION.fullmatch(url)
    return found and (found["log"], int(found["index"]))


@functools.lru_cache(1024)
def _posted(url: bytes) -> tuple[bytes | None, str, type[AppendExchange]] | None:
    """Return the log a POST is to, its path, and what answers it; None for a URL that is not answered here."""
    for exchange, urls in _POSTS.items():
        if found := urls.fullmatch(url):
            return found["log"], url.decode(), exchange
    return None


def _plain(headers: Headers, odd: Collection[bytes]) -> int | None:
    """Return the length of the body; None when a field asks for something special, or there are too many of them."""
    length, size = 0, 0
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name == b"content-length":
            if not _LENGTH.fullmatch(value):
                return None
            length = int(value)
        elif (
            name in odd
            or (name == b"accept" and b"text/plain" in value)
            or (name == b"connection" and value.lower() != b"keep-alive")
        ):
            return None
    return length if size <= MAX_HEADERS else None
