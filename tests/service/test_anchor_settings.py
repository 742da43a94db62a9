"""When anchors are made and calendars asked, what the settings say of it, and a server's anchorers: what they survive."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from muniment_server.errors import SettingsError, SetupError, StoreUnavailable
from muniment_server.follow.anchors import running, schedule
from muniment_server.follow.anchors.calendar import sanitised
from muniment_server.follow.anchors.running import Anchoring, Running, calendars_of, options_of, source_of
from muniment_server.follow.anchors.schedule import (
    DAY,
    HOUR,
    MINUTE,
    Breaker,
    Triggers,
    block_delay,
    poll_delay,
    retry_delay,
)
from muniment_server.settings import read_settings
from muniment_server.telemetry import Metrics
from muniment_server.web.service import anchoring_of
from tests.bitcoin.chain import Chain

# --- schedule ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "since", "due"),
    [
        (0, DAY, False),
        (-3, DAY, False),
        (1, HOUR, True),
        (1, HOUR - 1, False),
        (1000, 10 * MINUTE, True),
        (999, 10 * MINUTE, False),
        (10**9, 10 * MINUTE - 1, False),
    ],
)
def test_an_anchor_is_due_after_entries_or_time_and_never_too_often(new: int, since: int, due: bool):
    assert Triggers(1000, HOUR).due(new, since) is due


def test_delays_are_within_their_bounds():
    rng = random.Random(1)
    for failures in range(100):
        assert MINUTE <= retry_delay(failures, rng) <= HOUR * 9 // 8
    assert all(retry_delay(7, rng) >= HOUR for _ in range(100))
    two_days = sum(retry_delay(n, rng) for n in range(1, schedule.MAX_ATTEMPTS))
    assert 1.9 * DAY < two_days < 2.3 * DAY
    for age, low, high in ((0, 60, 61), (HOUR, 30, 35), (DAY, 120, 140), (7 * DAY, 720, 840), (3000 * DAY, 720, 840)):
        for _ in range(100):
            assert low * MINUTE <= poll_delay(age, rng) <= high * MINUTE
    assert all(poll_delay(age, rng) >= MINUTE for age in range(0, 2 * HOUR, MINUTE))


def test_a_block_is_looked_at_until_it_is_deep():
    assert [block_delay(depth, 6) for depth in (0, 5, 6, 143, 144)] == [
        10 * MINUTE,
        10 * MINUTE,
        6 * HOUR,
        6 * HOUR,
        None,
    ]


def test_a_breaker_opens_after_three_failures_in_a_row_and_closes_at_the_first_answer():
    breaker = Breaker(random.Random(1))
    for _ in range(2):
        breaker.bad(0)
        breaker.bad(0)
        assert not breaker.open(0)
        breaker.good()
    for _ in range(3):
        breaker.bad(0)
    assert breaker.open(MINUTE - 1)
    assert not breaker.open(2 * MINUTE)
    breaker.bad(2 * MINUTE)
    assert breaker.open(4 * MINUTE - 1)
    for _ in range(100):
        breaker.bad(0)
    assert not breaker.open(2 * HOUR)


def test_what_strangers_say_is_cut_and_cleaned():
    assert sanitised(b"Timestamped by transaction #12; waiting for 3 confirmations, maybe.-") == (
        "Timestamped by transaction #12; waiting for 3 confirmations, maybe.-"
    )
    for byte in range(256):
        found = sanitised(bytes([byte]) * 1000)
        assert len(found) == 160
        assert found.isprintable()
        assert found.isascii()


# --- settings ------------------------------------------------------------------------------------------------------------


def test_lists_are_written_with_commas_in_the_environment_and_as_lists_in_the_file(tmp_path: Path):
    environment = {"MUNIMENT_SERVER_ANCHOR_CALENDARS": " https://a.example , https://b.example/,"}
    found = read_settings({"data": tmp_path}, environment)
    assert found.anchor_calendars == ("https://a.example", "https://b.example/")
    (tmp_path / "muniment.toml").write_text('anchor_calendars = ["https://c.example"]\nanchor = true\n')
    found = read_settings({"data": tmp_path}, {})
    assert (found.anchor_calendars, found.anchor) == (("https://c.example",), True)
    assert found.anchor_held == 1
    assert options_of(found).triggers == Triggers(1000, HOUR)


def test_anchoring_is_off_unless_somebody_asks_for_it(tmp_path: Path):
    assert read_settings({"data": tmp_path}, {}).anchor is False


BAD = {
    "anchor_minutes": "9",
    "anchor_entries": "0",
    "anchor_calendars": "",
    "anchor_held_by": "0",
    "anchor_network": "testnet",
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_cannot_be_are_refused(tmp_path: Path, name: str):
    with pytest.raises(SettingsError, match=name):
        read_settings({"data": tmp_path}, {f"MUNIMENT_SERVER_{name.upper()}": BAD[name]})


@pytest.mark.parametrize(
    "url",
    ["http://a.example", "https://u:p@a.example", "https://a.example/?q", "ftp://a.example", "https://A.example", "x"],
)
async def test_a_calendar_that_must_not_be_asked_is_refused_at_the_start(tmp_path: Path, url: str):
    settings = read_settings({"data": tmp_path, "anchor_calendars": (url,)}, {})
    async with httpx.AsyncClient() as client:
        with pytest.raises(SetupError, match="anchor_calendars"):
            calendars_of(settings, client)


async def test_a_calendar_is_listed_once(tmp_path: Path):
    settings = read_settings(
        {"data": tmp_path, "anchor_calendars": ("https://a.example", "https://a.example:443/")}, {}
    )
    async with httpx.AsyncClient() as client:
        with pytest.raises(SetupError, match="twice"):
            calendars_of(settings, client)


def test_the_source_of_headers_is_the_one_that_is_named(tmp_path: Path):
    base = {"data": tmp_path, "anchor_network": "regtest"}
    assert source_of(read_settings(base, {})) is None
    (tmp_path / "headers.bin").write_bytes(Chain(10).file)
    found = source_of(read_settings({**base, "anchor_header_file": tmp_path / "headers.bin"}, {}))
    assert found.at(4).depth == 7
    node = read_settings({**base, "anchor_node": "http://user:geheim@127.0.0.1:8332"}, {})
    assert "geheim" not in source_of(node).name + repr(node)
    assert source_of(read_settings({**base, "anchor_rest": "http://127.0.0.1:8332"}, {})).name
    three = ("https://a.example/api", "https://b.example/api", "https://c.example/api")
    assert "a.example" in source_of(read_settings({**base, "anchor_explorers": three}, {})).name


@pytest.mark.parametrize(
    "given",
    [
        {"anchor_header_file": "headers.bin", "anchor_rest": "http://127.0.0.1:1"},
        {"anchor_header_file": "/nowhere/headers.bin"},
        {"anchor_node": "nonsense"},
        {"anchor_explorers": ("https://a.example/api",)},
    ],
)
def test_a_source_that_cannot_be_is_refused_at_the_start(tmp_path: Path, given: dict):
    with pytest.raises(SetupError, match="anchor_"):
        source_of(read_settings({"data": tmp_path, **given}, {}))


# --- at work -------------------------------------------------------------------------------------------------------------


class Stubborn:
    """An anchorer and its lease that meet everything that can go wrong, and count how often they were asked."""

    calendars = (SimpleNamespace(url="https://a.example"),)
    held = True

    def __init__(self) -> None:
        self.ticks = self.rounds = 0

    async def take(self) -> bool:
        self.ticks += 1
        raise (StoreUnavailable("away"), RuntimeError("a bug"))[self.ticks % 2]

    async def round(self, _calendar: object) -> None:
        self.rounds += 1
        raise (StoreUnavailable("away"), KeyError("a bug"))[self.rounds % 2]

    async def release(self) -> None:
        raise StoreUnavailable("away")


async def test_whatever_goes_wrong_is_tried_again_and_never_escapes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "_SLOW_SECONDS", 0.001)
    anchorer = Stubborn()
    log = SimpleNamespace(row=SimpleNamespace(name="log"), refusal=None)
    at_work = Running(anchorer, anchorer, log, None, tick=0.001)
    at_work.start()
    for _ in range(1000):
        await asyncio.sleep(0.005)
        if min(anchorer.ticks, anchorer.rounds) > 5:
            break
    assert min(anchorer.ticks, anchorer.rounds) > 5
    await at_work.close()


@pytest.mark.parametrize("flags", [{}, {"anchor": True, "read_only": True}])
def test_a_server_that_is_not_to_anchor_has_no_anchorers(tmp_path: Path, flags: dict[str, bool]):
    assert anchoring_of(read_settings({"data": tmp_path, **flags}, {}), Metrics()) is None


def test_a_server_that_is_to_anchor_has_anchorers(tmp_path: Path):
    assert isinstance(anchoring_of(read_settings({"data": tmp_path, "anchor": True}, {}), Metrics()), Anchoring)


def test_what_only_anchoring_needs_is_loaded_where_logs_are_anchored():
    code = "import sys, muniment_server.app, muniment_server.web.http.protocol; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert not loaded & {"httpx", "opentimestamps", "bitcoin", "muniment_server.follow.anchors.running"}
