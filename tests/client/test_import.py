"""Imports: whatever goes wrong and wherever they stop, in the end every row is logged exactly once, in order."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import muniment.client._sync
from muniment._flows import without_receipts
from muniment.cli import importer
from muniment.cli.import_state import state_path
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog, answering, edit, fine, instead, lost_after, lost_before, problem
from tests.client.served import served
from tests.live import PATIENCE

ROWS = [{"n": n, "text": f"row {n}"} for n in range(23)]


class Crash(BaseException):
    """The process ends here: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)
    monkeypatch.setattr(importer, "MAX_ENTRIES", 5)


@pytest.fixture(params=["event", "raw"])
def log(request: pytest.FixtureRequest) -> FakeLog:
    made = FakeLog(request.param)
    made.add_events([{"before": 1}]) if made.kind == "event" else made.add_raw([b"before"])
    made.publish()
    return made


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "policy").write_text(str(log.policy))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def logged(log: FakeLog) -> list[Any]:
    """What is in the log after what was there before."""
    if log.kind == "event":
        return [log.payloads[index].event for index in range(2, log.size)]
    return [json.loads(leaf) for leaf in log.leaves[2:]]


def test_import(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    done = cli("import", "rows.jsonl")
    assert done.code == 0
    assert "Imported 23 rows" in done.out
    assert "from entry 2 to entry 24" in done.out
    assert logged(log) == ROWS
    again = cli("import", "rows.jsonl", "--json")
    assert (again.json["rows"], again.json["new_rows"]) == (23, 0)
    assert log.size == 25


def test_rows_added_later(cli: Cli, log: FakeLog, here: Path) -> None:
    path = here / "rows.jsonl"
    write(path, ROWS[:7])
    assert cli("import", path).code == 0
    write(path)
    assert cli("import", path, "--json").json["new_rows"] == 16
    assert logged(log) == ROWS


def test_blank_lines_and_a_missing_last_newline(cli: Cli, log: FakeLog, here: Path) -> None:
    (here / "rows.jsonl").write_text("\n" + "\n\n".join(json.dumps(row) for row in ROWS))
    assert cli("import", "rows.jsonl", "--json").json["rows"] == 23
    assert logged(log) == ROWS


def test_nothing_to_import(cli: Cli, here: Path) -> None:
    (here / "empty.jsonl").write_text("\n\n")
    done = cli("import", "empty.jsonl")
    assert (done.code, "Nothing to import" in done.out) == (0, True)


def test_stdin(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    done = cli("import", "-", stdin=(here / "rows.jsonl").read_bytes())
    assert (done.code, "Imported 23 rows" in done.out) == (0, True)
    assert logged(log) == ROWS
    assert not list(here.glob("*muniment-import"))


# --- crashes ------------------------------------------------------------------------------------------------------------


class Points:
    """Crashes at the n-th of the moments around everything an import does that outlives it, or decides what does.

    Those are writing the state, sending a batch, and verifying the answer. A batch is sent in a thread of its own, so the order of
    moments varies from run to run; what is after a crash in either thread does not happen.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left = -1
        self._crashed = False
        self._lock = threading.Lock()
        monkeypatch.setattr(importer, "save", self._around(importer.save))
        monkeypatch.setattr(
            without_receipts, "send_without_receipts", self._around_flow(without_receipts.send_without_receipts)
        )
        monkeypatch.setattr(without_receipts, "check_appended", self._around_flow(without_receipts.check_appended))

    def arm(self, left: int) -> None:
        """Crash at the point with `left` others before it; never when negative. Whatever a crash left running has ended then."""
        for thread in threading.enumerate():
            if thread.name == "muniment-send":
                thread.join()
        self._left, self._crashed = left, False

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._point()
            result = function(*args, **kwargs)
            self._point()
            return result

        return wrapped

    def _around_flow(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._point()
            result = yield from function(*args, **kwargs)
            self._point()
            return result

        return wrapped

    def _point(self) -> None:
        with self._lock:
            self._crashed |= self._left == 0
            self._left -= 1
            if self._crashed:
                raise Crash


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8, 13])
def test_a_crash_at_every_point(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Crash after so many points, run again, crash again after so many, until the import ends."""
    write(here / "rows.jsonl")
    points = Points(monkeypatch)
    for _ in range(20):
        points.arm(every)
        try:
            assert cli("import", "rows.jsonl").code == 0
            break
        except Crash:
            pass
    else:
        assert every < 4, "an import that gets further each time ends"
        points.arm(-1)
        assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_one_crash_at_each_point(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of its own for each point, so the fixture's is left alone."""
    points = Points(monkeypatch)
    at = 0
    while True:
        log = FakeLog()
        log.add_events([{"before": 1}])
        (here / "policy").write_text(str(log.policy))
        for path in here.glob("*muniment-import"):
            path.unlink()
        monkeypatch.setenv("XDG_STATE_HOME", str(here / f"state{at}"))
        write(here / "rows.jsonl", ROWS[:8])
        with served(log) as url:
            points.arm(at)
            try:
                assert cli("import", "rows.jsonl", "--url", url).code == 0
                break
            except Crash:
                points.arm(-1)
                assert cli("import", "rows.jsonl", "--url", url).code == 0
        assert logged(log) == ROWS[:8], f"crash at point {at}"
        at += 1
    assert at == 2 * 4 * 2  # before and after: begin, send, verify, done of each of two batches


@pytest.mark.parametrize("fault", [lost_before, lost_after])
def test_a_server_that_goes_away(cli: Cli, log: FakeLog, here: Path, fault: Any) -> None:
    write(here / "rows.jsonl")
    for _ in range(10):
        log.faults = [fine] * 3 + [fault] * 8
        if cli("import", "rows.jsonl").code == 0:
            break
        log.faults = []
    log.faults = []
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


def test_ctrl_c(cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "rows.jsonl")
    real, calls = without_receipts.check_appended, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = yield from real(*args, **kwargs)
        if calls == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(without_receipts, "check_appended", interrupted)
    done = cli("import", "rows.jsonl", "--json")
    assert (done.code, done.error["rows"]) == (130, 5)
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize(
    ("log", "sig"),
    [("event", signal.SIGKILL), ("raw", signal.SIGKILL), ("event", signal.SIGINT)],
    indirect=["log"],
)
def test_a_process_killed_again_and_again(log: FakeLog, here: Path, sig: signal.Signals) -> None:
    rows = [{"n": n} for n in range(1500)]
    write(here / "rows.jsonl", rows)
    command = [sys.executable, "-m", "muniment.cli", "import", "rows.jsonl"]
    env = os.environ | {"PYTHONFAULTHANDLER": ""}
    for attempt in range(3):
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        size, deadline = log.size, time.monotonic() + PATIENCE
        while log.size == size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        process.send_signal(sig)
        _, err = process.communicate(timeout=PATIENCE)
        assert b"Traceback" not in err
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert logged(log) == rows


# --- a key that no longer holds -----------------------------------------------------------------------------------------


def crash_with_two_under_way(cli: Cli, monkeypatch: pytest.MonkeyPatch, happened: int) -> None:
    """Import, and crash with the second and third batch under way, of which the first `happened` are in the log."""
    sent, checked, third_sent = 0, 0, threading.Event()
    real_send, real_check = without_receipts.send_without_receipts, without_receipts.check_appended

    def send(*args: Any) -> Any:
        nonlocal sent
        sent += 1
        if (sent, happened) == (2, 0):
            raise Crash
        answer = yield from real_send(*args)
        if (sent, happened) == (2, 1):
            raise Crash
        if sent == 3:
            third_sent.set()
        return answer

    def check(*args: Any) -> Any:
        nonlocal checked
        checked += 1
        if checked == 2:
            assert third_sent.wait(PATIENCE)
            raise Crash
        return (yield from real_check(*args))

    with monkeypatch.context() as patched:
        patched.setattr(without_receipts, "send_without_receipts", send)
        patched.setattr(without_receipts, "check_appended", check)
        with pytest.raises(Crash):
            cli("import", "rows.jsonl")


@pytest.mark.parametrize("log", ["event"], indirect=True)
@pytest.mark.parametrize("happened", [0, 1, 2])
@pytest.mark.parametrize("why", ["expired", "another caller", "clock went back"])
def test_the_log_is_searched_when_the_key_does_not_hold(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, happened: int, why: str
) -> None:
    write(here / "rows.jsonl")
    crash_with_two_under_way(cli, monkeypatch, happened)
    assert log.size == 7 + 5 * happened
    assert len(json.loads(state_path(here / "rows.jsonl").read_text())["pending"]) == 2
    log.keys.clear()
    if why == "another caller":
        monkeypatch.setenv("MUNIMENT_API_KEY", "mk_other")
    else:
        shift = 90_000_000 if why == "expired" else -90_000_000
        real = importer._now
        monkeypatch.setattr(importer, "_now", lambda: real() + shift)
    log.add_events([{"n": 5, "text": "row 5"}, {"other": 1}])
    log.publish()
    assert cli("import", "rows.jsonl").code == 0
    rows = [row for row in logged(log) if row != {"other": 1}]
    rows.remove({"n": 5, "text": "row 5"})
    assert sorted(row["n"] for row in rows) == list(range(23))


@pytest.mark.parametrize("log", ["event"], indirect=True)
@pytest.mark.parametrize("happened", [0, 1, 2])
def test_batches_of_equal_content_are_not_taken_for_each_other(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, happened: int
) -> None:
    rows = [{"n": n % 5 if n >= 5 else -1} for n in range(23)]
    write(here / "rows.jsonl", rows)
    crash_with_two_under_way(cli, monkeypatch, happened)
    log.keys.clear()
    monkeypatch.setenv("MUNIMENT_API_KEY", "mk_other")
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == rows


@pytest.mark.parametrize("happened", [0, 1, 2])
def test_two_batches_under_way_are_settled_in_order(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, happened: int
) -> None:
    write(here / "rows.jsonl")
    crash_with_two_under_way(cli, monkeypatch, happened)
    log.faults = [fine, fine, lost_after, lost_before, answering(503, "outcome_unknown", 0)]
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_what_cannot_be_found_out_is_asked(cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "rows.jsonl")
    crash_with_two_under_way(cli, monkeypatch, 0)
    log.readable = False
    log.add_events([{"other": 1}])
    log.publish()
    monkeypatch.setenv("MUNIMENT_API_KEY", "mk_other")
    done = cli("import", "rows.jsonl", "--json")
    assert (done.code, done.error["code"]) == (2, "outcome_unknown")
    assert "rows 6 to 15" in done.error["message"]
    assert cli("import", "rows.jsonl", "--cut-off-batch", "lost").code == 0
    assert [row for row in logged(log) if row != {"other": 1}] == ROWS


def test_a_run_among_others() -> None:
    assert importer._find_run([b"a", b"b"], [b"a", b"a", b"b", None], 10) == 11
    assert importer._find_run([b"a", b"a", b"b"], [b"a", b"a", b"a", b"b"], 0) == 1
    assert importer._find_run([b"a", b"b"], [b"a", None, b"b", b"a"], 0) is None
    assert importer._find_run([b"a"], [], 0) is None


# --- inputs that are wrong ----------------------------------------------------------------------------------------------


def test_an_input_changed_where_it_is_logged(cli: Cli, log: FakeLog, here: Path) -> None:
    path = here / "rows.jsonl"
    write(path)
    assert cli("import", path).code == 0
    size = log.size
    for changed in (ROWS[1:], [{"n": -1}, *ROWS[1:]], ROWS[:5]):
        write(path, changed)
        done = cli("import", path, "--json")
        assert (done.code, done.error["code"]) == (2, "input_changed")
    assert log.size == size


@pytest.mark.parametrize("log", ["event"], indirect=True)
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "not_an_object"),
        ("{}", "empty_event"),
        ('{"a":1,"a":2}', "duplicate_name"),
        ('{"a":NaN}', "invalid_number"),
        ("\xff", "invalid_utf8"),
    ],
)
def test_a_bad_row_stops_after_what_precedes_it(cli: Cli, log: FakeLog, here: Path, line: str, code: str) -> None:
    path = here / "rows.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*lines[:7], line, *lines[8:]]), encoding="latin-1")
    done = cli("import", path, "--json")
    assert (done.code, done.error["code"]) == (2, code)
    assert "line 8" in done.error["message"]
    assert logged(log) == ROWS[:7]
    path.write_text("\n".join(lines))
    assert cli("import", path).code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_a_batch_the_server_refuses_is_not_under_way_any_more(cli: Cli, log: FakeLog, here: Path) -> None:
    path = here / "rows.jsonl"
    write(path)
    log.faults = [fine, fine, answering(422, "too_many_members")]
    assert cli("import", path).code == 6
    write(path, [{"repaired": 1}, *ROWS])
    assert cli("import", path).code == 0
    assert logged(log) == [{"repaired": 1}, *ROWS]


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_a_batch_refused_for_want_of_a_key_stays_under_way(cli: Cli, log: FakeLog, here: Path) -> None:
    """It may have been logged by an earlier attempt; only its key can tell."""
    path = here / "rows.jsonl"
    write(path)
    log.tamper = instead("/batch", lambda: problem(401, "unauthorized"))
    assert cli("import", path).code == 6
    assert json.loads(state_path(path).read_text())["pending"]
    log.tamper = None
    assert cli("import", path).code == 0
    assert logged(log) == ROWS


