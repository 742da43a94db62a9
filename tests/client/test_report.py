"""What verification says to people and machines: what is proved, what is hidden, what is not proved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muniment.anchored import AnchoredCheckpoint
from muniment.errors import (
    BadProof,
    EventRefused,
    Inconsistent,
    NotWhatWasSent,
    PolicyNotMet,
    Refused,
    StateError,
    Unavailable,
)
from muniment.verify import code_of, failure_json, printable, verify_receipt
from tests.client.fake_log import ORIGIN, FakeLog
from tests.live import PATIENCE

EVENT = {"actor": "alice", "n": 17, "nested": {"a": [1, None]}}


@pytest.fixture(scope="module")
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([EVENT, {"n": 2}])
    return made


def codes(value: dict[str, Any]) -> list[str]:
    return [limit["code"] for limit in value["does_not_prove"]]


def test_a_complete_event(log: FakeLog) -> None:
    report = verify_receipt(log.receipt(1), log.policy)
    value = report.to_json()
    signer = f"{ORIGIN}+{log.key.vkey.key_id.hex()}"
    assert value["verified"] is True
    assert value["proves"] == f"entry 1 of log {ORIGIN} as of size 3, signed by {signer}"
    assert (value["complete"], value["event"], value["hidden"]) == (True, EVENT, [])
    assert value["logged_at"] == "2026-11-20T12:00:00.124Z"
    assert codes(value) == ["unpublished", "clock", "truth"]
    text = report.to_text()
    assert 'actor = "alice"' in text
    assert "Complete" in text
    assert "consistency --since" in text
    json.dumps(value)


def test_hidden_members_are_named(log: FakeLog) -> None:
    receipt = log.receipt(1)
    assert receipt.disclosures
    report = verify_receipt(replace(receipt, disclosures=receipt.disclosures[:1]), log.policy)
    assert report.to_json()["hidden"] == ["n", "nested"]
    assert "hidden" in codes(report.to_json())
    assert "Shown: actor. Not shown: n, nested." in report.to_text()
    closed = verify_receipt(replace(receipt, disclosures=()), log.policy)
    assert closed.to_json()["complete"] is False
    assert "Shown: nothing of the event. Not shown: actor, n, nested." in closed.to_text()


def test_a_tlog_proof_hides_the_whole_event(log: FakeLog) -> None:
    receipt = log.receipt(1)
    report = verify_receipt(receipt.parse(receipt.to_tlog_proof()), log.policy)
    assert report.to_json()["hidden"] == ["*"]
    assert "the whole event" in report.to_text()


def test_the_logs_own_entry(log: FakeLog) -> None:
    value = verify_receipt(log.receipt(0), log.policy).to_json()
    assert value["typ"] == "muniment/genesis@v1"
    assert value["own"]["origin"] == ORIGIN
    assert value["logged_at"] == "2026-11-20T12:00:00.123Z"
    assert codes(value) == ["unpublished"]


def test_a_raw_leaf() -> None:
    log = FakeLog("raw")
    log.add_raw([b"\x00leaf"])
    report = verify_receipt(log.receipt(1), log.policy)
    value = report.to_json()
    assert (value["typ"], value["leaf"]) == ("raw", "AGxlYWY=")
    assert "complete" not in value
    assert "5 bytes" in report.to_text()


def test_anchors_are_not_checked_and_that_is_said(log: FakeLog) -> None:
    anchor = AnchoredCheckpoint(log.note(log.size), log.size, (), b"not looked at", 1)
    report = verify_receipt(replace(log.receipt(1), anchors=(anchor,)), log.policy)
    assert "anchors" in codes(report.to_json())
    assert "anchors" not in report.to_json()
    assert "anchors" not in codes(verify_receipt(log.receipt(1), log.policy).to_json())


def test_nothing_a_stranger_wrote_reaches_the_terminal() -> None:
    log = FakeLog()
    log.add_events([{"\x1b[2J": "\x1b]0;owned\x07", "bidi": "\u202e\u0085\u2028", "ok": "grüße 漢"}])
    text = verify_receipt(log.receipt(1), log.policy).to_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "grüße 漢" in text


@pytest.mark.parametrize("text", ["\x00", "\x7f", "\x9b", "\u200b", "\ud800", "\U000e0001"])
def test_printable(text: str) -> None:
    assert printable(text).isascii()
    assert printable(f"a{text}b").startswith("a\\")


def test_failures() -> None:
    assert failure_json(BadProof("no")) == {"verified": False, "code": "bad_proof", "detail": "no"}
    assert code_of(PolicyNotMet("x")) == "policy_not_met"
    assert code_of(NotWhatWasSent("x")) == "not_what_was_sent"
    assert code_of(Inconsistent("x", ("a", "b"))) == "inconsistent"
    assert code_of(StateError("x")) == "state_error"
    assert code_of(EventRefused("too_deep", "x")) == "too_deep"
    assert code_of(Refused(404, {"code": "no_entry"})) == "no_entry"
    assert code_of(Unavailable(503, {})) == "unavailable"


def test_the_verify_command_loads_neither_client_nor_network(log: FakeLog, tmp_path: Path) -> None:
    """In a process where importing them fails, and opening a socket too."""
    (tmp_path / "policy").write_text(str(log.policy))
    (tmp_path / "receipt.json").write_text(str(log.receipt(1)))
    guard = (
        "import sys, socket\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('httpx', 'httpcore', 'anyio', 'asyncio', 'rich', 'ssl', 'fcntl', 'opentimestamps'): raise SystemExit(f'loads {name}')\n"
        "        if name in ('muniment.client', 'muniment._flows'): raise SystemExit(f'loads {name}')\n"
        "sys.meta_path.insert(0, No())\n"
        "def refuse(*_): raise SystemExit('opens a socket')\n"
        "socket.socket = refuse\n"
        "from muniment.cli import main\n"
        "sys.argv = ['muniment', 'verify', 'receipt.json', '--policy', 'policy']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guard], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "OK" in done.stdout
