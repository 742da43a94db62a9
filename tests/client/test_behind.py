"""A server that is behind what was seen is no liar: it is waited for, and what its smaller tree proves is still proved."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.errors import BadProof, Behind, Inconsistent, RequestError, Unavailable, Unproven, VerificationError
from muniment.state import MemoryState
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import ORIGIN, FakeLog, problem
from tests.client.served import served

EVENT = {"actor": "alice"}


@dataclass
class Replica:
    """A copy of a log that shows `old` until GET /checkpoint was asked `behind` times, and then `new`."""

    old: FakeLog
    new: FakeLog
    behind: int = 10**9
    paths: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Any:
        return self.old.policy

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        self.behind -= request.url.path == "/checkpoint"
        return (self.old if self.behind >= 0 else self.new).handle(request)


def lagging(behind: int = 10**9, more: int = 3, **options: Any) -> tuple[FakeLog, Replica, MemoryState]:
    """A log at size 8 (or 5 + `more`) that was seen, and a replica of it at size 5."""
    log = FakeLog(**options)
    log.add_events([{"n": n} for n in range(4)])
    log.publish()
    old = log.fork()
    log.add_events([{"more": n} for n in range(more)])
    log.publish()
    state = MemoryState()
    state.swap(ORIGIN, None, log.note(log.size))
    return log, Replica(old, log, behind), state


@pytest.mark.parametrize("proofs", [True, False])
@pytest.mark.parametrize("more", [3, 300])
def test_a_moment_behind_is_waited_for(colours: Colours, more: int, proofs: bool) -> None:
    """A replica, and a static mirror, which has tiles and no proofs."""
    log, replica, state = lagging(2, more, proofs=proofs)
    client = colours.client(replica, state=state)
    assert client.checkpoint().checkpoint.size == log.size
    assert replica.paths.count("/checkpoint") == 3


@pytest.mark.parametrize("proofs", [True, False])
def test_behind_for_good_is_not_yet_and_accuses_nobody(colours: Colours, proofs: bool) -> None:
    log, replica, state = lagging(proofs=proofs)
    with pytest.raises(Behind, match="at size 5, and size 8 was seen") as caught:
        colours.client(replica, state=state).checkpoint()
    assert caught.value.notes == (log.note(5), log.note(8))
    assert isinstance(caught.value, RequestError)
    assert not isinstance(caught.value, VerificationError)
    assert state.get(ORIGIN) == log.note(8)
    with pytest.raises(Behind):
        list(colours.client(replica, state=state).entries())


def test_consistency_with_a_saved_checkpoint_waits_too(colours: Colours) -> None:
    log, replica, _ = lagging(2)
    proof = colours.client(replica).consistency(log.note(8))
    assert (proof.older.checkpoint.size, proof.newer.checkpoint.size) == (8, 8)
    _, replica, _ = lagging()
    with pytest.raises(Behind):
        colours.client(replica).consistency(log.note(8))


def test_entries_of_the_smaller_tree_are_proved(colours: Colours) -> None:
    log, replica, state = lagging()
    client = colours.client(replica, state=state)
    assert client.entry(3).event == {"n": 2}
    assert client.receipt(3).verify(log.policy).index == 3
    assert client.inclusion(3).tree_size == 5
    assert state.get(ORIGIN) == log.note(8), "the larger tree stays remembered"
    assert replica.paths.count("/proof/consistency") == 1, "what is owed is asked for once"
    assert client.behind


def test_what_was_proved_by_the_smaller_tree_is_compared_later(colours: Colours) -> None:
    """A server that shows a smaller tree of its own making is caught as soon as it shows the larger one."""
    log, replica, state = lagging()
    client = colours.client(replica, state=state)
    assert client.entry(3)
    replica.behind = 0
    assert client.checkpoint().checkpoint.size == 8
    assert not client.behind
    forked = replica.old.fork()
    forked.add_events([{"other": 1}])
    forked.publish()
    replica.behind, replica.old = 10**9, forked
    assert client.entry(5).event == {"other": 1}
    replica.behind = 0
    log.add_events([EVENT])
    log.publish()
    with pytest.raises(Inconsistent) as caught:
        client.checkpoint()
    assert [log.policy.verify(note).checkpoint.size for note in caught.value.notes] == [6, 9]
    assert state.get(ORIGIN) == log.note(8), "a tree that contradicts another is not remembered"


def test_an_entry_that_was_seen_is_waited_for(colours: Colours) -> None:
    _, replica, state = lagging(2)
    assert colours.client(replica, state=state).entry(6).event == {"more": 1}
    _, replica, state = lagging()
    with pytest.raises(Behind):
        colours.client(replica, state=state).entry(6)
    with pytest.raises(RequestError, match="404 no_entry"):
        colours.client(replica, state=state).entry(8)


def test_an_append_to_a_log_that_was_rolled_back_is_not_behind(colours: Colours) -> None:
    log, replica, state = lagging()
    for append in (
        lambda client: client.append(EVENT),
        lambda client: list(client.append_many([EVENT] * 2)),
    ):
        client = colours.client(Replica(replica.old.fork(), log), state=state)
        with pytest.raises(Unproven, match="although it appends"):
            append(client)


def test_a_mirror_in_trouble_is_not_a_liar(colours: Colours) -> None:
    """Its proofs are missing, as those of a mirror are, and its tiles cannot be had for now."""
    log, replica, state = lagging(0, proofs=False)
    client = colours.client(replica, state=state)
    client.checkpoint()
    log.add_events([EVENT])
    log.publish()
    log.tamper = lambda request, response: problem(503, "busy") if "/tile/" in request.url.path else response
    with pytest.raises(Unavailable):
        client.checkpoint()


def test_a_page_is_not_opened_by_a_receipt_of_another_leaf(colours: Colours) -> None:
    """A page whose members are not opened takes each from its receipt: of the same leaf, whichever tree that is of."""
    log = FakeLog(listed_disclosures=False)
    log.add_events([EVENT] * 4)
    log.publish()
    forked = FakeLog(listed_disclosures=False)
    forked.add_events([{"actor": "mallory"}] * 3)
    forked.publish()

    def tamper(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path.endswith("/receipt"):
            return forked.handle(request)
        lost = any(path.endswith("/receipt") for path in log.paths())  # what would show the contradiction
        return problem(404, "not_found") if lost else response

    log.tamper = tamper
    with pytest.raises(BadProof, match="entry 1 is of another leaf"):
        list(colours.client(log).entries(1))


def test_commands(cli: Cli, tmp_path: Path) -> None:
    log, replica, _ = lagging()
    (tmp_path / "policy").write_text(str(log.policy))
    with served(log) as url, served(replica.old) as behind:
        options = ("--policy", tmp_path / "policy", "--url")
        assert cli("checkpoint", *options, url).code == 0
        for words in (["checkpoint"], ["consistency"], ["get", "6"]):
            done = cli(*words, "--json", *options, behind)
            assert (done.code, done.error["code"]) == (3, "behind")
            assert len(done.error["notes"]) == 2
        done = cli("get", "3", *options, behind)
        assert (done.code, '"n": 2' in done.out or "n = 2" in done.out) == (0, True), done
        assert "behind" in done.err
        done = cli("receipt", "3", *options, behind)
        assert done.code == 0
        assert "behind" in done.err
    assert not list(Path(os.environ["XDG_STATE_HOME"]).rglob("evidence-*"))
