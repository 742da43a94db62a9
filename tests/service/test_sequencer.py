"""The sequencer on real stores: what it numbers, what it signs, and what it does when anything under it fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import replace

import pytest

from muniment.event import parse_leaf
from muniment.hashing import EMPTY_ROOT, RootHash
from muniment.note import SigningKey
from muniment.tree import Edge
from muniment_server.errors import (
    ClockRefused,
    DuplicateLeaf,
    GuardRefused,
    HeadMoved,
    OutcomeUnknown,
    ReadOnly,
    Refused,
    StoreError,
    StoreUnavailable,
)
from muniment_server.write import lookup
from muniment_server.write import sequencer as module
from muniment_server.write.clock import Clock
from muniment_server.write.guard import Guard, Guarded
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, OwnDraft, Submission
from tests.service.audit import audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import NOW, Bench, Rig, event, genesis, new_entry, raw, write_guard


async def started(bench: Bench, **changes) -> Sequencer:
    sequencer = bench.sequencer(**changes)
    await sequencer.start()
    assert sequencer.refusal is None
    return sequencer


def placed(outcomes: list[Outcome | Refused]) -> list[list[int]]:
    assert all(isinstance(outcome, Outcome) for outcome in outcomes), outcomes
    return [list(outcome.indices) for outcome in outcomes]


# --- numbering ----------------------------------------------------------------------------------------------------------


async def test_indices_are_dense_from_zero(rig: Rig):
    bench = await rig.log("event")
    sequencer = await started(bench)
    assert sequencer.signed.size == 0
    (first,) = await sequencer.run([genesis(bench)])
    assert (list(first.indices), first.new, first.signed.size) == ([0], 1, 1)
    await audit(bench)
    expected = 1
    for sizes in ([1], [1, 1, 1], [3, 1, 2], [250], [1], [256], [7] * 40):
        batch = [event(*range(size)) for size in sizes]
        outcomes = await sequencer.run(batch)
        for submission, outcome in zip(batch, outcomes, strict=True):
            assert list(outcome.indices) == list(range(expected, expected + len(submission.drafts)))
            assert outcome.new == len(submission.drafts)
            assert not outcome.replayed
            expected += outcome.new
        assert {outcome.signed.size for outcome in outcomes} == {expected}
        await audit(bench)
    assert sequencer.signed.size == expected == (await rig.store.reads.head(bench.log_id)).size


async def test_an_outcome_has_the_leaves_as_they_are_stored(rig: Rig):
    bench = await rig.log("event")
    sequencer = await started(bench)
    outcomes = await sequencer.run([event(1, 2), genesis(bench), event(3)])
    leaves = await audit(bench)
    assert [leaf for outcome in outcomes for leaf in outcome.leaves] == leaves
    times = [json.loads(leaf)["logged_at"] for leaf in leaves]
    assert len(times) == 4
    assert len(set(times)) == 1, "one time for a batch"


async def test_the_log_of_one_entry(rig: Rig):
    """Index 0 and size 1 are true values that look false, or like a count of nothing."""
    bench = await rig.log("raw")
    sequencer = await started(bench)
    (first,) = await sequencer.run([raw(b"zero")])
    (again,) = await sequencer.run([raw(b"zero")])
    assert (list(again.indices), again.new, again.signed) == ([0], 0, first.signed)
    await audit(bench)
    (again,) = await (await started(bench)).run([raw(b"zero")])
    assert (list(again.indices), again.new, again.signed.size) == ([0], 0, 1)
    assert await audit(bench) == [b"zero"]


async def test_an_empty_batch_and_an_empty_log(rig: Rig):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    assert await sequencer.run([]) == []
    assert (sequencer.signed.size, sequencer.signed.root) == (0, EMPTY_ROOT)
    assert await audit(bench) == []


async def test_the_largest_and_strangest_leaves(rig: Rig):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    leaves = [
        b"\x00",
        b"\x00" * 65_535,
        b"\xff" * 65_535,
        bytes(range(256)) * 255,
        b"\n",
        b"null",
        b"{}",
        b'{"typ":"other/x"}',
    ]
    assert placed(await sequencer.run([raw(*leaves)])) == [list(range(len(leaves)))]
    assert placed(await sequencer.run([raw(leaf) for leaf in leaves])) == [[n] for n in range(len(leaves))]
    assert await audit(bench) == leaves


async def test_the_logs_own_entries_are_never_taken_for_others(rig: Rig):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    own = Submission([OwnDraft("test@v1", {"a": 1})])
    assert placed(await sequencer.run([own, own])) == [[0], [1]]
    leaves = await audit_without_uniqueness(bench)
    assert leaves[0] == leaves[1]


async def audit_without_uniqueness(bench: Bench) -> list[bytes]:
    return await audit(replace(bench, row=replace(bench.row, kind="event")))


# --- equal raw leaves ---------------------------------------------------------------------------------------------------


async def test_equal_leaves_are_one_entry(rig: Rig):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    one, two, three, four = await sequencer.run(
        [raw(b"a", b"b", b"a"), raw(b"b"), raw(b"c", b"c", b"a"), raw(b"a", b"b")]
    )
    assert [list(o.indices) for o in (one, two, three, four)] == [[0, 1, 0], [1], [2, 2, 0], [0, 1]]
    assert [o.new for o in (one, two, three, four)] == [2, 0, 1, 0]
    assert list(one.leaves) == [b"a", b"b", b"a"]
    mixed, old = await sequencer.run([raw(b"d", b"a", b"e", b"d"), raw(b"c")])
    assert (list(mixed.indices), mixed.new) == ([3, 0, 4, 3], 2)
    assert (list(old.indices), old.new) == ([2], 0)
    assert await audit(bench) == [b"a", b"b", b"c", b"d", b"e"]


async def test_leaves_with_equal_keys_are_not_equal(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """The stored key is 8 bytes of the hash, so an attacker can make two leaves share it. Here all share one."""
    monkeypatch.setattr(lookup, "leaf_key", lambda value: 0)
    monkeypatch.setattr(module, "leaf_keys_of", lambda values: [0 for _ in values])
    if rig.database:
        await rig.sql("CREATE OR REPLACE FUNCTION muniment_leaf_key(leaf bytea) RETURNS bigint IMMUTABLE RETURN 0")
    bench = await rig.log("raw")
    sequencer = await started(bench)
    leaves = [b"%d" % n for n in range(20)]
    assert placed(await sequencer.run([raw(leaf) for leaf in leaves])) == [[n] for n in range(20)]
    assert placed(await sequencer.run([raw(leaf) for leaf in [*leaves, b"new"]])) == [[n] for n in range(21)]
    assert await rig.store.reads.leaves(bench.log_id, 0, 99) == [*leaves, b"new"]


async def test_of_leaves_that_are_stored_twice_the_first_counts(rig: Rig):
    """No writer of ours does that, but a reader may rely on it."""
    bench = await rig.log("raw")
    await bench.extend(b"x", b"y", b"x")
    (outcome,) = await (await started(bench)).run([raw(b"x")])
    assert (list(outcome.indices), outcome.new) == ([0], 0)


async def test_a_stale_sequencer_answers_with_the_entry_of_another(rig: Rig):
    bench = await rig.log("raw")
    one, two = await started(bench), await started(bench, store=await rig.open())
    await one.run([raw(b"a")])
    await two.run([raw(b"b", b"c")])
    (outcome,) = await one.run([raw(b"c")])  # it never saw size 3
    assert (list(outcome.indices), outcome.new) == ([2], 0)
    assert outcome.signed.size == 3, "the answer's head holds the entry"
    (outcome,) = await two.run([raw(b"a", b"d", b"b")])
    assert (list(outcome.indices), outcome.new) == ([0, 3, 1], 1)
    assert await audit(bench) == [b"a", b"b", b"c", b"d"]


async def test_two_sequencers_race_with_equal_leaves(rig: Rig):
    bench = await rig.log("raw")
    sequencers = [await started(bench), await started(bench, store=await rig.open())]
    where: dict[bytes, int] = {}
    for number in range(40):
        leaves = [b"%d" % n for n in random.sample(range(number, number + 6), 6)]
        batches = [[raw(*random.sample(leaves, 3)) for _ in range(2)] for _ in sequencers]
        results = await asyncio.gather(*(s.run(batch) for s, batch in zip(sequencers, batches, strict=True)))
        for batch, outcomes in zip(batches, results, strict=True):
            for submission, outcome in zip(batch, outcomes, strict=True):
                for draft, index in zip(submission.drafts, outcome.indices, strict=True):
                    assert where.setdefault(draft.leaf, index) == index
                    assert index < outcome.signed.size
    leaves = await audit(bench)
    assert {leaf: at for at, leaf in enumerate(leaves)} == where


async def test_many_sequencers_write_one_log(rig: Rig):
    bench = await rig.log("event")
    sequencers = [await started(bench, store=await rig.open()) for _ in range(3)]

    async def work(which: int) -> list[int]:
        found = []
        for number in range(25):
            (outcome,) = await sequencers[which].run([event(*range(1 + number % 3), seed=bytes([which]) * 32)])
            found += outcome.indices
        return found

    results = await asyncio.gather(*map(work, range(3)))
    assert sorted(itertools.chain(*results)) == list(range(3 * 49))
    assert all(found == sorted(found) for found in results)
    assert len(await audit(bench)) == 3 * 49


# --- Idempotency-Keys ---------------------------------------------------------------------------------------------------


async def test_a_key_repeats_its_answer(rig: Rig):
    bench = await rig.log("event")
    sequencer = await started(bench)
    (first,) = await sequencer.run([event(1, 2, key="k")])
    await sequencer.run([event(9)])
    for other in (sequencer, await started(bench, store=await rig.open())):
        (again,) = await other.run([event(1, 2, key="k", seed=bytes(32))])  # a seed of its own, as every request has
        assert (list(again.indices), again.new, again.replayed) == ([0, 1], 0, True)
        assert again.signed.size == 3
    assert len(await audit(bench)) == 3
    assert list(first.indices) == [0, 1]


async def test_a_key_for_another_body_is_refused_and_its_neighbours_are_not(rig: Rig):
    bench = await rig.log("event")
    sequencer = await started(bench)
    await sequencer.run([event(1, 2, key="k")])
    for other in (event(1, key="k"), event(2, 1, key="k"), event(1, 2, 3, key="k"), event(12, key="k")):
        refused, taken = await sequencer.run([other, event(5)])
        assert isinstance(refused, Refused)
        assert refused.code == "idempotency_mismatch"
        assert taken.new == 1
    assert len(await audit(bench)) == 6


async def test_a_key_belongs_to_its_caller_and_its_log(rig: Rig):
    bench, other = await rig.log("event"), await rig.log("event")
    outcomes = await (await started(bench)).run([event(1, key="k"), event(1, key="k", caller="bob")])
    assert placed(outcomes) == [[0], [1]]
    assert placed(await (await started(other)).run([event(7, key="k")])) == [[0]]
    await audit(bench)
    await audit(other)


async def test_a_key_expires(rig: Rig):
    now = [NOW / 1000]
    bench = await rig.log("event")
    bench.clock = lambda: now[0]
    sequencer = await started(bench, ttl=60)
    await sequencer.run([event(1, key="k")])
    now[0] += 59.999
    (again,) = await sequencer.run([event(1, key="k")])
    assert again.replayed
    now[0] += 0.001
    (anew,) = await sequencer.run([event(2, key="k")])
    assert (list(anew.indices), anew.replayed) == ([1], False)
    now[0] += 59
    (again,) = await sequencer.run([event(2, key="k")])
    assert (list(again.indices), again.replayed) == ([1], True)
    assert len(await audit(bench)) == 2


async def test_what_a_key_stands_for_dies_with_the_payload(rig: Rig):
    """The fingerprint is keyed by the seed: without it nobody can tell, so nobody is told that the body was the same."""
    bench = await rig.log("event")
    sequencer = await started(bench)
    await sequencer.run([event(1, key="k")])
    if rig.database:
        await rig.sql("ALTER TABLE payloads DISABLE TRIGGER payloads_append_only", "DELETE FROM payloads", "SELECT 1")
    else:
        await rig.sql("DROP TRIGGER payloads_no_delete", "DELETE FROM payloads", "SELECT 1")
    (refused,) = await sequencer.run([event(1, key="k")])
    assert isinstance(refused, Refused)
    assert refused.code == "idempotency_mismatch"
    (anew,) = await sequencer.run([event(1)])
    assert list(anew.indices) == [1]


async def test_equal_keys_race_between_sequencers(rig: Rig):
    bench = await rig.log("event")
    sequencers = [await started(bench), await started(bench, store=await rig.open())]
    for number in range(30):
        results = await asyncio.gather(
            *(
                s.run([event(number, key=f"k{number}", seed=bytes([w]) * 32), event(99)])
                for w, s in enumerate(sequencers)
            )
        )
        keyed = [outcomes[0] for outcomes in results]
        assert list(keyed[0].indices) == list(keyed[1].indices)
        assert sorted((outcome.new, outcome.replayed) for outcome in keyed) == [(0, True), (1, False)]
        assert sum(outcomes[1].new for outcomes in results) == 2
    assert len(await audit(bench)) == 30 * 3


# --- time ---------------------------------------------------------------------------------------------------------------


async def test_time_never_goes_back_and_never_stands_for_long(rig: Rig):
    now = [NOW / 1000]
    bench = await rig.log("event")
    bench.clock = lambda: now[0]
    sequencer = await started(bench)
    seen = []
    for step in (0, 0, 5, -30, 10, -25, 0, 100):
        now[0] += step
        (outcome,) = await sequencer.run([event(1)])
        seen.append(parse_leaf(outcome.leaves[0]).logged_at - NOW)
    assert seen == [0, 0, 5000, 5000, 5000, 5000, 5000, 60_000]
    now[0] -= 60.0
    await sequencer.run([event(1)])
    now[0] -= 0.001
    size = (await rig.store.reads.head(bench.log_id)).size
    for other in (sequencer, await started(bench)):
        with pytest.raises(ClockRefused, match="behind"):
            await other.run([event(1)])
    assert (await rig.store.reads.head(bench.log_id)).size == size
    now[0] += 0.001
    await sequencer.run([event(1)])
    await audit(bench)


async def test_a_clock_that_is_set_forward_is_not_believed_at_once(rig: Rig):
    """Entries from a future would keep all later ones out, once the clock is set right."""
    now, steady = [NOW / 1000], [1000.0]
    bench = await rig.log("event")
    sequencer = await started(bench, clock=Clock(lambda: now[0], lambda: steady[0]))

    def pass_by(seconds: float) -> None:
        now[0] += seconds
        steady[0] += seconds

    await sequencer.run([event(1)])
    pass_by(3600)
    await sequencer.run([event(2)])  # an idle hour is no jump
    now[0] += 10 * 365 * 86400
    for _ in range(3):
        with pytest.raises(ClockRefused, match="forward"):
            await sequencer.run([event(3)])
        pass_by(10)
    now[0] -= 10 * 365 * 86400
    await sequencer.run([event(4)])  # the glitch is over, and nothing is stamped with it
    now[0] += 3600
    for seconds in (0, 60, 86_400):
        pass_by(seconds)
        assert "forward" in sequencer.clock_doubt, "also while nobody appends"
        with pytest.raises(ClockRefused, match="forward by 3600 s"):
            await sequencer.run([event(5)])
    sequencer = await started(bench, clock=Clock(lambda: now[0], lambda: steady[0]))  # the operator says it is right
    assert sequencer.clock_doubt is None
    (outcome,) = await sequencer.run([event(5)])
    assert parse_leaf(outcome.leaves[0]).logged_at == int(now[0] * 1000)
    now[0] -= 7200
    with pytest.raises(ClockRefused, match="behind"):
        await sequencer.run([event(6)])
    now[0] += 7200
    await sequencer.run([event(6)])  # right again: no jump
    await audit(bench)


@pytest.mark.parametrize("steady", [True, False])
async def test_a_database_whose_clock_was_not_set_says_which_time_is_right(rig: Rig, steady: bool):
    now = [NOW / 1000]
    bench = await rig.log("event")
    clock = Clock(lambda: now[0], lambda: 1000.0)
    sequencer = await started(bench, clock=clock)
    await sequencer.run([event(1)])
    clock.compare(NOW + 3_600_000 * steady, clock.now())
    now[0] += 3600
    clock.compare(NOW + 3_600_000, clock.now())
    assert clock.skew == 0
    if steady:  # this clock was an hour late
        await sequencer.run([event(2)])
    else:  # perhaps one machine, and one clock
        with pytest.raises(ClockRefused, match="forward"):
            await sequencer.run([event(2)])


async def test_a_clock_far_ahead_at_the_start_is_not_believed(rig: Rig):
    year = 366 * 86_400_000
    bench = await rig.log("event")
    bench.clock = lambda: NOW / 1000
    await (await started(bench)).run([event(1)])
    for later, good in ((year, True), (year + 1, False), (10 * year, False)):
        clock = Clock(lambda later=later: (NOW + later) / 1000, lambda: 1.0, ahead=year)
        sequencer = await started(bench, clock=clock)
        assert (sequencer.clock_doubt is None) == good
        if not good:
            with pytest.raises(ClockRefused, match="max_clock_ahead_days"):
                await sequencer.run([event(2)])


async def test_a_log_that_got_an_entry_from_the_future_can_go_on(rig: Rig):
    years = 10 * 365 * 86_400_000
    bench = await rig.log("event")
    await (await started(bench, clock=Clock(lambda: (NOW + years) / 1000))).run([event(1)])
    with pytest.raises(ClockRefused, match="max_clock_behind_seconds"):
        await (await started(bench, clock=Clock(lambda: NOW / 1000))).run([event(2)])
    (outcome,) = await (await started(bench, clock=Clock(lambda: NOW / 1000, behind=years))).run([event(2)])
    assert parse_leaf(outcome.leaves[0]).logged_at == NOW + years, "time stands still, and never goes back"
    await audit(bench)


@pytest.mark.parametrize("skew", [5001, -5001, 3_600_000, -3_600_000])
async def test_a_clock_off_the_databases_is_refused(rig: Rig, skew: int):
    bench = await rig.log("event")
    sequencer = await started(bench)
    sequencer.clock.skew = skew
    with pytest.raises(ClockRefused, match="differ"):
        await sequencer.run([event(1)])
    assert (await rig.store.reads.head(bench.log_id)).size == 0
    sequencer.clock.skew = 5000 if skew > 0 else -5000
    await sequencer.run([event(1)])
    assert len(await audit(bench)) == 1


# --- order of steps -----------------------------------------------------------------------------------------------------


async def test_nothing_is_signed_before_commit_and_guard(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    steps: list[str] = []
    swap, sign, call = Guard.swap, module.sign_checkpoint, Faulty.call

    def swapped(guard: Guard, *values, **more) -> tuple[Guarded, bool]:
        steps.append("guard")
        return swap(guard, *values, **more)

    monkeypatch.setattr(Guard, "swap", swapped)
    monkeypatch.setattr(module, "sign_checkpoint", lambda *a: (steps.append("sign"), sign(*a))[1])

    async def watched(faulty: Faulty, part: str, name: str, *args):
        result = await call(faulty, part, name, *args)
        steps.append(name)
        return result

    monkeypatch.setattr(Faulty, "call", watched)
    sequencer = bench.sequencer(store=faulty)
    await sequencer.start()
    assert steps == ["head_to_extend", "tiles", "leaves", "fence", "guard", "sign"]
    for batch, expected in (
        ([raw(b"a")], ["append", "guard", "sign"]),
        ([raw(b"b"), raw(b"c")], ["append", "guard", "sign"]),
        ([raw(b"a"), raw(b"c")], ["find_leaves"]),
    ):
        steps.clear()
        await sequencer.run(batch)
        assert steps == expected
    await audit(bench)


async def test_what_others_wrote_is_fenced_before_it_is_signed(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"by hand")
    epoch = (await rig.store.reads.head(bench.log_id)).epoch
    sequencer = await started(bench)
    head = await rig.store.reads.head(bench.log_id)
    assert (head.epoch, sequencer.signed.size) == (epoch + 1, 1)
    await sequencer.run([raw(b"a")])
    assert (await rig.store.reads.head(bench.log_id)).epoch == epoch + 1, "a clean commit needs no fence"
    await audit(bench)


# --- failures -----------------------------------------------------------------------------------------------------------

UNKNOWN, GONE = OutcomeUnknown("test"), StoreUnavailable("test")
FIRST = {
    "refused before it was sent": ("append", Fault(GONE)),
    "lost on the way": ("append", Fault(UNKNOWN)),
    "stored, and the answer lost": ("append", Fault(UNKNOWN, after=True)),
    "a bug before": ("append", Fault(RuntimeError("bug"))),
    "a bug after": ("append", Fault(RuntimeError("bug"), after=True)),
    "stored, not read back": ("tiles", Fault(GONE)),
    "looked up in vain": ("find_leaves", Fault(GONE)),
    "keys looked up in vain": ("find_keys", Fault(GONE)),
    "the loser of a race": ("append", Fault(HeadMoved("test"))),
}
SECOND = {
    "nothing more": (),
    "head": ("head_to_extend", Fault(GONE)),
    "head twice": ("head_to_extend", Fault(GONE), Fault(GONE)),
    "edge": ("tiles", Fault(GONE)),
    "lost again": ("append", Fault(UNKNOWN)),
    "stored, and lost again": ("append", Fault(UNKNOWN, after=True)),
    "fence": ("fence", Fault(GONE)),
    "fence lost": ("fence", Fault(UNKNOWN)),
    "fence stored, and lost": ("fence", Fault(UNKNOWN, after=True)),
    "fence raced": ("fence", Fault(HeadMoved("test"))),
}


@pytest.mark.parametrize("kind", ["raw", "event"])
async def test_every_pair_of_failures_ends_with_one_entry_and_a_clean_log(rig: Rig, kind: str):
    """Fault k, then fault j while recovering from it: the same request, sent again until it is answered, is logged once."""
    bench = await rig.log(kind)
    await (await started(bench)).run([raw(b"first")] if kind == "raw" else [event(0)])
    for number, (first, second) in enumerate(itertools.product(FIRST, SECOND)):
        faulty = Faulty(rig.store)
        sequencer = bench.sequencer(store=faulty)
        await sequencer.start()
        size = (await rig.store.reads.head(bench.log_id)).size
        request = raw(b"%d" % number) if kind == "raw" else event(number, key=f"k{number}")
        name, fault = FIRST[first]
        faulty.plan(name, replace(fault))
        if SECOND[second]:
            name, *faults = SECOND[second]
            faulty.plan(name, *faults)
        faulty.calls.clear()
        answers = []
        for _ in range(6):
            try:
                answers += await sequencer.run([request])
            except (StoreError, RuntimeError):
                check_reloaded(faulty)
                continue
            if not any(faulty.faults.values()):
                break
        assert answers, (first, second)
        assert {tuple(answer.indices) for answer in answers} == {(size,)}, (first, second)
        assert all(answer.signed.size == size + 1 for answer in answers)
        assert (await rig.store.reads.head(bench.log_id)).size == size + 1, (first, second)
        assert sequencer.refusal is None
        check_reloaded(faulty)
        bench.sequencers = [sequencer]
        if number % 9 == 0:
            await audit(bench)
    await audit(bench)


def check_reloaded(faulty: Faulty) -> None:
    """After an append that did not return cleanly the next one comes only after head and edge were read."""
    fresh: set[str] = {"head_to_extend", "tiles"}
    for name, good in faulty.calls:
        if name == "append":
            assert fresh >= {"head_to_extend", "tiles"}, faulty.calls
            if not good:
                fresh = set()
        elif good:
            fresh.add(name)


async def test_without_a_reload_nothing_is_sequenced(rig: Rig):
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    sequencer = await started(bench, store=faulty)
    faulty.plan("append", Fault(UNKNOWN))
    with pytest.raises(OutcomeUnknown):
        await sequencer.run([raw(b"a")])
    faulty.always["head_to_extend"] = Fault(GONE)
    faulty.calls.clear()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await sequencer.run([raw(b"b")])
    assert {name for name, _ in faulty.calls} == {"head_to_extend"}
    del faulty.always["head_to_extend"]
    assert placed(await sequencer.run([raw(b"b")])) == [[0]]
    assert await audit(bench) == [b"b"]


async def test_a_fence_with_unknown_outcome_is_followed_by_a_reload(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    faulty = Faulty(rig.store)
    faulty.plan("fence", Fault(UNKNOWN, after=True))
    sequencer = bench.sequencer(store=faulty)
    with pytest.raises(OutcomeUnknown):
        await sequencer.start()
    assert sequencer.signed is None
    faulty.calls.clear()
    (outcome,) = await sequencer.run([raw(b"a")])
    assert faulty.calls[:2] == [("head_to_extend", True), ("tiles", True)]
    assert (list(outcome.indices), outcome.signed.size) == ([0], 1)
    await audit(bench)


@pytest.mark.parametrize("kind", ["raw", "event"])
@pytest.mark.parametrize("order", ["late write first", "retry first"])
async def test_a_write_that_lands_after_its_retry(rig: Rig, kind: str, order: str):
    """A timed-out statement may still be running. Whichever comes first, the other one loses."""
    bench = await rig.log(kind)
    faulty = Faulty(rig.store)
    sequencer = await started(bench, store=faulty)
    request = raw(b"a") if kind == "raw" else event(1, key="k")
    faulty.plan("append", Fault(UNKNOWN, late=0.0 if order == "late write first" else 0.3))
    with pytest.raises(OutcomeUnknown):
        await sequencer.run([request])
    if order == "late write first":
        await asyncio.gather(*faulty.late)
    (outcome,) = await sequencer.run([request])
    results = await asyncio.gather(*faulty.late, return_exceptions=True)
    assert list(outcome.indices) == [0]
    assert (await rig.store.reads.head(bench.log_id)).size == 1
    if order == "retry first":
        assert isinstance(results[0], (HeadMoved, DuplicateLeaf))
    await sequencer.run([raw(b"b") if kind == "raw" else event(2)])
    assert len(await audit(bench)) == 2


async def test_duplicates_of_a_failed_batch_get_no_answer_from_it(rig: Rig):
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    sequencer = await started(bench, store=faulty)
    faulty.plan("append", Fault(GONE))
    with pytest.raises(StoreUnavailable):
        await sequencer.run([raw(b"a"), raw(b"a", b"b")])
    (outcome,) = await sequencer.run([raw(b"b", b"a")])
    assert (list(outcome.indices), outcome.new) == ([0, 1], 2)
    assert await audit(bench) == [b"b", b"a"]


async def test_a_cancelled_run_leaves_nothing_half_done(rig: Rig):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    for number in range(20):
        task = asyncio.create_task(sequencer.run([raw(b"%d" % number)]))
        await asyncio.sleep(0.0004 * number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (outcome,) = await sequencer.run([raw(b"%d" % number)])
        assert outcome.signed.size > outcome.indices[0]
    assert sorted(await audit(bench)) == sorted(b"%d" % number for number in range(20))


async def test_losing_every_race_is_answered(rig: Rig):
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    sequencer = await started(bench, store=faulty)
    faulty.always["append"] = Fault(HeadMoved("test"))
    with pytest.raises(StoreError, match="100 times"):
        await sequencer.run([raw(b"a")])
    assert sum(name == "append" for name, _ in faulty.calls) == 100
    faulty.always.clear()
    assert placed(await sequencer.run([raw(b"a")])) == [[0]]
    await audit(bench)


async def test_starting_against_busy_writers_ends(rig: Rig):
    bench = await rig.log("raw")
    busy, done = await started(bench), asyncio.Event()

    async def write() -> None:
        for number in itertools.count():
            await busy.run([raw(b"%d" % number)])
            if done.is_set():
                return

    task = asyncio.create_task(write())
    for _ in range(10):
        await started(bench, store=await rig.open() if _ == 0 else None)
    done.set()
    await task
    await audit(bench)


# --- what was stored is not what was meant ------------------------------------------------------------------------------


def flipped(where: tuple[int, int], at: int):
    def change(tiles):
        data = bytearray(tiles[where])
        data[at] ^= 1
        return tiles | {where: bytes(data)}

    return change


SPOILED = {
    "first hash": (5, flipped((0, 0), 0)),
    "a hash before": (5, flipped((0, 0), 40)),
    "last hash": (5, flipped((0, 0), 6 * 32 - 1)),
    "the new level": (256, flipped((1, 0), 7)),
    "below the new level": (256, flipped((0, 1), 31)),
    "upper level": (300, flipped((1, 0), 0)),
    "no tile": (5, lambda tiles: {}),
    "a short tile": (5, lambda tiles: {(0, 0): tiles[0, 0][:-32]}),
    "an empty tile": (5, lambda tiles: {(0, 0): b""}),
    "half a hash": (5, lambda tiles: {(0, 0): tiles[0, 0][:-16]}),
}


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_what_reads_back_differently_is_not_signed(rig: Rig, spoiled: str):
    size, change = SPOILED[spoiled]
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    sequencer = await started(bench, store=faulty)
    await sequencer.run([raw(*[b"%d" % n for n in range(size)])])
    signed, guarded = sequencer.signed, bench.guard.read()
    faulty.plan("append", Fault(change=lambda found: (found[0], change(found[1]))))
    with pytest.raises(
        OutcomeUnknown, match="database_damaged"
    ):  # the store was right: it is in the log after a restart
        await sequencer.run([raw(b"new")])
    assert sequencer.refusal.code == "database_damaged"
    assert sequencer.signed == signed
    assert bench.guard.read() == guarded
    faulty.calls.clear()
    with pytest.raises(ReadOnly):
        await sequencer.run([raw(b"newer")])
    assert faulty.calls == [], "not until a restart"
    again = await started(bench)  # the store was right all along, so a restart heals
    assert again.signed.size == size + 1
    assert len(await audit(bench)) == size + 1


@pytest.mark.parametrize(("row", "position"), [(2, 0), (1, 2)])
async def test_a_spoiled_edge_in_memory_is_not_signed(rig: Rig, row: int, position: int):
    """A bit that flips in the cached inner nodes spoils the root, not the tiles: the second path to the root shows it."""
    bench = await rig.log("raw")
    sequencer = await started(bench)
    await sequencer.run([raw(*[b"%d" % n for n in range(6)])])
    signed, guarded = sequencer.signed, bench.guard.read()
    sequencer._state.edge.levels[0][row][32 * position + 3] ^= 4
    with pytest.raises(OutcomeUnknown, match="database_damaged"):
        await sequencer.run([raw(b"new")])
    assert (sequencer.signed, bench.guard.read()) == (signed, guarded)


async def test_a_spoiled_leaf_hash_in_memory_is_not_stored(rig: Rig):
    """A bit that flips in the cached tile: the database does not let the stored one change, and a reload has it right."""
    bench = await rig.log("raw")
    sequencer = await started(bench)
    await sequencer.run([raw(*[b"%d" % n for n in range(6)])])
    sequencer._state.edge.levels[0][0][3] ^= 4
    assert placed(await sequencer.run([raw(b"new")])) == [[6]]
    assert len(await audit(bench)) == 7


# --- the guard at start -------------------------------------------------------------------------------------------------


def rewrite(bench: Bench, **changes) -> None:
    """Make the guard say something else, well formed."""
    write_guard(bench.guard.path, replace(Guard(bench.guard.path).read(), **changes))


def other_key(bench: Bench) -> dict:
    return {"key": SigningKey.generate(bench.row.origin)}


REFUSALS = {
    "ahead of the database": ("database_behind", lambda b: rewrite(b, size=9, root=RootHash(bytes(32)))),
    "one ahead": ("database_behind", lambda b: rewrite(b, size=8, root=RootHash(bytes(32)))),
    "another root": ("guard_root", lambda b: rewrite(b, size=7, root=RootHash(bytes(32)))),
    "another root of an older size": ("guard_root", lambda b: rewrite(b, size=3, root=RootHash(bytes(32)))),
    "size 0 with another root": ("guard_root", lambda b: rewrite(b, size=0, root=RootHash(bytes(32)))),
    "another origin": ("guard_foreign", lambda b: rewrite(b, origin="example.com/other")),
    "another key": ("guard_foreign", lambda b: rewrite(b, key_id=b"abcd")),
    "another guard id": ("guard_foreign", lambda b: rewrite(b, guard_id="f" * 32)),
    "a new guard": (
        "guard_foreign",
        lambda b: (b.guard.path.unlink(), b.guard.create(b.row.origin, b.key.vkey.key_id)),
    ),
    "missing": ("guard_missing", lambda b: b.guard.path.unlink()),
    "empty": ("guard_unreadable", lambda b: b.guard.path.write_bytes(b"")),
    "torn in both slots": ("guard_unreadable", lambda b: b.guard.path.write_bytes(b"x" * 2048)),
    "the signer has another key": ("guard_foreign", other_key),
}


@pytest.mark.parametrize("state", REFUSALS)
async def test_a_guard_that_contradicts_stops_all_signing(rig: Rig, state: str, monkeypatch: pytest.MonkeyPatch):
    code, spoil = REFUSALS[state]
    bench = await rig.log("raw")
    await (await started(bench)).run([raw(*[b"%d" % n for n in range(7)])])
    bench.sequencers.clear()
    changes = spoil(bench)
    before, guard = await rig.dump(), bench.guard.path.read_bytes() if bench.guard.path.exists() else None
    signatures = []
    monkeypatch.setattr(module, "sign_checkpoint", lambda *a: signatures.append(a))
    sequencer = bench.sequencer(**(changes if isinstance(changes, dict) else {}))
    await sequencer.start()
    assert sequencer.refusal.code == code
    assert str(sequencer.refusal)
    for batch in ([raw(b"new")], [raw(b"0")]):  # also when there is nothing to append
        with pytest.raises(ReadOnly):
            await sequencer.run(batch)
    assert sequencer.signed is None
    assert signatures == []
    assert await rig.dump() == before, "nothing is written, not even a fence"
    assert (bench.guard.path.read_bytes() if bench.guard.path.exists() else None) == guard
    assert len(await rig.store.reads.leaves(bench.log_id, 0, 99)) == 7, "reads go on"


GOOD = {
    "equal": lambda b: None,
    "behind: a crash came between commit and guard": lambda b: None,
    "empty: the first crash came there": lambda b: rewrite(b, size=0, root=EMPTY_ROOT, sequence=0),
}


@pytest.mark.parametrize("state", GOOD)
async def test_a_guard_that_agrees_lets_the_log_go_on(rig: Rig, state: str):
    bench = await rig.log("raw")
    await (await started(bench)).run([raw(*[b"%d" % n for n in range(300)])])
    if state.startswith("behind"):
        await bench.extend(*[new_entry(b"unguarded %d" % n) for n in range(300)])
    GOOD[state](bench)
    size = (await rig.store.reads.head(bench.log_id)).size
    sequencer = await started(bench)
    assert sequencer.signed.size == bench.guard.read().size == size
    assert placed(await sequencer.run([raw(b"new")])) == [[size]]
    await audit(bench)


async def test_a_used_guard_with_an_empty_database(rig: Rig):
    bench, used = await rig.log("raw"), await rig.log("raw")
    await (await started(used)).run([raw(b"a")])
    rewrite(bench, size=1, root=used.guard.read().root)
    sequencer = bench.sequencer()
    await sequencer.start()
    assert sequencer.refusal.code == "database_behind"


@pytest.mark.parametrize("damage", ["no tile", "a head that is too far", "a wrong root", "no tile of the guarded size"])
async def test_a_damaged_database_stops_all_signing(rig: Rig, damage: str):
    bench = await rig.log("raw")
    await (await started(bench)).run([raw(*[b"%d" % n for n in range(300)])])
    bench.sequencers.clear()
    off = {
        "heads": ("ALTER TABLE heads DISABLE TRIGGER ALL", "DROP TRIGGER heads_advance"),
        "tiles": ("ALTER TABLE tiles DISABLE TRIGGER ALL", "DROP TRIGGER tiles_no_delete"),
    }
    table, change = {
        "no tile": ("tiles", 'DELETE FROM tiles WHERE level = 0 AND "index" = 1'),
        "a head that is too far": ("heads", "UPDATE heads SET size = size + 1"),
        "a wrong root": ("heads", f"UPDATE heads SET root = {rig.blob(bytes(32))}"),
        "no tile of the guarded size": ("tiles", "DELETE FROM tiles WHERE level = 1"),
    }[damage]
    await rig.sql(off[table][0 if rig.database else 1], change, "SELECT 1")
    before = await rig.dump()
    sequencer = bench.sequencer()
    await sequencer.start()
    assert sequencer.refusal.code == "database_damaged"
    assert "fsck" in str(sequencer.refusal)
    assert await rig.dump() == before


# --- the guard while running --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["guard_unwritable", "guard_root", "guard_foreign"])
async def test_a_guard_that_refuses_after_the_commit(rig: Rig, monkeypatch: pytest.MonkeyPatch, code: str):
    bench = await rig.log("raw")
    sequencer = await started(bench)
    await sequencer.run([raw(b"a")])
    signed = sequencer.signed

    def refuse(*_: object, **__: object) -> None:
        raise GuardRefused(code, "test")

    monkeypatch.setattr(Guard, "swap", refuse)
    with pytest.raises(OutcomeUnknown, match=code):  # not the refusal: a client would log it a second time
        await sequencer.run([raw(b"b")])
    assert (sequencer.refusal.code, sequencer.signed) == (code, signed)
    monkeypatch.undo()
    with pytest.raises(ReadOnly):
        await sequencer.run([raw(b"c")])
    again = await started(bench)
    assert placed(await again.run([raw(b"b")])) == [[1]], "it was stored, and a retry finds it"
    assert await audit(bench) == [b"a", b"b"]


async def test_a_database_that_goes_back_under_a_running_sequencer(rig: Rig):
    """A backup is restored behind our back: the compare-and-swap fails, and the reload meets the guard."""
    bench = await rig.log("raw")
    sequencer = await started(bench)
    await sequencer.run([raw(b"a")])
    old = await rig.dump()
    await sequencer.run([raw(b"b")])
    signed = sequencer.signed
    triggers = ["entries_no_delete", "tiles_grow", "heads_advance"]
    off = [f"ALTER TABLE {t} DISABLE TRIGGER ALL" for t in ("entries", "tiles", "heads")]
    await rig.sql(
        *(off if rig.database else [f"DROP TRIGGER {name}" for name in triggers]),
        'DELETE FROM entries WHERE "index" = 1',
        f"UPDATE tiles SET data = {rig.blob(old['tiles'][0][-1])}",
        f"UPDATE heads SET size = 1, root = {rig.blob(old['heads'][0][2])}, logged_at = {old['heads'][0][3]}",
        "SELECT 1",
    )
    with pytest.raises(ReadOnly) as caught:
        await sequencer.run([raw(b"c")])
    assert caught.value.code == "database_behind"
    assert sequencer.signed == signed
    assert bench.guard.read().size == 2
    assert (await rig.store.reads.head(bench.log_id)).size == 1


async def test_a_guard_of_another_log_is_not_this_ones(rig: Rig):
    """Two logs, their guard files swapped: neither signs."""
    one, two = await rig.log("raw"), await rig.log("raw")
    a, b = one.guard.path.read_bytes(), two.guard.path.read_bytes()
    one.guard.path.write_bytes(b)
    two.guard.path.write_bytes(a)
    for bench in (one, two):
        sequencer = bench.sequencer()
        await sequencer.start()
        assert sequencer.refusal.code == "guard_foreign"


# --- recovery that cannot reach the database ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head_to_extend", "tiles", "fence"])
async def test_a_start_without_database_may_be_tried_again(rig: Rig, name: str):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    faulty = Faulty(rig.store)
    faulty.plan(name, Fault(GONE))
    sequencer = bench.sequencer(store=faulty)
    with pytest.raises(StoreUnavailable):
        await sequencer.start()
    assert sequencer.refusal is None
    assert sequencer.signed is None
    await sequencer.start()
    assert sequencer.signed.size == 1
    await audit(bench)


async def test_the_edge_for_readers_is_that_of_a_signed_head(rig: Rig):
    bench = await rig.log("raw")
    sequencer = bench.sequencer()
    assert sequencer.edge() is None
    await sequencer.start()
    for number in range(3):
        await sequencer.run([raw(b"%d" % number)])
        edge = sequencer.edge()
        assert isinstance(edge, Edge)
        assert (edge.size, edge.root()) == (sequencer.signed.size, sequencer.signed.root)
    await audit(bench)


def test_a_guarded_head_has_the_fields_the_sequencer_checks():
    """If this changes, so must _check_guard."""
    assert list(Guarded.__slots__) == ["guard_id", "sequence", "origin", "key_id", "size", "root"]
