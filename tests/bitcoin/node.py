"""The faces of a chain: Bitcoin Core's JSON-RPC and REST, and an Esplora explorer, as real HTTP servers on loopback."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from tests.bitcoin.chain import Block, Chain, target_of
from tests.bitcoin.web import Answer, Request, Web

REST_HEADERS = 2000


def _text(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), {"Content-Type": "text/plain"})


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Node(Web):
    """A full node. `url` carries the credentials; `rest` is the same server without; `cookie` is what its cookie file holds."""

    def __init__(self, chain: Chain, user: str = "alice", password: str = "s3cret") -> None:
        self.chain = chain
        self.cookie = f"{user}:{password}"
        self.rpc_errors: dict[str, RpcError] = {}
        """Method -> the error it answers: a node that warms up, for example."""
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://{self.cookie}@127.0.0.1:{self.port}"

    @property
    def rest(self) -> str:
        return self.origin

    def answer(self, request: Request) -> Answer:
        if request.path.startswith("/rest/"):
            return self._rest(request.path) if request.method == "GET" else _text(405, "GET only")
        if request.headers.get("authorization") != "Basic " + base64.b64encode(self.cookie.encode()).decode():
            return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="jsonrpc"'})
        call = json.loads(request.body)
        if isinstance(call, list):
            return _json([self._call(one)[1] for one in call])
        status, value = self._call(call)
        return _json(value, status)

    def _call(self, call: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            if call["method"] in self.rpc_errors:
                raise self.rpc_errors[call["method"]]
            result = self._result(call["method"], call.get("params", []))
        except RpcError as error:
            return 500, {"result": None, "error": {"code": error.code, "message": str(error)}, "id": call.get("id")}
        return 200, {"result": result, "error": None, "id": call.get("id")}

    def _result(self, method: str, params: list[Any]) -> Any:
        match method, params:
            case "getblockcount", []:
                return self.chain.height
            case "getblockhash", [int(height)]:
                if block := self.chain.at(height):
                    return block.block_hash
                raise RpcError(-8, "Block height out of range")
            case "getblockheader", [str(block_hash), *verbose]:
                block = self.chain.by_hash(block_hash)
                if block is None:
                    raise RpcError(-5, "Block not found")
                return _fields(self.chain, block, core=True) if verbose in ([], [True]) else block.raw.hex()
        raise RpcError(-32601, "Method not found")

    def _rest(self, path: str) -> Answer:
        if path == "/rest/chaininfo.json":
            return _json({"chain": "regtest", "blocks": self.chain.height, "bestblockhash": self.chain.tip.block_hash})
        if match := re.fullmatch(r"/rest/blockhashbyheight/([0-9]+)\.(hex|bin|json)", path):
            if block := self.chain.at(int(match[1])):
                return _rest_form(match[2], block.hash[::-1], {"blockhash": block.block_hash}, block.hash)
            return _text(404, "Block height out of range\r\n")
        # Older nodes have the count in the path, newer ones take it as a parameter too.
        match = re.fullmatch(r"/rest/headers/([0-9]+)/([0-9a-f]{64})\.(hex|bin)", path)
        if match is None:
            return _text(404, "Not Found")
        if not 1 <= int(match[1]) <= REST_HEADERS:
            return _text(400, "Header count is invalid or out of acceptable range (1-2000)\r\n")
        block = self.chain.by_hash(match[2])
        found = [block, *self.chain.blocks[block.height + 1 : block.height + int(match[1])]] if block else []
        raw = b"".join(one.raw for one in found)
        return _rest_form(match[3], raw, None, raw)


def _rest_form(form: str, hexed: bytes, value: Any, binary: bytes) -> Answer:
    if form == "json":
        return _json(value)
    if form == "hex":
        return _text(200, hexed.hex() + "\n")
    return Answer(200, binary, {"Content-Type": "application/octet-stream"})


def _fields(chain: Chain, block: Block, *, core: bool) -> dict[str, Any]:
    previous = {"previousblockhash": block.raw[4:36][::-1].hex()} if block.height else {}
    bits = int.from_bytes(block.raw[72:76], "little")
    common = {
        "height": block.height,
        "version": int.from_bytes(block.raw[:4], "little", signed=True),
        "nonce": int.from_bytes(block.raw[76:], "little"),
        **previous,
    }
    root = block.root[::-1].hex()
    if core:
        depth = chain.height - block.height + 1
        return common | {"hash": block.block_hash, "confirmations": depth, "merkleroot": root, "time": block.time, "bits": f"{bits:08x}"}  # fmt: skip
    return common | {"id": block.block_hash, "merkle_root": root, "timestamp": block.time, "bits": bits, "difficulty": target_of(0x1D00FFFF) / target_of(bits)}  # fmt: skip


class Explorer(Web):
    """An Esplora explorer at `url`. It shows `chain`: give it another one and it disagrees; `header_route` False leaves /header out."""

    def __init__(self, chain: Chain, *, header_route: bool = True) -> None:
        self.chain = chain
        self.header_route = header_route
        super().__init__()

    @property
    def url(self) -> str:
        return f"{self.origin}/api"

    def answer(self, request: Request) -> Answer:
        path = request.path
        if path == "/api/blocks/tip/height":
            return _text(200, str(self.chain.height))
        if path == "/api/blocks/tip/hash":
            return _text(200, self.chain.tip.block_hash)
        if match := re.fullmatch(r"/api/block-height/([0-9]+)", path):
            block = self.chain.at(int(match[1]))
            return _text(200, block.block_hash) if block else _text(404, "Block not found")
        if match := re.fullmatch(r"/api/block/([0-9a-f]{64})(/header)?", path):
            block = self.chain.by_hash(match[1])
            if block is None or (match[2] and not self.header_route):
                return _text(404, "Block not found")
            return _text(200, block.raw.hex()) if match[2] else _json(_fields(self.chain, block, core=False))
        return _text(404, "Not found")
