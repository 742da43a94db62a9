"""`muniment search`: a table that fits, JSON, and bundles; what a query is not; and what it says of what it cannot know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from muniment._flows import reads
from muniment.cli.read_as import read_as
from muniment.cli.table import Row, table
from muniment.event import format_time
from muniment.query import parse_query
from muniment.receipts import ReceiptsReader, lines_of
from tests.client.cli_runner import Cli
from tests.client.fake_log import NOON, FakeLog, edit, edit_line, problem
from tests.client.served import served

NOTHING = "A search proves nothing about entries that it does not show."


@cache
def grown() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice" if n % 3 else "bob", "n": n} for n in range(1, 131)])
    made.publish()
    return made


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLog]:
    made = grown().fork()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("policy").write_text(str(made.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(made) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield made


def bundle(log: FakeLog, name: str) -> list[int]:
    """The indices in a bundle that verifies."""
    with Path(name).open("rb") as file:
        reader = ReceiptsReader(lines_of(file), log.policy)
        assert reader.header.range is None
        return [receipt.index for receipt, _ in reader]


def add(log: FakeLog, *events: dict[str, Any]) -> None:
    log.add_events(list(events))
    log.publish()


def test_a_table(cli: Cli, log: FakeLog) -> None:
    done = cli("search", "n:<4")
    assert done.code == 0
    assert done.out.splitlines() == [
        "index  logged_at                 actor  n",
        f"3      {format_time(NOON + 3)}  bob    3",
        f"2      {format_time(NOON + 2)}  alice  2",
        f"1      {format_time(NOON + 1)}  alice  1",
    ]
    assert done.err.splitlines() == ["3 events among 131 entries, as the server says: --verify proves each", NOTHING]
    assert cli("search", "n:<4", "--oldest", "--limit", 1).out.splitlines()[1].startswith("1 ")


def test_a_long_table_has_headings_in_between(cli: Cli, log: FakeLog) -> None:
    lines = cli("search").out.splitlines()
    assert len(lines) == 130 + 3
    assert (lines[0], lines[101:103]) == (lines[102], ["", lines[0]])


def test_json_has_one_spelling_of_an_index(cli: Cli, log: FakeLog) -> None:
    done = cli("search", "actor:bob", "--json", "--limit", 2)
    values = [json.loads(line) for line in done.out.splitlines()]
    assert [value["index"] for value in values] == [129, 126]
    assert all(list(value) == ["index", "leaf_hash", "logged_at", "event"] for value in values)
    assert json.loads(done.err) == {"hits": 2, "complete_to": 131, "tree_size": 131, "proved": False, "file": None}


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        (["n:<5", "actor:alice"], [4, 2, 1]),
        (["n:<5", "-actor:alice"], [3]),
        (["-actor:alice", "n:<5"], [3]),
        (["-actor:alice", "-n:>5", "--limit", "1"], [3]),
        (["--oldest", "-actor:bob", "--limit", "2"], [1, 2]),
        (["n:<5", "--", "-actor:alice"], [3]),
        (["--", "-actor:alice", "-n:>5"], [3]),
        (["n:<5", "-order:17", "-helpful", "-x"], [4, 3, 2, 1]),
        (["-x", "--limit", "1"], [130]),
        (["n:<5", "--", "-oFILE", "-help"], [4, 3, 2, 1]),
        (["n:<5 -oFILE"], [4, 3, 2, 1]),
        (["-office -n:>2"], [2, 1]),
        (["n:7", "--from", format_time(NOON + 7), "--to", format_time(NOON + 8)], [7]),
        (["n:7", "--from", format_time(NOON + 8)], []),
        (["--from", "2026-11-20", "--to", "2026-11-21", "--limit", "1"], [130]),
    ],
)
def test_words_are_one_query(cli: Cli, log: FakeLog, words: list[str], indices: list[int]) -> None:
    done = cli("search", "--json", *words)
    assert (done.code, [json.loads(line)["index"] for line in done.out.splitlines()]) == (0, indices), done.err


def test_nothing_found(cli: Cli, log: FakeLog) -> None:
    done = cli("search", "n:0")
    assert (done.code, done.out, done.err.splitlines()[0]) == (0, "", "No event among 131 entries")


def test_not_complete(cli: Cli, log: FakeLog) -> None:
    log.searchable = 100
    done = cli("search", "n:99")
    assert "Not complete: the log has 131 entries, and those from 100 on were not searched" in done.err
    assert json.loads(cli("search", "n:99", "--json").err)["complete_to"] == 100
    assert "as many as --limit says" in cli("search", "--limit", 1).err


# --- what is proved -----------------------------------------------------------------------------------------------------


def test_verify(cli: Cli, log: FakeLog) -> None:
    done = cli("search", "n:<4", "--verify")
    assert done.out == cli("search", "n:<4").out
    assert done.err.splitlines()[0] == "3 events among 131 entries, each proved to be in the log"
    log.tamper = edit("/search", lambda answer: answer["hits"][1]["event"].update(n=3.5))
    assert cli("search", "n:<4").code == 0
    forged = cli("search", "n:<4", "--verify")
    assert (forged.code, forged.out) == (1, "")
    assert "not proved: the event that was found at 2 is not the one that its receipt proves" in forged.err
    log.tamper = edit("/search", lambda answer: answer["hits"][1]["event"].update(n=4))
    assert cli("search", "n:<4").code == 1


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        (["n:<40"], list(range(1, 40))),
        (["actor:bob", "--limit", 2], [126, 129]),
        (["actor:bob", "--limit", 2, "--oldest"], [3, 6]),
        (["n:0"], []),
    ],
)
def test_a_bundle(cli: Cli, log: FakeLog, words: list[str], indices: list[int]) -> None:
    done = cli("search", *words, "--receipts", "-o", "b.ndjson")
    assert (done.code, done.out, bundle(log, "b.ndjson")) == (0, "", indices), done.err
    assert "b.ndjson" in done.err
    if indices:
        verified = cli("verify", "b.ndjson")
        assert (verified.code, "nothing says" in verified.out.lower()) == (0, True)
        assert done.err.startswith(f"{len(indices)} events")
    Path("c.ndjson").write_text(cli("search", *words, "--receipts").out)
    assert Path("c.ndjson").read_bytes() == Path("b.ndjson").read_bytes()


@pytest.mark.parametrize("how", [("--verify",), ("--receipts",), ("--receipts", "-o", "b.ndjson")])
def test_payloads_become_closed(cli: Cli, log: FakeLog, how: tuple[str, ...]) -> None:
    log.tamper = edit_line(
        2, lambda line: {name: part for name, part in line.items() if name not in ("commitment", "disclosures")}
    )
    done = cli("search", "n:<4", *how)
    assert (done.code, Path("b.ndjson").exists()) == (6, False)
    assert "nothing of the event at index 2 is opened to this caller" in done.err
    assert "scope read" in done.err
    assert cli("search", "n:<4", "--json", *how).error["code"] == "payloads_closed"


def test_a_bundle_that_fails_leaves_the_file_as_it_was(cli: Cli, log: FakeLog) -> None:
    Path("b.ndjson").write_text("before")
    log.tamper = edit_line(2, lambda line: line | {"hashes": []})
    assert cli("search", "n:<4", "--receipts", "-o", "b.ndjson", "--overwrite").code == 1
    assert (Path("b.ndjson").read_text(), sorted(path.name for path in Path().iterdir())) == (
        "before",
        ["b.ndjson", "policy"],
    )


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "caret"),
    [
        ("actor:alice é:", 14),
        (":alice", 0),
        ('漢字:"', 5),
        ("a\u202eb:\t", 9),
        ("a " * 65, 60),
    ],
)
def test_a_caret_is_under_the_place(cli: Cli, log: FakeLog, query: str, caret: int) -> None:
    done = cli("search", query)
    _, text, place, hint = done.err.splitlines()
    assert (done.code, len(place) - 1, place.strip()) == (2, 2 + caret, "^"), done.err
    assert text.isprintable()
    assert "--help" in hint
    assert log.paths() == []
    error = cli("search", query, "--json").error
    assert (error["code"], error["query"]) == ("bad_query", query)


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "x"],
        ["--limit", "0"],
        ["--from", "yesterday"],
        ["--to", "2026-02-30"],
        ["--from", "2026-02-01", "--to", "2026-02-01"],
        ["--nothing"],
        ["--from"],
        ["--limit", "-5"],
        ["--limit", "-5", "n:1"],
    ],
)
def test_usage(cli: Cli, log: FakeLog, words: list[str]) -> None:
    done = cli("search", "n:1", *words)
    assert (done.code, done.out, log.paths()) == (2, "", [])


@pytest.mark.parametrize(
    ("word", "meant"),
    [("-oFILE", "-o FILE"), ("-overdue", "-o verdue"), ("-limit", "--limit"), ("-json", "--json"), ("-help", "--help")],
)
def test_a_word_that_may_be_an_option_or_a_term(cli: Cli, log: FakeLog, word: str, meant: str) -> None:
    """A bundle that was not written, or a term that was not asked for, would go unnoticed."""
    done = cli("search", "n:1", "--receipts", word)
    assert (done.code, done.out, log.paths()) == (2, "", [])
    assert f"write {meant}, or put the term behind --" in done.err


def test_refused_by_the_server(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PAGE_TILES", 1)
    for status, code, exit_code in (
        (404, "not_searchable", 6),
        (403, "forbidden", 6),
        (422, "wrong_kind", 6),
        (503, "index_missing", 4),
    ):
        log.tamper = lambda _request, _response, answer=(status, code): problem(
            *answer, retry_after=0 if answer[0] == 503 else None
        )
        done = cli("search", "n:1", "--json")
        assert (done.code, done.error["code"], done.out) == (exit_code, code, "")


# --- the table ----------------------------------------------------------------------------------------------------------


def shown(*events: dict[str, Any]) -> list[str]:
    return table(("index",), [Row((str(at),), event) for at, event in enumerate(events)]).lines


def test_nothing_a_terminal_obeys(cli: Cli, log: FakeLog) -> None:
    hostile = {"a\x1b[31m\n": "\x1b]0;x\x07\r\n", "\u202eb": "\u2066c", "n": ["\x9b2J"]}
    add(log, hostile)
    for words in ((), ("--json",), ("--verify",)):
        done = cli("search", "--limit", 1, *words)
        assert all(line.isprintable() for line in (done.out + done.err).split("\n"))
        assert "\\u202e" in done.out
    assert json.loads(cli("search", "--limit", 1, "--json").out)["event"] == hostile


def test_values_say_of_which_kind_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    values = ["", "150", 150, "true", True, None, "null", "x", " x", '"x"', [1, "a"], {}, "1e3", "-", "NaN"]
    found = [line.removeprefix(str(at)).strip() for at, line in enumerate(shown(*({"v": one} for one in values)), -1)]
    assert found[1:] == [
        *(
            '""',
            '"150"',
            "150",
            '"true"',
            "true",
            "null",
            '"null"',
            "x",
            '" x"',
            r'"\"x\""',
            '[1, "a"]',
            "{}",
            '"1e3"',
            "-",
            '"NaN"',
        )
    ]


def test_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {f"member-{at}": "漢字" * 40 if at % 2 else "e\u0301" * 300 for at in range(256)}
    for width in (5, 20, 80, 100, 300):
        monkeypatch.setenv("COLUMNS", str(width))
        found = table(("index",), [Row(("0",), wide), Row(("1",), {"z": 1})])
        assert all(cell_len(line) <= max(width, 7 + 8) for line in found.lines), width
        assert len({len(found.lines[0].split()) - 1 + len(found.left_out)}) == 1
        assert len(found.lines[0].split()) - 1 + len(found.left_out) == 257
        assert "…" in found.lines[1]


def test_members_that_most_events_have_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    found = table(("index",), [Row(("0",), {"rare": "x" * 40, "index": 1}), Row(("1",), {"index": 2})])
    assert (found.lines[0].split(), found.left_out) == (["index", "event.index", "rare"], [])
    assert shown({"": 1})[0].split() == ["index", '""']
    monkeypatch.setenv("COLUMNS", "24")
    assert table(("index",), [Row(("0",), {"rare": "x" * 40, "index": 1}), Row(("1",), {"index": 2})]).left_out == [
        "rare"
    ]


def test_what_has_no_room_is_named(cli: Cli, log: FakeLog) -> None:
    add(log, {f"name-{at}": "x" * 30 for at in range(9)})
    done = cli("search", "--limit", 1)
    assert "No room for name-" in done.err
    assert "--json shows them" in done.err


def test_an_empty_answer_says_how_the_query_was_read() -> None:
    """`amount>10000` is two words, and `cost.centre` a member of a member: not what its reader may have meant."""
    lines = read_as(parse_query("amount>10000 cost.centre:Berlin -note:*  a:1 b:x* c:<=2.5 x"))
    assert lines == [
        "one member has all the words 10000, amount (numbers are compared like this: amount:>100)",
        '"centre" in "cost" is exactly "Berlin" (a name with a dot is written "cost.centre":...)',
        'not: there is "note"',
        '"a" is exactly "1" or 1',
        '"b" begins with "x"',
        '"c" is a number <= 2.5',
        "a member has the word x",
    ]
    assert read_as(parse_query('"\\u202e":x')) == ['"\\u202e" is exactly "x"']
