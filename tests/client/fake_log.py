"""A whole log in memory behind httpx.MockTransport: real trees, real signatures, the HTTP contract, and a place to lie.

It is made of the same primitives as the server and enforces what the server promises: leaves never change, sizes never go back, an
Idempotency-Key logs once. `tamper` and `faults` make it misbehave on purpose.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import httpx

from muniment import strictjson
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.encoding import b64, parse_decimal
from muniment.errors import UnknownMember
from muniment.event import Commitment, disclose, event_leaf, format_time, genesis_leaf, parse_event, parse_time
from muniment.hashing import RootHash, leaf_hash
from muniment.names import parse_names
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment.query import parse_query
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsWriter, line_of
from muniment.sse import HEARTBEAT, MEDIA_TYPE, CheckpointEvent, format_event
from muniment.tiles import Tile, decode_bundle, encode_bundle, parse_tile_path, width_at
from muniment.tree import (
    Edge,
    Plan,
    TileRows,
    expand,
    grow,
    hash_in,
    place,
    plan_consistency,
    plan_inclusion,
    plan_root,
)

ORIGIN = "example.com/log"
URL = "http://log.test"
NOON = 1_795_176_000_123

Tamper = Callable[[httpx.Request, httpx.Response], httpx.Response]
Fault = Callable[[httpx.Request, Callable[[], httpx.Response]], httpx.Response]


@dataclass
class Payload:
    event: dict[str, Any]
    commitment: Commitment
    disclosures: list[str]


@dataclass
class FakeLog:
    """A log. `published` is the size of the latest published checkpoint; it follows every append unless `lag` is set."""

    kind: str = "event"
    origin: str = ORIGIN
    seed: int = 0
    lag: bool = False
    readable: bool = True
    listed_disclosures: bool = True
    proofs: bool = True
    streams: bool = True
    searchable: int = 2**63
    searched_at_once: int = 1000
    tamper: Tamper | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = SigningKey(self.origin, bytes([self.seed]) * 32)
        self.edge = Edge()
        self.tiles: dict[tuple[int, int], bytes] = {}
        self.leaves: list[bytes] = []
        self.index_of: dict[bytes, int] = {}
        self.payloads: dict[int, Payload] = {}
        self.keys: dict[str, tuple[bytes, list[int]]] = {}
        self.published_sizes: list[int] = []
        self.notes: dict[int, str] = {}
        self._grow([genesis_leaf(self.origin, self.kind, [str(self.key.vkey)], format_time(NOON))])
        self.publish()

    # --- the log --------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        return Policy((LogKey(self.key.vkey),))

    @property
    def size(self) -> int:
        return len(self.leaves)

    @property
    def published(self) -> int:
        return self.published_sizes[-1]

    def publish(self) -> None:
        if self.size not in self.published_sizes:
            self.published_sizes.append(self.size)

    def fork(self) -> FakeLog:
        """The same log with the same key, from here on with a life of its own."""
        faults, tamper, self.faults, self.tamper = self.faults, self.tamper, [], None
        twin = copy.copy(self)
        for name in ("tiles", "leaves", "index_of", "payloads", "keys", "published_sizes", "notes"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        twin.requests, twin.faults = [], []
        self.faults, self.tamper = faults, tamper
        return twin

    def fork_with(self, tamper: Tamper | None) -> FakeLog:
        """A twin that lies in this way."""
        twin = self.fork()
        twin.tamper = tamper
        return twin

    def _grow(self, leaves: list[bytes]) -> None:
        growth = grow(self.edge, [leaf_hash(leaf) for leaf in leaves])
        for tile in growth.tiles:
            assert tile.data.startswith(self.tiles.get((tile.level, tile.index), b"")), "a tile only grows by suffix"
            self.tiles[tile.level, tile.index] = tile.data
        self.edge = growth.edge
        for leaf in leaves:
            self.index_of.setdefault(leaf, len(self.leaves))
            self.leaves.append(leaf)

    def add_events(self, events: list[dict[str, Any]]) -> list[int]:
        start, leaves = self.size, []
        for index, event in enumerate(events, start):
            disclosures = disclose((self.seed * 10**6 + index).to_bytes(32, "big"), event)
            commitment = Commitment.to(disclosures)
            leaves.append(event_leaf(commitment.digest(), format_time(NOON + index)))
            self.payloads[index] = Payload(event, commitment, disclosures)
        self._grow(leaves)
        return list(range(start, self.size))

    def add_raw(self, leaves: list[bytes]) -> list[int]:
        indices = []
        for leaf in leaves:
            if leaf not in self.index_of:
                self._grow([leaf])
            indices.append(self.index_of[leaf])
        return indices

    def fold(self, plan: Plan) -> list[bytes]:
        def lookup(node: Any) -> bytes:
            level, index, row, position = place(node)
            return hash_in(_expanded(self.tiles[level, index]), row, position)

        return plan.fold(lookup)

    def note(self, size: int) -> str:
        if size not in self.notes:
            self.notes[size] = self._sign(size)
        return self.notes[size]

    def _sign(self, size: int) -> str:
        root = RootHash(self.fold(plan_root(size))[0])
        return str(sign_checkpoint(Checkpoint(self.origin, size, root), self.key))

    def receipt(self, index: int, size: int | None = None) -> Receipt:
        size = size or self.size
        payload = self.payloads.get(index)
        return Receipt(
            self.origin,
            index,
            self.leaves[index],
            size,
            tuple(self.fold(plan_inclusion(index, size))),
            self.note(size),
            payload.commitment if payload else None,
            tuple(payload.disclosures) if payload else None,
        )

    # --- HTTP -----------------------------------------------------------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    def paths(self, method: str | None = None) -> list[str]:
        """The paths asked for so far."""
        return [request.url.path for request in self.requests if method in (None, request.method)]

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.faults:
            return fresh(self.faults.pop(0)(request, lambda: self._honest(request)))
        response = self._honest(request)
        return fresh(self.tamper(request, response) if self.tamper else response)

    def _honest(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.strip("/").split("/")
        query = dict(request.url.params)
        match request.method, *parts:
            case "POST", "entries":
                return self._append(request, [request.content], batch=False)
            case "POST", "entries", "batch":
                return self._append(request, self._split(request.content), batch=True)
            case "GET", "entries", index, "receipt":
                return self._receipt(parse_decimal(index), query)
            case "GET", "search":
                return self._search(query)
            case "GET", "export":
                return self._export(query)
            case "GET", "entries":
                return self._list(int(query["start"]), int(query["limit"]))
            case "GET", "proof", kind if self.proofs:
                return self._inclusion(query) if kind == "inclusion" else self._consistency(query)
            case "GET", "checkpoint":
                return httpx.Response(200, text=self.note(self.published))
            case "GET", "checkpoints", "stream" if self.streams:
                return self._stream(int(request.headers.get("last-event-id", self.published - 1)))
            case "GET", "checkpoints":
                return self._checkpoints(int(query["start"]))
            case "GET", "tile", *_:
                return self._tile(request.url.path.removeprefix("/tile/"))
            case "GET", "log":
                return self._log()
        return problem(404, "not_found")

    def _split(self, body: bytes) -> list[bytes]:
        return body.removesuffix(b"\n").split(b"\n") if self.kind == "event" else decode_bundle(body)

    def _append(self, request: httpx.Request, bodies: list[bytes], *, batch: bool) -> httpx.Response:
        key, replayed = request.headers.get("idempotency-key", ""), False
        if self.kind == "raw":
            indices = self.add_raw(bodies)
        elif key and key in self.keys:
            sent, indices = self.keys[key]
            replayed = True
            if sent != request.content:
                return problem(422, "idempotency_mismatch")
        else:
            indices = self.add_events([parse_event(body) for body in bodies])
            self.keys[key] = request.content, indices
        if not self.lag:
            self.publish()
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        if not batch:
            return httpx.Response(201, json=self.receipt(indices[0]).to_json(), headers=headers)
        value: dict[str, Any] = {
            "indices": _ranges(indices),
            "count": len(indices),
            "checkpoint": self.note(self.size),
        }
        if request.url.params.get("receipts") == "true":
            value["receipts"] = [self.receipt(index).to_json() for index in indices]
        return httpx.Response(201, json=value, headers=headers)

    def _receipt(self, index: int, query: dict[str, str]) -> httpx.Response:
        size = int(query.get("tree_size", self.published))
        if size not in self.published_sizes:
            return problem(404, "no_checkpoint")
        if index >= size:
            code = "not_published_yet" if size == self.published and index < self.size else "no_entry"
            return problem(404, code, retry_after=0 if code == "not_published_yet" else None)
        receipt = self.receipt(index, size)
        if "members" in query and self.readable:
            try:
                receipt = receipt.disclose(parse_names(query["members"]))
            except UnknownMember:
                return problem(404, "unknown_member")
        value = receipt.to_json()
        if not self.readable:
            value.pop("commitment", None)
            value.pop("disclosures", None)
        return httpx.Response(200, json=value)

    def _list(self, start: int, limit: int) -> httpx.Response:
        rows = []
        for index in range(start, min(start + limit, self.size)):
            leaf = self.leaves[index]
            row: dict[str, Any] = {"index": index, "leaf": b64(leaf), "leaf_hash": leaf_hash(leaf).hex()}
            payload = self.payloads.get(index)
            if payload and self.readable:
                row["event"] = payload.event
                if self.listed_disclosures:
                    row |= {"commitment": payload.commitment.value(), "disclosures": payload.disclosures}
            rows.append(row)
        following = start + len(rows)
        return httpx.Response(
            200,
            json={"entries": rows, "next": following if following < self.size else None, "tree_size": self.size},
        )

    def _search(self, query: dict[str, str]) -> httpx.Response:
        """Pages of at most `searched_at_once` entries; a cursor is how many of them were searched."""
        asked = parse_query(query.get("q", ""))
        low, high = (parse_time(query[name]) if name in query else None for name in ("from", "to"))
        indices = range(min(self.size, self.searchable))
        indices = indices[::-1] if query.get("order", "newest") == "newest" else indices
        begin, hits = int(query.get("cursor", 0)), []
        done = begin
        for index in indices[begin : begin + self.searched_at_once]:
            done += 1
            payload, when = self.payloads.get(index), NOON + index
            timely = (low is None or when >= low) and (high is None or when < high)
            if payload and timely and asked.matches(payload.event):
                found = {"index": index, "leaf_hash": leaf_hash(self.leaves[index]).hex()}
                hits.append(found | {"logged_at": format_time(when), "event": payload.event})
            if len(hits) == int(query["limit"]):
                break
        value = {"hits": hits, "next": str(done) if done < len(indices) else None}
        return httpx.Response(200, json=value | {"complete_to": len(indices), "tree_size": self.size})

    def _export(self, query: dict[str, str]) -> httpx.Response:
        """The bundle of the hits of [start, stop), at a published size."""
        asked, size, lines = parse_query(query["q"]), int(query["tree_size"]), list[bytes]()
        if size not in self.published_sizes or query["format"] != "receipts":
            return problem(404, "no_checkpoint")
        if not self.readable:
            return problem(403, "payloads_closed")
        writer = ReceiptsWriter(lines.append, Header(self.origin, self.note(size)))
        for index in range(int(query["start"]), min(int(query["stop"]), size)):
            if index in self.payloads and asked.matches(self.payloads[index].event):
                writer.add(self.receipt(index, size))
        writer.end()
        return httpx.Response(200, content=b"".join(lines), headers={"Content-Type": "application/x-ndjson"})

    def _inclusion(self, query: dict[str, str]) -> httpx.Response:
        if "leaf_hash" in query:
            index = next(at for at, leaf in enumerate(self.leaves) if leaf_hash(leaf).hex() == query["leaf_hash"])
        else:
            index = int(query["index"])
        size = int(query.get("tree_size", self.size))
        if not index < size <= self.size:
            return problem(404, "no_entry")
        value = {"index": index, "leaf_hash": leaf_hash(self.leaves[index]).hex(), "tree_size": size}
        return httpx.Response(200, json=value | self._proof(plan_inclusion(index, size), size))

    def _consistency(self, query: dict[str, str]) -> httpx.Response:
        first, second = int(query["first"]), int(query.get("second", self.size))
        if second > self.size:
            return problem(404, "no_such_size")
        value = {"first": first, "second": second}
        return httpx.Response(200, json=value | self._proof(plan_consistency(first, second), second))

    def _proof(self, plan: Plan, size: int) -> dict[str, Any]:
        tie = self.fold(plan_consistency(size, self.size))
        return {
            "origin": self.origin,
            "root": self.fold(plan_root(size))[0].hex(),
            "hashes": [value.hex() for value in self.fold(plan)],
            "checkpoint": self.note(self.size),
            "consistency": {"first": size, "second": self.size, "hashes": [value.hex() for value in tie]},
        }

    def _checkpoints(self, start: int) -> httpx.Response:
        sizes = [size for size in self.published_sizes if size >= start]
        rows = [{"size": size, "checkpoint": self.note(size), "published_at": format_time(NOON)} for size in sizes[:3]]
        return httpx.Response(200, json={"checkpoints": rows, "next": sizes[3] if len(sizes) > 3 else None})

    def _stream(self, after: int) -> httpx.Response:
        """A stream that ends after what was published so far, as one that is cut."""
        events = [CheckpointEvent(size, self.note(size)) for size in self.published_sizes if size > after]
        body = HEARTBEAT + b"".join(map(format_event, events))
        return httpx.Response(200, content=body, headers={"Content-Type": MEDIA_TYPE})

    def _tile(self, path: str) -> httpx.Response:
        wanted = parse_tile_path(path)
        level = wanted.level if isinstance(wanted, Tile) else 0
        if not wanted.width <= width_at(level, wanted.index, self.size):
            return httpx.Response(404, text="not found\n")
        if isinstance(wanted, Tile):
            return httpx.Response(200, content=self.tiles[level, wanted.index][: wanted.width * 32])
        start = wanted.index * 256
        return httpx.Response(200, content=encode_bundle(self.leaves[start : start + wanted.width]))

    def _log(self) -> httpx.Response:
        return httpx.Response(
            200,
            json={
                "origin": self.origin,
                "name": "default",
                "kind": self.kind,
                "vkeys": [str(self.key.vkey)],
                "tree_size": self.published,
                "public": True,
                "open": False,
                "limits": {
                    "max_entry_bytes": 65536,
                    "max_batch_entries": 10000,
                    "max_batch_bytes": 16777216,
                    "max_members": 256,
                },
                "publish_interval_seconds": 1,
                "idempotency_ttl_seconds": 86400,
            },
        )


@lru_cache(maxsize=4096)
def _expanded(data: bytes) -> TileRows:
    return expand(data)


def _ranges(indices: list[int]) -> list[list[int]]:
    """Indices as half-open ranges, neighbours in one."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1][1] += 1
        else:
            found.append([index, index + 1])
    return found


