"""What an import says of single rows: where each is, which one is wrong, and how many are in the log when it stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import muniment.client._sync
from muniment import Receipt
from muniment._flows import without_receipts
from muniment.cli import importer
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog, fine, lost_after, lost_before, problem
from tests.client.served import served

ROWS = [{"n": n} for n in range(12)]


@pytest.fixture(params=["event"])
def log(request: pytest.FixtureRequest) -> FakeLog:
    return FakeLog(request.param)


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)
    monkeypatch.setattr(importer, "MAX_ENTRIES", 5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").write_text(str(log.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- how far it came --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "-"])
def test_ctrl_c_says_what_is_logged_and_what_may_be(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two batches were logged by then, of which none was proved yet: "0 rows are in the log" would be wrong."""
    (here / "rows.jsonl").write_text(lines(ROWS))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(without_receipts, "check_appended", interrupted)
    done = cli("import", name, "--json", stdin=lines(ROWS).encode())
    assert (done.code, done.error["rows"], done.error["unsure"]) == (130, 0, 10)
    assert "0 rows are in the log, and the 10 after them may be." in done.error["hint"]
    assert ("Run the same command again" in done.error["hint"]) == (name != "-")


@pytest.mark.parametrize("name", ["rows.jsonl", "-"])
@pytest.mark.parametrize(("fault", "code"), [(lost_before, 4), (lost_after, 4)])
def test_a_server_that_goes_away(cli: Cli, log: FakeLog, here: Path, name: str, fault: Any, code: int) -> None:
    (here / "rows.jsonl").write_text(lines(ROWS))
    log.faults = [fine, *[fault] * 40] if name == "-" else [fine, fine, *[fault] * 40]
    done = cli("import", name, "--json", stdin=lines(ROWS).encode())
    assert (done.code, done.error["rows"], done.error["unsure"] > 0) == (code, 0, True)


# --- which row is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "-"])
def test_a_row_that_is_too_large_is_named_by_its_line(cli: Cli, log: FakeLog, here: Path, name: str) -> None:
    text = "\n" + lines(ROWS[:7]) + '{"a":"%s"}' % ("x" * 70_000)
    (here / "rows.jsonl").write_text(text)
    done = cli("import", name, "--json", stdin=text.encode())
    assert (done.code, done.error["code"], done.error["line"]) == (2, "entry_too_large", 9)
    assert done.error["message"].startswith("line 9: the entry has 70008 bytes")
    assert (done.error["rows"], log.size) == (7, 8)


@pytest.mark.parametrize("name", ["rows.jsonl", "-"])
def test_a_row_that_the_server_refuses_is_named_by_its_line(cli: Cli, log: FakeLog, here: Path, name: str) -> None:
    text = "\n\n" + lines(ROWS)
    (here / "rows.jsonl").write_text(text)
    extra = {"line": 3, "detail": "entry 3 of the batch: no"}
    refused = lambda _request, _honest: problem(422, "too_many_members", **extra)  # noqa: E731
    log.faults = [fine, fine, refused] if name == "-" else [fine, fine, fine, refused]
    done = cli("import", name, "--json", stdin=text.encode())
    assert (done.code, done.error["code"], done.error["line"]) == (6, "too_many_members", 10)
    assert done.error["message"] == "line 10: the server answers 422: no"
    assert (done.error["rows"], done.error["unsure"], log.size) == (5, 0, 6)


def test_the_last_line_has_its_number_without_a_newline(cli: Cli, here: Path) -> None:
    (here / "rows.jsonl").write_text('{"a":1}\n{')
    assert cli("import", "rows.jsonl", "--json").error["line"] == 2
    (here / "rows.csv").write_text('a,b\n1,"two\nlines"\n3')
    assert cli("import", "rows.csv", "--json").error["line"] == 4


# --- delimiters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mark", "word"), [(";", ";"), ("\t", "tab"), ("\t", "\\t"), ("|", "|")])
def test_another_delimiter_is_asked_for(cli: Cli, log: FakeLog, here: Path, mark: str, word: str) -> None:
    (here / "rows.csv").write_text(f"actor{mark}action\nalice{mark}login\nbob{mark}log,out\n")
    done = cli("import", "rows.csv", "--json")
    assert (done.code, done.error["code"], log.size) == (2, "delimiter", 1)
    assert "--delimiter" in done.error["hint"]
    assert cli("import", "rows.csv", "--delimiter", word).code == 0
    found = [log.payloads[index].event for index in (1, 2)]
    assert found == [{"actor": "alice", "action": "login"}, {"actor": "bob", "action": "log,out"}]
    with (here / "rows.csv").open("a") as file:
        file.write(f"carol{mark}x\n")
    assert cli("import", "rows.csv", "--json").error["code"] == "import_state", "other rows of the same bytes"
    assert cli("import", "rows.csv", "--delimiter", word).code == 0
    assert log.payloads[3].event == {"actor": "carol", "action": "x"}


