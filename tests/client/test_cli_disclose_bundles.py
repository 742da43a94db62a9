"""`muniment disclose` of bundles: line by line, still a proof, and what is hidden is in no byte of the result."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muniment.event import Disclosure
from muniment.note import SignatureLine
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsReader
from muniment.receipts_part import PartOfBundle
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog
from tests.client.test_bundle_cli import bundle

EVENTS: list[dict[str, Any]] = [
    {"actor": "alice", "amount": 7001, "note": "first"},
    {"actor": "bob", "a,b": ["kept apart"]},
    {"action": "close", "amount": 7002},
]


@pytest.fixture(scope="module")
def log() -> FakeLog:
    made = FakeLog()
    made.add_events(EVENTS)
    made.add_raw([b"raw leaf"])
    return made


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a policy and a bundle of all entries, which states an erasure of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    Path("policy").write_text(str(log.policy))
    lines = bundle(log, [0, 1, 2, 3, 4], (0, 5)).splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"hashes":', b'"erasures":[{"index":9}],"hashes":')
    Path("all").write_bytes(b"".join(lines))


def opened(log: FakeLog, data: bytes) -> list[dict[str, Any]]:
    return [verified.opened for _, verified in ReceiptsReader(data.splitlines(keepends=True), log.policy)]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--only", "actor,amount"], {"actor", "amount"}),
        (["--hide", "actor", "--hide", "note"], {"amount", "a,b", "action"}),
        (["--only", '"a,b"'], {"a,b"}),
        (["--only", ""], set()),
        (["--hide", ""], {"actor", "amount", "note", "a,b", "action"}),
    ],
)
def test_each_event_shows_what_was_asked_for(cli: Cli, log: FakeLog, words: list[str], shown: set[str]) -> None:
    done = cli("disclose", "all", *words, "-o", "part", "--json")
    assert done.code == 0, done.err
    data = Path("part").read_bytes()
    wanted = [{name: value for name, value in event.items() if name in shown} for event in EVENTS]
    assert opened(log, data) == [{}, *wanted, {}]
    report = done.json
    assert (report["file"], report["origin"], report["entries"], report["range"]) == ("part", log.origin, 5, [0, 5])
    everything = [name for event in EVENTS for name in event]
    assert report["shown"] == {name: everything.count(name) for name in everything if name in shown}
    assert report["hidden"] == {name: everything.count(name) for name in everything if name not in shown}
    found = cli("verify", "part", "--json").json["results"][0]
    assert (found["range"], found["erasures_not_checked"], found["hidden"]) == ([0, 5], 0, report["hidden"])
    assert report["left_out"] == {"members": [], "erasures": 1, "signatures": 0, "anchors": 0}


def test_no_byte_of_what_is_hidden_is_left(cli: Cli, log: FakeLog) -> None:
    assert cli("disclose", "all", "--only", "action", "-o", "part").code == 0
    data = Path("part").read_bytes()
    for index in (1, 2, 3):
        for name, text in log.receipt(index).opening().items():
            member = Disclosure.parse(text)
            salt = base64.urlsafe_b64decode(member.salt + "==")
            value = json.dumps(member.value).encode()
            salts = member.salt.encode(), salt.hex().encode(), base64.b64encode(salt)
            spellings = (text.encode(), text[:33].encode(), *salts, value)  # with the salt in its first 33 characters
            there = [spelling in data for spelling in spellings]
            assert any(there) == (name == "action"), (index, name)


def test_what_this_version_does_not_know_is_left_out_and_said(cli: Cli, log: FakeLog) -> None:
    first, *lines = Path("all").read_bytes().splitlines(keepends=True)
    header = Header.parse(first)
    stranger = [str(SignatureLine("alice", b"%04d" % length, bytes(length))) for length in (30, 64)]
    witness = str(SignatureLine("witness.example", b"1234", bytes(72)))
    spoiled = replace(header, checkpoint=header.checkpoint + stranger[0] + witness + stranger[1])
    Path("all").write_bytes(b"".join([spoiled.line(), *lines]))
    done = cli("disclose", "all", "--only", "action", "-o", "part")
    assert done.code == 0, done.err
    assert Header.parse(Path("part").read_bytes().splitlines(keepends=True)[0]) == replace(
        header, checkpoint=header.checkpoint + witness
    )
    assert "Cosigned by witness.example: not checked." in done.out
    assert "Left out: the erasures that 1 line stated, which this version cannot check." in done.out
    assert "Left out: 2 lines of the checkpoint that no log or witness writes." in done.out
    assert cli("verify", "part").code == 0
    extended = replace(header, checkpoint=header.checkpoint.replace("\n\n", "\nalice\n\n", 1))
    Path("all").write_bytes(b"".join([extended.line(), *lines]))
    done = cli("disclose", "all", "--only", "action", "-o", "other", "--json")
    assert (done.code, done.error["code"], Path("other").exists()) == (2, "cannot_hide", False)


def test_a_bundle_of_one_entry_is_said_so(cli: Cli, log: FakeLog) -> None:
    Path("one").write_bytes(bundle(log, [1], (1, 2)))
    assert cli("disclose", "one", "--only", "actor", "-o", "part").out.startswith(
        f"Bundle of 1 entry of {log.origin}: part\n"
    )


def test_from_standard_input_to_standard_output(cli: Cli, log: FakeLog) -> None:
    done = cli("disclose", "-", "--hide", "actor", stdin=Path("all").read_bytes())
    assert done.code == 0, done.err
    assert opened(log, done.out.encode())[1] == {"amount": 7001, "note": "first"}
    assert "Shown: amount in 2, note in 1, a,b in 1, action in 1." in done.err.replace('"', "")
    assert "Not shown: actor in 2 (the names stay readable)." in done.err
    said = cli("disclose", "all", "--hide", "actor", "-o", "part").out
    assert said.startswith(f"Bundle of 5 entries of {log.origin}: part\n")
    assert "Next: muniment verify part" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "actor,nobody"], "no entry of the bundle opens a member nobody"),
        (["--hide", "nobody"], "no entry of the bundle has a member nobody"),
    ],
)
def test_a_name_that_no_entry_has(cli: Cli, words: list[str], says: str) -> None:
    done = cli("disclose", "all", *words, "-o", "part", "--json")
    assert (done.code, done.error["code"]) == (2, "unknown_member")
    assert says in done.error["message"]
    assert not Path("part").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["all", "policy"], "nothing beside it either"
    done = cli("disclose", "all", *words)
    assert done.code == 2
    assert "muniment/receipts-end@v1" not in done.out, "what came before is no bundle"


def test_what_is_hidden_already_cannot_be_shown_but_hidden(cli: Cli, log: FakeLog) -> None:
    closed = bundle(log, [1], None, lambda receipt: replace(receipt, disclosures=()))
    assert cli("disclose", "-", "--only", "actor", stdin=closed).code == 2
    done = cli("disclose", "-", "--hide", "actor", stdin=closed)
    assert (done.code, opened(log, done.out.encode())) == (0, [{}])
    bare = bundle(log, [1], None, lambda receipt: replace(receipt, commitment=None, disclosures=None))
    assert cli("disclose", "-", "--only", "", stdin=bare).out.encode() == bare


def test_a_bundle_that_is_not_whole_makes_none(cli: Cli, log: FakeLog) -> None:
    good = Path("all").read_bytes()
    lines = good.splitlines(keepends=True)
    swapped = log.receipt(2).opening()["actor"]
    for data, exit_code, code, line in (
        (b"".join(lines[:-1]), 2, "not_a_bundle", 7),
        (good[:-1], 2, "not_a_bundle", 7),
        (good.replace(b'"count":5', b'"count":4'), 1, "entry_missing", 7),
        (b"".join([*lines[:3], *lines[4:]]), 1, "entry_missing", 4),
        (good.replace(b'"index":1', b'"index": 1'), 2, "not_a_bundle", 3),
        (good.replace(log.receipt(1).opening()["actor"].encode(), swapped.encode()), 1, "bad_disclosure", 3),
        (good.replace(b"\n", b"\r\n"), 2, "not_plain_text", None),
    ):
        Path("bad").write_bytes(data)
        done = cli("disclose", "bad", "--hide", "actor", "-o", "part", "--json")
        assert (done.code, done.error["code"]) == (exit_code, code)
        assert line is None or f"line {line}: " in done.error["message"]
        assert not Path("part").exists()


def test_never_over_what_may_show_more_unless_told(cli: Cli, log: FakeLog) -> None:
    whole = Path("all").read_bytes()
    Path("one").write_text(str(log.receipt(1)))
    Path("other").write_bytes(bundle(FakeLog(origin="example.com/other"), [0]))
    for target in ("all", "one"):
        done = cli("disclose", "all", "--hide", "actor", "-o", target, "--json")
        assert (done.code, done.error["code"]) == (2, "fuller_receipt")
    assert Path("all").read_bytes() == whole
    assert cli("disclose", "all", "--hide", "actor", "-o", "other").code == 0
    assert cli("disclose", "all", "--hide", "actor", "-o", "all", "--overwrite").code == 0
    assert opened(log, Path("all").read_bytes())[2] == {"a,b": ["kept apart"]}


def test_memory_does_not_grow_with_names() -> None:
    log = FakeLog()
    log.add_events([{f"m{n}": n for n in range(200)}])
    part = PartOfBundle(bundle(log, [1]).splitlines(keepends=True), {"m1"}, hiding=True)
    for line in part:
        assert line
    assert (len(part.shown), len(part.hidden), part.unnamed) == (64, 1, 135)


def test_a_part_of_a_part_is_the_part(log: FakeLog) -> None:
    lines = Path("all").read_bytes().splitlines(keepends=True)
    first = list(PartOfBundle(lines, {"actor", "amount"}, hiding=False))
    assert list(PartOfBundle(first, {"actor"}, hiding=False)) == list(PartOfBundle(lines, {"actor"}, hiding=False))
    one = Receipt.parse(str(log.receipt(1))).disclose({"actor"})
    assert one.disclosures == tuple(json.loads(list(PartOfBundle(lines, {"actor"}, hiding=False))[2])["disclosures"])
