"""What C2SP clients rely on (issue "The log works", point 5): checkpoints, tiles, and Tessera's plain POST /add."""

from __future__ import annotations

import asyncio
import random
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from muniment.tiles import format_tile, parse_tile_path, tiles_at
from muniment_server.access.callers import APPEND, Caller
from muniment_server.errors import Refused
from muniment_server.settings import Settings
from muniment_server.web.handlers import write
from muniment_server.web.messages import Request
from tests.live import PATIENCE, LiveServer, free_of_tracebacks
from tests.service.http_audit import audit, fsck, merkle, split_bundle, tile_name, tile_paths, tree_levels
from tests.service.http_check import JSON, Verifier, bundle, client, expect_problem, head_size, published
from tests.service.http_raw import Connection, exchange
from tests.service.http_world import DEFAULT, Instance, LogSpec, instance_on

RAW = LogSpec("default", "raw")
SIMULTANEOUS = 1024


@pytest.fixture
def instance(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """A fresh raw log as the default log."""
    with instance_on(engine, request, tmp_path, (RAW,)) as made:
        yield made


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """The same on SQLite only, where the store does not matter."""
    with instance_on("sqlite", request, tmp_path, (RAW,)) as made:
        yield made


# --- checkpoint ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_there_from_the_first_second(instance: Instance) -> None:
    verifier = Verifier(instance.policy)
    for flags in (["--read-only"], []):
        with instance.server(*flags) as server, client(server.url) as http:
            answer = http.get("/checkpoint")  # the first request it ever sees
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert "immutable" not in answer.headers["cache-control"]
            found = verifier.checkpoint(answer.text)
            assert found.size == 1, "the genesis entry"
            leaves = audit(http, instance.policy).leaves
            assert b"muniment/genesis@v1" in leaves[0]
            note = answer.text
            assert re.fullmatch(
                rf"{re.escape(DEFAULT.origin)}\n1\n[A-Za-z0-9+/]{{43}}=\n\n— {re.escape(DEFAULT.origin)} [A-Za-z0-9+/]+={{0,2}}\n",
                note,
            )


def test_sizes_never_go_back_between_two_servers(instance: Instance) -> None:
    """One reader alternates between two writers of one log while both are written to."""
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05"}
    with instance.server(env=env) as one, instance.server(env=env) as two:
        verifier, sizes = Verifier(instance.policy), [0]
        stop = threading.Event()

        def write(server: LiveServer, who: str) -> None:
            number = 0
            with client(server.url) as http:
                while not stop.is_set():
                    assert http.post("/add", content=f"{who} {number}").status_code == 200
                    number += 1

        writers = [threading.Thread(target=write, args=(server, str(at))) for at, server in enumerate((one, two))]
        for thread in writers:
            thread.start()
        try:
            with client(one.url) as first, client(two.url) as second:
                deadline, seen = time.monotonic() + PATIENCE, 0
                while len(set(sizes)) <= 20 or seen < 200:
                    assert time.monotonic() < deadline, f"only {len(set(sizes))} sizes"
                    for http in (first, second):
                        size = verifier.checkpoint(http.get("/checkpoint").text).size
                        assert size >= sizes[-1], f"{size} after {sizes[-1]}"
                        sizes.append(size)
                        seen += 1
        finally:
            stop.set()
            for thread in writers:
                thread.join()
        with client(one.url) as http:
            assert verifier.consistent(http) == len(set(sizes)) - 1
        print(f"{len(sizes)} checkpoints read, {len(set(sizes))} sizes up to {sizes[-1]}")
        assert free_of_tracebacks(one.stderr() + two.stderr())
    fsck(instance)


async def _time_to_cover(url: str, entries: int) -> list[float]:
    """Let eight clients add so many entries each. Returns how long after its answer a checkpoint covered each."""
    rng, covered = random.Random(7), []
    waiting: dict[int, float] = {}
    done = asyncio.Event()

    async def add(who: int) -> None:
        async with await Connection.open(url) as connection:
            for _ in range(entries):
                answer = await connection.request("POST", "/add", b"%d %f" % (who, time.monotonic()))
                waiting[int(answer.body)] = time.monotonic()
                await asyncio.sleep(rng.random())

    async def watch() -> None:
        async with await Connection.open(url) as connection:
            while waiting or not done.is_set():
                answer = await connection.request("GET", "/checkpoint")
                now, size = time.monotonic(), int(answer.body.split(b"\n")[1])
                covered.extend(now - waiting.pop(index) for index in [index for index in waiting if index < size])
                await asyncio.sleep(0.005)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(add(who) for who in range(8)))
    done.set()
    await asyncio.wait_for(watcher, PATIENCE)
    return covered


