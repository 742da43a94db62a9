"""The trace checker bites: a true trace passes, and each invariant that is broken in it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import LiveServer, init, trace_of
from tests.tracecheck import Checker, Tree, Violated

LEAVES = [sha256(b"\x00%d" % number).hexdigest() for number in range(8)]


def root(size: int, leaves: list[str] = LEAVES) -> str:
    tree = Tree()
    for value in leaves[:size]:
        tree.add(bytes.fromhex(value))
    return tree.root()


def head(size: int) -> dict[str, Any]:
    return {"size": size, "root": root(size)}


def append(old: int, size: int, pid: int = 1, epoch: int = 1) -> dict[str, Any]:
    new = {**head(size), "epoch": epoch, "old_size": old, "old_root": root(old), "leaf_hashes": LEAVES[old:size]}
    return {"event": "append", "pid": pid, **new}


def commit(size: int, pid: int = 1, epoch: int = 1) -> dict[str, Any]:
    return {"event": "commit", "pid": pid, "epoch": epoch, **head(size)}


def sign(size: int, pid: int = 1) -> dict[str, Any]:
    return {"event": "sign", "pid": pid, **head(size)}


def answer(index: int, size: int, proof: list[str], **more: Any) -> dict[str, Any]:
    return {
        "event": "answer",
        "pid": 1,
        "index": index,
        "leaf_hash": LEAVES[index],
        "hashes": proof,
        **head(size),
        **more,
    }


def served(size: int, since: int, t: int) -> dict[str, Any]:
    return {"event": "served", "pid": 1, "size": size, "since": since, "t": t}


def true_trace() -> list[dict[str, Any]]:
    return [
        {"event": "load", "pid": 1, "epoch": 0, **head(0)},
        {"event": "fence", "pid": 1, "epoch": 1, **head(0)},
        sign(0),
        append(0, 1),
        commit(1),
        sign(1),
        answer(0, 1, [], key="k", first=0),
        {"event": "publish", "pid": 1, "larger": True, **head(1)},
        served(1, 10, 11),
        append(1, 2),
        commit(2),
        sign(2),
        answer(1, 2, [LEAVES[0]], key="l", first=1),
        {"event": "proof", "pid": 1, "kind": "inclusion", "first": 0, "leaf_hash": LEAVES[0], "second": 2,
         "hashes": [LEAVES[1]], "root": root(2)},
        {"event": "proof", "pid": 1, "kind": "consistency", "first": 1, "second": 2, "hashes": [LEAVES[1]], "root": root(2)},
        served(2, 20, 21),
    ]  # fmt: skip


def take(lines: list[dict[str, Any]], *, copied: bool = False) -> Checker:
    checker = Checker(Path("trace"), copied=copied)
    for line in lines:
        checker.take({"t": 0, "log": "default", **line})
    return checker


def test_a_true_trace_passes():
    assert take(true_trace()).counts["sign"] == 3


def changed(at: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: lines[at].update(values)


def inserted(at: int, *more: dict[str, Any]) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: lines.__setitem__(slice(at, at), more)


BROKEN = {
    "another leaf was acknowledged": ("I10", changed(6, leaf_hash=LEAVES[5])),
    "acknowledged under an unsigned head": ("I1", inserted(5, answer(0, 1, []))),
    "signed without a commit": ("I12", inserted(4, sign(1))),
    "another root": ("I12", changed(5, root=root(3))),
    "an append that leaves a gap": ("I9", changed(3, old_size=1)),
    "a commit without its append": ("I9", inserted(9, commit(2))),
    "two writers extend one head": ("I8", inserted(5, {**append(0, 2), "pid": 2}, commit(2, pid=2))),
    "the signed size goes back": ("I3", inserted(12, {"event": "fence", "pid": 1, "epoch": 1, **head(1)}, sign(1))),
    "/checkpoint goes back": ("I3", inserted(99, served(1, 22, 23))),
    "a proof of another tree": ("I10", changed(13, hashes=[LEAVES[2]])),
    "a proof at another root": ("I10", changed(13, root=root(3))),
    "a consistency proof of something else": ("I10", changed(14, hashes=[LEAVES[2]])),
    "one key, two places": ("I9", changed(12, key="k")),
    "published but not signed": ("I4", inserted(5, {"event": "publish", "pid": 1, "larger": True, **head(1)})),
    "leaf hashes that make another root": ("I5", changed(3, leaf_hashes=[LEAVES[5]])),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_invariant_is_named(case: str):
    invariant, change = BROKEN[case]
    lines = true_trace()
    change(lines)
    with pytest.raises(Violated, match=rf"^{invariant}\b"):
        take(lines)


def test_another_history_is_named():
    other = [LEAVES[0], LEAVES[3]]
    fork = {"size": 2, "root": root(2, other), "pid": 2, "epoch": 2}
    lines = [
        {"event": "append", "old_size": 1, "old_root": root(1), "leaf_hashes": other[1:], **fork},
        {"event": "commit", **fork},
        {"event": "sign", **fork},
    ]
    with pytest.raises(Violated, match=r"^I2\b"):
        take([*true_trace(), *lines])


def extended(leaves: list[str], old: int, size: int, pid: int) -> list[dict[str, Any]]:
    """What process `pid` writes down when it appends leaves[old:size] and signs."""
    new = {"size": size, "root": root(size, leaves), "epoch": 1, "pid": pid}
    before = {"old_size": old, "old_root": root(old, leaves), "leaf_hashes": leaves[old:size]}
    return [{"event": "append", **before, **new}, {"event": "commit", **new}, {"event": "sign", **new}]


OTHER = [*LEAVES[:2], *reversed(LEAVES[2:])]


def test_processes_on_copies_may_extend_one_head_alike():
    """They write the same entries in other batches: nothing contradicts."""
    lines = [*true_trace(), *extended(LEAVES, 2, 6, 1), *extended(LEAVES, 2, 3, 2), *extended(LEAVES, 3, 7, 2)]
    checker = take(lines, copied=True)
    checker.shown("default", 5, root(5), "shown")
    assert checker.finish()["sign"] == 6
    with pytest.raises(Violated, match=r"^I8\b"):
        take(lines)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("other", [3, 4, 5, 6, 7])
def test_heads_of_two_processes_must_be_of_one_history(other: int, copied: bool):
    """Smaller, equal or larger; also where no process stopped at that size."""
    two = extended(OTHER, 2, other, 2)
    two[1]["epoch"] = two[0]["epoch"] = 2
    with pytest.raises(Violated, match=r"^I2\b"):
        take([*true_trace(), *extended(LEAVES, 2, 5, 1), *two], copied=copied)


@pytest.mark.parametrize("size", [4, 6])
def test_a_head_that_was_shown_must_be_of_the_history(size: int):
    checker = take([*true_trace(), *extended(LEAVES, 2, 5, 1)], copied=True)
    with pytest.raises(Violated, match=r"^I2\b"):  # noqa: PT012 - now, or as soon as the history is that long
        checker.shown("default", size, root(size, OTHER), "shown")
        for line in extended(LEAVES, 5, 7, 1):
            checker.take({"t": 0, "log": "default", **line})


def test_a_head_that_was_shown_must_have_been_signed():
    checker = take(true_trace())
    checker.shown("default", 6, root(6), "shown")
    with pytest.raises(Violated, match=r"^I2\b"):
        checker.finish()


def test_a_real_server_leaves_a_trace_that_is_checked(tmp_path: Path):
    data = tmp_path / "data"
    init(data)
    with LiveServer(data) as server:
        for number in range(3):
            httpx.post(f"{server.url}/entries", json={"n": number}).raise_for_status()
    counts = Checker(trace_of(data)).check()
    assert (counts["answer"], counts["append"]) == (4, 4)
    lines = trace_of(data).read_text().splitlines()
    last = next(at for at in reversed(range(len(lines))) if '"answer"' in lines[at])
    spoiled = json.loads(lines[last]) | {"leaf_hash": LEAVES[0]}
    (tmp_path / "spoiled").write_text("\n".join([*lines[:last], json.dumps(spoiled), *lines[last + 1 :]]) + "\n")
    with pytest.raises(Violated):
        Checker(tmp_path / "spoiled").check()
