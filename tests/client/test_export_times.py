"""Entries by their times of logging: `range_of_times`, and `muniment export --from --to`."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import muniment.client._sync
from muniment._flows import reads
from muniment.errors import BadProof, FormatError
from muniment.event import event_leaf, format_time
from muniment.receipts import ReceiptsReader, lines_of
from muniment.tiles import decode_bundle, encode_bundle
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import NOON, FakeLog, problem
from tests.client.served import served

SIZE = 1030


def logged(times: list[int]) -> FakeLog:
    """A log whose entries have these times; the first one, the genesis entry, is of NOON."""
    made = FakeLog()
    made._grow([event_leaf("A" * 43, format_time(NOON + time)) for time in times])
    made.publish()
    return made


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 512, 513, SIZE])
def test_every_border(colours: Colours, size: int) -> None:
    """Also where many entries have one time, over several bundles."""
    times = [0, *(at // 7 if at < 300 else 50 if at < 900 else at for at in range(1, size))]
    log = logged(times[1:])
    client = colours.client(log)
    moments = sorted(
        {times[at] + by for at in (0, 1, 254, 255, 256, 257, 511, 512, 899, 900, 1029) if at < size for by in (0, 1)}
    )
    for moment in moments:
        border = bisect_left(times, moment)
        assert client.range_of_times(start_time=format_time(NOON + moment)) == (border, size)
        assert client.range_of_times(end_time=format_time(NOON + moment)) == (0, border)
    assert client.range_of_times() == (0, size)
    assert client.range_of_times(start_time="2000-01-01", end_time="2001-01-01") == (0, 0)


def test_few_requests(colours: Colours) -> None:
    log = logged(list(range(1, 256 * 16)))
    client = colours.client(log)
    assert client.range_of_times(start_time=format_time(NOON + 3001)) == (3001, 256 * 16)
    assert len([path for path in log.paths() if path.startswith("/tile/entries")]) <= 5


def test_a_bundle_of_other_times_is_not_believed(colours: Colours) -> None:
    log = logged(list(range(1, SIZE)))

    def later(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.startswith("/tile/entries"):
            return response
        leaves = [leaf.replace(b"2026", b"2027") for leaf in decode_bundle(response.content)]
        return httpx.Response(200, content=encode_bundle(leaves))

    log.tamper = later
    with pytest.raises(BadProof):
        colours.client(log).range_of_times(start_time="2026-11-20")


def test_times_that_go_back(colours: Colours) -> None:
    with pytest.raises(FormatError, match="go back"):
        colours.client(logged([3, 2])).range_of_times(start_time="2026-11-20")


def test_a_raw_log_has_no_times(colours: Colours) -> None:
    log = FakeLog("raw")
    log.add_raw([b"x"])
    log.publish()
    with pytest.raises(FormatError, match="have no time"):
        colours.client(log).range_of_times(start_time="2026-11-20")


@pytest.mark.parametrize("time", ["yesterday", "2026-11-20T12:00:00", ""])
def test_no_time(colours: Colours, time: Any) -> None:
    log = logged([1])
    for name in ("start_time", "end_time"):
        with pytest.raises(FormatError, match="time"):
            colours.client(log).range_of_times(**{name: time})
    with pytest.raises(FormatError, match="no time is in this span"):
        colours.client(log).range_of_times(start_time="2026-11-20", end_time="2026-11-20")
    assert log.paths() == []


# --- muniment export --------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"n": n} for n in range(1, 300)])
    made.publish()
    return made


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: FakeLog) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)
    monkeypatch.setattr(reads, "PAGE_TILES", 1)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    Path("policy").write_text(str(log.policy))
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield


def at(index: int) -> str:
    return format_time(NOON + index)


def bundle(log: FakeLog, name: str) -> tuple[tuple[int, int] | None, list[int]]:
    with Path(name).open("rb") as file:
        reader = ReceiptsReader(lines_of(file), log.policy)
        return reader.header.range, [receipt.index for receipt, _ in reader]


def test_a_bundle_of_some_times(cli: Cli, log: FakeLog) -> None:
    done = cli("export", "--format", "receipts", "--from", at(250), "--to", at(260), "-o", "out")
    assert done.code == 0
    assert f"They are all of the published ones that were logged from {at(250)} to before {at(260)}" in done.err
    assert "more may follow" not in done.err
    assert bundle(log, "out") == ((250, 260), list(range(250, 260)))
    assert "All 10 entries from 250 to 259 proved; none is missing." in cli("verify", "out").out


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["--from", at(298)], (298, 300)),
        (["--to", at(2)], (0, 2)),
        (["--from", at(5), "--to", at(6)], (5, 6)),
        (["--from", "2000-01-01"], (0, 300)),
        (["--from", "2000-01-01", "--to", "2000-01-02"], (0, 0)),
        (["--from", "2030-01-01"], (300, 300)),
    ],
)
def test_rows_of_some_times(cli: Cli, words: list[str], ends: tuple[int, int]) -> None:
    done = cli("export", *words, "--json")
    assert [json.loads(line)["index"] for line in done.out.splitlines()] == list(range(*ends))
    said = json.loads(done.err)
    assert (done.code, said["start"], said["stop"]) == (0, *ends)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (said["from"], said["to"], said["more_may_follow"]) == (given.get("--from"), given.get("--to"), False)


def test_times_that_are_not_over_yet(cli: Cli, log: FakeLog) -> None:
    done = cli("export", "--from", at(299), "--to", "2030-01-01", "-o", "rows")
    assert "No entry is published yet that was logged at 2030-01-01 or later: until then more may follow." in done.err
    assert json.loads(cli("export", "--to", "2030-01-01", "--json").err)["more_may_follow"]


def test_a_bundle_of_no_entry(cli: Cli) -> None:
    past = cli("export", "--format", "receipts", "--to", "2000-01-01", "-o", "out", "--json")
    assert (past.code, past.error["code"]) == (2, "no_entries")
    later = cli("export", "--format", "receipts", "--from", "2030-01-01", "-o", "out", "--json")
    assert (later.code, later.error["code"]) == (3, "no_entries")
    assert [path.name for path in Path().iterdir()] == ["policy"]


@pytest.mark.parametrize("words", [["--to", "2030-01-01"], ["--from", at(7)], ["--from", at(7), "--to", at(299)]])
def test_it_goes_on_where_it_was_cut_off(cli: Cli, log: FakeLog, words: list[str]) -> None:
    """Also when the log has grown since: what was begun is of the tree of then, and so are its ends."""

    def refuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        late = request.url.path == "/entries" and int(request.url.params["start"]) >= 256
        return problem(503, "busy") if late else response

    log.tamper = refuse
    assert cli("export", "--format", "receipts", "-o", "out", *words).code == 4
    log.add_events([{"later": True}] * 300)
    log.publish()
    log.tamper, log.requests = None, []
    assert cli("export", "--format", "receipts", "-o", "out", *words).code == 0
    assert min(int(r.url.params["start"]) for r in log.requests if r.url.path == "/entries") == 256
    first, stop = 7 if "--from" in words else 0, 299 if words[-1] == at(299) else 300
    assert bundle(log, "out") == ((first, stop), list(range(first, stop)))


def test_times_go_without_indices(cli: Cli, log: FakeLog) -> None:
    for words in (["--start", "0"], ["--stop", "2"], ["--range", "0..2"]):
        assert cli("export", "--from", at(1), *words).code == 2
    assert cli("export", "--from", at(1), "--to", at(1)).code == 2
    assert cli("export", "--from", "yesterday").code == 2
    assert log.paths() == []


def test_a_raw_log(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = FakeLog("raw")
    Path("policy").write_text(str(raw.policy))
    with served(raw) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        done = cli("export", "--from", "2026-11-20", "--json")
        assert (done.code, done.error["code"]) == (2, "wrong_kind")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_that_are_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    Path("out").write_text("before")
    monkeypatch.setattr("muniment.cli.export._opened_entry", interrupt)
    done = cli("export", "--format", form, "-o", "out", "--overwrite", "--json")
    assert (done.code, done.error["code"], Path("out").read_text()) == (130, "interrupted", "before")
    assert "out, which is as it was" in done.error["hint"]
    assert sorted(path.name for path in Path().iterdir()) == ["out", "policy"]


# --- a file that holds something --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["export"], ["export", "--format", "csv"], ["export", "--format", "receipts"], ["search", "n:<4", "--receipts"]],
)
def test_a_file_that_holds_something_stays(cli: Cli, log: FakeLog, words: list[str]) -> None:
    Path("out").write_text("what is written here may exist nowhere else")
    done = cli(*words, "-o", "out", "--json")
    assert (done.code, done.error["code"], log.paths()) == (2, "file_exists", [])
    assert "--overwrite" in done.error["hint"]
    assert Path("out").read_text().startswith("what is written")
    assert cli(*words, "-o", "out", "--overwrite").code == 0
    assert not Path("out").read_text().startswith("what is written")
    Path("out").write_text("")
    assert cli(*words, "-o", "out").code == 0, "an empty one holds nothing"
