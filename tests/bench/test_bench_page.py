"""The page of figures says what the JSON says, and the open loop does not forget the requests it could not send."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.bench import page
from tests.bench.generator import generate
from tests.bench.plan import Load

_RUN = {"rate": 100.0, "p50_ms": 1.0, "p99_ms": 3.0, "server_us": 10.0, "postgres_us": 0.0}
_CORES = {"server_cores": 1.0, "generator_cores": 0.5, "foreign_cores": 0.0}


def series(store: str, name: str, connections: int, ratio: float) -> dict[str, Any]:
    ratios = {"requests_to_echo": ratio, "cpu_to_echo": ratio, "entries_per_second": 100.0, "entries_to_echo": ratio}
    checks = {"stored": 1, "answered": 1, "wrong_answers": [], "fsck": None}
    return {
        "store": store,
        "series": f"{name}-c{connections}",
        "workload": name,
        "connections": connections,
        "title": name,
        "entries_per_request": 1,
        "pss_mb": 50.0,
        "failed": 0,
        "noisy_runs": 0,
        "runs": [_RUN],
        "ratios": ratios,
        "checks": checks,
        **_RUN,
        **_CORES,
    }


def value() -> dict[str, Any]:
    latency = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "p999_ms": 4.0, "requests": 10}
    grown = [
        {"size": size, "restart_seconds": 1.5, "pss_mb": 90.0, "raw-c64": _RUN | {"rate": rate}, "proof-c64": _RUN}
        for size, rate in ((1_000_000, 100.0), (10_000_000, 60.0))
    ]
    studies = {
        "open_loop": [{"workload": "raw", "part": 0.5, "asked_rate": 50.0, "rate": 49.0} | latency],
        "mixed": {"seconds": 1.0, "parts": {"raw": latency}},
        "imports": [
            {
                "kind": "raw",
                "rows": 5_000,
                "rate": 2_500.0,
                "of_batches": 0.5,
                "server_cores": 0.9,
                "client_cores": 0.6,
                "client_mb": 61.0,
            }
        ],
        "overload": {"p99_ratio": 1.5},
        "stored": {"beyond_payload": 99.0, "hash_index": 21.0},
        "growth": grown,
    }
    ceiling = {"raw-1000": {"entries_per_second": 100.0, "p50_ms": 1.0, "p99_ms": 2.0}}
    store = {"store": "sqlite", "echo": {}, "ceiling": ceiling, "studies": studies}
    machine = {"cpu": "a cpu", "cores": 2, "pinned": True, "python": "3.11", "fdatasync_us": 100.0}
    found = [series("sqlite", "raw", 64, 0.6), series("sqlite", "raw", 256, 0.5), series("sqlite", "raw", 1, 0.1)]
    found[-1]["fdatasync_us"] = 50.0  # measured beside it: counts instead of the machine's
    batches = series("sqlite", "raw-batch", 4, 1.5)
    batches["ratios"]["entries_to_ceiling"] = 0.75
    found.append(batches)
    return {"series": found, "stores": [store], "machine": machine, "generator": "own"}


def test_the_page_says_what_is_met_and_what_is_not() -> None:
    text = page.page(value())
    assert "| raw entry, single POST, 64 connections | - | 0.60 E (met: >= 0.55 E) |" in text
    assert "| same, 256 connections | - | 0.50 E (**not met**: >= 0.65 E) |" in text
    assert "| p99 / p50 of a raw POST, 64 connections | - | 3.00 (**not met**: <= 2) |" in text
    assert "| p50 of a raw POST, 1 connection, in fsyncs | - | 20.00 (**not met**: <= 9) |" in text
    assert "| append at the larger size against the smaller | - | 0.60x (**not met**: >= 0.7x) |" in text
    assert "| bytes beyond a 308-byte leaf, without the hash index | - | 99.00 B (**not met**: <= 75 B) |" in text
    assert "| bytes of the hash index | - | 21.00 B |" in text
    assert "| batch of 1,000 raw, every receipt | - | - |" in text
    assert "| batch of 1,000 raw, compact answer | - | 0.75 S (met: >= 0.5 S) |" in text
    assert "| sqlite | 5,000 raw | 2,500 | 50% | 0.90 | 0.60 | 61 |" in text
    assert "| sqlite | raw | 50% | 50 | 49 | 1.00 | 2.00 | 3.00 | 4.00 |" in text


def test_the_plot_is_a_picture() -> None:
    drawn = ET.fromstring(page.plot(value()))
    lines = [one for one in drawn.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 10
    assert any(len(one.get("points", "").split()) == 3 for one in lines)


@pytest.mark.timed
@pytest.mark.parametrize("rate", [0.0, 400.0])
def test_an_open_loop_counts_from_when_a_request_is_due(rate: float) -> None:
    """A server that stands still for 0.2 s makes all requests of that time late; in a closed loop, one for each connection."""
    found = asyncio.run(_load(rate))
    assert found["errors"] == {}
    assert found["statuses"] == {"200": found["requests"]}
    assert found["max_ms"] > 150
    if rate:
        assert found["p99_ms"] > 150
        assert 180 <= found["requests"] <= 201
        assert found["p50_ms"] < found["p90_ms"]
        assert found["p90_ms"] > 60, "a fifth of a second out of half a one: every third request was late"


def test_a_closed_loop_sends_one_request_for_each_connection_however_late() -> None:
    found = asyncio.run(_load(0.0, seconds=0.0))
    assert found["statuses"] == {"200": 4}
    assert found["rate"] > 0


async def _load(rate: float, seconds: float = 0.5) -> dict[str, Any]:
    """Load a server that stands still for 0.2 s from the first request on."""
    loop = asyncio.get_running_loop()
    wakes: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            while (line := await reader.readline()) not in (b"\r\n", b""):
                head += line
            wakes[:] = wakes or [loop.time() + 0.2]
            await asyncio.sleep(max(wakes[0] - loop.time(), 0))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, found = await generate(Load("tile", "127.0.0.1", port, 4, seconds, 7, size=1000, rate=rate))
        return found
