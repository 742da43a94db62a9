"""Checkpoints as they are published: from a stream, or by asking again and again; each verified, none twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from muniment.errors import BadSignature, FormatError, MunimentError, Unavailable, Unproven
from muniment.sse import MEDIA_TYPE, CheckpointEvent, format_event
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog, problem
from tests.live import PATIENCE, LiveServer, init


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    for _ in range(4):
        grow(made)
    return made


def grow(log: FakeLog, count: int = 3) -> int:
    """Add entries and publish; return the size."""
    log.add_events([{"n": log.size + at} for at in range(count)])
    log.publish()
    return log.size


def sizes(following: Iterator[object], count: int) -> list[int]:
    return [one.checkpoint.size for one in itertools.islice(following, count)]  # type: ignore[attr-defined]


def growing(log: FakeLog, path: str, every: int = 1) -> list[str]:
    """Let a log grow whenever it is asked for a path, or every so many times. Return the paths that were asked for."""
    asked: list[str] = []

    def grows(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path != path or asked.count(path) % every:
            return response
        grow(log)
        return log._honest(request)

    log.tamper = grows
    return asked


@pytest.mark.parametrize("streams", [True, False])
def test_each_comes_once_and_in_order(colours: Colours, log: FakeLog, streams: bool) -> None:
    log.streams = streams
    following = colours.client(log).checkpoints(2, follow=True, interval=0)
    asked = growing(log, "/checkpoints/stream" if streams else "/checkpoint", 1 if streams else 3)
    assert sizes(following, 20) == [size for size in log.published_sizes if size >= 2][:20]
    assert (asked.count("/checkpoints/stream") > 5) == streams
    new = [grow(log) for _ in range(9)]
    assert sizes(following, 9) == new, "over several pages"


def test_from_the_latest_on(colours: Colours, log: FakeLog) -> None:
    following = colours.client(log).checkpoints(follow=True, interval=0)
    assert sizes(following, 1) == [log.size]
    size = grow(log)
    assert sizes(following, 1) == [size]


def test_a_stream_that_is_there_is_asked_for_what_comes_next(colours: Colours, log: FakeLog) -> None:
    following = colours.client(log).checkpoints(follow=True, interval=0)
    last = sizes(following, 1)[0]
    told: list[str | None] = []

    def stream(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path.endswith("/stream"):
            told.append(request.headers.get("last-event-id"))
            if len(told) == 1:
                body = b"".join(format_event(CheckpointEvent(size, log.note(size))) for size in (last, last, grow(log)))
                return httpx.Response(200, content=body, headers={"Content-Type": MEDIA_TYPE})
        return response

    log.tamper = stream
    assert sizes(following, 1) == [last + 3], "what was seen before is not shown again"
    assert told == [str(last)]


@pytest.mark.parametrize("status", [404, 405, 406])
def test_without_a_stream_it_is_asked_for_once(colours: Colours, log: FakeLog, status: int) -> None:
    asked = growing(log, "/checkpoint", 3)
    grows = log.tamper
    assert grows

    def none(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        answer = grows(request, response)
        return problem(status, "not_found") if request.url.path.endswith("/stream") else answer

    log.tamper = none
    following = colours.client(log).checkpoints(follow=True, interval=0)
    assert sizes(following, 5) == log.published_sizes[-5:]
    assert asked.count("/checkpoints/stream") == 1


def test_a_log_that_is_none_of_ours(colours: Colours, log: FakeLog) -> None:
    """It has tiles and a checkpoint, and nothing else: the latest checkpoint is what there is."""
    log.proofs = False

    def plain(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return problem(404, "not_found") if request.url.path.startswith("/checkpoints") else response

    log.tamper = plain
    following = colours.client(log).checkpoints(follow=True, interval=0)
    assert sizes(following, 1) == [log.size]
    size = grow(log, 300)
    assert sizes(following, 1) == [size]


@pytest.mark.parametrize(
    ("what", "error"),
    [("signature", BadSignature), ("size", FormatError), ("fork", Unproven), ("text", FormatError)],
)
def test_what_a_stream_tells_is_verified(colours: Colours, log: FakeLog, what: str, error: type[MunimentError]) -> None:
    other = FakeLog()
    other.add_events([{"other": at} for at in range(30)])
    other.publish()

    def lies(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith("/stream"):
            return response
        size = grow(log)
        note = other.note(other.size) if what == "fork" else log.note(size)
        if what == "signature":
            note = note[:-8] + ("AAAA" if note[-8:-4] != "AAAA" else "BBBB") + note[-4:]
        said = {"size": size + 1, "fork": other.size}.get(what, size)
        body = format_event(CheckpointEvent(said, note)) if what != "text" else b"data: \xff\n\n"
        return httpx.Response(200, content=body, headers={"Content-Type": MEDIA_TYPE})

    following = colours.client(log).checkpoints(follow=True, interval=0)
    sizes(following, 1)
    log.tamper = lies
    with pytest.raises(error):
        sizes(following, 1)


def test_an_error_ends_it_and_a_new_call_goes_on(colours: Colours, log: FakeLog) -> None:
    client = colours.client(log)
    following = client.checkpoints(follow=True, interval=0)
    last = sizes(following, 1)[0]
    log.tamper = lambda *_: problem(503, "overloaded", retry_after=0)
    with pytest.raises(Unavailable):
        next(following)
    log.tamper = None
    new = [grow(log), grow(log)]
    assert sizes(client.checkpoints(last + 1, follow=True, interval=0), 2) == new


# --- the command ------------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(cli: Cli) -> None:
    for words in (["--follow", "--all"], ["--follow", "-o", "x"], ["--start", "3"]):
        assert cli("checkpoint", *words).code == 2


def test_the_command_follows_across_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    init(data)
    server = LiveServer(data).wait()
    env = os.environ | {
        "MUNIMENT_POLICY": str(data / "policy"),
        "MUNIMENT_URL": server.url,
        "XDG_STATE_HOME": str(tmp_path),
    }
    words = [sys.executable, "-m", "muniment.cli", "checkpoint", "--follow", "--json"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout
            assert command.stderr
            assert json.loads(command.stdout.readline())["tree_size"] == 1
            post(server.url)
            assert json.loads(command.stdout.readline())["tree_size"] == 2
            assert server.stop() == 0
            assert "Going on beyond size 2" in command.stderr.readline()
            with LiveServer(data, "--port", server.url.rpartition(":")[2]) as again:
                post(again.url)
                assert json.loads(command.stdout.readline())["tree_size"] == 3
                command.send_signal(signal.SIGINT)
                out, _ = command.communicate(timeout=PATIENCE)
            assert (command.returncode, out) == (130, "")
        finally:
            command.kill()
            server.stop()


def post(url: str) -> None:
    httpx.post(f"{url}/entries", json={"n": 1}, timeout=PATIENCE).raise_for_status()