def test_a_comma_that_is_meant(cli: Cli, log: FakeLog, here: Path) -> None:
    (here / "rows.csv").write_text("a;b\n1;2\n")
    assert cli("import", "rows.csv", "--delimiter", ",").code == 0
    assert log.payloads[1].event == {"a;b": "1;2"}
    for word in ("x", ";;", '"', "\n", ""):
        assert cli("import", "rows.csv", "--delimiter", word).code == 2
    (here / "rows.jsonl").write_text("{}")
    assert cli("import", "rows.jsonl", "--delimiter", ";").code == 2


# --- where each row is ------------------------------------------------------------------------------------------------


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


@pytest.mark.parametrize("log", ["event", "raw"], indirect=True)
@pytest.mark.parametrize("name", ["rows", "-"])
def test_the_index_and_the_receipt_of_each_row(cli: Cli, log: FakeLog, here: Path, name: str) -> None:
    text = "\n" + lines(ROWS)
    (here / "rows").write_text(text)
    wanted = [{"line": 2 + n, "index": 1 + n} for n in range(12)]
    assert cli("import", name, "--map", "map", stdin=text.encode()).code == 0
    assert read("map") == wanted
    (here / "rows.muniment-import").unlink(missing_ok=True)
    assert cli("import", name, "--map", "map", "--receipts", "receipts", stdin=text.encode()).code == 0
    start = 1 if log.kind == "raw" else 13
    assert [row["index"] for row in read("map")] == list(range(start, start + 12))
    for number, line in enumerate(Path("receipts").read_text().splitlines()):
        receipt = Receipt.parse(line.encode())
        verified = receipt.verify(log.policy)
        assert receipt.index == start + number
        assert (verified.opened or json.loads(receipt.leaf)) == ROWS[number]


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("crash", range(6))
def test_a_crash_leaves_no_row_out_and_none_twice(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch, crash: int, wait: bool
) -> None:
    """`wait`: the keys do not hold any more, so that batches under way are searched for."""
    monkeypatch.setattr(importer.time, "sleep", lambda _: None)
    if wait:
        monkeypatch.setattr(importer.Importer, "_holds", lambda *_: False)
    (here / "rows.jsonl").write_text(lines(ROWS))
    words = ("import", "rows.jsonl", "--map", "map", "--receipts", "receipts")
    saves, real = 0, importer.save

    def save(*args: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == crash + 1:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(importer, "save", save)
    assert cli(*words).code == 130
    assert cli(*words).code == 0
    assert [(row["line"], log.payloads[row["index"]].event) for row in read("map")] == [
        (number, row) for number, row in enumerate(ROWS, 1)
    ]
    assert [row["index"] for row in read("receipts")] == [row["index"] for row in read("map")]
    with (here / "rows.jsonl").open("a") as file:
        file.write('{"n":"more"}\n')
    assert cli(*words).code == 0
    assert read("map")[-1] == {"line": 13, "index": log.size - 1}


def test_files_that_cannot_be_kept(cli: Cli, log: FakeLog, here: Path) -> None:
    (here / "rows.jsonl").write_text(lines(ROWS))
    for words in (["--map", "rows.jsonl"], ["--map", "a", "--receipts", "./a"]):
        assert cli("import", "rows.jsonl", *words, "--json").error["code"] == "usage"
    (here / "twin").hardlink_to(here / "rows.jsonl")
    (here / "one").write_text("")
    (here / "other").hardlink_to(here / "one")
    for words in (
        ["--map", "twin"],
        ["--receipts", "twin"],
        ["--map", "one", "--receipts", "other"],
        ["--map", "rows.jsonl.muniment-import"],
    ):
        assert cli("import", "rows.jsonl", *words, "--json").error["code"] == "usage", words
    assert cli("import", "rows.jsonl", "--map", "missing/map", "--json").error["code"] == "unwritable"
    assert (read("rows.jsonl"), log.size) == (ROWS, 1)
    assert cli("import", "rows.jsonl").code == 0
    (here / "rows.jsonl").write_text(lines([*ROWS, {"n": "more"}]))
    done = cli("import", "rows.jsonl", "--map", "map", "--json")
    assert (done.code, done.error["code"], log.size) == (2, "rows_missing", 13)
