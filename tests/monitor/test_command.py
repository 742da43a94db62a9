"""The command: exit codes, what it prints, how it ends, and which logs it follows."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from muniment.evidence import Evidence, verify
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog, problem
from tests.client.served import served
from tests.live import PATIENCE, run, until
from tests.monitor.command import Started, environment, monitor, words
from tests.monitor.conftest import Shown
from tests.service.http_world import make_instance

EVENTS = [{"action": f"act {number}"} for number in range(400)]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def url(shown: Shown) -> Iterator[str]:
    with served(shown) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture
def flags(log: FakeLog, tmp_path: Path) -> list[object]:
    policy = tmp_path / "policy"
    policy.write_bytes(bytes(log.policy))
    return ["--policy", policy, "--state", tmp_path / "state"]


def add(log: FakeLog, count: int, what: str = "act") -> None:
    log.add_events([{"action": f"{what} {number}"} for number in range(count)])
    log.publish()


# --- one look -----------------------------------------------------------------------------------------------------------


def test_one_look_after_another(url: str, flags: list[object], log: FakeLog) -> None:
    add(log, 300)
    done = monitor(url, *flags, "--once", "--json")
    assert (done.code, [line["event"] for line in done.lines], done.err) == (0, ["head"], "")
    assert (done.lines[0]["tree_size"], done.lines[0]["new"]) == (301, 301)
    assert monitor(*flags, "--once", "--json", url).out == ""  # in any order, and nothing new
    add(log, 2)
    done = monitor("follow", url, *flags, "--once")
    assert "example.com/log: size 303, 2 new, root" in done.out


def test_exit_codes(url: str, flags: list[object], log: FakeLog, tmp_path: Path) -> None:
    once = [url, *flags, "--once", "--json"]
    add(log, 300)
    assert monitor(*once).code == 0
    log.published_sizes.pop()
    assert monitor(*once).code == 3
    assert monitor(*once, "--grace", "0").code == 1
    log.publish()
    log.tamper = lambda request, response: problem(403, "forbidden")
    assert monitor(*once).code == 6
    assert monitor("http://127.0.0.1:9", *once[1:]).code == 4
    (tmp_path / "state" / "findings.jsonl").write_bytes(b"x\n")
    done = monitor(*once)
    assert (done.code, done.error) == (2, "state_error")


@pytest.mark.parametrize(
    "bad",
    [
        ["ftp://x"],
        ["http://a", "--interval", "nan"],
        ["http://a", "--grace", "-1"],
        ["http://a", "--webhook", "http://b"],
        ["file://host/x"],
        [],
    ],
)
def test_bad_usage(flags: list[object], bad: list[str]) -> None:
    done = monitor(*bad, *flags, "--once")
    assert (done.code, done.out) == (2, "")


def test_a_policy_that_is_missing(url: str, tmp_path: Path) -> None:
    done = monitor(url, "--state", tmp_path / "state", "--json")
    assert (done.code, done.error) == (2, "no_policy")


def test_a_key_is_sent_to_one_server_only(url: str, flags: list[object]) -> None:
    done = monitor(url, "http://127.0.0.1:9", *flags, "--once", "--json", MUNIMENT_API_KEY="mk_x")
    assert (done.code, done.error) == (2, "key_for_several")


def test_a_fork_is_confirmed_offline(
    url: str, flags: list[object], log: FakeLog, shown: Shown, tmp_path: Path, cli: Cli
) -> None:
    add(log, 300)
    twin = log.fork()
    add(log, 50)
    add(twin, 600, "other")
    assert monitor(url, *flags, "--once").code == 0
    shown.log = twin
    done = monitor(url, *flags, "--once", "--json")
    assert done.code == 1
    (found,) = [line for line in done.lines if line["event"] == "finding"]
    assert (found["code"], found["severity"], found["rests_on"]) == ("fork", "evidence", "signed")
    file = tmp_path / "state" / found["facts"]["evidence"]
    assert cli("verify", file, "--policy", flags[1], "--json").code == 0
    shown.log = log
    assert monitor(url, *flags, "--once").code == 1


def test_two_urls_of_one_log_are_compared(flags: list[object], log: FakeLog, tmp_path: Path) -> None:
    add(log, 300)
    twin = log.fork()
    add(log, 5)
    add(twin, 9, "other")
    with served(log) as one, served(twin) as other:
        done = monitor(one, other, *flags, "--once", "--json")
    assert done.code == 1
    (file,) = (tmp_path / "state" / "evidence").iterdir()
    assert verify(Evidence.parse(file.read_bytes()), log.policy).first.size == log.size
    assert [line["code"] for line in done.lines if line["event"] == "finding"] == ["fork"]


# --- other logs ---------------------------------------------------------------------------------------------------------


@contextmanager
def files_at(folder: Path) -> Iterator[str]:
    """A plain server of files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_backup_behind_a_server_of_files(tmp_path: Path) -> None:
    instance = make_instance(tmp_path / "data")
    flags = ["--policy", instance.data / "policy", "--once", "--json"]
    with instance.server() as server:
        for count in (300, 250):
            body = b"".join(b'{"a":%d}\n' % number for number in range(count))
            headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": str(count)}
            assert httpx.post(f"{server.url}/entries/batch", content=body, headers=headers).status_code == 201
            until(lambda: int(httpx.get(f"{server.url}/checkpoint").text.split("\n")[1]) > 300 - 1)
    run("backup", "--data", instance.data, "--to", tmp_path / "backup")
    tree = tmp_path / "backup" / "default"
    with files_at(tree) as url:
        by_http = monitor(url, *flags, "--state", tmp_path / "by-http")
    by_file = monitor(tree.as_uri(), *flags, "--state", tmp_path / "by-file")
    assert (by_http.code, by_file.code) == (0, 0)
    size = by_http.lines[0]["tree_size"]
    assert by_http.lines[0]["root"] == by_file.lines[0]["root"]
    (tree / "tile" / "entries" / "000").unlink()
    assert monitor(tree.as_uri(), *flags, "--state", tmp_path / "new", "--grace", "0").code == 1
    assert size > 300


