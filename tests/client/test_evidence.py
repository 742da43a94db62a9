"""Evidence of a fork, as a client makes it of two heads, and as `muniment evidence` and `muniment verify` do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import muniment.client._sync
from muniment.errors import BadProof, BadSignature, Unproven
from muniment.evidence import verify
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog
from tests.client.served import served


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)


@pytest.fixture(autouse=True)
def here(forked: tuple[FakeLog, FakeLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a policy and what two readers kept; the larger tree is served."""
    mine, theirs = forked
    (tmp_path / "policy").write_text(str(mine.policy))
    for name, text in {
        "mine": mine.note(8),
        "theirs": theirs.note(20),
        "equal": theirs.note(8),
        "trunk": mine.note(5),
        "receipt": str(mine.receipt(6, 8)),
        "tlog-proof": mine.receipt(6, 8).to_tlog_proof(),
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    with served(theirs) as url:
        monkeypatch.setenv("MUNIMENT_URL", url)
        yield tmp_path


@pytest.fixture
def forked() -> tuple[FakeLog, FakeLog]:
    """Two branches of one trunk of 5 entries, of 8 and 20; the second was published at 8 too."""
    mine = FakeLog()
    mine.add_events([{"n": n} for n in range(4)])
    mine.publish()
    theirs = mine.fork()
    mine.add_events([{"mine": n} for n in range(3)])
    theirs.add_events([{"theirs": n} for n in range(3)])
    mine.publish()
    theirs.publish()
    theirs.add_events([{"theirs": n} for n in range(3, 15)])
    theirs.publish()
    return mine, theirs


# --- the client ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proofs", [True, False])
def test_of_two_sizes_the_log_gives_the_hashes(colours: Colours, forked: tuple[FakeLog, FakeLog], proofs: bool) -> None:
    mine, theirs = forked
    theirs.proofs = proofs
    client = colours.client(theirs)
    for one, other in ((mine.note(8), theirs.note(20)), (theirs.note(20), mine.receipt(6, 8))):
        evidence = client.evidence(one, other)
        fork = verify(evidence, mine.policy)
        assert (fork.first.size, fork.second.size) == (8, 20)


def test_of_one_size_nothing_is_asked(colours: Colours, forked: tuple[FakeLog, FakeLog]) -> None:
    mine, theirs = forked
    evidence = colours.client(mine).evidence(theirs.note(8), mine.note(8))
    assert verify(evidence, mine.policy).first.size == 8
    assert not mine.requests


def test_heads_of_one_growing_tree_are_none(colours: Colours, forked: tuple[FakeLog, FakeLog]) -> None:
    mine, theirs = forked
    client = colours.client(theirs)
    assert client.evidence(mine.note(5), theirs.note(20)) is None
    assert client.evidence(mine.note(5), mine.note(5)) is None


def test_a_server_that_has_not_the_larger_tree_shows_nothing(colours: Colours, forked: tuple[FakeLog, FakeLog]) -> None:
    mine, theirs = forked
    with pytest.raises(Unproven):
        colours.client(mine).evidence(mine.note(8), theirs.note(20))


def test_heads_of_two_logs(colours: Colours, forked: tuple[FakeLog, FakeLog]) -> None:
    mine, other = forked[0], FakeLog(origin="example.com/other")
    both = type(mine.policy)((*mine.policy.logs, *other.policy.logs))
    with pytest.raises(BadProof, match="two logs"):
        colours.client(mine, policy=both, origin=mine.origin).evidence(mine.note(8), other.note(1))
    with pytest.raises(BadSignature):
        colours.client(mine).evidence(mine.note(8), FakeLog(seed=7).note(1))


# --- the commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("mine", "theirs"), ("theirs", "receipt"), ("tlog-proof", "theirs")])
def test_made_and_verified(cli: Cli, first: str, second: str) -> None:
    done = cli("evidence", first, second, "-o", "fork.json")
    assert (done.code, "Next: muniment verify fork.json" in done.out) == (0, True), done
    found = cli("verify", "fork.json")
    assert found.code == 0
    assert found.out.startswith("fork.json: OK, THIS PROVES A FORK\nProved: the log example.com/log signed two trees")
    assert "which of the two trees is the right one" in found.out
    value = cli("verify", "fork.json", "--json").json
    assert (value["verified"], value["results"][0]["typ"]) == (True, "muniment/evidence@v1")
    assert (value["results"][0]["first"]["tree_size"], value["results"][0]["second"]["tree_size"]) == (8, 20)
    plain = cli("verify", "fork.json", "--plain")
    assert plain.out.startswith("fork.json: THIS HOLDS, AND IT ACCUSES\n")


def test_of_one_size_no_server_is_needed(cli: Cli) -> None:
    done = cli("evidence", "mine", "equal", "--url", "http://127.0.0.1:1")
    assert done.code == 0, done
    assert cli("verify", "-", stdin=done.out.encode()).code == 0
    value = cli("evidence", "mine", "equal", "-o", "fork.json", "--json").json
    assert (value["file"], value["sizes"]) == ("fork.json", {"first": 8, "second": 8})


def test_a_bundle_of_receipts_has_a_head_too(cli: Cli, forked: tuple[FakeLog, FakeLog]) -> None:
    assert cli("export", "--format", "receipts", "-o", "bundle").code == 0
    assert cli("evidence", "bundle", "mine", "-o", "fork.json").code == 0
    assert cli("verify", "fork.json", "bundle").out.endswith("2 of 2 files hold.\n")


def test_what_is_no_evidence(cli: Cli, forked: tuple[FakeLog, FakeLog]) -> None:
    for words in (["trunk", "theirs"], ["mine", "receipt"]):
        done = cli("evidence", *words, "-o", "fork.json", "--json")
        assert (done.code, done.error["code"]) == (1, "no_contradiction"), words
    with served(forked[0]) as url:
        done = cli("evidence", "mine", "theirs", "-o", "fork.json", "--json", "--url", url)
    assert (done.code, done.error["code"], "--url" in done.error["hint"]) == (1, "unproven", True)
    assert cli("evidence", "mine", "mine").code == 2
    assert cli("evidence", "mine", "policy", "--json").error["code"] == "bad_since"
    assert not Path("fork.json").exists()


def test_spoiled_evidence_is_exit_1_and_accuses_nobody(cli: Cli) -> None:
    cli("evidence", "mine", "theirs", "-o", "fork.json")
    text = Path("fork.json").read_text()
    value = json.loads(text)
    value["hashes"][0] = "00" * 32
    spoiled = {
        "other": json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n",
        "pretty": json.dumps(value, indent=1) + "\n",
        "cut": text[:-1],
    }
    for name, content in spoiled.items():
        Path(name).write_text(content)
        done = cli("verify", name)
        assert (done.code, done.out.startswith(f"{name}: NOT PROVED\n")) == (1, True)
        assert "FORK" not in done.out
        assert cli("verify", name, "--plain").code == 1
    assert "shows nothing about the log" in cli("verify", "other").out
    assert cli("verify", "fork.json", "other").out.endswith("1 of 2 files hold.\n")


def test_evidence_is_no_receipt(cli: Cli) -> None:
    cli("evidence", "mine", "theirs", "-o", "fork.json")
    for options in (["--leaf", "mine"], ["--check-anchors"]):
        done = cli("verify", "fork.json", *options)
        assert (done.code, "is evidence" in done.err) == (2, True)


def test_a_device_and_a_terminal_are_written_to(cli: Cli) -> None:
    assert cli("evidence", "mine", "theirs", "-o", "/dev/null").code == 0
    assert json.loads(cli("evidence", "mine", "theirs").out)["typ"] == "muniment/evidence@v1"
