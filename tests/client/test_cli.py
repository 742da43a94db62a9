"""The commands against a log that may lie: what they print, and the exit codes that scripts rely on."""

from __future__ import annotations

import csv
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import muniment.client._sync
from muniment import Receipt
from muniment.cli.output import explain
from muniment.errors import Unavailable, Unreachable
from muniment.tlogproof import TlogProof
from tests.client.cli_runner import Cli
from tests.client.fake_log import ORIGIN, FakeLog, answering, edit, instead, lost_after, problem
from tests.client.served import served
from tests.live import PATIENCE


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice", "n": 1}, {"actor": "bob", "ok": True}])
    made.publish()
    return made


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a policy, beside a server; both in the environment, as the quick start has it."""
    (tmp_path / "policy").write_text(str(log.policy))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(log) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


# --- append -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stdin", "event"),
    [
        (["actor=alice", "n:=17", "empty="], b"", {"actor": "alice", "n": 17, "empty": ""}),
        (['{"actor":"alice"}'], b"", {"actor": "alice"}),
        (["-"], b'{"actor":"alice"}\n', {"actor": "alice"}),
        (["@event.json"], b"", {"from": "file"}),
        (["a=b=c", 'list:=[1,{"x":null}]'], b"", {"a": "b=c", "list": [1, {"x": None}]}),
    ],
)
def test_ways_to_say_an_event(cli: Cli, log: FakeLog, here: Path, words: list[str], stdin: bytes, event: Any) -> None:
    (here / "event.json").write_text('{"from": "file"}')
    done = cli("append", *words, "--json", stdin=stdin)
    assert (done.code, done.err) == (0, "")
    assert Receipt.from_json(done.json).verify(log.policy).opened == event


def test_append_says_what_is_proved_and_what_to_do_next(cli: Cli, here: Path) -> None:
    done = cli("append", "actor=alice")
    assert f"Logged: entry 3 of {ORIGIN}" in done.out
    assert "exactly what was sent" in done.out
    assert "Next: muniment receipt 3 -o receipt-3.json" in done.out
    done = cli("append", "actor=alice", "--receipt", "r.json", "--policy", "policy")
    assert "Next: muniment verify r.json --policy policy" in done.out
    assert cli("verify", "r.json").code == 0


def test_append_to_a_raw_log(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = FakeLog("raw")
    (here / "policy").write_text(str(raw.policy))
    (here / "leaf").write_bytes(b"\x00\xff")
    with served(raw) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        assert cli("append", "text").code == 0
        assert cli("append", "@leaf").code == 0
        assert cli("append", "-", stdin=b"hello\n").code == 0
        assert cli("append", "two", "words").code == 2
        assert cli("append", "-").code == 2
    assert raw.leaves[1:] == [b"text", b"\x00\xff", b"hello\n"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["x"], "usage"),
        (["=x"], "usage"),
        ([":=1"], "usage"),
        (["a=1", "a=2"], "duplicate_name"),
        (["a:=nope"], "invalid_json"),
        (["a:=1e400"], "invalid_json"),
        (["{}"], "empty_event"),
        (['{"a":1,"a":2}'], "duplicate_name"),
        (['{"a":9007199254740992}'], "number_range"),
        (["@missing.json"], "unreadable"),
        (["@."], "unreadable"),
    ],
)
def test_what_is_no_event_is_usage(cli: Cli, log: FakeLog, words: list[str], code: str) -> None:
    done = cli("append", *words, "--json")
    assert (done.code, done.out, done.error["code"]) == (2, "", code)
    assert log.size == 3


def test_an_append_whose_outcome_is_unknown_says_how_to_repeat_it(cli: Cli, log: FakeLog) -> None:
    log.faults = [lambda _r, honest: honest(), lost_after, lost_after, lost_after, lost_after]
    done = cli("append", "actor=alice", "--json")
    assert done.code == 4
    key = done.error["idempotency_key"]
    assert f"--idempotency-key {key}" in done.error["hint"]
    assert cli("append", "actor=alice", "--idempotency-key", key).code == 0
    assert log.size == 4


# --- exit codes ---------------------------------------------------------------------------------------------------------


def test_no_policy_is_exit_2_with_a_hint(cli: Cli, monkeypatch: pytest.MonkeyPatch, log: FakeLog) -> None:
    monkeypatch.delenv("MUNIMENT_POLICY")
    for words in (["append", "a=b"], ["get", "1"], ["checkpoint"], ["verify", "policy"], ["log"], ["consistency"]):
        done = cli(*words)
        assert done.code == 2
        assert ("--trust-on-first-use" in done.err) == (words[0] != "verify"), "verify asks no server"
        assert cli(*words, "--json").error["code"] == "no_policy"
    assert not log.requests


@pytest.mark.parametrize("content", ["", "log x\nquorum none\n", "quorum none none\n", "\xff"])
def test_a_policy_that_is_none(cli: Cli, here: Path, content: str) -> None:
    (here / "bad").write_text(content, encoding="latin-1")
    done = cli("get", "1", "--policy", "bad", "--json")
    assert (done.code, done.error["code"]) == (2, "bad_policy")


@pytest.mark.parametrize(
    ("response", "exit_code"),
    [
        (lambda: problem(404, "not_published_yet"), 3),
        (lambda: problem(404, "no_checkpoint"), 3),
        (lambda: problem(404, "no_entry"), 6),
        (lambda: problem(401, "unauthorized"), 6),
        (lambda: problem(422, "reserved_leaf"), 6),
        (lambda: problem(429, "overloaded", 0), 4),
        (lambda: problem(500, "internal"), 4),
        (lambda: problem(503, "guard_root", 30), 5),
        (lambda: problem(503, "database_behind", 30), 5),
        (lambda: problem(503, "outcome_unknown", 0), 4),
        (lambda: problem(503, "overloaded", 9999), 4),
        (lambda: httpx.Response(302, headers={"Location": "http://127.0.0.1:1/"}), 4),
        (lambda: httpx.Response(200, html="<html>"), 4),
        (lambda: httpx.Response(200, json={}), 1),
    ],
)
def test_exit_codes(cli: Cli, log: FakeLog, response: Any, exit_code: int) -> None:
    log.tamper = instead("/receipt", response)
    done = cli("get", "1", "--json")
    assert (done.code, done.out) == (exit_code, "")
    assert set(done.error) >= {"code", "message", "hint"}
    assert cli("get", "1").err.startswith("muniment: ")


def test_nobody_listens(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = cli("checkpoint", "--url", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert done.code == 4
    assert "muniment-server serve" in done.err


def test_an_answer_that_asks_for_a_key_says_where_it_goes(cli: Cli, log: FakeLog) -> None:
    log.tamper = instead("/checkpoint", lambda: problem(401, "unauthorized"))
    assert "MUNIMENT_API_KEY" in cli("checkpoint").err


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["get"],
        ["get", "-1"],
        ["get", "01"],
        ["get", "1_0"],
        ["get", "x"],
        ["append"],
        ["--nope"],
        ["verify"],
        ["verify", "missing.json"],
        ["export", "--format", "xml"],
        ["checkpoint", "--url", "ftp://x"],
        ["get", "1", "--log", "UPPER"],
    ],
)
def test_usage(cli: Cli, words: list[str]) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert cli(*words, "--json").error["code"] == "usage"


@pytest.mark.parametrize("command", ["append", "verify", "disclose", "import"])
def test_a_word_that_begins_with_a_minus(cli: Cli, command: str) -> None:
    assert f"comes behind --: muniment {command} -- -x" in cli(command, "-x=1").err
    assert "No such option" not in cli(command, "--", "-x=1").err
    assert "comes behind --" not in cli("get", "-1").err, "no index does"
    assert "comes behind --" not in cli("export", "-x").err, "it takes no words"


def test_help_and_version(cli: Cli) -> None:
    assert "First time" in cli("--help").out
    assert cli("--version").out.startswith("muniment, version")
    assert cli().code == 2
    for command in ("append", "import", "get", "receipt", "verify", "consistency", "checkpoint", "export", "log"):
        done = cli(command, "--help")
        assert done.code == 0
        assert f"muniment {command}" in done.out, "an example"


def test_a_bug_is_70(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muniment.cli.get._show", lambda *_: 1 / 0)
    done = cli("get", "1", "--json")
    assert (done.code, done.error["code"]) == (70, "unexpected")


def test_an_interrupt_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("muniment.cli.get._text", interrupt)
    assert cli("get", "1").code == 130


def test_a_guard_that_refuses_an_append_is_5() -> None:
    assert explain(Unavailable(503, {"code": "guard_missing"})).exit_code == 5
    assert explain(Unreachable("x")).exit_code == 4


# --- reading ------------------------------------------------------------------------------------------------------------


def test_get(cli: Cli) -> None:
    assert cli("get", "1", "--json").json["event"] == {"actor": "alice", "n": 1}
    assert [entry["index"] for entry in cli("get", "0", "2", "--json").json] == [0, 2]
    out = cli("get", "0", "1").out
    assert 'actor = "alice"' in out
    assert f'origin = "{ORIGIN}"' in out


def test_get_what_is_closed(cli: Cli, log: FakeLog) -> None:
    log.readable = False
    assert "scope read" in cli("get", "1").out
    assert cli("get", "1", "--json").json["hidden"] == ["*"]


def test_receipts(cli: Cli, log: FakeLog, here: Path) -> None:
    done = cli("receipt", "1")
    assert Receipt.parse(done.out).verify(log.policy).complete
    assert cli("receipt", "1", "-o", "r.json").code == 0
    done = cli("receipt", "1", "--tlog-proof", "-o", "r.tlog-proof", "--json")
    assert done.json["file"] == "r.tlog-proof"
    done = cli("verify", "r.json", "r.tlog-proof", "--json")
    assert (done.code, done.json["verified"]) == (0, True)
    assert cli("receipt", "1", "--tree-size", "1", "--json").code == 6
    assert cli("receipt", "1", "-o", "no/such/folder").code == 2


def test_a_receipt_of_some_members(cli: Cli, log: FakeLog, here: Path) -> None:
    done = cli("receipt", "1", "--only", "actor")
    assert Receipt.parse(done.out) == log.receipt(1).disclose({"actor"})
    assert cli("receipt", "1", "--only", "actor", "--only", "n", "-o", "r.json").code == 0
    assert Receipt.parse((here / "r.json").read_bytes()) == log.receipt(1)
    assert cli("receipt", "1", "--only", "", "-o", "r.json", "--json").error["code"] == "fuller_receipt"
    assert cli("receipt", "1", "--only", "actor", "--tlog-proof").code == 2
    for readable, says in ((True, "unknown_member"), (False, "opens no member x: it opens none")):
        log.readable = readable
        done = cli("receipt", "1", "--only", "x", "--json")
        assert (done.code, done.out, done.error["code"]) == (6, "", "unknown_member")
        assert says in done.err


def test_verify(cli: Cli, log: FakeLog, here: Path) -> None:
    good, bad = log.receipt(1), FakeLog(seed=3).receipt(0)
    (here / "good").write_text(str(good))
    (here / "bad").write_text(str(bad))
    (here / "junk").write_text("junk")
    done = cli("verify", "good", "bad", "junk")
    assert done.code == 1
    assert [line for line in done.out.splitlines() if line.startswith(("good:", "bad:", "junk:"))] == [
        "good: OK",
        "bad: NOT PROVED",
        "junk: NOT PROVED",
    ]
    assert "1 of 3 files hold" in done.out
    done = cli("verify", "bad", "--json")
    assert (done.code, done.json["results"][0]["code"]) == (1, "bad_signature")
    assert cli("verify", "-", stdin=str(good).encode()).code == 0
    assert cli("verify", "-").code == 1


def test_every_changed_byte_of_a_receipt_is_noticed(cli: Cli, log: FakeLog) -> None:
    """A changed member name makes an unknown member, which is ignored: then the receipt says less, and never something else."""
    text = json.dumps(log.receipt(1).to_json(), ensure_ascii=False).encode()
    for at in range(0, len(text), 7):
        changed = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        done = cli("verify", "-", "--json", stdin=changed)
        if done.code == 0:
            result = done.json["results"][0]
            assert (result["complete"], result["event"]) == (False, {}), changed
        else:
            assert done.code == 1


def test_a_tlog_proof_without_its_leaf(cli: Cli, log: FakeLog, here: Path) -> None:
    receipt = log.receipt(1)
    text = str(replace(TlogProof.parse(receipt.to_tlog_proof().encode()), extra=None))
    (here / "proof").write_text(text)
    (here / "leaf").write_bytes(receipt.leaf)
    (here / "other").write_bytes(receipt.leaf + b"\n")
    assert cli("verify", "proof", "--leaf", "leaf").code == 0
    assert cli("verify", "-", "--leaf", "leaf", stdin=text.encode()).code == 0
    assert "NOT PROVED" in cli("verify", "proof", "--leaf", "other").out
    done = cli("verify", "proof")
    assert done.code == 1
    assert "--leaf FILE" in done.out
    for words in (("proof", "proof"), ("leaf",)):
        assert cli("verify", *words, "--leaf", "leaf").code == 2
    assert cli("consistency", "--since", "proof").code == 0


def test_consistency(cli: Cli, log: FakeLog, here: Path) -> None:
    assert "First visit" in cli("consistency").out
    assert cli("checkpoint", "-o", "saved").code == 0
    (here / "receipt").write_text(str(log.receipt(1, 2)))
    (here / "proof").write_text(log.receipt(1, 2).to_tlog_proof())
    log.add_events([{"n": n} for n in range(5)])
    log.publish()
    done = cli("consistency")
    assert "the first 3 entries" in done.out
    assert cli("consistency", "--since", "saved", "--json").json["first"] == 3
    for name in ("receipt", "proof"):
        assert cli("consistency", "--since", name, "--json").json["first"] == 2
    assert cli("consistency", "--since", "-", stdin=(here / "saved").read_bytes()).code == 0
    assert cli("consistency", "--since", "policy").code == 2


def test_receipts_that_contradict_each_other(cli: Cli, log: FakeLog, here: Path) -> None:
    branch = log.fork()
    log.add_events([{"mine": 1}])
    branch.add_events([{"theirs": 1}])
    for name, found in (("a", log.receipt(1)), ("b", branch.receipt(1)), ("c", log.receipt(1, 3))):
        (here / name).write_text(str(found))
    done = cli("verify", "a", "b")
    assert done.code == 1
    assert "a: OK" in done.out
    assert "b: OK" in done.out, "each holds by itself"
    assert (
        "a and b: THESE HEADS CONTRADICT\nthe log example.com/log signed trees that contradict each other" in done.out
    )
    value = cli("verify", "a", "b", "--json").json
    assert (value["verified"], value["contradictions"][0]["names"]) == (False, ["a", "b"])
    for names in (("a", "c"), ("b", "c"), ("a", "a"), ("a",)):
        assert cli("verify", *names).code == 0, names
        assert cli("verify", *names, "--json").json["contradictions"] == []


def test_receipts_are_compared_with_what_was_seen_before(cli: Cli, log: FakeLog, here: Path) -> None:
    branch = log.fork()
    for fork, name in ((log, "good"), (branch, "bad")):
        fork.add_events([{name: 1}])
        (here / name).write_text(str(fork.receipt(3)))
    (here / "older").write_text(str(log.receipt(1, 2)))
    assert "Nothing of example.com/log is remembered." in cli("verify", "good", "--state").out
    log.publish()
    assert cli("checkpoint").code == 0
    assert "remembered" not in cli("verify", "good", "--state").out
    done = cli("verify", "bad", "--state")
    assert done.code == 1
    assert "bad and the checkpoint of size 4 in" in done.out
    assert "THESE HEADS CONTRADICT" in done.out
    assert cli("verify", "bad").code == 0, "nothing is compared unless it is asked for"
    done = cli("verify", "older", "--state")
    assert (done.code, "Not compared with the checkpoint of size 4" in done.out) == (0, True)


def test_a_fork_is_exit_1_and_the_evidence_is_kept(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = log.fork()
    log.add_events([{"mine": 1}])
    branch.add_events([{"theirs": 1}])
    log.publish()
    branch.publish()
    assert cli("checkpoint").code == 0
    with served(branch) as url:
        done = cli("checkpoint", "--url", url, "--json")
        assert (done.code, done.error["code"]) == (1, "inconsistent")
        kept = [Path(root) / name for root, _, names in os.walk(os.environ["XDG_STATE_HOME"]) for name in names]
        evidence = next(path for path in kept if path.name.startswith("evidence-"))
        value = json.loads(evidence.read_text())
        assert {value["first"], value["second"]} == set(done.error["notes"])
        assert f"muniment verify {evidence}" in done.error["hint"]
        assert cli("verify", evidence).out.startswith(f"{evidence}: OK, THIS PROVES A FORK\n")
        assert cli("append", "a=b", "--url", url).code == 1


def test_a_damaged_memory_is_no_accusation(cli: Cli) -> None:
    assert cli("checkpoint").code == 0
    (Path(os.environ["XDG_STATE_HOME"]) / "muniment" / "checkpoints.json").write_bytes(b"\0" * 187)
    done = cli("checkpoint", "--json")
    assert (done.code, done.error["code"]) == (2, "state_error")
    assert "says nothing about any log" in done.error["message"]


def test_checkpoints(cli: Cli, log: FakeLog) -> None:
    assert cli("checkpoint").out == log.note(3)
    assert [row["tree_size"] for row in cli("checkpoint", "--all", "--json").json] == [1, 3]
    assert "size" in cli("checkpoint", "--all").out


def test_log(cli: Cli, log: FakeLog) -> None:
    done = cli("log")
    assert "(trusted)" in done.out
    assert cli("log", "--json").json["kind"] == "event"
    log.tamper = edit("/log", lambda value: value.update(vkeys=["x+00+y"]))
    assert cli("log").code == 1


def test_a_log_that_is_not_the_one_meant(cli: Cli, log: FakeLog, here: Path) -> None:
    other = FakeLog(origin="example.com/other", seed=1)
    (here / "policy").write_text(f"log {log.key.vkey}\nlog {other.key.vkey}\nquorum none\n")
    assert cli("checkpoint").code == 0
    assert cli("checkpoint", "--origin", ORIGIN).code == 0
    done = cli("checkpoint", "--origin", "example.com/other", "--json")
    assert (done.code, done.error["code"]) == (1, "policy_not_met")


# --- trust on first use -------------------------------------------------------------------------------------------------


def test_trust_on_first_use_pins_and_prints(cli: Cli, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUNIMENT_POLICY")
    done = cli("checkpoint", "--trust-on-first-use")
    assert done.code == 0
    assert str(log.key.vkey) in done.err
    again = cli("checkpoint", "--trust-on-first-use")
    assert (again.code, again.err) == (0, "")
    path = done.err.rpartition("--policy ")[2].strip()
    assert cli("checkpoint", "--policy", path).code == 0
    log.key = FakeLog(seed=5).key
    log.notes.clear()
    assert cli("checkpoint", "--trust-on-first-use", "--json").error["code"] == "bad_signature"


def test_trust_on_first_use_into_a_file(cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("append", "a=b", "--trust-on-first-use", "--policy", "pinned", "--json")
    assert json.loads(done.err)["trusted_on_first_use"]["vkeys"] == [str(log.key.vkey)]
    assert str(log.key.vkey) in (here / "pinned").read_text()
    assert Receipt.from_json(done.json).index == 3


# --- API keys -----------------------------------------------------------------------------------------------------------


def test_the_api_key_comes_from_the_environment_or_a_file(
    cli: Cli, log: FakeLog, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUNIMENT_API_KEY", "mk_env\n")
    cli("checkpoint")
    (here / "key").write_text("mk_file\n")
    cli("checkpoint", "--api-key-file", "key")
    assert [request.headers["authorization"] for request in log.requests] == ["Bearer mk_env", "Bearer mk_file"]
    assert cli("checkpoint", "--api-key-file", "nope").code == 2
    assert cli("checkpoint", "--api-key", "x").code == 2


# --- export -------------------------------------------------------------------------------------------------------------


def test_export_jsonl(cli: Cli, here: Path) -> None:
    done = cli("export")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[1]["event"] == {"actor": "alice", "n": 1}
    assert "each proved to be in the tree of size 3" in done.err
    done = cli("export", "-o", "log.jsonl", "--start", "1", "--json")
    assert json.loads(done.err)["entries"] == 2
    assert len((here / "log.jsonl").read_text().splitlines()) == 2


def test_export_csv(cli: Cli, here: Path, log: FakeLog) -> None:
    log.add_events([{"index": "x", "text": 'a "quoted", line\nbreak'}])
    log.publish()
    assert cli("export", "-o", "log.csv").code == 0
    rows = list(csv.DictReader((here / "log.csv").read_text().splitlines(keepends=True)))
    assert rows[1]["actor"] == "alice"
    assert rows[1]["n"] == "1"
    assert rows[2]["ok"] == "true"
    assert rows[3]["index"] == "3"
    assert rows[3]["event.index"] == "x"
    assert rows[3]["text"] == 'a "quoted", line\nbreak'


def test_an_export_that_fails_leaves_no_file(cli: Cli, here: Path, log: FakeLog) -> None:
    log.tamper = edit("/entries", lambda value: value["entries"][2].update(leaf="AAAA"))
    assert cli("export", "-o", "log.jsonl").code == 1
    assert not list(here.glob("log.jsonl*"))


def test_a_reader_that_goes_away(here: Path, log: FakeLog) -> None:
    log.add_events([{"text": "x" * 1000}] * 600)
    log.publish()
    command = f"{sys.executable} -m muniment.cli export | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.startswith('{"index": 0')
    assert done.returncode == 130, "1 would say that the log was caught"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_written_files_are_readable_by_others(cli: Cli, here: Path) -> None:
    cli("receipt", "1", "-o", "r.json")
    assert stat.S_IMODE((here / "r.json").stat().st_mode) & 0o044 == 0o044
    assert not list(here.glob("*.part"))


def test_busy_servers_are_waited_for(cli: Cli, log: FakeLog) -> None:
    log.faults = [answering(503, "overloaded", 1), answering(429, "overloaded", 1)]
    assert cli("checkpoint").code == 0
