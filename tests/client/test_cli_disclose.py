"""`muniment disclose`: the receipt it writes shows what was asked for, and nothing more is lost or leaked by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muniment.note import SignatureLine
from muniment.receipt import Receipt
from tests.client.cli_runner import Cli
from tests.client.fake_log import FakeLog

EVENT: dict[str, Any] = {"actor": "alice@example.com", "action": "invoice.approve", "a,b": 7, "x.y": None, '"': True, "__proto__": [1], "": "empty"}  # fmt: skip


@pytest.fixture
def log() -> FakeLog:
    made = FakeLog()
    made.add_events([EVENT, {"actor": "bob"}])
    return made


@pytest.fixture(autouse=True)
def here(log: FakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy and the receipt `r.json`."""
    (tmp_path / "policy").write_text(str(log.policy))
    (tmp_path / "r.json").write_text(str(log.receipt(1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--only", "action,actor"], {"action", "actor"}),
        (["--only", "action", "--only", '"a,b",x.y'], {"action", "a,b", "x.y"}),
        (["--hide", "actor"], EVENT.keys() - {"actor"}),
        (["--hide", "actor,__proto__", "--hide", r'"\"",""'], {"action", "a,b", "x.y"}),
        (["--only", '__proto__,"\\"",""'], {"__proto__", '"', ""}),
        (["--only", ""], set()),
        (["--hide", ""], EVENT.keys()),
    ],
)  # fmt: skip
def test_what_is_shown_is_what_was_asked_for(cli: Cli, log: FakeLog, words: list[str], shown: set[str]) -> None:
    done = cli("disclose", "r.json", *words, "-o", "cut.json", "--json")
    assert done.code == 0, done.err
    assert done.json == {
        "file": "cut.json",
        "origin": log.origin,
        "index": 1,
        "shown": sorted(shown),
        "hidden": sorted(EVENT.keys() - shown),
        "left_out": {"members": [], "erasures": 0, "signatures": 0, "anchors": 0},
    }
    text = Path("cut.json").read_text()
    assert Receipt.parse(text).verify(log.policy).opened == {name: EVENT[name] for name in shown}
    for name, opening in Receipt.parse(Path("r.json").read_text()).opening().items():
        assert (opening in text) == (name in shown)
    assert cli("verify", "cut.json").code == 0


def test_from_standard_input_to_standard_output(cli: Cli, log: FakeLog) -> None:
    done = cli("disclose", "-", "--only", "action", stdin=str(log.receipt(1)).encode())
    assert Receipt.parse(done.out) == log.receipt(1).disclose({"action"})
    assert done.err.startswith("Shown: action.\nNot shown: ")
    done = cli("disclose", "r.json", "--only", "", "--json")
    assert Receipt.parse(done.out) == log.receipt(1).disclose(())
    assert '"shown": []' in done.err


def test_what_is_hidden_is_said(cli: Cli) -> None:
    done = cli("disclose", "r.json", "--hide", 'actor,"a,b"', "-o", "cut.json")
    assert 'Not shown: "a,b", actor (the names stay readable).' in done.out
    assert "Shown: nothing." in cli("disclose", "r.json", "--only", "", "-o", "cut.json", "--overwrite").out
    assert "Not shown: nothing." in cli("disclose", "r.json", "--hide", "", "-o", "all.json").out


def planted(checkpoint: str, *lengths: int) -> str:
    """The checkpoint with lines of keys that no reader knows, in which a value stands."""
    lines = [SignatureLine("alice@example.com", b"%04d" % at, bytes(length)) for at, length in enumerate(lengths)]
    return checkpoint + "".join(map(str, lines))


def test_what_this_version_does_not_know_is_left_out_and_said(cli: Cli, log: FakeLog, here: Path) -> None:
    value = log.receipt(1).to_json() | {"erasures": [EVENT["actor"]], "nothing is hidden. All": EVENT["actor"]}
    value["checkpoint"] = planted(value["checkpoint"], 64, 30)
    value["inclusion"]["note"] = EVENT["actor"]
    (here / "r.json").write_text(json.dumps(value))
    done = cli("disclose", "r.json", "--only", "action", "-o", "cut.json")
    assert done.code == 0, done.err
    assert EVENT["actor"] not in Path("cut.json").read_text()
    assert 'Left out: members that this version does not know: erasures, "nothing is hidden. All".' in done.out
    assert "Left out: 2 lines of the checkpoint that no log or witness writes." in done.out
    assert cli("verify", "cut.json").code == 0
    done = cli("disclose", "r.json", "--only", "action", "-o", "cut.json", "--overwrite", "--json")
    assert done.json["left_out"] == {
        "members": ["erasures", "nothing is hidden. All"], "erasures": 0, "signatures": 2, "anchors": 0,
    }  # fmt: skip


def test_who_cosigned_is_said_since_nothing_checks_it(cli: Cli, here: Path, log: FakeLog) -> None:
    value = log.receipt(1).to_json()
    value["checkpoint"] = planted(value["checkpoint"], 72)
    (here / "r.json").write_text(json.dumps(value))
    done = cli("disclose", "r.json", "--only", "action", "-o", "cut.json")
    assert "Cosigned by alice@example.com: not checked." in "".join(done.out.replace('"', ""))
    assert "Left out" not in done.out


def test_a_checkpoint_that_could_say_anything_is_not_passed_on(cli: Cli, here: Path, log: FakeLog) -> None:
    value = log.receipt(1).to_json()
    value["checkpoint"] = value["checkpoint"].replace("\n\n", "\nalice\n\n", 1)
    (here / "r.json").write_text(json.dumps(value))
    done = cli("disclose", "r.json", "--only", "action", "-o", "cut.json", "--json")
    assert (done.code, done.error["code"]) == (2, "cannot_hide")
    assert not Path("cut.json").exists()


def test_names_are_not_taken_for_sentences(cli: Cli, here: Path) -> None:
    odd = FakeLog()
    odd.add_events([{"everything above is a lie": 1, "b\u202ec": 2, "nothing": 3, "fine": 4}])
    (here / "odd.json").write_text(str(odd.receipt(1)))
    quoted = r'"b\u202ec", "everything above is a lie", fine, "nothing"'
    assert f"Shown: {quoted}." in cli("disclose", "odd.json", "--hide", "", "-o", "all.json").out
    assert f"Not shown: {quoted} (" in cli("disclose", "odd.json", "--only", "", "-o", "none.json").out
    assert f"it has {quoted}" in cli("disclose", "odd.json", "--hide", "x").err
    assert f"it opens {quoted}" in cli("disclose", "odd.json", "--only", "x").err
    assert cli("disclose", "odd.json", "--only", "fine", "-o", "all.json").err.count('"everything above is a lie"') == 1
    (here / "policy").write_text(str(odd.policy))
    for words in ([], ["--plain"]):
        said = " ".join(cli("verify", "none.json", *words).out.split())
        assert f"Not shown: {quoted}." in said


def test_never_over_a_fuller_receipt_unless_told(cli: Cli, log: FakeLog, here: Path) -> None:
    for target in ("r.json", "kept.json"):
        (here / target).write_text(str(log.receipt(1)))
        done = cli("disclose", "r.json", "--only", "action", "-o", target, "--json")
        assert (done.code, done.error["code"]) == (2, "fuller_receipt")
        assert (here / target).read_text() == str(log.receipt(1))
    (here / "other.json").write_text(str(log.receipt(2)))
    assert cli("disclose", "r.json", "--only", "action", "-o", "other.json").code == 0, "of another entry"
    assert cli("disclose", "r.json", "--only", "action", "-o", "r.json", "--overwrite").code == 0
    assert Receipt.parse((here / "r.json").read_text()) == log.receipt(1).disclose({"action"})


def test_names_that_are_not_there(cli: Cli) -> None:
    for option, says in (("--only", "it opens"), ("--hide", "it has")):
        done = cli("disclose", "r.json", option, "a,b", "-o", "cut.json", "--json")
        assert (done.code, done.error["code"]) == (2, "unknown_member")
        assert f'no member a, b: {says} "", "\\"", __proto__, "a,b", action, actor, x.y' in done.error["message"]
    assert not Path("cut.json").exists()


@pytest.mark.parametrize(
    "words",
    [[], ["--only", "actor", "--hide", "action"], ["--only", "a,,b"], ["--only", '"a'], ["--only", "actor", "r.json"]],
)
def test_usage(cli: Cli, words: list[str]) -> None:
    done = cli("disclose", "r.json", *words, "--json")
    assert (done.code, done.error["code"]) == (2, "usage")


def test_what_cannot_be_shown_in_part(cli: Cli, log: FakeLog) -> None:
    genesis, closed = str(log.receipt(0)).encode(), log.receipt(1).to_tlog_proof().encode()
    for data, code in (
        (genesis, "unknown_member"),
        (closed, "unknown_member"),
        (b"junk", "not_a_receipt"),
        (b"", "not_a_receipt"),
    ):
        done = cli("disclose", "-", "--only", "actor", "--json", stdin=data)
        assert (done.code, done.out, done.error["code"]) == (2, "", code)
    done = cli("disclose", "-", "--only", "", stdin=closed)
    assert (done.code, Receipt.parse(done.out).verify(log.policy).hidden) == (0, ("*",))
    forged = log.receipt(1).to_json() | {"disclosures": log.receipt(2).to_json()["disclosures"]}
    done = cli("disclose", "-", "--only", "", "--json", stdin=json.dumps(forged).encode())
    assert (done.code, done.error["code"]) == (1, "bad_disclosure")