def test_a_real_server_is_followed(tmp_path: Path) -> None:
    instance = make_instance(tmp_path / "data")
    with instance.server() as server:
        given = (server.url, "--policy", instance.data / "policy", "--state", tmp_path / "state", "--interval", "0.2")
        with Started(given, tmp_path / "lines") as started:
            for number in range(3):
                assert httpx.post(f"{server.url}/entries", json={"a": number}).status_code == 201
                until(lambda number=number: any(one["tree_size"] >= number + 2 for one in started.events("head")))
            assert started.stop() == 0
            assert not started.events("finding")


# --- how it ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_at_a_signal(url: str, flags: list[object], tmp_path: Path, sig: int, code: int) -> None:
    with Started((url, *flags), tmp_path / "lines") as started:
        until(lambda: started.events("head"))
        assert started.stop(sig) == code


def test_a_pipe_that_no_reader_empties_does_not_keep_it(flags: list[object], log: FakeLog, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    add(log, 300)
    every = ",".join(f'"{sha256(leaf).hexdigest()}"' for leaf in log.leaves[::2])
    rules.write_text(f'[[rule]]\nname = "{"n" * 200}"\nsha256 = [{every}]\n')
    with served(log) as url:
        process = subprocess.Popen(
            words(url, *flags, "--rules", rules, "--json"),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            # 150 findings of 600 bytes fill the pipe, and are all in the record.
            path = tmp_path / "state" / "findings.jsonl"
            until(lambda: path.exists() and path.read_bytes().count(b"\n") == 151)
            until(lambda: log.paths().count("/checkpoint") > 2)  # it goes on
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.communicate()


def test_a_reader_that_leaves_ends_it(url: str, flags: list[object], log: FakeLog) -> None:
    process = subprocess.Popen(
        words(url, *flags, "--json"), env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert json.loads(process.stdout.readline())["event"] == "head"
        process.stdout.close()
        add(log, 1)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.wait()


def test_one_monitor_for_each_folder(url: str, flags: list[object], tmp_path: Path) -> None:
    with Started((url, *flags), tmp_path / "lines") as started:
        until(lambda: started.events("head"))
        done = monitor(url, *flags, "--once", "--json")
        assert (done.code, done.error) == (2, "state_error")
        assert "another monitor" in done.err
        started.process.kill()
        started.process.wait()
    assert monitor(url, *flags, "--once").code == 0


@pytest.mark.parametrize("after", [0.0, 0.5, 1.0])
def test_it_is_killed_while_it_reads(url: str, flags: list[object], log: FakeLog, tmp_path: Path, after: float) -> None:
    log.add_events(EVENTS * 30)
    log.publish()
    with Started((url, *flags), tmp_path / "lines") as started:
        until(lambda: "/checkpoint" in log.paths())
        threading.Event().wait(after)
        started.process.kill()
    done = monitor(url, *flags, "--once", "--json")
    assert (done.code, done.err) == (0, "")
    assert not [line for line in done.lines if line["event"] == "finding"]
    assert monitor(url, *flags, "--once", "--json").out == ""
    (row,) = (tmp_path / "state" / "logs").glob("*.hashes")
    assert row.stat().st_size == log.size // 256 * 32


# --- receipts that are given later --------------------------------------------------------------------------------------


def test_a_receipt_is_tied_to_what_was_seen(
    url: str, flags: list[object], log: FakeLog, tmp_path: Path, cli: Cli
) -> None:
    add(log, 600)
    twin = log.fork()
    assert monitor(url, *flags, "--once").code == 0
    add(log, 300)

    def check(receipt: object) -> tuple[int, dict[str, object]]:
        path = tmp_path / "receipt.json"
        path.write_text(str(receipt))
        done = cli("monitor", "check", path, *flags, "--json")
        return done.code, json.loads(done.out) if done.out else done.error

    assert check(log.receipt(500, 700))[0] == 3
    log.requests.clear()
    for size in (2, 256, 300, 511, 601):
        code, value = check(log.receipt(1, size))
        assert (code, value["outcome"]) == (0, "tied")
    assert not log.requests  # it takes no log
    add(twin, 1, "other")
    older = FakeLog()
    older.add_events([{"action": "another"}])
    code, value = check(older.receipt(1, 2))
    assert (code, value["outcome"]) == (1, "forked")
    assert verify(Evidence.parse(Path(str(value["evidence"])).read_bytes()), log.policy).second.size == 601
    spoiled = json.loads(str(log.receipt(1, 2)))
    spoiled["index"] = 0
    assert check(json.dumps(spoiled))[0] == 1


def test_a_receipt_of_a_log_that_was_not_followed(flags: list[object], log: FakeLog, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(str(log.receipt(0)))
    assert cli("monitor", "check", path, *flags).code == 2
