"""Every checkpoint is compared with what was seen before: same, grown, stale, or a contradiction with both notes kept."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from muniment import AsyncClient, Client, Policy
from muniment._flows.proving import prefix_proof, prefix_root
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.errors import BadProof, Behind, Inconsistent, PolicyNotMet, Refused, StateError, Unavailable, Unproven
from muniment.evidence import Evidence, verify
from muniment.hashing import EMPTY_ROOT, leaf_hash
from muniment.note import SigningKey, parse_note
from muniment.policy import LogKey
from muniment.proofs import whole_proof
from muniment.state import FileState, MemoryState
from muniment.tree import plan_consistency, plan_inclusion, plan_root
from tests.client.colours import QUICK, Colours
from tests.client.fake_log import ORIGIN, URL, FakeLog, answering, edit, instead, problem

EVENT = {"actor": "alice"}


def grown(count: int, **options: Any) -> FakeLog:
    log = FakeLog(**options)
    log.add_events([{"n": n} for n in range(count)])
    log.publish()
    return log


def test_the_inclusion_proof_of_the_next_leaf_holds_the_root_before_it() -> None:
    log = grown(40)
    for size in range(2, 42):
        for index in range(1, size):
            proof = log.fold(plan_inclusion(index, size))
            assert prefix_root(index, size, proof) == log.fold(plan_root(index))[0]


def test_and_the_whole_consistency_proof() -> None:
    log = grown(40)
    for size in range(2, 42):
        for index in range(1, size):
            root = log.fold(plan_root(index))[0]
            whole = whole_proof(index, root, log.fold(plan_consistency(index, size)))
            leaf = leaf_hash(log.leaves[index])
            assert prefix_proof(index, size, leaf, log.fold(plan_inclusion(index, size))) == whole


def test_appending_alone_needs_no_consistency_proof(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    for _ in range(9):
        client.append(EVENT)
    list(client.append_many([EVENT] * 20, batch_entries=7))
    assert set(log.paths()) == {"/entries", "/entries/batch"}


def test_others_entries_in_between_need_one(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    client.append(EVENT)
    log.add_events([EVENT] * 5)
    client.append(EVENT)
    assert log.paths("GET") == ["/proof/consistency"]


def test_the_same_checkpoint_again_needs_nothing(colours: Colours) -> None:
    log = grown(5)
    client = colours.client(log)
    for _ in range(3):
        client.checkpoint()
    assert log.paths() == ["/checkpoint"] * 3


def test_a_stale_checkpoint_is_proved_once_and_is_no_fork(colours: Colours) -> None:
    log = grown(3, lag=True)
    state = MemoryState()
    client = colours.client(log, state=state)
    client.append(EVENT)
    for _ in range(3):
        assert client.checkpoint().checkpoint.size == 4
    assert log.paths("GET") == ["/checkpoint", "/proof/consistency", "/checkpoint", "/checkpoint"]
    assert "\n5\n" in (state.get(ORIGIN) or "")


def test_the_empty_tree_is_consistent_with_everything(colours: Colours) -> None:
    log = grown(3)
    log.published_sizes = [1]
    state = MemoryState()
    state.swap(ORIGIN, None, str(sign_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT), log.key)))
    client = colours.client(log, state=state)
    assert client.append(EVENT).index == 4
    assert log.paths() == ["/entries"]


# --- forks --------------------------------------------------------------------------------------------------------------


def assert_contradiction(error: Inconsistent, log: FakeLog, *sizes: int) -> None:
    """Both notes are kept, each by itself is signed by the log, and together they convince others."""
    found = [log.policy.verify(note).checkpoint.size for note in error.notes]
    assert found == list(sizes)
    fork = verify(Evidence.parse(bytes(error.evidence)), log.policy)
    assert [fork.first.size, fork.second.size] == list(sizes)


@pytest.mark.parametrize("size", [3, 6, 12])
def test_a_head_of_another_trusted_log_is_no_fork(colours: Colours, size: int) -> None:
    """The policy of an instance lists all its logs, and a receipt of one is easily held against another."""
    log, other = grown(5), grown(size - 1, origin="example.com/other", seed=5)
    both = Policy((*log.policy.logs, *other.policy.logs))
    with pytest.raises(BadProof, match="heads of two logs"):
        colours.client(log, policy=both).consistency(other.note(size))


@pytest.mark.parametrize(("mine", "theirs"), [(4, 4), (3, 9), (8, 300), (7, 8), (9, 3), (300, 8), (1, 2), (2, 1)])
def test_a_fork_is_caught_with_both_notes(colours: Colours, mine: int, theirs: int) -> None:
    trunk = grown(4)
    branch = trunk.fork()
    trunk.add_events([{"mine": n} for n in range(mine)])
    branch.add_events([{"theirs": n} for n in range(theirs)])
    trunk.publish()
    branch.publish()
    state = MemoryState()
    colours.client(trunk, state=state).checkpoint()
    remembered = state.get(ORIGIN)
    client = colours.client(branch, state=state)
    if theirs < mine:  # the branch cannot prove, nor disprove, what a larger tree holds
        with pytest.raises(Behind) as behind:
            client.checkpoint()
        assert remembered in behind.value.notes
    else:
        with pytest.raises(Inconsistent) as caught:
            client.checkpoint()
        assert_contradiction(caught.value, trunk, 5 + mine, 5 + theirs)
    assert state.get(ORIGIN) == remembered


def test_a_smaller_fork_is_a_contradiction_when_the_larger_tree_is_there_too(colours: Colours) -> None:
    """A server that answers from two branches, one for checkpoints and one for the rest."""
    trunk = grown(9)
    branch = grown(4).fork()
    branch.add_events([{"theirs": n} for n in range(3)])
    state = MemoryState()
    colours.client(trunk, state=state).checkpoint()
    trunk.tamper = instead("/checkpoint", lambda: httpx.Response(200, text=branch.note(8)))
    with pytest.raises(Inconsistent) as caught:
        colours.client(trunk, state=state).checkpoint()
    assert_contradiction(caught.value, trunk, 8, 10)


@pytest.mark.parametrize("others", [0, 3])
def test_an_append_to_a_fork(colours: Colours, others: int) -> None:
    """With no entry of others, the receipt itself shows the contradiction."""
    trunk = grown(4)
    branch = trunk.fork()
    trunk.add_events([{"mine": 1}])
    branch.add_events([{"theirs": 1}, *({"other": n} for n in range(others))])
    state = MemoryState()
    trunk.publish()
    colours.client(trunk, state=state).checkpoint()
    with pytest.raises(Inconsistent) as caught:
        colours.client(branch, state=state).append(EVENT)
    assert_contradiction(caught.value, trunk, 6, 7 + others)
    assert ("/proof/consistency" in branch.paths()) == bool(others)


def test_a_rollback_is_reported_as_what_it_is(colours: Colours) -> None:
    log = grown(4)
    old = log.fork()
    log.add_events([EVENT] * 3)
    log.publish()
    state = MemoryState()
    colours.client(log, state=state).checkpoint()
    with pytest.raises(Behind) as caught:
        colours.client(old, state=state).checkpoint()
    assert [log.policy.verify(note).checkpoint.size for note in caught.value.notes] == [5, 8]
    old.add_events([{"rewritten": n} for n in range(5)])
    old.publish()
    with pytest.raises(Inconsistent):
        colours.client(old, state=state).checkpoint()


def test_a_bad_proof_alone_accuses_nobody(colours: Colours) -> None:
    """The tiles settle it: they hash to the signed root, and they hold the old root."""
    log = grown(4)
    client = colours.client(log)
    client.checkpoint()
    log.add_events([EVENT] * 300)
    log.publish()
    log.tamper = edit("/proof/consistency", lambda value: value.update(hashes=["00" * 32]))
    assert client.checkpoint().checkpoint.size == 305


def test_a_static_mirror_has_no_proofs_and_is_as_good(colours: Colours) -> None:
    log = grown(4, proofs=False)
    client = colours.client(log)
    saved = client.checkpoint()
    log.add_events([EVENT] * 300)
    log.publish()
    proof = client.consistency(since=saved)
    assert (proof.older.checkpoint.size, proof.newer.checkpoint.size) == (5, 305)
    assert proof.hashes


def test_neither_proof_nor_tiles(colours: Colours) -> None:
    log = grown(4)
    client = colours.client(log)
    client.checkpoint()
    log.add_events([EVENT] * 3)
    log.publish()
    log.tamper = lambda request, response: response if request.url.path == "/checkpoint" else problem(404, "not_found")
    with pytest.raises(Unproven, match="size 5 and 8"):
        client.checkpoint()


@pytest.mark.parametrize("status", [401, 403])
def test_a_proof_that_needs_a_key_is_not_a_missing_proof(colours: Colours, status: int) -> None:
    log = grown(4)
    client = colours.client(log)
    client.checkpoint()
    log.add_events([EVENT] * 3)
    log.publish()
    log.tamper = instead("/proof/consistency", lambda: problem(status, "forbidden"))
    with pytest.raises(Refused):
        client.checkpoint()


def test_a_server_in_trouble_is_not_a_liar(colours: Colours) -> None:
    log = grown(4)
    client = colours.client(log)
    client.checkpoint()
    log.add_events([EVENT] * 3)
    log.publish()
    log.tamper = instead("/proof/consistency", lambda: problem(500, "internal"))
    with pytest.raises(Unavailable):
        client.checkpoint()


def test_a_feed_with_a_checkpoint_of_another_tree(colours: Colours) -> None:
    log = grown(4)
    branch = log.fork()
    for _ in range(2):
        log.add_events([{"a": 1}])
        log.publish()
    branch.add_events([{"b": 1}])

    def swap(value: Any) -> None:
        for row in value["checkpoints"]:
            if row["size"] == 6:
                row["checkpoint"] = branch.note(6)

    log.tamper = edit("/checkpoints", swap)
    with pytest.raises(Inconsistent):
        list(colours.client(log).checkpoints())


def test_a_consistency_proof_since_a_fork(colours: Colours) -> None:
    log = grown(4)
    branch = log.fork()
    branch.add_events([{"b": 1}])
    log.add_events([{"a": 1}] * 3)
    log.publish()
    with pytest.raises(Inconsistent):
        colours.client(log).consistency(since=branch.note(6))


# --- origins ------------------------------------------------------------------------------------------------------------


def test_another_log_of_the_same_policy_is_not_this_log(colours: Colours) -> None:
    log, other = grown(3), grown(5, origin="example.com/other", seed=1)
    both = Policy((LogKey(log.key.vkey), LogKey(other.key.vkey)))
    client = colours.client(log, policy=both)
    client.checkpoint()
    log.tamper = instead("/checkpoint", lambda: httpx.Response(200, text=other.note(6)))
    with pytest.raises(PolicyNotMet, match="is for the log"):
        client.checkpoint()
    with pytest.raises(PolicyNotMet, match="is for the log"):
        colours.client(log, policy=both, origin=ORIGIN).checkpoint()
    assert colours.client(other, policy=both, origin="example.com/other").checkpoint()


def test_a_policy_that_says_where_each_log_is(colours: Colours) -> None:
    log, other = grown(3), grown(5, origin="example.com/other", seed=1)
    both = Policy((LogKey(log.key.vkey, URL), LogKey(other.key.vkey, "http://other.test/")))
    assert colours.client(log, policy=both).checkpoint()
    with pytest.raises(PolicyNotMet, match="is for the log"):
        colours.client(other, policy=both).checkpoint()
    assert colours.client(other, policy=both, url="http://other.test").checkpoint()


# --- memory -------------------------------------------------------------------------------------------------------------


def test_what_a_file_remembers_survives_the_client(colours: Colours, tmp_path: Any) -> None:
    trunk = grown(4)
    branch = trunk.fork()
    path = tmp_path / "checkpoints.json"
    colours.client(trunk, state=FileState(path)).append({"mine": 1})
    branch.add_events([{"theirs": 1}])
    with pytest.raises(Inconsistent):
        colours.client(branch, state=FileState(path)).append({"theirs": 2})


def test_a_damaged_memory_does_not_accuse(colours: Colours, tmp_path: Any) -> None:
    log = grown(4)
    path = tmp_path / "checkpoints.json"
    client = colours.client(log, state=FileState(path))
    client.checkpoint()
    text = path.read_text()
    log.add_events([EVENT])
    log.publish()
    for damage in ("\0" * 187, "", "{}", text[:-20], text.replace("muniment/checkpoints@v1", "x")):
        path.write_text(damage)
        with pytest.raises(StateError):
            colours.client(log, state=FileState(path)).checkpoint()
    line = text.split("— ")[1]
    flipped = line[:-20] + ("A" if line[-20] != "A" else "B") + line[-19:]
    path.write_text(text.replace(line, flipped))
    with pytest.raises(StateError):
        colours.client(log, state=FileState(path)).checkpoint()


def test_a_log_with_another_key_does_not_replace_what_is_remembered(colours: Colours) -> None:
    """A log made again under its old name, with the policy of the new one: no contradiction, and not forgotten either."""
    before, log = grown(4, seed=7), grown(2)
    assert before.key.vkey == SigningKey(ORIGIN, b"\x07" * 32).vkey != log.key.vkey
    state = MemoryState()
    state.swap(ORIGIN, None, before.note(3))
    with pytest.raises(PolicyNotMet, match=r"another log under an old name.*move checkpoints\.json"):
        colours.client(log, state=state).checkpoint()
    assert state.get(ORIGIN) == before.note(3)


def test_a_key_that_the_policy_still_lists_may_have_signed_what_is_remembered(colours: Colours) -> None:
    log = grown(4)
    old, state = SigningKey(ORIGIN, b"o" * 32), MemoryState()
    text = parse_note(log.note(3)).text
    state.swap(ORIGIN, None, f"{text}\n{old.sign(text)}")
    both = Policy((LogKey(old.vkey), LogKey(log.key.vkey)))
    assert colours.client(log, policy=both, state=state).checkpoint().checkpoint.size == log.size
    assert state.get(ORIGIN) == log.note(log.size)


def test_a_note_remembered_under_another_name(colours: Colours) -> None:
    log, other = grown(4), grown(2, origin="example.com/other", seed=1)
    state = MemoryState()
    state.swap(ORIGIN, None, other.note(3))
    both = Policy((LogKey(log.key.vkey), LogKey(other.key.vkey)))
    with pytest.raises(StateError):
        colours.client(log, policy=both, state=state).checkpoint()


class Contended(MemoryState):
    """A state in which somebody else was faster, a few times."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.others = notes

    def swap(self, origin: str, expected: str | None, note: str) -> bool:
        if self.others:
            super().swap(origin, self.get(origin), self.others.pop(0))
        return super().swap(origin, expected, note)


