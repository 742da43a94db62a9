"""A few inputs for each fuzz target, always the same; and that the fuzzer would find something. Many more: rig `fuzz`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from muniment.errors import FormatError
from tests.fuzz import anchor_targets
from tests.fuzz.everything import TARGETS
from tests.fuzz.flips import flips_expected, flips_of
from tests.fuzz.mutate import mutate
from tests.fuzz.runner import Failure, run_for, run_one
from tests.fuzz.target import Broken, Target
from tests.live import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_no_oracle_breaks(name: str) -> None:
    result = run_for(TARGETS[name], seconds=0, seed=1, least=500)
    assert result.inputs >= 500
    assert 0 < result.accepted < result.inputs


def test_every_parser_is_there() -> None:
    assert set(TARGETS) == {
        "sse", "note", "checkpoint", "vkey", "signing-key", "tile-path", "bundle", "encoding", "json", "event", "leaf", "receipt", "receipts", "tlog-proof",
        "policy", "proof", "disclosure", "state", "answer", "guard-slot", "settings-file", "settings-env", "query", "headers", "admission",
        "raw-batch", "event-batch", "event-array", "ots", "ots-submission", "ots-upgrade", "anchor",
        "search-query", "evidence",
    }  # fmt: skip


def test_every_bit_of_small_proofs_counts() -> None:
    assert [flips_of(size) for size in range(1, 9)] == [flips_expected(size) for size in range(1, 9)]


def _kind_parser(data: bytes) -> bool:
    """A parser with three classic faults: json.loads, int(), and a serialisation that is not compared."""
    try:
        value = json.loads(data)
    except UnicodeDecodeError:
        return False
    except ValueError:
        raise FormatError("not JSON") from None
    if json.dumps(value).encode() != data:
        raise Broken("two spellings")
    return True


def test_a_planted_fault_is_found_and_replayed() -> None:
    target = Target("kind", lambda rng: mutate(rng, [b'{"a": [1, 2.5]}'], []), _kind_parser)
    with pytest.raises(Failure, match=r"python -m tests\.fuzz --replay kind:7:") as found:
        run_for(target, seconds=0, seed=7, least=1000)
    number = int(found.value.replay.rsplit(":", 1)[1])
    with pytest.raises(Failure) as again:
        run_one(target, 7, number)
    assert str(again.value) == str(found.value)


def test_the_same_seed_makes_the_same_inputs() -> None:
    for target in TARGETS.values():
        assert [target.make(Random(n)) for n in range(30)] == [target.make(Random(n)) for n in range(30)]


def test_the_command() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.fuzz", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)

    done = run("--seconds", "0.2", "--seed", "3", "--jobs", "1", "tile-path", "vkey")
    assert done.returncode == 0, done.stderr
    assert "seed 3" in done.stdout
    assert "tile-path" in done.stdout
    assert "no oracle broken" in done.stdout
    assert run("--replay", "note:3:5").stdout.startswith("note:3:5: ")
    assert run("nothing").returncode == 2


def test_an_input_that_costs_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_targets, "QUICK_SECONDS", 0.0)
    dear, cheap = (anchor_targets._bounded(lambda data, n=n: call(data, n)) for n in (400_000, 1_000))
    cheap(b"")
    with pytest.raises(Broken, match="calls"):
        dear(b"")


def call(data: bytes, times: int) -> None:
    for _ in range(times):
        len(data)
