"""While appends are refused, /readyz, the metrics and one line say so, with the code that appends get: also while nobody appends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from muniment_server.errors import Refused, StoreUnavailable
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.storage.postgres.connect import migrate
from muniment_server.telemetry import Metrics
from muniment_server.web.problems import CODES
from muniment_server.write.clock import Clock
from tests import shared
from tests.live import PATIENCE, free_port, until
from tests.rigs.control import Postgres
from tests.service.faulty import Fault, Faulty
from tests.service.http_check import client, expect_problem
from tests.service.http_world import make_instance
from tests.service.rig import NOW, Bench, Rig, event
from tests.service.test_http_lifecycle import samples

HEAD = "SELECT size, epoch, published_size FROM heads"
SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'log'"


class Watched:
    """A log in this process, and what an operator can see of it."""

    def __init__(self, rig: Rig, bench: Bench, folder: Path, store: Any = None, **parts: Any) -> None:
        self.metrics = Metrics()
        self.disk = SimpleNamespace(low=False)
        settings = Settings(data=folder, publish_interval=0.05)
        new = bench.new_sequencer(store or rig.store, **parts)
        self.log = Log(store or rig.store, bench.row, settings, self.metrics, Cache(2**20), new, disk=self.disk)

    @property
    def writable(self) -> float:
        return self.metrics.registry.get_sample_value("muniment_writable", {"log": self.log.row.name})

    async def refused(self) -> str:
        with pytest.raises(Refused) as caught:
            await self.log.append(event(1))
        return caught.value.code

    def told(self) -> list[tuple[str, str]]:
        """What the operator is told now, with the code."""
        with capture_logs() as lines:
            self.log.tell_trouble()
        return [(line["event"], line["code"]) for line in lines]


async def test_a_clock_that_was_set_forward_is_named(rig: Rig, tmp_path: Path):
    now = [NOW / 1000]
    watched = Watched(rig, await rig.log("event"), tmp_path, clock=Clock(lambda: now[0], lambda: 1.0))
    log = watched.log
    log._housekeeper.compare_clocks = lambda: asyncio.sleep(0)  # that of the database has nothing to do with it
    await log.start()
    await log.append(event(0))
    assert (log.writer.obstacle, watched.writable, watched.told()) == (None, 1, [])
    now[0] += 10 * 365 * 86_400
    assert (log.writer.obstacle, watched.writable) == ("clock", 0), "nobody has appended yet"
    assert await watched.refused() == "clock"
    assert watched.told() == [("appends are refused", "clock")]
    assert watched.told() == [], "once"
    now[0] -= 10 * 365 * 86_400
    assert (log.writer.obstacle, watched.writable) == (None, 1)
    assert watched.told() == [("appends are taken again", "clock")]
    await log.append(event(1))
    await log.close()


@pytest.mark.parametrize("names", [("append", "fence"), ("forget_expired",), ("api_keys",)], ids=lambda names: names[0])
async def test_a_database_that_fails_is_named(rig: Rig, tmp_path: Path, names: tuple[str, ...]):
    """By an append, or by the housekeeper when there is none; and no longer than it fails."""
    faulty = Faulty(rig.store)
    watched = Watched(rig, await rig.log("event"), tmp_path, faulty)
    log = watched.log
    await log.start()
    await log.append(event(0))
    faulty.always |= dict.fromkeys(names, Fault(StoreUnavailable("away")))
    if "append" in names:
        assert await watched.refused() == "database_unavailable"
    else:
        with pytest.raises(StoreUnavailable):
            await log._housekeeper.run_once()
    assert (log.writer.obstacle, watched.writable) == ("database_unavailable", 0)
    assert watched.told() == [("appends are refused", "database_unavailable")]
    faulty.always.clear()
    if "append" not in names:
        await log._housekeeper.run_once()  # as it does by itself, some seconds later
    async with asyncio.timeout(PATIENCE):
        while log.writer.obstacle:  # noqa: ASYNC110 - it is tried again although nobody appends
            await asyncio.sleep(0.01)
    assert watched.writable == 1
    assert watched.told() == [("appends are taken again", "database_unavailable")]
    await log.append(event(1))
    await log.close()


async def test_a_full_disk_is_named(rig: Rig, tmp_path: Path):
    watched = Watched(rig, await rig.log("event"), tmp_path)
    await watched.log.start()
    watched.disk.low = True
    assert (watched.log.writer.obstacle, watched.writable) == ("disk_low", 0)
    assert await watched.refused() == "disk_low"
    watched.disk.low = False
    assert (watched.log.writer.obstacle, watched.writable) == (None, 1)
    await watched.log.close()


@pytest.fixture
def pair() -> Iterator[tuple[Postgres, Postgres, str]]:
    """A primary with a migrated database, its standby, and a URL that names both."""
    with ExitStack() as stack:
        primary = Postgres(under=shared.folder())
        stack.callback(primary.close)
        primary.start()
        asyncio.run(migrate(asyncio.run(primary.new_database("log"))))
        standby = Postgres(primary, under=shared.folder())
        stack.callback(standby.close)
        standby.start()
        hosts = f"host={primary.folder},{standby.folder}&port=5432,5432"
        yield primary, standby, f"postgresql://postgres@/log?{hosts}&target_session_attrs=read-write"


def test_a_primary_that_only_reads_that_hides_its_keys_and_that_dies(
    pair: tuple[Postgres, Postgres, str], tmp_path: Path
):
    """Whatever becomes of it, the server says so, and writes again when there is a primary that takes writes."""
    primary, standby, url = pair
    port = free_port()
    metrics = f"http://127.0.0.1:{port}/metrics"
    env = {"MUNIMENT_SERVER_METRICS_PORT": str(port), "MUNIMENT_SERVER_SCRUB_RATE": "0"}
    instance = make_instance(tmp_path / "data", url)

    def sql(postgres: Postgres, *statements: str) -> list[Any]:
        return asyncio.run(postgres.sql(*statements, database="log"))

    def says(status: int, code: str | None) -> None:
        """Append, and compare the answer with what the server says of itself."""
        until(lambda: http.post("/entries", json={"a": 1}).status_code == status)
        said = {"default": code is None}, {"default": code} if code else {}
        # Not at once: a try of the housekeeper that began before may end after it.
        until(lambda: (ready := http.get("/readyz").json()) and (ready["writes"], ready["problems"]) == said)
        until(lambda: samples(metrics)["muniment_writable", "default"] == (code is None))

    with instance.server(env=env) as server, client(server.url) as http:
        says(201, None)
        sql(primary, "ALTER DATABASE log SET default_transaction_read_only = on", SESSIONS)
        says(503, "database_unavailable")
        sql(
            primary, "SET default_transaction_read_only = off", "ALTER DATABASE log RESET default_transaction_read_only"
        )
        says(201, None)
        sql(primary, "ALTER TABLE api_keys RENAME TO hidden")
        says(503, "database_unavailable")
        sql(primary, "ALTER TABLE hidden RENAME TO api_keys")
        says(201, None)
        until(lambda: sql(primary, HEAD) == sql(standby, HEAD))
        primary.stop()
        says(503, "database_unavailable")
        until(lambda: samples(metrics)["muniment_database_up",] == 0)
        found = samples(metrics)
        assert found["muniment_refused_total", "default", "database_unavailable"] > 0
        assert {labels[1] for name, *labels in found if name == "muniment_refused_total"} <= set(CODES)
        standby.promote()
        says(201, None)
        until(lambda: server.stderr().count("appends are taken again") == server.stderr().count("appends are refused"))
        lines = [line["event"] for line in map(json.loads, server.stderr().splitlines())]
        lines = [line for line in lines if line.startswith("appends are")]
        assert lines == ["appends are refused", "appends are taken again"] * (len(lines) // 2), "each has its end"
        assert lines, "what lasts less than a tenth of a second may go unsaid"


@pytest.mark.parametrize(
    ("last", "way_out"),
    [
        (1, "MUNIMENT_SERVER_MAX_CLOCK_AHEAD_DAYS=100000"),
        (4_102_444_800_000, "MUNIMENT_SERVER_MAX_CLOCK_BEHIND_SECONDS=9999999999"),
    ],
    ids=["long ago", "2100"],
)
def test_a_last_entry_that_is_far_from_now_refuses_until_the_operator_says_otherwise(
    last: int, way_out: str, tmp_path: Path
):
    instance = make_instance(tmp_path / "data")
    database = apsw.Connection(str(instance.data / "muniment.sqlite"))
    database.execute("DROP TRIGGER heads_advance; DROP TRIGGER heads_steps")
    database.execute("UPDATE heads SET logged_at = ?", (last,))
    database.close()
    with instance.server() as server, client(server.url) as http:
        assert http.get("/readyz").json()["problems"] == {"default": "clock"}
        assert expect_problem(http.post("/entries", json={"a": 1}), 503, "clock")["detail"]
        until(lambda: "appends are refused" in server.stderr())
    name, _, value = way_out.partition("=")
    with instance.server(env={name: value}) as server, client(server.url) as http:
        assert http.get("/readyz").json()["problems"] == {}
        assert http.post("/entries", json={"a": 1}).status_code == 201