def test_what_a_faster_client_saw_is_compared_too(colours: Colours) -> None:
    log = grown(9)
    state = Contended([log.note(3), log.note(7)])
    assert colours.client(log, state=state).checkpoint().checkpoint.size == 10
    assert "\n10\n" in (state.get(ORIGIN) or "")
    branch = log.fork()
    branch.add_events([{"b": 1}])
    log.add_events([{"a": 1}] * 2)
    log.publish()
    state.others = [branch.note(11)]
    with pytest.raises(Inconsistent):
        colours.client(log, state=state).checkpoint()


async def test_one_proof_serves_all_who_wait() -> None:
    log = grown(4)
    async with AsyncClient(URL, policy=log.policy, transport=log.transport(), retries=QUICK) as client:
        await client.checkpoint()
        log.add_events([EVENT] * 3)
        log.publish()
        await asyncio.gather(*(client.checkpoint() for _ in range(20)))
    assert log.paths().count("/proof/consistency") == 1


def test_threads_share_a_client() -> None:
    log, lock = FakeLog(), threading.Lock()

    def handle(request: httpx.Request) -> httpx.Response:
        with lock:
            return log.handle(request)

    failures: list[BaseException] = []
    with Client(URL, policy=log.policy, transport=httpx.MockTransport(handle)) as client:

        def work() -> None:
            try:
                for n in range(20):
                    client.append({"n": n})
                    list(client.entries(0, 5))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert log.size == 161


def test_a_failed_proof_changes_nothing_that_is_known(colours: Colours) -> None:
    log = grown(4)
    client = colours.client(log)
    client.checkpoint()
    log.add_events([EVENT] * 3)
    log.publish()
    log.faults = [lambda _r, honest: honest(), answering(500, "internal")]
    with pytest.raises(Unavailable):
        client.checkpoint()
    assert client.checkpoint().checkpoint.size == 8


def test_inclusion_tie_is_checked(colours: Colours) -> None:
    log = grown(9)
    log.tamper = edit("/proof/inclusion", lambda value: value["consistency"].update(hashes=[]))
    with pytest.raises(BadProof):
        colours.client(log).inclusion(2, tree_size=5)
