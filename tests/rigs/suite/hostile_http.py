"""Hostile HTTP: a real server gets requests made to break it. Each is refused as documented, and nothing else happens."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx

from tests.live import LiveServer, free_of_tracebacks, free_port
from tests.rigs.hostile import bodies, framing, headers, paths, receipts
from tests.rigs.hostile.case import STILL_SIZE, Case, Referred
from tests.rigs.hostile.sender import RAW, Tally, send_all
from tests.rigs.rig import Context, FaultRig
from tests.service.http_audit import audit, fsck
from tests.service.http_check import JSON, NDJSON, assert_nothing_is_held, bundle, head_size, published
from tests.service.http_world import DEFAULT, Instance, KeySpec, LogSpec, make_instance

LOGS = (DEFAULT, LogSpec("raw", "raw"), LogSpec("still", "raw"), LogSpec("private", "raw", public=False))
KEYS = (
    KeySpec("append", frozenset({"append", "read"})),
    KeySpec("read", frozenset({"read"})),
    KeySpec("other", frozenset({"append", "read"}), "private"),
    KeySpec("revoked", frozenset({"append"}), None, revoked=True),
)
MIX = ((bodies, 100, 20), (paths, 130, 20), (headers, 80, 10), (framing, 60, 15), (receipts, 50, 15))
"""Of each class: how many cases of its table, and how many by chance, a seed sends: 500 in all."""
ENVIRONMENT = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05", "MUNIMENT_SERVER_CLIENT_SECONDS": "1"}
MEMORY = 50 << 20


def prepare(server: LiveServer, instance: Instance) -> Referred:
    """Fill the logs, and collect receipts at sizes from 2 to 302."""
    found: list[dict[str, object]] = []
    proofs: list[str] = []
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        for number in range(1, 301):
            if number in (1, 2, 3, 4, 8, 70, 300):
                event = {"actor": "alice", "n": number, "more": {"deep": [1, 2.5, None, "x"]}}
                found.append(http.post("/entries", json=event).raise_for_status().json())
                found.append(http.post("/logs/raw/entries", content=b"raw %d" % number).raise_for_status().json())
                again = http.get(f"/logs/raw/entries/{found[-1]['index']}/receipt", headers={"Accept": "text/plain"})
                proofs += [again.text] if again.status_code == 200 else []
            elif number % 50 == 9:
                http.post("/entries/batch", content=b'{"a":1}\n' * 40, headers=NDJSON).raise_for_status()
                http.post("/logs/raw/entries/batch", content=bundle(*(b"%d %d" % (number, n) for n in range(40))))
        leaves = (b"still %d" % number for number in range(STILL_SIZE - 1))
        http.post("/logs/still/entries/batch", content=bundle(*leaves)).raise_for_status()
        proofs.append(http.post("/entries", json={"a": "b"}, headers={"Accept": "text/plain"}).text)
        _publish_all(http)  # tiles of `still` are as many as they will be
    return Referred(found, proofs, instance.keys)


def _publish_all(http: httpx.Client) -> None:
    for log in LOGS[:3]:
        prefix = "" if log is DEFAULT else f"/logs/{log.name}"
        published(http, prefix, head_size(http, prefix))


class Deck:
    """The cases of a world: every table in an order of its own, from which a seed takes its share."""

    def __init__(self, world: Referred) -> None:
        self._world = world
        self._tables = [list(module.table(world)) for module, _, _ in MIX]
        for table in self._tables:
            random.Random(0).shuffle(table)

    def of(self, seed: int) -> list[Case]:
        """The cases of a seed, mixed."""
        rng = random.Random(seed)
        cases: list[Case] = []
        for (module, share, more), table in zip(MIX, self._tables, strict=True):
            cases += [table[(seed * share + at) % len(table)] for at in range(share)]
            cases += [module.random_case(rng, self._world) for _ in range(more)]
        rng.shuffle(cases)
        return cases


# --- what must not change -----------------------------------------------------------------------------------------------


def rows(instance: Instance) -> tuple[dict[str, int], dict[str, int]]:
    """Size of every log by origin, and rows of each table, read from the database file behind the server's back."""
    with closing(sqlite3.connect(f"file:{instance.data / 'muniment.sqlite'}?mode=ro", uri=True)) as database:
        sizes = dict(database.execute("SELECT origin, size FROM logs JOIN heads USING (log_id)").fetchall())
        counts = {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("entries", "payloads", "idempotency", "api_keys", "logs")
        }
    return sizes, counts


