"""The judge of the rigs with real processes can fail: each way to lose or fork is found."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from muniment.errors import VerificationError
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from tests.rigs.judge import judge_entries, judge_heads
from tests.rigs.recorder import Recorder
from tests.unit.samples import Logged, SampleLog

ORIGIN = "example.com/raw"
KEY = SigningKey(ORIGIN, b"j" * 32)
POLICY = Policy((LogKey(KEY.vkey),))
LEAVES = [b"leaf %d" % number for number in range(9)]
OTHERS = [*LEAVES[:5], b"another", *LEAVES[6:]]


def log_of(leaves: list[bytes], key: SigningKey = KEY) -> SampleLog:
    return SampleLog([Logged(leaf) for leaf in leaves], key)


@pytest.fixture
def recorder() -> Recorder:
    """Clients that know entries 1 to 4 and the heads of 3, 5 and 9."""
    made = Recorder(POLICY, ORIGIN)
    made.acked("a", [1], [LEAVES[1]])
    made.acked("b", [2, 3, 4], LEAVES[2:5])
    for size in (3, 5, 9):
        made.checkpoint(log_of(LEAVES).checkpoint(size))
    return made


def test_a_good_log_is_good(recorder: Recorder) -> None:
    judge_entries(recorder, LEAVES, {})
    judge_heads(recorder, LEAVES)


@pytest.mark.parametrize(
    "change",
    [
        lambda leaves: leaves[:4],
        lambda leaves: [*leaves[:2], b"changed", *leaves[3:]],
        lambda leaves: [leaves[0], leaves[2], leaves[1], *leaves[3:]],
        lambda leaves: [b"new", *leaves],
    ],
    ids=["cut", "changed", "swapped", "shifted"],
)
def test_lost_entries_are_found(recorder: Recorder, change: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(AssertionError, match="LOST"):
        judge_entries(recorder, change(LEAVES), {})


@pytest.mark.parametrize("leaves", [LEAVES[:8], OTHERS], ids=["behind", "another"])
def test_a_head_that_is_not_of_this_tree_is_found(recorder: Recorder, leaves: list[bytes]) -> None:
    with pytest.raises(AssertionError, match="FORK"):
        judge_heads(recorder, leaves)


def test_two_roots_of_one_size_are_found(recorder: Recorder) -> None:
    with pytest.raises(AssertionError, match="FORK"):
        recorder.checkpoint(log_of(OTHERS).checkpoint(9))


def test_a_checkpoint_of_another_key_is_found(recorder: Recorder) -> None:
    with pytest.raises(VerificationError):
        recorder.checkpoint(log_of(LEAVES, SigningKey(ORIGIN, b"k" * 32)).checkpoint(9))


def test_a_retry_at_another_index_is_found(recorder: Recorder) -> None:
    recorder.acked("a", [1], [LEAVES[1]])
    with pytest.raises(AssertionError, match="a retry of a"):
        recorder.acked("a", [5], [LEAVES[1]])


def test_an_index_acknowledged_for_two_entries_is_found(recorder: Recorder) -> None:
    with pytest.raises(AssertionError, match="acknowledged twice"):
        recorder.acked("c", [4], [b"other"])


def test_an_event_that_is_stored_twice_is_found() -> None:
    made = Recorder(POLICY, ORIGIN)
    with pytest.raises(AssertionError, match="twice"):
        judge_entries(made, LEAVES, {1: {"mark": "m"}, 2: {"mark": "m"}})


def test_a_receipt_of_something_else_is_found(recorder: Recorder) -> None:
    value = {
        "typ": "muniment/receipt@v1",
        "origin": ORIGIN,
        "index": 4,
        "leaf": base64.b64encode(LEAVES[4]).decode(),
        "inclusion": {"tree_size": 9, "hashes": [part.hex() for part in log_of(LEAVES).tree.path(4, 9)]},
        "checkpoint": log_of(LEAVES).checkpoint(9),
    }
    assert recorder.proved(value, LEAVES[4]).index == 4
    with pytest.raises(AssertionError, match="not of"):
        recorder.proved(value, LEAVES[3])
    with pytest.raises(VerificationError):
        recorder.proved(value | {"index": 3}, LEAVES[4])
