"""`muniment export`: bundles of receipts, whole or gone on with; and what a caller gets who may not read what events say."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import muniment.client._sync
from muniment._flows import reads
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.receipts import ReceiptsReader, lines_of
from tests.client.cli_runner import Cli
from tests.client.fake_log import ORIGIN, FakeLog, problem
from tests.client.served import served

PART = Path("out.muniment-export")
RECEIPTS = ("export", "--format", "receipts")


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice", "n": 1}, {"actor": "bob", "ok": True}])
    made.publish()
    return made


@pytest.fixture
def long() -> FakeLog:
    """A log of several pages."""
    made = FakeLog("raw")
    made._grow([b"%d" % n for n in range(290)])
    made.publish()
    return made


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: FakeLog) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)
    monkeypatch.setattr(reads, "PAGE_TILES", 1)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with behind(monkeypatch, log):
        yield tmp_path


class behind:
    """The server of the commands is this log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: FakeLog) -> None:
        self._monkeypatch, self._log = monkeypatch, log
        self._served = served(log)

    def __enter__(self) -> None:
        Path("policy").write_text(str(self._log.policy))
        self._monkeypatch.setenv("MUNIMENT_URL", self._served.__enter__())

    def __exit__(self, *_: object) -> None:
        self._served.__exit__(None, None, None)


def cut_at(log: FakeLog, index: int) -> None:
    """From this index on the log gives no more entries."""

    def refuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        late = request.url.path == "/entries" and int(request.url.params["start"]) >= index
        return problem(503, "busy") if late else response

    log.tamper = refuse


def read(log: FakeLog, name: str = "out") -> tuple[tuple[int, int] | None, list[Receipt]]:
    with Path(name).open("rb") as file:
        reader = ReceiptsReader(lines_of(file), log.policy)
        return reader.header.range, [receipt for receipt, _ in reader]


def test_the_whole_log_and_a_range(cli: Cli, log: FakeLog) -> None:
    done = cli(*RECEIPTS, "-o", "out")
    assert done.code == 0
    assert f"Exported 3 entries from 0 to 2 of {ORIGIN}, each proved to be in the tree of size 3: out\n" in done.err
    assert read(log) == ((0, 3), [log.receipt(index) for index in range(3)])
    assert not PART.exists()
    assert "All 3 entries from 0 to 2 proved; none is missing." in cli("verify", "out").out
    for words, span in (
        (("--range", "1..3"), (1, 3)),
        (("--start", "2"), (2, 3)),
        (("--stop", 2), (0, 2)),
        (("--stop", 9), (0, 3)),
    ):
        assert cli(*RECEIPTS, "-o", "out", "--overwrite", *words).code == 0
        assert read(log) == (span, [log.receipt(index) for index in range(*span)])


def test_to_stdout_and_into_the_verifier(cli: Cli, log: FakeLog) -> None:
    done = cli(*RECEIPTS, "--range", "0..2", "--json")
    assert json.loads(done.err)["entries"] == 2
    assert cli("verify", "-", stdin=done.out.encode()).code == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert cli(*RECEIPTS, "-o", "pipe").code == 0
    data = os.read(reader, 1 << 16)
    os.close(reader)
    assert cli("verify", "-", stdin=data).code == 0


def test_rows_of_a_range(cli: Cli) -> None:
    rows = cli("export", "--range", "1..3").out.splitlines()
    assert [json.loads(row)["index"] for row in rows] == [1, 2]


@pytest.mark.parametrize("span", ["3..1", "1..1", "1", "a..b", "1..2..3", "..2", "-1..2", "01..2"])
def test_ranges_that_are_none(cli: Cli, span: str) -> None:
    done = cli("export", "--range", span)
    assert (done.code, done.out) == (2, "")


def test_a_range_is_all_or_nothing(cli: Cli, log: FakeLog) -> None:
    for words in (("--range", "0..4"), ("--start", "3")):
        done = cli(*RECEIPTS, "-o", "out", *words, "--json")
        assert (done.code, done.error["code"]) == (3, "not_published_yet")
    assert cli("export", "--range", "0..4").code == 3
    assert cli("export", "--range", "0..2", "--start", "0").code == 2
    dashed = cli("export", "--range", "0-2")
    assert (dashed.code, "write 0..2" in dashed.err) == (2, True)
    assert [path.name for path in Path().iterdir()] == ["policy"]