def test_an_answer_that_is_not_proved_stops_the_import(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    lie = {"event": lambda value: value["receipts"].reverse(), "raw": lambda value: value["indices"][0].reverse()}
    log.tamper = edit("/batch", lie[log.kind])
    assert cli("import", "rows.jsonl").code == 1
    log.tamper = None
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_a_refusal_while_an_answer_is_checked_is_none_of_the_batch(cli: Cli, log: FakeLog, here: Path) -> None:
    """The batch is in the log. What is refused is the proof that its tree extends the one before."""

    def stranger(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
        if request.url.path.endswith("/batch"):
            log.add_events([{"stranger": 1}])
        return honest()

    def unproved(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        proves = request.url.path.startswith(("/proof", "/tile"))
        return problem(422, "no") if proves else response

    write(here / "rows.jsonl")
    log.faults = [fine, fine, fine, stranger]
    log.tamper = unproved
    assert cli("import", "rows.jsonl").code == 1
    assert json.loads(state_path(here / "rows.jsonl").read_text())["pending"]
    log.tamper = None
    assert cli("import", "rows.jsonl").code == 0
    assert [row for row in logged(log) if row != {"stranger": 1}] == ROWS


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_what_follows_a_refused_batch_is_not_sent(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    log.faults = [fine, fine, fine, answering(413, "too_large")]
    assert cli("import", "rows.jsonl").code == 6
    state = json.loads(state_path(here / "rows.jsonl").read_text())
    assert (state["rows"], state["pending"]) == (5, [])
    assert logged(log) == ROWS[:5]
    assert cli("import", "rows.jsonl").code == 0
    assert logged(log) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"typ":"muniment/import@v1"}',
        "\0" * 50,
        '{"typ":"muniment/import@v1","origin":"a","form":"jsonl","offset":"x","digest":"","rows":0,"first":null,"last":null,"pending":null}',
    ],
)
def test_a_damaged_import_state(cli: Cli, log: FakeLog, here: Path, content: str) -> None:
    write(here / "rows.jsonl")
    state_path(here / "rows.jsonl").write_text(content)
    done = cli("import", "rows.jsonl", "--json")
    assert (done.code, done.error["code"]) == (2, "import_state")
    assert log.size == 2


def test_the_state_of_another_log(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    assert cli("import", "rows.jsonl").code == 0
    other = FakeLog(log.kind, origin="example.com/other")
    (here / "other-policy").write_text(str(other.policy))
    with served(other) as url:
        done = cli("import", "rows.jsonl", "--url", url, "--policy", "other-policy", "--json")
    assert (done.code, done.error["code"]) == (2, "import_state")
    assert other.size == 1


def test_two_imports_of_one_file(cli: Cli, here: Path) -> None:
    write(here / "rows.jsonl")
    with (here / "rows.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli("import", "rows.jsonl", "--json").error["code"] == "busy"


def test_a_folder_that_cannot_be_written(cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "rows.jsonl")

    def fail(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("muniment.state.replace_file", fail)
    done = cli("import", "rows.jsonl", "--json")
    assert (done.code, done.error["code"]) in ((2, "unwritable"), (2, "state_error"))
    assert log.size == 2, "nothing is sent before it is noted"


# --- CSV and lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", ["event"], indirect=True)
def test_csv(cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '\ufeffname,note\r\n"Ann, B.","two\nlines"\r\n\r\nBob,\r\n"say ""hi""",x\r\n' + "".join(
        f"n{i},{i}\r\n" for i in range(12)
    )
    (here / "rows.csv").write_bytes(text.encode())
    points = Points(monkeypatch)
    expected = [
        {"name": "Ann, B.", "note": "two\nlines"},
        {"name": "Bob", "note": ""},
        {"name": 'say "hi"', "note": "x"},
        *({"name": f"n{i}", "note": f"{i}"} for i in range(12)),
    ]
    for _ in range(30):
        points.arm(5)
        try:
            assert cli("import", "rows.csv").code == 0
            break
        except Crash:
            pass
    assert logged(log) == expected


@pytest.mark.parametrize("log", ["event"], indirect=True)
@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a,a\n1,2\n", "bad_header", 1),
        ("a,\n1,2\n", "bad_header", 1),
        ("a,b\n1\n", "bad_row", 2),
        ("a,b\n1,2,3\n", "bad_row", 2),
        ('a,b\n1,"x\n', "bad_row", 2),
        ('a,b\n1,"x"y\n', "bad_row", 2),
        ("a,b\n1,\xff\n", "invalid_utf8", 2),
    ],
)
def test_bad_csv(cli: Cli, log: FakeLog, here: Path, text: str, code: str, line: int) -> None:
    (here / "rows.csv").write_bytes(text.encode("latin-1"))
    done = cli("import", "rows.csv", "--json")
    assert (done.code, done.error["code"], done.error["line"]) == (2, code, line)
    assert log.size == 2


@pytest.mark.parametrize("log", ["raw"], indirect=True)
def test_lines_are_leaves_byte_for_byte(cli: Cli, log: FakeLog, here: Path) -> None:
    (here / "rows").write_bytes(b"a\r\n\xff\x00\n  b\na\r\n")
    assert cli("import", "rows", "--json").json["rows"] == 4
    assert log.leaves[2:] == [b"a\r", b"\xff\x00", b"  b"]


def test_a_format_that_does_not_fit(cli: Cli, log: FakeLog, here: Path) -> None:
    write(here / "rows.jsonl")
    wrong = "jsonl" if log.kind == "raw" else "lines"
    assert cli("import", "rows.jsonl", "--format", wrong).code == 2
    assert cli("import", "missing").code == 2
    assert cli("import", ".").code == 2
