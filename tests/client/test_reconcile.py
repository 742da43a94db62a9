"""`muniment reconcile`: twenty and more ways to spoil a copy, all found; and no good copy that is called bad."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.hashing import LeafHash, leaf_hash
from muniment.reconcile import MOST_RANGES, Copy, Found
from tests.client.cli_runner import Cli, Done
from tests.client.fake_log import FakeLog
from tests.client.served import served

Rows = list[dict[str, Any]]
SIZE = 331
_EXPORTED: list[str] = []


@cache
def grown() -> FakeLog:
    made = FakeLog()
    events = [{"actor": "alice" if n % 3 else "bob", "n": n, "x": {"deep": [n, 0.5]}} for n in range(1, SIZE)]
    made.add_events(events)
    made.publish()
    return made


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLog]:
    made = grown().fork()
    monkeypatch.chdir(tmp_path)
    Path("policy").write_text(str(made.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(made) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield made


@pytest.fixture
def rows(log: FakeLog, cli: Cli) -> Rows:
    """A good copy: what an export writes."""
    if not _EXPORTED:
        _EXPORTED.append(cli("export").out)
    return [json.loads(line) for line in _EXPORTED[0].splitlines()]


def write(rows: Rows) -> Path:
    path = Path("copy.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(cli: Cli, *words: object) -> Done:
    return cli("reconcile", *words, "--json")


def found(done: Done) -> dict[str, list[list[int]]]:
    return {name: one["ranges"] for name, one in done.json["found"].items()}


# --- good copies ----------------------------------------------------------------------------------------------------------


def test_a_good_copy_is_equal_in_any_order_and_form(cli: Cli, log: FakeLog, rows: Rows) -> None:
    random.Random(1).shuffle(rows)
    done = ask(cli, write(rows))
    assert (done.code, done.json["found"], done.json["not_concluded"]) == (0, {}, [])
    assert done.json["equal"]
    assert (done.json["rows"], done.json["tree_size"], done.json["compared"]) == (SIZE, SIZE, "events")
    text = "".join(json.dumps(dict(reversed(row.items())), separators=(",", ":")) + "\r\n" for row in rows)
    Path("a.jsonl").write_text(text[: len(text) // 2 - len(text[: len(text) // 2].rpartition("\n")[2])])
    Path("b.jsonl.gz").write_bytes(gzip.compress(text[len(Path("a.jsonl").read_bytes()) :].encode()))
    assert ask(cli, "a.jsonl", "b.jsonl.gz").code == 0
    assert cli("reconcile", "-", "--json", stdin=text.encode()).code == 0
    said = cli("reconcile", write(rows)).out
    assert said.startswith(f"Equal: {SIZE} rows are the entries of [0, {SIZE}) of example.com/log,")


def test_numbers_may_be_written_in_other_ways(cli: Cli, log: FakeLog, rows: Rows) -> None:
    text = write(rows).read_text().replace("0.5", "5e-1").replace('"n": 7,', '"n": 7.0,')
    Path("copy.jsonl").write_text(text)
    assert ask(cli, "copy.jsonl").code == 0


def test_rows_of_leaves_alone_are_equal_too(cli: Cli, log: FakeLog) -> None:
    Path("copy.jsonl").write_text(cli("export", "--leaves-only").out)
    assert ask(cli, "copy.jsonl").code == 0
    assert ask(cli, "copy.jsonl", "--leaves-only").code == 0


def test_what_collects_logs_may_add_members_that_are_named(cli: Cli, log: FakeLog, rows: Rows) -> None:
    path = write([row | {"host": "siem-1", "@timestamp": n} for n, row in enumerate(rows)])
    assert ask(cli, path, "--ignore", "host,@timestamp").code == 0
    assert found(ask(cli, path)) == {"altered": [[0, SIZE]]}


def test_a_part_is_compared_with_the_same_part(cli: Cli, log: FakeLog, rows: Rows) -> None:
    path = write(rows[10:300])
    assert ask(cli, path, "--start", 10, "--stop", 300).code == 0
    assert found(ask(cli, path)) == {"missing": [[0, 10], [300, SIZE]]}
    done = ask(cli, path, "--start", 20, "--stop", 30)
    assert done.code == 0
    assert done.json["outside"] == 280
    assert "280 rows" in done.json["not_concluded"][0]
    assert ask(cli, path, "--stop", SIZE + 1).code == 3
    assert ask(cli, path, "--start", 5, "--stop", 5).code == 2


def test_a_copy_of_a_query_is_compared_with_what_it_finds(cli: Cli, log: FakeLog, rows: Rows) -> None:
    query = "actor:bob n:>30"
    hits = [row for row in rows[1:] if row["event"]["actor"] == "bob" and row["event"]["n"] > 30]
    assert ask(cli, write(hits), "--query", query).code == 0
    assert found(ask(cli, write(hits[1:]), "--query", query)) == {"missing": [[33, 34]]}
    assert found(ask(cli, write([*hits, rows[1], rows[0]]), "--query", query)) == {"unwanted": [[0, 2]]}
    done = ask(cli, write(hits[1:]), "--query", query, "--leaves-only")
    assert done.code == 0
    assert "no event is missing" in done.json["not_concluded"][1]
    assert cli("reconcile", "copy.jsonl", "--query", "a:").code == 2


def test_what_events_say_is_not_passed_over(cli: Cli, log: FakeLog, rows: Rows) -> None:
    """Without the right to read it there is no answer, unless hashes alone are asked for; and then that is said."""
    rows[7]["event"]["n"] = 8
    path = write(rows)
    log.readable = False
    done = ask(cli, path)
    assert (done.code, done.error["code"]) == (6, "payloads_closed")
    assert "--leaves-only" in done.error["hint"]
    done = ask(cli, path, "--leaves-only")
    assert done.code == 0
    assert "only their hashes" in done.json["not_concluded"][0]


# --- spoiled ones ---------------------------------------------------------------------------------------------------------


def _change(index: int, /, **members: Any) -> Callable[[Rows], Rows]:
    return lambda rows: [row | members if row["index"] == index else row for row in rows]


def _event(index: int, change: Callable[[dict[str, Any]], object]) -> Callable[[Rows], Rows]:
    def spoil(rows: Rows) -> Rows:
        change(rows[index]["event"])
        return rows

    return spoil


def _swapped(rows: Rows) -> Rows:
    rows[4]["event"], rows[5]["event"] = rows[5]["event"], rows[4]["event"]
    return rows


def _renumbered(rows: Rows) -> Rows:
    return [row | {"index": row["index"] + 1} if row["index"] >= 100 else row for row in rows]


def _lifted(rows: Rows) -> Rows:
    """Two rows whose indices are exchanged: both say what was logged, elsewhere."""
    rows[4]["index"], rows[5]["index"] = 5, 4
    return rows


SPOILS: dict[str, tuple[Callable[[Rows], Rows], dict[str, list[list[int]]]]] = {
    "the first row is missing": (lambda rows: rows[1:], {"missing": [[0, 1]]}),
    "the last row is missing": (lambda rows: rows[:-1], {"missing": [[SIZE - 1, SIZE]]}),
    "one in the middle is missing": (lambda rows: rows[:256] + rows[257:], {"missing": [[256, 257]]}),
    "several are missing": (lambda rows: rows[:9] + rows[20:30] + rows[31:], {"missing": [[9, 20], [30, 31]]}),
    "there are none": (lambda _: [], {"missing": [[0, SIZE]]}),
    "a row is there twice": (lambda rows: [*rows, rows[3]], {"duplicate": [[3, 4]]}),
    "all are there twice": (lambda rows: rows + rows, {"duplicate": [[0, SIZE]]}),
    "a value is another": (_event(7, lambda event: event.update(n=8)), {"altered": [[7, 8]]}),
    "a number is text": (_event(7, lambda event: event.update(n="7")), {"altered": [[7, 8]]}),
    "a letter differs": (_event(7, lambda event: event.update(actor="Alice")), {"altered": [[7, 8]]}),
    "a member is gone": (_event(7, lambda event: event.pop("n")), {"altered": [[7, 8]]}),
    "a member is new": (_event(7, lambda event: event.update(m=1)), {"altered": [[7, 8]]}),
    "a value deep inside is another": (_event(7, lambda event: event["x"]["deep"].reverse()), {"altered": [[7, 8]]}),
    "an event is null": (_change(7, event=None), {"altered": [[7, 8]]}),
    "an event is gone": (lambda rows: [{k: v for k, v in row.items() if k != "event"} for row in rows], {"altered": [[1, SIZE]]}),
    "a time is another": (_change(7, logged_at="2026-11-20T12:00:00.123Z"), {"altered": [[7, 8]]}),
    "the genesis is another": (_change(0, own={}), {"altered": [[0, 1]]}),
    "a row has a member more": (_change(7, note="x"), {"altered": [[7, 8]]}),
    "a row is also a leaf": (_change(7, leaf="AAAA"), {"altered": [[7, 8]]}),
    "two events are exchanged": (_swapped, {"altered": [[4, 6]]}),
    "two indices are exchanged": (_lifted, {"foreign": [[4, 6]]}),
    "a row was slipped in": (_renumbered, {"missing": [[100, 101]], "foreign": [[SIZE, SIZE + 1], [101, SIZE]]}),
    "a hash is another": (_change(7, leaf_hash="00" * 32), {"foreign": [[7, 8]]}),
    "a row is of no entry": (lambda rows: [*rows, rows[3] | {"index": 10**15}], {"foreign": [[10**15, 10**15 + 1]]}),
    "a row is there again and differs": (
        lambda rows: [*rows, rows[3] | {"event": {}}],
        {"duplicate": [[3, 4]], "altered": [[3, 4]]},
    ),
    "a row that differs came first": (
        lambda rows: [rows[3] | {"event": {}}, *rows],
        {"duplicate": [[3, 4]], "altered": [[3, 4]]},
    ),
    "a hash is written large": (
        lambda rows: _change(7, leaf_hash=rows[7]["leaf_hash"].upper())(rows),
        {"malformed": [[8, 9]], "missing": [[7, 8]]},
    ),
    "an index is text": (_change(7, index="7"), {"malformed": [[8, 9]], "missing": [[7, 8]]}),
    "an index is true": (_change(1, index=True), {"malformed": [[2, 3]], "missing": [[1, 2]]}),
    "an index is below zero": (_change(7, index=-1), {"malformed": [[8, 9]], "missing": [[7, 8]]}),
    "a row has no hash": (_change(7, leaf_hash=None), {"malformed": [[8, 9]], "missing": [[7, 8]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILS)
def test_each_spoiled_copy_is_found(cli: Cli, log: FakeLog, rows: Rows, name: str) -> None:
    spoil, wrong = SPOILS[name]
    done = ask(cli, write(spoil(rows)))
    assert done.code == 1
    assert not done.json["equal"]
    assert found(done) == wrong
    assert cli("reconcile", "copy.jsonl").out.startswith("Different: ")


TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "the last line is torn": (lambda data: data[:-20], "malformed"),
    "the file was cut": (lambda data: data[: len(data) // 2], "missing"),
    "a line is empty": (lambda data: data.replace(b"\n", b"\n\n", 1), "malformed"),
    "the first line is empty": (lambda data: b"\n" + data, "malformed"),
    "two rows are in one line": (lambda data: data.replace(b"}\n{", b"}{", 1), "malformed"),
    "a name is there twice": (lambda data: data.replace(b'"n": 7,', b'"n": 8, "n": 7,'), "malformed"),
    "a value is no number": (lambda data: data.replace(b'"n": 7,', b'"n": NaN,'), "malformed"),
    "a number is too large": (lambda data: data.replace(b'"n": 7,', b'"n": 7e999,'), "altered"),
    "a letter is no UTF-8": (lambda data: data.replace(b'"bob"', b'"b\xffb"', 1), "malformed"),
    "half of a pair": (lambda data: data.replace(b'"bob"', b'"b\\ud800b"', 1), "altered"),
    "it is nested without end": (lambda data: data + b"[" * 200_000 + b"\n", "malformed"),
    "it is not JSON at all": (lambda data: data + b"index,leaf_hash\n", "malformed"),
    "it is an array": (lambda data: data + b"[]\n", "malformed"),
    "zeros follow": (lambda data: data + bytes(100), "malformed"),
    "it has a byte order mark": (lambda data: b"\xef\xbb\xbf" + data, "malformed"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_each_spoiled_text_is_found(cli: Cli, log: FakeLog, rows: Rows, name: str) -> None:
    spoil, wrong = TEXTS[name]
    data = spoil(write(rows).read_bytes())
    Path("copy.jsonl").write_bytes(data if len(name) % 2 else gzip.compress(data))
    done = ask(cli, "copy.jsonl")
    assert done.code == 1
    assert wrong in found(done)


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:200] + b"\0\0\0\0" + data[204:]])
def test_a_packed_file_that_is_damaged_is_found(cli: Cli, log: FakeLog, rows: Rows, spoil: Any) -> None:
    Path("copy.gz").write_bytes(spoil(gzip.compress(write(rows).read_bytes())))
    done = ask(cli, "copy.gz")
    assert done.code == 1
    assert "malformed" in found(done)


def test_a_file_that_grows_meanwhile_is_compared_as_it_was(
    cli: Cli, log: FakeLog, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written later may be published later: it is no row of no entry, nor is a line torn that is being written."""
    path = write(rows)

    def grow(request: Any, response: Any) -> Any:
        with path.open("ab") as file:
            file.write(b'{"index": 999999, "torn')
        return response

    log.tamper = grow
    assert ask(cli, path).code == 0
    log.tamper = None


