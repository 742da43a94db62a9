"""`muniment verify` of bundles of receipts: known by their first line, read from files and from stdin, told in words and in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import muniment.cli.bundle
from muniment import receipts_jobs
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsWriter
from tests.client.cli_runner import Cli
from tests.client.fake_log import ORIGIN, FakeLog

EVENTS: list[dict[str, Any]] = [{"actor": "alice", "n": 1}, {"actor": "bob"}, {"\x1b[31mred": 1, "note": "x"}]
OTHERS = "nothing says there are no others"


def bundle(
    log: FakeLog,
    indices: list[int],
    claimed: tuple[int, int] | None = None,
    keep: Callable[[Receipt], Receipt] = lambda r: r,
) -> bytes:
    """A bundle of the log's entries, at its latest size."""
    lines: list[bytes] = []
    writer = ReceiptsWriter(lines.append, Header(log.origin, log.note(log.size), claimed))
    for index in indices:
        writer.add(keep(log.receipt(index)))
    writer.end()
    return b"".join(lines)


def without_first(receipt: Receipt) -> Receipt:
    """The receipt without its first disclosure."""
    return receipt if receipt.disclosures is None else replace(receipt, disclosures=receipt.disclosures[1:])


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events(EVENTS)
    return made


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: FakeLog) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("policy").write_text(str(log.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    return tmp_path


def test_a_range_is_the_claim_that_none_is_missing(cli: Cli, log: FakeLog) -> None:
    Path("all").write_bytes(bundle(log, [0, 1, 2, 3], (0, 4)))
    done = cli("verify", "all")
    assert done.code == 0
    assert "all: OK\nAll 4 entries from 0 to 3 proved; none is missing.\n" in done.out
    assert f"They are of log {ORIGIN} as of size 4, signed by" in done.out
    assert OTHERS not in done.out
    value = cli("verify", "all", "--json").json
    assert value["verified"] is True
    found = value["results"][0]
    assert (found["file"], found["typ"], found["entries"], found["range"]) == ("all", "muniment/receipts@v1", 4, [0, 4])
    assert (found["first"], found["last"], found["tree_size"]) == (0, 3, 4)
    assert found["shown"] == {"whole": 3, "part": 0, "closed": 0, "own": 1, "raw": 0}
    assert "others" not in [limit["code"] for limit in found["does_not_prove"]]


def test_without_a_range_nothing_says_there_are_no_others(cli: Cli, log: FakeLog) -> None:
    for indices in ([1, 3], [0, 1, 2, 3]):
        done = cli("verify", "-", stdin=bundle(log, indices))
        assert done.code == 0
        assert f"{len(indices)} entries proved; {OTHERS}." in done.out
        assert "none is missing" not in done.out
        found = cli("verify", "-", "--json", stdin=bundle(log, indices)).json["results"][0]
        assert (found["range"], found["entries"]) == (None, len(indices))
        assert found["completeness"] == f"{len(indices)} entries proved; {OTHERS}"
        assert found["does_not_prove"][0]["code"] == "others"


def test_a_bundle_without_entries_holds_and_proves_nothing_of_any(cli: Cli, log: FakeLog) -> None:
    done = cli("verify", "-", stdin=bundle(log, []))
    assert done.code == 0, "a search that finds nothing makes one, and nothing in it fails"
    assert done.out.startswith(
        f"-: OK, BUT EMPTY\nNo entry proved: the bundle has none; {OTHERS}.\nOnly its checkpoint"
    )
    found = cli("verify", "-", "--json", stdin=bundle(log, [])).json["results"][0]
    assert (found["verified"], found["entries"], found["range"], found["first"]) == (True, 0, None, None)
    assert found["proves"].startswith(f"nothing of any entry; only the checkpoint of log {ORIGIN} as of size 4")
    assert found["completeness"] == f"no entry proved: the bundle has none; {OTHERS}"
    assert found["does_not_prove"][0]["code"] == "others"


def test_one_entry_is_no_entries(cli: Cli, log: FakeLog) -> None:
    for claimed, said in (((2, 3), "1 entry at 2 proved; none is missing."), (None, f"1 entry proved; {OTHERS}.")):
        done = cli("verify", "-", stdin=bundle(log, [2], claimed))
        assert f"-: OK\n{said}\nIt is of log {ORIGIN}" in done.out
        stated = bundle(log, [2], claimed).replace(b'"hashes":', b'"erasures":[{}],"hashes":')
        assert "Erasures stated in 1 line were not checked" in cli("verify", "-", stdin=stated).out
        for words in ([], ["--plain"]):
            text = cli("verify", "-", *words, stdin=stated).out
            assert not re.search(r"\b1 (entries|records|lines|events|leaves)\b|all 1 |\[\d", text), text


def test_what_is_shown_and_what_is_hidden(cli: Cli, log: FakeLog) -> None:
    data = bundle(log, [0, 1, 2, 3], None, without_first)
    done = cli("verify", "-", stdin=data)
    assert (
        "Entries: 2 events in part, 1 event of which nothing is opened, 1 entry written by the log itself." in done.out
    )
    assert "Shown: n (in 1), note (in 1)." in done.out
    assert 'Hidden: actor (in 2), "\\u001b[31mred" (in 1).' in done.out
    found = cli("verify", "-", "--json", stdin=data).json["results"][0]
    assert found["shown"] == {"whole": 0, "part": 2, "closed": 1, "own": 1, "raw": 0}
    assert (found["members_shown"], found["members_shown_unnamed"]) == ({"n": 1, "note": 1}, 0)
    assert found["hidden"] == {"actor": 2, "\x1b[31mred": 1}
    assert "hidden" in [limit["code"] for limit in found["does_not_prove"]]
    bare = bundle(log, [1, 2], None, lambda receipt: replace(receipt, commitment=None, disclosures=None))
    assert cli("verify", "-", "--json", stdin=bare).json["results"][0]["shown"]["closed"] == 2


def test_names_of_hidden_members_do_not_fill_the_memory(cli: Cli, log: FakeLog) -> None:
    log.add_events([{f"m{n}": n for n in range(200)}, {"x" * 5000: 1}])
    data = bundle(log, [4, 5], None, lambda receipt: replace(receipt, disclosures=()))
    found = cli("verify", "-", "--json", stdin=data).json["results"][0]
    assert (len(found["hidden"]), found["hidden_unnamed"]) == (64, 137)
    assert "other members (137 in all)" in cli("verify", "-", stdin=data).out


def test_erasures_are_skipped_with_a_word(cli: Cli, log: FakeLog) -> None:
    data = bundle(log, [1]).replace(b'"hashes":', b'"erasures":[{"index":3}],"hashes":')
    done = cli("verify", "-", stdin=data)
    assert done.code == 0
    assert "Erasures stated in 1 line were not checked: this version cannot." in done.out
    found = cli("verify", "-", "--json", stdin=data).json["results"][0]
    assert found["erasures_not_checked"] == 1
    assert "erasures" in [limit["code"] for limit in found["does_not_prove"]]


def test_a_bundle_that_does_not_hold(cli: Cli, log: FakeLog) -> None:
    good = bundle(log, [0, 1, 2, 3], (0, 4))
    lines = good.splitlines(keepends=True)
    for data, line, code, words in (
        (b"".join(lines[:-1]), 6, "cut_off", "cut off: after 4 entries its last line is missing"),
        (b"".join([*lines[:2], *lines[3:]]), 3, "entry_missing", "entry 1 is missing"),
        (good.replace(b'"index":2', b'"index": 2'), 4, "format_error", "not canonical JSON"),
        (good.replace(b'"count":4', b'"count":4,"count":4'), 6, "duplicate_name", "twice"),
    ):
        done = cli("verify", "-", stdin=data)
        assert done.code == 1
        assert f"-: NOT PROVED\nline {line}: " in done.out
        assert words in done.out
        value = cli("verify", "-", "--json", stdin=data).json
        assert value["verified"] is False
        assert {name: value["results"][0][name] for name in ("verified", "code", "line")} == {
            "verified": False, "code": code, "line": line,
        }  # fmt: skip


def test_beside_receipts_and_against_them(cli: Cli, log: FakeLog) -> None:
    Path("bundle").write_bytes(bundle(log, [1, 2]))
    Path("receipt").write_text(str(log.receipt(1)))
    done = cli("verify", "bundle", "receipt")
    assert done.code == 0
    assert "2 of 2 files hold." in done.out
    assert done.out.count("that what was logged is true") == 1
    twin = FakeLog()
    twin.add_events([*EVENTS[:2], {"actor": "mallory"}])
    Path("forked").write_bytes(bundle(twin, [1, 2]))
    done = cli("verify", "bundle", "forked")
    assert done.code == 1
    assert "bundle and forked: THESE HEADS CONTRADICT" in done.out
    twin.add_events([{"n": 5}])
    Path("longer").write_bytes(bundle(twin, [3, 4]))
    assert [found["names"] for found in cli("verify", "bundle", "longer", "forked", "--json").json["contradictions"]]


def test_options_for_receipts_alone(cli: Cli, log: FakeLog, here: Path) -> None:
    Path("bundle").write_bytes(bundle(log, [1]))
    Path("leaf").write_bytes(b"x")
    for words in (["--leaf", "leaf"], ["--check-anchors"]):
        done = cli("verify", "bundle", *words)
        assert (done.code, words[0] in done.err) == (2, True)


def test_a_bundle_that_another_system_rewrote(cli: Cli, log: FakeLog) -> None:
    good = bundle(log, [1])
    for data, words in (
        (good.replace(b"\n", b"\r\n"), "Windows line ends"),
        (b"\xef\xbb\xbf" + good, "a byte order mark"),
    ):
        done = cli("verify", "-", stdin=data)
        assert (done.code, words in done.err) == (2, True)


def test_a_bundle_of_another_log_is_not_vouched_for(cli: Cli) -> None:
    other = FakeLog(origin="example.com/other")
    done = cli("verify", "-", "--json", stdin=bundle(other, [0], (0, 1)))
    assert (done.code, done.json["results"][0]["code"], done.json["results"][0]["line"]) == (1, "policy_not_met", 1)


def test_json_of_a_bundle_is_one_object(cli: Cli, log: FakeLog) -> None:
    log.add_raw([b"x"])
    Path("bundle").write_bytes(bundle(log, [4]))
    assert json.loads(cli("verify", "bundle", "--json").out)["results"][0]["shown"]["raw"] == 1


def test_a_person_at_a_terminal_sees_a_bar(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bundle").write_bytes(bundle(log, [0, 1, 2, 3], (0, 4)))
    moved: list[int] = []

    @contextmanager
    def bar(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
        assert (what, total, quiet) == ("Verifying bundle", Path("bundle").stat().st_size, False)
        yield moved.append

    assert cli("verify", "bundle").err == "", "nothing where no person watches"
    monkeypatch.setattr(muniment.cli.bundle, "progress", bar)
    assert cli("verify", "bundle").code == 0
    assert sum(moved) == Path("bundle").stat().st_size, "every byte moves it"


def test_what_the_records_say_once_all_is_proved(cli: Cli, log: FakeLog) -> None:
    log.add_raw([b"raw"])
    good = bundle(log, [0, 1, 2, 3, 4], (0, 5), without_first)
    Path("all").write_bytes(good)
    for name in ("all", "-"):
        done = cli("verify", name, "--show", stdin=good)
        assert (done.code, done.err.startswith("No room for")) == (0, False)
        heading, *rows = done.out.partition("\n\n")[0].splitlines()
        assert heading == f"{name}:"
        assert rows[0].split() == ["index", "logged_at", "shown", "own", "n", "note", "leaf"]
        assert [row.split()[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]
        assert [" part " in row for row in rows[1:]] == [False, True, False, True, False]
        assert "\x1b" not in done.out
        assert done.out.index(": OK") > done.out.index(rows[-1]), "the verdict comes last"
    done = cli("verify", "all", "--show", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
    assert (found[1]["event"], found[1]["hidden"], found[1]["shown"]) == ({"n": 1}, ["actor"], "part")
    assert (found[0]["own"]["typ"], found[4]["leaf"]) == ("muniment/genesis@v1", "cmF3")
    assert json.loads(done.err)["verified"] is True


def test_nothing_is_shown_of_what_does_not_hold(cli: Cli, log: FakeLog) -> None:
    good = bundle(log, [0, 1, 2, 3], (0, 4))
    Path("cut").write_bytes(good[:-10])
    for words in (["cut"], ["-"]):
        done = cli("verify", *words, "--show", stdin=good[:-10])
        assert (done.code, "alice" in done.out) == (1, False)
        done = cli("verify", *words, "--show", "--json", stdin=good[:-10])
        assert (done.out, json.loads(done.err)["verified"]) == ("", False)


def test_a_file_that_changes_while_it_is_shown(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    good = bundle(log, [0, 1, 2, 3], (0, 4))
    Path("all").write_bytes(good)
    check = receipts_jobs.verify_receipts_with

    def changing(*words: Any) -> Any:
        found = check(*words)
        Path("all").write_bytes(good.splitlines(keepends=True)[0])
        return found

    monkeypatch.setattr(receipts_jobs, "verify_receipts_with", changing)
    done = cli("verify", "all", "--show")
    assert (done.code, "do not rely on what stands above" in done.err, "NOT PROVED" in done.out) == (1, True, True)


def test_a_receipt_is_one_record(cli: Cli, log: FakeLog) -> None:
    done = cli("verify", "-", "--show", "--json", stdin=str(log.receipt(1)).encode())
    assert (done.code, json.loads(done.out)["event"]) == (0, EVENTS[0])