def test_a_checkpoint_covers_every_entry(instance: Instance) -> None:
    """At the default interval, at any moment of it. That each is covered within the interval is shown in test_log."""
    with instance.server() as server, client(server.url) as http:
        took = asyncio.run(_time_to_cover(server.url, 6))
        assert http.get("/log").json()["publish_interval_seconds"] == 1.0
    assert len(took) == 48
    print(f"{len(took)} entries covered by a published checkpoint after at most {max(took) * 1000:.0f} ms")


# --- tiles --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def grown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Instance, httpx.Client]]:
    """A raw log that was published at sizes 1, 2, 255, 256, 257, 511, 512, 513 and 1300."""
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.01"}
    with (
        instance_on(request.param, request, tmp_path_factory.mktemp("tiles"), (RAW,)) as made,
        made.server(env=env) as server,
        client(server.url) as http,
    ):
        size = 1
        for following in (2, 255, 256, 257, 511, 512, 513, 1300):
            leaves = [b"leaf %d" % index + b"." * (index % 50) for index in range(size, following)]
            assert http.post("/entries/batch", content=bundle(*leaves)).status_code == 201
            published(http, "", following)
            size = following
        yield made, http
        assert free_of_tracebacks(server.stderr())


def test_every_path_a_go_client_asks_for(grown: tuple[Instance, httpx.Client]) -> None:
    """For each published size: all its tiles and bundles, partial ones by their exact width, full ones without."""
    made, http = grown
    leaves = audit(http, made.policy).leaves
    levels = tree_levels([sha256(b"\x00" + leaf).digest() for leaf in leaves])
    sizes = [one["size"] for one in http.get("/checkpoints").json()["checkpoints"]]
    assert sizes == [1, 2, 255, 256, 257, 511, 512, 513, 1300]
    asked = 0
    for size in sizes:
        head = made.policy.verify(http.get(f"/checkpoints?start={size}&limit=1").json()["checkpoints"][0]["checkpoint"])
        assert merkle(levels[0][:size]) == head.checkpoint.root
        paths = list(tile_paths(size))
        assert [path for _, _, _, path in paths] == [format_tile(tile) for tile in tiles_at(size)]
        for level, index, width, path in paths:
            answer = http.get(f"/tile/{path}")
            assert answer.status_code == 200, path
            assert answer.content == b"".join(levels[level][256 * index : 256 * index + width])
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["cache-control"] == "public, max-age=604800, immutable"
            assert answer.headers["access-control-allow-origin"] == "*"
            asked += 1
            if level == 0:
                name = path.replace("0/", "entries/", 1)
                entries = http.get(f"/tile/{name}")
                assert split_bundle(entries.content) == leaves[256 * index : 256 * index + width]
                assert entries.headers["content-type"] == "application/octet-stream"
                assert entries.headers["cache-control"] == "public, max-age=604800, immutable"
                asked += 1
    print(f"{asked} tiles and bundles of {len(sizes)} sizes")


def test_tiles_of_any_width_up_to_the_signed_size(grown: tuple[Instance, httpx.Client]) -> None:
    _, http = grown
    full = http.get("/tile/0/000").content
    last = http.get("/tile/0/005.p/20").content
    for width in (1, 2, 100, 255):
        assert http.get(f"/tile/0/000.p/{width}").content == full[: 32 * width]
        assert len(split_bundle(http.get(f"/tile/entries/000.p/{width}").content)) == width
    for width in range(1, 21):
        assert http.get(f"/tile/0/005.p/{width}").content == last[: 32 * width]