def test_one_that_was_cut_is_gone_on_with(cli: Cli, long: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind(monkeypatch, long):
        cut_at(long, 256)
        done = cli(*RECEIPTS, "-o", "out", "--json")
        assert (done.code, done.error["kept"], Path("out").exists()) == (4, 256, False)
        assert "256 entries are kept in" in done.error["hint"]
        assert cli("verify", str(PART)).code == 1, "it is no bundle yet"
        long._grow([b"later"])
        long.publish()
        long.tamper, long.requests = None, []
        assert cli(*RECEIPTS, "-o", "out").code == 0
        assert min(int(r.url.params["start"]) for r in long.requests if r.url.path == "/entries") == 256
        assert read(long) == ((0, 291), [long.receipt(index, 291) for index in range(291)])
        assert not PART.exists()


@pytest.mark.parametrize("damage", ["torn", "rotted", "ended", "empty", "header torn", "header rotted"])
def test_what_a_crash_left_is_kept_as_far_as_it_holds(
    cli: Cli, long: FakeLog, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    with behind(monkeypatch, long):
        assert cli(*RECEIPTS, "-o", "whole").code == 0
        whole = Path("whole").read_bytes()
        lines = whole.splitlines(keepends=True)
        left, kept = {
            "torn": (b"".join(lines[:280])[:-9], 278),
            "rotted": (whole.replace(b'"index":100,', b'"index":100 '), 100),
            "ended": (whole, 291),
            "empty": (b"", 0),
            "header torn": (lines[0][:-9], 0),
            "header rotted": (whole.replace(b"checkpoint", b"checkpiont", 1), 0),
        }[damage]
        PART.write_bytes(left)
        long.requests = []
        assert cli(*RECEIPTS, "-o", "out").code == 0
        assert Path("out").read_bytes() == whole
        starts = [int(r.url.params["start"]) for r in long.requests if r.url.path == "/entries"]
        assert min(starts, default=291) == kept


def test_what_is_of_another_export_is_left_alone(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> None:
        before = PART.read_bytes()
        done = cli(*RECEIPTS, "-o", "out", *words, "--json")
        assert (done.code, done.error["code"]) == (2, "other_export")
        assert PART.read_bytes() == before

    cut_at(log, 0)
    cli(*RECEIPTS, "-o", "whole", "--range", "0..2")
    log.tamper = None
    assert cli(*RECEIPTS, "-o", "whole", "--range", "0..2").code == 0
    PART.write_bytes(b"".join(Path("whole").read_bytes().splitlines(keepends=True)[:-1]))
    refused()
    refused("--range", "0..3")
    refused("--range", "0..2", "--leaves-only")
    other = FakeLog(origin="example.com/other", seed=1)
    other.add_events([{"n": 1}])
    other.publish()
    with behind(monkeypatch, other):
        refused("--range", "0..2")
        Path("policy").write_text(str(Policy((*log.policy.logs, *other.policy.logs))))
        refused("--range", "0..2", "--origin", "example.com/other")


def test_two_at_once(cli: Cli, log: FakeLog) -> None:
    with PART.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = cli(*RECEIPTS, "-o", "out", "--json")
        assert (done.code, done.error["code"]) == (2, "busy")


def test_an_interrupted_export_says_what_is_kept(cli: Cli, long: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with behind(monkeypatch, long):
        real, pages = muniment.client._sync.Client._run, 0

        def run(client: object, flow: object, *rest: object) -> object:
            nonlocal pages
            pages += getattr(flow, "__name__", "") == "next_page"
            if pages == 2:
                raise KeyboardInterrupt
            return real(client, flow, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(muniment.client._sync.Client, "_run", run)
        done = cli(*RECEIPTS, "-o", "out", "--json")
        assert (done.code, done.error["kept"]) == (130, 256)


# --- events that stay closed to the caller ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv", "receipts"])
def test_an_export_whose_key_may_not_read_says_so_and_writes_nothing(cli: Cli, log: FakeLog, form: str) -> None:
    log.readable = False
    for words in ((), ("-o", "out")):
        done = cli("export", "--format", form, *words, "--json")
        assert (done.code, done.error["code"]) == (6, "payloads_closed")
        assert "--leaves-only" in done.error["hint"]
    assert [path.name for path in Path().iterdir()] == ["policy"]
    if form == "jsonl":
        assert cli("export").out == ""
    assert cli("export", "--format", form, "--stop", "1", "-o", "out").code == 0, "the log's own entries are for all"


@pytest.mark.parametrize("readable", [True, False])
def test_leaves_alone(cli: Cli, log: FakeLog, readable: bool) -> None:
    log.readable = readable
    rows = [json.loads(row) for row in cli("export", "--leaves-only").out.splitlines()]
    assert [sorted(row) for row in rows[1:]] == [["index", "leaf", "leaf_hash", "logged_at"]] * 2
    assert "own" in rows[0]
    assert cli("export", "--leaves-only", "-o", "out.csv").code == 0
    table = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert set(table[1]) == {"index", "leaf_hash", "logged_at", "leaf", "own"}
    assert table[1]["leaf"] == rows[1]["leaf"]
    assert cli(*RECEIPTS, "--leaves-only", "-o", "out").code == 0
    assert [receipt.commitment for receipt in read(log)[1]] == [None] * 3
    assert cli("verify", "out", "--json").json["results"][0]["shown"] == {
        "whole": 0,
        "part": 0,
        "closed": 2,
        "own": 1,
        "raw": 0,
    }


def test_a_raw_log_is_read_without_a_key(cli: Cli, long: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    long.readable = False
    with behind(monkeypatch, long):
        assert len(cli("export").out.splitlines()) == 291
