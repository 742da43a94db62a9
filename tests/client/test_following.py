"""Ranges, tails, and entries as they are published: none is left out, none is shown twice, none unproved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from muniment.errors import BadProof, Unavailable
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog, edit, problem
from tests.client.served import served
from tests.live import PATIENCE, LiveServer, init


def numbers(log: FakeLog, count: int) -> None:
    """Add entries that say which they are."""
    log.add_events([{"n": log.size + at} for at in range(count)])
    if not log.lag:
        log.publish()


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    numbers(made, 20)
    return made


# --- the clients ------------------------------------------------------------------------------------------------------


def test_entries_come_as_they_are_published(colours: Colours, log: FakeLog) -> None:
    following = colours.client(log).follow(19, interval=0)
    assert [next(following).event for _ in range(2)] == [{"n": 19}, {"n": 20}]
    numbers(log, 600)
    assert [next(following).index for _ in range(600)] == list(range(21, 621)), "over several pages and tiles"
    log.lag, asked = True, len(log.requests)

    def publish(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if len(log.requests) == asked + 3:
            log.publish()
        return response

    log.tamper = publish
    numbers(log, 1)
    assert next(following).event == {"n": 621}
    assert [path for path in log.paths()[asked:] if path == "/checkpoint"][:3] == ["/checkpoint"] * 3


def test_from_now_on(colours: Colours, log: FakeLog) -> None:
    following = colours.client(log).follow(interval=0)

    def once(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        log.tamper = None
        numbers(log, 1)
        return response

    log.tamper = once  # while it is told where the log ends
    assert next(following).event == {"n": 21}


def test_an_error_ends_it_and_a_new_call_goes_on(colours: Colours, log: FakeLog) -> None:
    client = colours.client(log)
    following = client.follow(20, interval=0)
    assert next(following).index == 20
    log.tamper = lambda request, response: problem(503, "overloaded", retry_after=0)
    with pytest.raises(Unavailable):
        next(following)
    log.tamper = None
    numbers(log, 1)
    assert next(client.follow(21)).event == {"n": 21}


def test_what_is_not_proved_is_not_yielded(colours: Colours, log: FakeLog) -> None:
    leaf = log.receipt(3).to_json()["leaf"]
    log.tamper = edit("/entries", lambda value: value["entries"][0].update(leaf=leaf))
    with pytest.raises(BadProof):
        next(colours.client(log).follow(5))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "policy").write_text(str(log.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", str(tmp_path / "policy"))
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        (["10..13"], [10, 11, 12]),
        (["0..21"], range(21)),
        (["7..8"], [7]),
        (["18.."], [18, 19, 20]),
        (["3", "5..7", "2"], [3, 5, 6, 2]),
        (["--last", "1"], [20]),
        (["--last", "3"], [18, 19, 20]),
        (["--last", "1000"], range(21)),
    ],
)
def test_ranges(cli: Cli, here: Path, words: list[str], indices: list[int]) -> None:
    done = cli("get", *words, "--json")
    assert [entry["index"] for entry in done.json] == list(indices)
    out = cli("get", *words).out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("Entry ")] == [str(i) for i in indices]
    assert f"Next: muniment receipt {indices[-1]} " in out


@pytest.mark.parametrize("words", [["20..22"], ["21.."], ["21..22"], ["99..100"], ["3", "18..99"]])
def test_a_range_that_is_not_all_there(cli: Cli, here: Path, words: list[str]) -> None:
    done = cli("get", *words, "--json")
    assert (done.code, done.out, done.error["code"]) == (6, "", "no_entry")
    assert "21 entries are published" in done.error["message"]


@pytest.mark.parametrize(
    "words",
    [
        [], ["10..10"], ["10..9"], ["..9"], [".."], ["1...3"], ["1..2..3"], ["01..3"], ["1..03"], ["1..-3"], ["1..x"],
        ["--last", "0"], ["--last", "-1"], ["--last", "x"], ["--last", "2", "7"], ["7", "--follow"],
        ["1..3", "--follow"], ["1..", "2..", "--follow"], ["1..", "--last", "2", "--follow"],
    ],
)  # fmt: skip
def test_usage(cli: Cli, here: Path, words: list[str]) -> None:
    done = cli("get", *words, "--json")
    assert (done.code, done.error["code"]) == (2, "usage")


def test_follow_waits_for_a_server_that_is_away(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait is the next thing that happens: entries, an outage, its end, another fault, Ctrl-C."""
    events: Iterator[Callable[[], None]] = iter(
        [
            lambda: numbers(log, 2),
            lambda: setattr(log, "tamper", lambda *_: problem(503, "shutting_down")),
            *[lambda: None] * 6,
            lambda: numbers(log, 1),
            lambda: setattr(log, "tamper", None),
            lambda: numbers(log, 1),
            interrupt,
        ]
    )
    monkeypatch.setattr(time, "sleep", lambda _: next(events)())
    done = cli("get", "--last", "1", "--follow", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["index"], line["event"]["n"]) for line in lines] == [(n, n) for n in range(20, 25)]
    assert (done.code, done.error["code"]) == (130, "interrupted")
    assert done.err.count("Going on with entry 23") == 1, "said once"
    events = iter([interrupt])
    assert "Entry 24 of" in cli("get", "24..", "--follow").out
    events = iter([interrupt])
    assert cli("get", "--follow").out == ""


def interrupt() -> None:
    raise KeyboardInterrupt


def test_follow_shows_nothing_unproved_and_does_not_begin_without_a_server(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    leaf = log.receipt(3).to_json()["leaf"]
    log.tamper = edit("/entries", lambda value: value["entries"][1].update(leaf=leaf))
    done = cli("get", "5..", "--follow", "--json")
    assert (done.code, done.out) == (1, "")
    log.tamper = lambda *_: problem(503, "shutting_down")
    done = cli("get", "--follow", "--json")
    assert (done.code, done.out) == (4, "")


def test_follow_across_a_restart_until_interrupted(tmp_path: Path) -> None:
    """A process of its own, beside a real server that stops and starts again on its port."""
    data = tmp_path / "data"
    init(data)
    server = LiveServer(data).wait()
    env = os.environ | {
        "MUNIMENT_POLICY": str(data / "policy"),
        "MUNIMENT_URL": server.url,
        "XDG_STATE_HOME": str(tmp_path),
    }
    words = [sys.executable, "-m", "muniment.cli", "get", "0..", "--follow", "--json"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            _follow_and_restart(command, server)
        finally:
            command.kill()
            server.stop()


def _follow_and_restart(command: subprocess.Popen[str], server: LiveServer) -> None:
    assert command.stdout
    assert command.stderr
    assert json.loads(command.stdout.readline())["index"] == 0
    post(server.url, 1)
    assert json.loads(command.stdout.readline())["event"] == {"n": 1}
    assert server.stop() == 0
    assert "Going on with entry 2" in command.stderr.readline()
    with LiveServer(server.data, "--port", server.url.rpartition(":")[2]) as again:
        post(again.url, 2)
        assert json.loads(command.stdout.readline())["event"] == {"n": 2}
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=PATIENCE)
    assert (command.returncode, out) == (130, "")


def post(url: str, number: int) -> None:
    httpx.post(f"{url}/entries", json={"n": number}, timeout=PATIENCE).raise_for_status()