def check_rows(before: dict[str, int], instance: Instance, tally: Tally) -> dict[str, int]:
    """Assert that every row is of an entry that an answer named. Returns the sizes."""
    sizes, counts = rows(instance)
    assert counts["entries"] == sum(sizes.values()), "an entry beyond its head"
    assert counts["payloads"] == sizes[DEFAULT.origin] - 1, "a payload without its event"
    assert (counts["logs"], counts["api_keys"]) == (len(LOGS), len(KEYS))
    raw = tally.announced.pop(RAW, set())
    tally.announced.setdefault(LOGS[1].origin, set()).update(raw)
    unnamed = 0
    for origin, size in sizes.items():
        named = tally.announced.get(origin, set())
        assert not [index for index in named if index >= size], f"{origin}: an answer names an entry that is not there"
        unnamed += sum(index not in named for index in range(before[origin], size))
    assert unnamed <= tally.lost, f"{unnamed} entries nobody was told of, {tally.lost} connections without an answer"
    assert counts["idempotency"] <= sizes[DEFAULT.origin], "an idempotency row without its entry"
    return sizes


def memory(server: LiveServer) -> int:
    """Memory of a server that is its own, in bytes."""
    text = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text("ascii")
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) << 10  # type: ignore[index]


def check_good(url: str, number: int) -> None:
    """Assert that good requests work."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        answer = http.post("/entries", content=b'{"good":%d}' % number, headers=JSON)
        assert answer.status_code == 201, answer.text
        assert http.get(f"/entries/{answer.json()['index']}").status_code == 200
        assert http.get("/readyz").json()["writes"]["default"] is True


def check_log(server: LiveServer) -> None:
    """Assert that every line the server wrote is an event of its own, and none is an error."""
    text = server.stderr()
    assert free_of_tracebacks(text), text[-3000:]
    for line in text.splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line


# --- the rig ------------------------------------------------------------------------------------------------------------


def run(context: Context) -> None:
    """Send the cases of every seed to one server."""
    instance = make_instance(context.folder / "data", None, LOGS, KEYS)
    port = free_port()
    environment = ENVIRONMENT | {"MUNIMENT_SERVER_METRICS_PORT": str(port)}
    with instance.server("--allow-anonymous-writes", env=environment) as server:
        deck = Deck(prepare(server, instance))
        for seed, tally in _seeds(context, server, instance, deck.of):
            context.counts["slowest ms"] = max(context.counts["slowest ms"], int(tally.slowest * 1000))
            context.done(500, **tally.counts)
            print(
                f"seed {seed}: slowest {tally.slowest * 1000:.0f} ms: {tally.slowest_case}"
            ) if tally.slowest > 0.5 else None
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
            _publish_all(http)
            for log in LOGS[:3]:
                audit(http, instance.policy, "" if log is DEFAULT else f"/logs/{log.name}")
        assert_nothing_is_held(port)
    fsck(instance)


def _seeds(
    context: Context, server: LiveServer, instance: Instance, cases: Callable[[int], list[Case]]
) -> Iterator[tuple[int, Tally]]:
    sizes, baseline = rows(instance)[0], 0
    for seed in context.each():
        tally = Tally()
        try:
            asyncio.run(send_all(server.url, cases(seed), tally))
            sizes = check_rows(sizes, instance, tally)
            check_good(server.url, seed)
            check_log(server)
            used = memory(server)
            baseline = baseline or used  # the first seed fills caches
            assert used - baseline < MEMORY, f"the server grew by {(used - baseline) >> 20} MiB"
            context.counts["memory growth KiB"] = max(context.counts["memory growth KiB"], (used - baseline) >> 10)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        sizes = rows(instance)[0]
        yield seed, tally


RIGS = [FaultRig("hostile-http", "hostile HTTP requests", "requests", run, quick=20, full=1000, alone=True)]