def test_a_file_that_cannot_be_read(cli: Cli, log: FakeLog) -> None:
    assert ask(cli, "nothing.jsonl").code == 2
    assert ask(cli, ".").code == 2


def test_a_log_that_lies_is_not_compared_with(cli: Cli, log: FakeLog, rows: Rows) -> None:
    path = write(rows)

    def lie(request: Any, response: Any) -> Any:
        if request.url.path == "/entries":
            return httpx.Response(
                200,
                headers={"Content-Type": "application/json"},
                content=response.read().replace(b'"index":7,', b'"index":8,'),
            )
        return response

    log.tamper = lie
    assert ask(cli, path).code == 1
    assert "equal" not in ask(cli, path).out


# --- bounds ---------------------------------------------------------------------------------------------------------------


def test_indices_are_counted_and_as_many_named_as_can_be_read() -> None:
    found = Found()
    for index in range(0, 10_000, 2):
        found.add(index)
    found.add(9999)
    assert found.count == 5001
    assert len(found.ranges) == MOST_RANGES


def test_memory_does_not_grow_with_the_copy() -> None:
    rows = 5_000
    lines = (
        b'{"index": %d, "leaf_hash": "%b", "own": 1}\n' % (n, leaf_hash(b"%d" % n).hex().encode()) for n in range(rows)
    )
    with Copy(0, rows, rows) as copy:
        tracemalloc.start()
        for number, line in enumerate(lines, 1):
            copy.add(line, number)
        for n in range(rows):
            hashed = LeafHash(leaf_hash(b"%d" % n))
            row = {"index": n, "leaf_hash": hashed.hex(), "own": 1}
            copy.compare(n, hashed, lambda _, row=row: row, wanted=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert copy.good
    assert peak < 2**18
