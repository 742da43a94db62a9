"""A Bitcoin Core node, full or pruned, by JSON-RPC or REST: the strongest source, if it is your own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from muniment.anchor._web import Credentials, Web, ask, hash_of, header_of, height_of, json_of, origin_of, text_of
from muniment.anchor.chain import MAIN, Network
from muniment.anchor.header import HEADER_SIZE, display
from muniment.anchor.sources import Found, believed
from muniment.errors import FormatError, NoHeader, SourceUnavailable

BATCH = 2000
"""Headers per request of REST; a limit of Core."""
_CALLS = 500
"""Calls per RPC request."""
_ERROR_NOT_THERE = {-5, -8}


class _Node(ABC):
    """What both ways to ask share. Subclasses fetch; answers are checked here."""

    def __init__(self, origin: str, network: Network) -> None:
        self._origin = origin
        self._network = network
        self.name = f"Bitcoin Core at {origin.partition('://')[2]}"

    @abstractmethod
    async def _tip(self, web: Web) -> int:
        """Return the height of the last block."""

    @abstractmethod
    async def _hash(self, web: Web, height: int) -> bytes | None:
        """Return the hash of the block at a height of the best chain."""

    @abstractmethod
    async def _header(self, web: Web, hash_: bytes) -> bytes:
        """Return the header of a block."""

    def _auth(self) -> Credentials | None:
        return None

    def _ask(self, question: Any, deadline: float = 15.0) -> Any:
        try:
            return ask(question, auth=self._auth(), deadline=deadline)
        except SourceUnavailable as error:
            raise SourceUnavailable(f"{self.name}: {error}") from error

    def at(self, height: int) -> Found:
        """Return the header at `height` of the node's best chain."""

        async def question(web: Web) -> tuple[int, bytes | None, bytes]:
            tip = await self._tip(web)
            hash_ = await self._hash(web, height) if height <= tip else None
            return tip, hash_, await self._header(web, hash_) if hash_ else b""

        tip, hash_, raw = self._ask(question)
        if hash_ is None:
            raise NoHeader(f"{self.name} has no block {height}: its last one is {tip}")
        try:
            header = believed(raw, self._network, hash_)
        except SourceUnavailable as error:
            raise SourceUnavailable(f"{self.name}: {error}") from error
        return Found(header, height, max(1, tip - height + 1), self.name, "node")

    def tip(self) -> int:
        """Return the height of the node's last block."""
        return int(self._ask(self._tip))

    def hash_at(self, height: int) -> bytes:
        """Return the hash at a height, in internal order. Raises NoHeader, SourceUnavailable."""
        found: bytes | None = self._ask(lambda web: self._hash(web, height))
        if found is None:
            raise NoHeader(f"{self.name} has no block {height}")
        return found


class RpcNode(_Node):
    """Bitcoin Core by JSON-RPC. Credentials stand in `url` (http://user:password@host:8332) or in Core's cookie file.

    Raises FormatError when `url` is none. Neither errors nor names show credentials.
    """

    def __init__(self, url: str, cookie: Path | None = None, network: Network = MAIN) -> None:
        origin, self._given = origin_of(url)
        self._cookie = cookie
        super().__init__(origin, network)

    def _auth(self) -> Credentials | None:
        if self._cookie is None:
            return self._given
        try:
            # Core writes a new one at each start.
            user, colon, password = self._cookie.read_text(encoding="utf-8").strip().partition(":")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"cannot read the cookie file {self._cookie}") from error
        if not colon:
            raise SourceUnavailable(f"{self._cookie} is not a cookie file of Bitcoin Core")
        return user, password

    async def _calls(self, web: Web, calls: list[tuple[str, list[Any]]]) -> list[Any]:
        """Return the results of calls, None where what they ask for is not there."""
        batch = [
            {"jsonrpc": "1.0", "id": at, "method": method, "params": params}
            for at, (method, params) in enumerate(calls)
        ]
        status, body = await web.post(self._origin + "/", batch, 4096 + 1024 * len(calls))
        if status in (401, 403):
            raise SourceUnavailable("it does not take our user and password")
        answers = json_of(body) if status == 200 else None
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise SourceUnavailable(f"it answered {status} and no batch of {len(calls)} results")
        found = {
            answer["id"]: answer for answer in answers if isinstance(answer, dict) and type(answer.get("id")) is int
        }
        return [_result(found.get(at)) for at in range(len(calls))]

    async def _tip(self, web: Web) -> int:
        return height_of((await self._calls(web, [("getblockcount", [])]))[0])

    async def _hash(self, web: Web, height: int) -> bytes | None:
        found = (await self._calls(web, [("getblockhash", [height])]))[0]
        return None if found is None else hash_of(found)

    async def _header(self, web: Web, hash_: bytes) -> bytes:
        return header_of((await self._calls(web, [("getblockheader", [display(hash_), False])]))[0])

    def headers(self, start: int, count: int) -> bytes:
        """Return up to `count` raw headers from height `start` on, which must be below the tip."""

        async def question(web: Web) -> bytes:
            hashes = await self._calls(web, [("getblockhash", [start + at]) for at in range(min(count, _CALLS))])
            wanted = [display(hash_of(one)) for one in hashes if one is not None]
            found = await self._calls(web, [("getblockheader", [one, False]) for one in wanted])
            return b"".join(header_of(one) for one in found)

        return bytes(self._ask(question, 60.0))


class RestNode(_Node):
    """Bitcoin Core by REST (`-rest=1`), which needs no credentials."""

    def __init__(self, url: str, network: Network = MAIN) -> None:
        origin, user = origin_of(url)
        if user:
            raise FormatError("the REST interface of Bitcoin Core takes no credentials")
        super().__init__(origin, network)

    async def _get(self, web: Web, path: str, limit: int = 4096) -> bytes | None:
        return await web.get(f"{self._origin}/rest/{path}", limit)

    async def _tip(self, web: Web) -> int:
        info = json_of(await self._get(web, "chaininfo.json", 65_536) or b"")
        return height_of(info.get("blocks") if isinstance(info, dict) else None)

    async def _hash(self, web: Web, height: int) -> bytes | None:
        body = await self._get(web, f"blockhashbyheight/{height}.hex")
        return None if body is None else hash_of(text_of(body))

    async def _header(self, web: Web, hash_: bytes) -> bytes:
        return await self._get(web, f"headers/1/{display(hash_)}.bin") or b""

    def headers(self, start: int, count: int) -> bytes:
        """Return up to `count` raw headers from height `start` on, which must be below the tip."""

        async def question(web: Web) -> bytes:
            hash_ = await self._hash(web, start)
            asked = min(count, BATCH)
            path = f"headers/{asked}/{display(hash_ or bytes(32))}.bin"
            return await self._get(web, path, asked * HEADER_SIZE) or b""

        return bytes(self._ask(question, 60.0))


def _result(answer: Any) -> Any:
    if not isinstance(answer, dict) or ("result" not in answer and "error" not in answer):
        raise SourceUnavailable("its answer is not JSON-RPC")
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    code = error.get("code") if isinstance(error, dict) else None
    if code in _ERROR_NOT_THERE:
        return None
    raise SourceUnavailable(
        f"error {str(code)[:12]}: {str(error.get('message') if isinstance(error, dict) else '')[:200]!r}"
    )
