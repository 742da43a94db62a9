"""Push by real servers: what they send while they are killed and their receiver is, and what the commands say of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import PATIENCE, LiveServer, free_of_tracebacks, run, until
from tests.service.http_world import Instance, LogSpec, instance_on
from tests.service.test_push import SECRET, Receiver

OTHER = LogSpec("other", "raw")


@dataclass
class World:
    """An instance with the sinks `siem` (a webhook), `archive` (a file) and `lost`, whose log is not there."""

    instance: Instance
    receiver: Receiver
    file: Path
    keys: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, check: bool = True) -> Any:
        done = run(*words, "--data", self.instance.data, database=self.instance.database, check=check)
        return json.loads(done.stdout) if "--json" in words and not done.returncode else done

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["sink"]: row for row in self.run("push", "status", "--json")}

    def lines(self) -> list[dict[str, Any]]:
        text = self.file.read_text("utf-8") if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def world(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with instance_on(engine, request, tmp_path, (LogSpec("default"), OTHER)) as instance, Receiver() as receiver:
        secret, file = tmp_path / "secret", tmp_path / "out" / "audit.jsonl"
        secret.write_bytes(SECRET)
        file.parent.mkdir()
        (instance.data / "muniment.toml").write_text(
            f"[push.siem]\nurl = '{receiver.origin}/in'\nsecrets = ['{secret}']\npayloads = true\n"
            f"[push.archive]\nlog = 'other'\nfile = '{file}'\n[push.lost]\nlog = 'none'\nfile = '{file}.2'\n"
        )
        yield World(instance, receiver, file)


def add(server: LiveServer, first: int, stop: int) -> None:
    body = b"\n".join(b'{"n":%d}' % n for n in range(first, stop))
    headers = {"Content-Type": "application/x-ndjson"}
    assert httpx.post(f"{server.url}/entries/batch", content=body, headers=headers, timeout=PATIENCE).is_success


def test_entries_arrive_and_the_commands_say_so(world: World) -> None:
    assert {name: row["state"] for name, row in world.status().items()} == {
        "siem": "new",
        "archive": "new",
        "lost": "no-log",
    }
    with world.instance.server() as server:
        add(server, 1, 301)
        for leaf in (b"1", b"2", b"3"):
            headers = {"Content-Type": "application/octet-stream"}
            assert httpx.post(f"{server.url}/logs/other/entries", content=leaf, headers=headers).is_success
        until(lambda: len(world.receiver.rows()) == 301 and len(world.lines()) == 4)
        until(lambda: {row["state"] for row in world.status().values()} == {"good", "no-log"})
        world.receiver.status = 503
        add(server, 301, 311)
        until(lambda: world.status()["siem"]["state"] == "waiting")
        row = world.status()["siem"]
        assert (row["taken"], row["tree_size"], row["lag_entries"]) == (301, 311, 10)
        assert row["error"] == "the receiver answers 503"
        assert row["batch"] == "default/siem/301-310"
        assert row["lag_seconds"] >= 0
        text = world.run("push", "status").stdout
        assert "default/siem" in text
        assert "tries failed" in text
        world.receiver.status = 200
        until(lambda: world.run("push", "retry", "--sink", "siem", "--json") and len(world.receiver.rows()) == 311)
    assert [row["index"] for row in world.receiver.rows()] == [*range(311)]
    assert [row["index"] for row in world.lines()] == [*range(4)]
    assert free_of_tracebacks(server.stderr())
    assert world.run("push", "retry", "--json") == {"tried_again": []}
    (world.instance.data / "muniment.toml").unlink()
    assert {row["state"] for row in world.status().values()} == {"off"}


def test_after_kills_of_server_and_receiver_nothing_is_missing(world: World) -> None:
    at = 1
    for turn in range(2):
        with world.instance.server(env={"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05"}) as server:
            add(server, at, at + 300)
            at += 300
            if turn % 2:
                world.receiver.down()
                world.receiver.up()
            until(lambda least=turn: len(world.receiver.taken) > least)
            server.stop(signal.SIGKILL)
    with world.instance.server():
        until(lambda: len(world.receiver.rows()) >= at)
    assert [row["index"] for row in world.receiver.rows()] == [*range(at)]
    bodies: dict[str, set[bytes]] = {}
    for name, body in world.receiver.taken:
        bodies.setdefault(name, set()).add(body)
    assert {len(same) for same in bodies.values()} == {1}


def test_two_servers_on_one_database_send_one_order(world: World) -> None:
    with world.instance.server() as one, world.instance.server() as two:
        for at in range(1, 601, 100):
            add(one if at % 200 == 1 else two, at, at + 100)
        until(lambda: len(world.receiver.rows()) == 601)
    assert [row["index"] for row in world.receiver.rows()] == [*range(601)]


def test_a_server_that_only_reads_pushes_nothing_and_says_nothing(world: World) -> None:
    with world.instance.server("--read-only") as server:
        assert httpx.get(f"{server.url}/checkpoint").is_success
    assert not world.receiver.requests
    assert free_of_tracebacks(server.stderr())


def test_a_certificate_file_that_is_none_ends_the_start_with_a_sentence(world: World) -> None:
    text = (world.instance.data / "muniment.toml").read_text()
    (world.instance.data / "muniment.toml").write_text(text.replace("payloads", f"ca = '{os.devnull}'\npayloads"))
    done = world.run("serve", "--port", "0", check=False)
    assert done.returncode == 2
    assert "sink siem" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_sink_is_named(world: World) -> None:
    done = world.run("push", "retry", "--sink", "nothing", check=False)
    assert (done.returncode, "push status" in done.stderr) == (2, True)