MISSING = [
    "0/005", "0/005.p/21", "0/005.p/255", "0/006", "0/006.p/1", "0/999", "0/x001/000", "1/000", "1/000.p/6", "1/001.p/1",
    "2/000", "2/000.p/1", "63/000", "63/000.p/1", "0/x999/x999/x999/x999/x999/999", "entries/005", "entries/005.p/21",
    "entries/006", "entries/x001/000.p/1", "0/x009/x223/x372/x036/x854/x775/807",
]  # fmt: skip
NOT_CANONICAL = [
    "", "/", "0", "0/", "0/0", "0/00", "0/0000", "0/000/", "0/000.p", "0/000.p/", "0/000.p/0", "0/000.p/256", "0/000.p/257",
    "0/000.p/01", "0/000.p/001", "0/000.p/+1", "0/000.p/-1", "0/000.p/1.0", "0/000.p/1_0", "0/000.p/999", "0/000.p/1/",
    "0/000.P/1", "0/000.p/1.p/1", "00/000", "01/000", "+0/000", "-0/000", "64/000", "99/000", "100/000", "a/000", "0x0/000",
    "0/x000/000", "0/x000/x000/001", "0/x1/000", "0/X001/000", "0/001/000", "0/x001000", "0/1000", "0/x001/0", "0/x001/x000",
    "0//000", "//0/000", "0/./000", "0/../0/000", "../checkpoint", "0/000/../000", "0/000;x", "0/000 ", " 0/000", "0/000%20",
    "%30/000", "0%2f000", "0/00%30", "0/000.p%2f1", "0/000%00", "0/000%0a", "0/000%E2%80%A8", "%D9%A0/000", "0/%D9%A0%D9%A0%D9%A0",
    "0/\N{ARABIC-INDIC DIGIT ZERO}00", "0/000.p/\N{FULLWIDTH DIGIT ONE}", "0/000?x=1", "entries", "entries/",
    "entries/0", "entries/000.p/0", "entries/000.p/256", "entries/x000/000", "Entries/000", "data/000", "8/0/000",
    "0/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/999", "entries/000.p/1?a=1&a=1",
]  # fmt: skip