def fresh(response: httpx.Response) -> httpx.Response:
    """The response as it comes off the wire: not read yet."""
    if not response.is_stream_consumed:
        return response
    return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(response.content))


def problem(status: int, code: str, retry_after: float | None = None, **extra: Any) -> httpx.Response:
    """An error of the service."""
    body = {
        "type": "about:blank",
        "title": code,
        "status": status,
        "code": code,
        "detail": f"detail of {code}",
        "hint": "",
        **extra,
    }
    headers = {"Content-Type": "application/problem+json"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return httpx.Response(status, content=json.dumps(body), headers=headers)


# --- faults: failed, and failed but happened ----------------------------------------------------------------------------


def lost_before(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
    """The request never arrives."""
    _ = honest
    raise httpx.ConnectError("connection refused", request=request)


def lost_after(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
    """The request is carried out and the answer is lost."""
    honest()
    raise httpx.ReadError("connection reset", request=request)


def answering(status: int, code: str, retry_after: float | None = None) -> Fault:
    """The server answers with an error and does nothing."""
    return lambda _request, _honest: problem(status, code, retry_after)


def fine(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
    """Nothing goes wrong."""
    _ = request
    return honest()


# --- lies ---------------------------------------------------------------------------------------------------------------


def edit(path: str, change: Callable[[Any], Any]) -> Tamper:
    """Change the JSON of answers to requests whose path ends in `path`; `change` edits the value, or returns another object."""

    def tamper(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith(path) or response.status_code >= 300:
            return response
        value = json.loads(response.content)
        changed = change(value)
        return httpx.Response(response.status_code, json=changed if isinstance(changed, dict) else value)

    return tamper


def edit_line(index: int | None, change: Callable[[dict[str, Any]], Any]) -> Tamper:
    """Change the line of an entry in a bundle that is answered, or with None its first one; as :func:`edit`."""

    def tamper(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith("/export") or response.status_code >= 300:
            return response
        lines = [json.loads(line) for line in response.content.splitlines()]
        at = 0 if index is None else next((at for at, line in enumerate(lines) if line.get("index") == index), None)
        if at is not None:
            changed = change(lines[at])
            lines[at] = changed if isinstance(changed, dict) else lines[at]
        return httpx.Response(200, content=b"".join(map(line_of, lines)))

    return tamper


def instead(path: str, response: Callable[[], httpx.Response]) -> Tamper:
    """Answer requests whose path ends in `path` with something else."""
    return lambda request, honest: response() if request.url.path.endswith(path) else honest


def canonical(event: dict[str, Any]) -> bytes:
    """The canonical form of an event."""
    return strictjson.canonical(event)
