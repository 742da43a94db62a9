"""A real fork: two servers over two copies of one instance, database, guard and key alike. Nothing on either machine can notice it.

What was shown to two readers does: the evidence that the commands make of it is judged offline.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muniment import Client, Inconsistent
from muniment.client import Retries
from muniment.evidence import Evidence, verify
from muniment.policy import Policy
from muniment.state import MemoryState
from tests.client.cli_runner import Cli
from tests.live import LiveServer, until
from tests.service.http_world import KeySpec, make_instance

KEYS = (KeySpec("writer", frozenset({"append", "read"})),)


@dataclass(frozen=True)
class Forked:
    """Two servers that sign for one log, after 3 entries that both have, and the policy that trusts its key."""

    one: LiveServer
    other: LiveServer
    policy: Policy
    api_key: str

    def client(self, server: LiveServer, state: MemoryState | None = None) -> Client:
        return Client(server.url, policy=self.policy, api_key=self.api_key, state=state, retries=Retries(tries=2))

    def grow(self, server: LiveServer, count: int) -> None:
        """Append entries that are this server's alone, and wait until it shows them."""
        with self.client(server) as client:
            size = client.append({"server": server.url}).index + count
            list(client.append_many([{"server": server.url, "n": n} for n in range(count - 1)]))
            until(lambda: client.checkpoint().checkpoint.size >= size, "the appends were never published")


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Forked]:
    instance = make_instance(tmp_path / "one", keys=KEYS)
    with instance.server() as server:
        trunk = Forked(server, server, instance.policy, instance.keys["writer"])
        trunk.grow(server, 3)
    shutil.copytree(instance.data, tmp_path / "other")
    # A trace is of one instance: that of the copy would say what the checker is there to find.
    with instance.server() as one, LiveServer(tmp_path / "other", traced=False) as other:
        yield Forked(one, other, instance.policy, instance.keys["writer"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Forked) -> None:
    (tmp_path / "policy").write_text(str(forked.policy))
    monkeypatch.setenv("MUNIMENT_POLICY", "policy")
    monkeypatch.chdir(tmp_path)


def kept(cli: Cli, server: LiveServer, name: str) -> None:
    """Keep what a server shows, as a reader who has seen nothing else of the log."""
    done = cli("checkpoint", "--no-state", "--url", server.url, "-o", name)
    assert done.code == 0, done


@pytest.mark.parametrize(("mine", "theirs"), [(2, 2), (1, 9), (4, 5)])
def test_the_commands_make_evidence_that_holds_offline(cli: Cli, forked: Forked, mine: int, theirs: int) -> None:
    kept(cli, forked.one, "trunk")
    forked.grow(forked.one, mine)
    forked.grow(forked.other, theirs)
    kept(cli, forked.one, "mine")
    kept(cli, forked.other, "theirs")
    done = cli("evidence", "mine", "theirs", "--url", forked.other.url, "-o", "fork.json")
    assert done.code == 0, done
    for files in (("trunk", "mine", forked.one.url), ("trunk", "theirs", forked.other.url)):
        done = cli("evidence", *files[:2], "--url", files[2], "-o", "none.json", "--json")
        assert (done.code, done.error["code"]) == (1, "no_contradiction"), "each of them grew as a log should"
    forked.one.stop()
    forked.other.stop()
    done = cli("verify", "fork.json")
    assert (done.code, "THIS PROVES A FORK" in done.out) == (0, True), done
    fork = verify(Evidence.parse(Path("fork.json").read_bytes()), forked.policy)
    assert {fork.first.size, fork.second.size} == {4 + mine, 4 + theirs}


def test_a_reader_who_meets_both_keeps_the_evidence(cli: Cli, forked: Forked) -> None:
    forked.grow(forked.one, 1)
    forked.grow(forked.other, 6)
    state = MemoryState()
    with forked.client(forked.one, state) as client:
        client.checkpoint()
    with forked.client(forked.other, state) as client, pytest.raises(Inconsistent) as caught:
        client.checkpoint()
    assert verify(caught.value.evidence, forked.policy).first.size == 5
    assert cli("checkpoint", "--url", forked.one.url).code == 0
    assert cli("checkpoint", "--url", forked.other.url).code == 1
    found = next(Path(os.environ["XDG_STATE_HOME"]).rglob("evidence-*.json"))
    assert found.read_bytes() == bytes(caught.value.evidence)
    assert cli("verify", found).code == 0