@pytest.mark.parametrize(
    "path", MISSING + NOT_CANONICAL, ids=lambda path: repr(path).encode("ascii", "backslashreplace").decode()
)
def test_a_tile_that_is_not_there_is_exactly_404(grown: tuple[Instance, httpx.Client], path: str) -> None:
    _, http = grown
    if path in MISSING:
        parse_tile_path(path)  # well spelled, only not there
    sent = quote(f"/tile/{path}", safe="/%?=&;+")
    for method in ("GET", "HEAD"):  # by hand: a client would tidy the path up
        received = exchange(
            str(http.base_url), f"{method} {sent} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = received.decode().lower().partition("\r\n\r\n")
        assert head.startswith("http/1.1 404 "), received
        assert "\r\ncontent-type: text/plain; charset=utf-8\r\n" in head
        assert "\r\ncache-control: no-store\r\n" in head, "a missing tile may be there a second later"
        assert body == ("not found\n" if method == "GET" else "")


def test_the_width_beyond_the_size_appears_with_the_size(embedded: Instance) -> None:
    with embedded.server() as server, client(server.url) as http:
        for path in ("0/000.p/2", "entries/000.p/2"):
            assert http.get(f"/tile/{path}").status_code == 404
        assert http.post("/add", content=b"x").text == "1"
        for path in ("0/000.p/2", "entries/000.p/2"):
            assert http.get(f"/tile/{path}").status_code == 200


# --- POST /add ----------------------------------------------------------------------------------------------------------


async def add_all(url: str, leaves: list[bytes], connections: int) -> list[tuple[int, bytes, dict[str, str]]]:
    """POST /add for each leaf, spread over connections that are all open before the first request."""
    opened = [await Connection.open(url) for _ in range(connections)]

    async def work(
        connection: Connection, mine: list[tuple[int, bytes]]
    ) -> list[tuple[int, int, bytes, dict[str, str]]]:
        found = []
        for at, leaf in mine:
            answer = await connection.request("POST", "/add", leaf)
            found.append((at, answer.status, answer.body, answer.headers))
        return found

    try:
        numbered = list(enumerate(leaves))
        parts = await asyncio.gather(*(work(c, numbered[at::connections]) for at, c in enumerate(opened)))
    finally:
        for connection in opened:
            await connection.close()
    return [(status, body, headers) for _, status, body, headers in sorted(part for some in parts for part in some)]


async def test_add_needs_no_content_type(embedded: Instance) -> None:
    with embedded.server() as server:
        async with await Connection.open(server.url) as connection:
            answer = await connection.request("POST", "/add", b"plain")  # no Content-Type, no Accept, no User-Agent
            again = await connection.request("POST", "/add", b"plain", {"Content-Type": "whatever/at all; x"})
        for one in (answer, again):
            assert (one.status, one.body) == (200, b"1")
            assert one.headers["content-type"] == "text/plain; charset=utf-8"


def test_add_is_durable_before_it_answers(instance: Instance) -> None:
    """kill -9 right after an answer, twice, with 32 clients adding: no acknowledged entry is gone."""
    acknowledged: dict[bytes, int] = {}
    for life in range(2):
        server = instance.server().wait()
        found = asyncio.run(_add_until_killed(server, life))
        assert found
        acknowledged |= found
    with instance.server() as server, client(server.url) as http:
        published(http, "", max(acknowledged.values()) + 1)  # a crash between answer and publication still publishes
        leaves = audit(http, instance.policy).leaves
        for leaf, index in acknowledged.items():
            assert leaves[index] == leaf
        assert len(set(leaves)) == len(leaves)
        leaf, index = next(iter(acknowledged.items()))
        assert http.post("/add", content=leaf).text == str(index)
        print(f"{len(acknowledged)} acknowledged entries survived 2 kills; the log has {len(leaves)}")
    fsck(instance)


async def _add_until_killed(server: LiveServer, life: int) -> dict[bytes, int]:
    acknowledged: dict[bytes, int] = {}
    enough = 5 + 60 * life

    async def add(who: int) -> None:
        async with await Connection.open(server.url) as connection:
            for number in range(10_000):
                leaf = b"life %d client %d number %d" % (life, who, number)
                answer = await connection.request("POST", "/add", leaf)
                assert answer.status == 200
                acknowledged[leaf] = int(answer.body)
                if len(acknowledged) == enough:
                    server.process.kill()

    ended = await asyncio.gather(*(add(who) for who in range(32)), return_exceptions=True)
    assert not [error for error in ended if not isinstance(error, OSError | asyncio.IncompleteReadError)], ended
    assert server.process.wait(PATIENCE) == -signal.SIGKILL
    return acknowledged


def test_a_full_queue_pushes_back(embedded: Instance) -> None:
    env = {"MUNIMENT_SERVER_MAX_QUEUE_ENTRIES": "4", "MUNIMENT_SERVER_MAX_COMMIT_ENTRIES": "4"}
    with embedded.server(env=env) as server, client(server.url) as http:
        leaves = [b"leaf %d" % number for number in range(400)]
        answers = asyncio.run(add_all(server.url, leaves, 200))
        assert {status for status, _, _ in answers} <= {200, 429, 503}
        taken = {int(body): leaf for leaf, (status, body, _) in zip(leaves, answers, strict=True) if status == 200}
        refused = [headers for status, _, headers in answers if status != 200]
        assert taken
        assert refused
        for headers in refused:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert headers["cache-control"] == "no-store"
        assert head_size(http) == 1 + len(taken), "what was refused was not written"
        for index, leaf in taken.items():
            assert http.get(f"/tile/entries/{tile_name(index // 256)}.p/{index % 256 + 1}").content.endswith(leaf)
        # Whoever comes back is served.
        again = [leaf for leaf, (status, _, _) in zip(leaves, answers, strict=True) if status != 200]
        while again:
            answers = asyncio.run(add_all(server.url, again, 4))
            again = [leaf for leaf, (status, _, _) in zip(again, answers, strict=True) if status != 200]
        assert head_size(http) == 1 + len(leaves)
        print(f"{len(taken)} taken at once, {len(refused)} pushed back")
        assert free_of_tracebacks(server.stderr())


async def _flood(url: str) -> list[tuple[int, dict[str, str], bytes]]:
    async def one(number: int) -> tuple[int, dict[str, str], bytes]:
        async with await Connection.open(url) as connection:
            answer = await connection.request("POST", "/entries", b'{"n":%d}' % number, JSON)
            return answer.status, answer.headers, answer.body

    return await asyncio.gather(*(one(number) for number in range(100)))


def test_a_full_queue_pushes_back_with_a_problem_document_too(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    env = {"MUNIMENT_SERVER_MAX_QUEUE_ENTRIES": "1", "MUNIMENT_SERVER_MAX_COMMIT_ENTRIES": "1"}
    with instance_on("sqlite", request, tmp_path, (DEFAULT,)) as made, made.server(env=env) as server:
        answers = asyncio.run(_flood(server.url))
        refused = [(headers, body) for status, headers, body in answers if status == 429]
        assert refused
        for headers, body in refused:
            fake = httpx.Response(429, headers=headers, content=body, request=httpx.Request("POST", server.url))
            found = expect_problem(fake, 429, "overloaded")
            assert found["retry_after"] == int(headers["retry-after"])
        with client(server.url) as http:
            assert head_size(http) == 1 + len(answers) - len(refused)
            large = b"".join(b'{"n":%d}\n' % n for n in range(50))
            alone = http.post("/entries/batch", content=large, headers={"Content-Type": "application/x-ndjson"})
            assert alone.status_code == 201, "a batch larger than the queue is taken when it is alone"


class _Flooded:
    """A log that takes nothing at the moment, and a request whose body must not be read for it."""

    row, settings = SimpleNamespace(kind="raw"), Settings(data=Path())

    @property
    def writer(self) -> _Flooded:
        return self

    def check_room(self) -> None:
        raise Refused("overloaded", "full", "Retry.")

    def stream(self) -> None:
        raise AssertionError("the body is read")


@pytest.mark.parametrize("handler", [write.add_entry, write.add_batch, write.add_plain])
def test_no_body_is_read_for_a_log_that_takes_nothing(handler: Any) -> None:
    flooded: Any = _Flooded()
    ask = Request("/", b"/", b"", [(b"content-length", b"5")], {}, flooded)
    with pytest.raises(Refused, match="full"):
        asyncio.run(handler(ask, flooded, Caller("anybody", frozenset({APPEND}))))


@contextmanager
def file_limit(soft: int) -> Iterator[None]:
    """Another soft limit of open files for this process and those it starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_add_takes_1024_simultaneous_connections(instance: Instance) -> None:
    # How many at once is what is tested: a machine that needs seconds for them all is to answer them all the same.
    patient = {"MUNIMENT_SERVER_CLIENT_SECONDS": "60"}
    with file_limit(1024):  # what a service gets on most systems unless somebody raised it
        server = instance.server(env=patient).wait()
    with file_limit(4 * SIMULTANEOUS), server:
        leaves = [b"one of %d: %d" % (SIMULTANEOUS, number) for number in range(SIMULTANEOUS)]
        started = time.monotonic()
        answers = asyncio.run(add_all(server.url, leaves, SIMULTANEOUS))
        took = time.monotonic() - started
        assert [status for status, _, _ in answers] == [200] * SIMULTANEOUS
        indices = [int(body) for _, body, _ in answers]
        assert sorted(indices) == list(range(1, SIMULTANEOUS + 1))
        print(f"{SIMULTANEOUS} connections answered in {took:.2f} s")
        with client(server.url) as http:
            published(http, "", SIMULTANEOUS + 1)
            stored = audit(http, instance.policy).leaves
            assert [stored[index] for index in indices] == leaves
        assert free_of_tracebacks(server.stderr())
