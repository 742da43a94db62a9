"""Is what the server answered under load true? Answers are verified with the policy, and the log with `muniment-server fsck`."""

from __future__ import annotations

import json
import random
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from muniment import strictjson
from muniment.hashing import HASH_SIZE, RootHash, leaf_hash
from muniment.policy import Policy
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.receipt import Receipt
from muniment.tiles import TILE_WIDTH, decode_bundle
from tests.bench.plan import Workload
from tests.live import command, environment

_FSCK_SECONDS = 900
_EVERY = 16
"""One in so many receipts of a batch is verified."""


def check_answer(workload: Workload, request: bytes, answer: bytes, policy: Policy) -> None:
    """Check one answer. `request` is the body sent, or the whole request of a GET. Raises MunimentError or AssertionError."""
    if workload.name == "echo":
        assert answer == request
    elif workload.entries == 1:
        check_receipt(Receipt.parse(answer), workload.log, request, policy)
    elif workload.entries:
        _check_batch(workload, request, json.loads(answer), policy)
    elif workload.name == "proof":
        _check_proof(json.loads(answer), policy)
    elif workload.name == "tile":
        assert len(answer) == TILE_WIDTH * HASH_SIZE
    else:
        assert len(decode_bundle(answer)) == TILE_WIDTH


def check_receipt(receipt: Receipt, log: str, sent: bytes, policy: Policy) -> None:
    """Check a receipt, and that it is of exactly what was sent."""
    verified = receipt.verify(policy)
    found = verified.leaf if log == "raw" else strictjson.canonical(verified.opened)
    assert verified.complete
    assert found == sent, "the receipt is of another entry"


def _check_batch(workload: Workload, request: bytes, answer: dict[str, Any], policy: Policy) -> None:
    sent = decode_bundle(request) if workload.log != "event" else request.splitlines()
    indices = [index for low, high in answer["indices"] for index in range(low, high)]
    size = policy.verify(answer["checkpoint"]).checkpoint.size
    assert len(indices) == len(set(indices)) == answer["count"] == len(sent)
    assert max(indices) < size, "the checkpoint does not cover the batch"
    if "receipts" not in workload.path:
        return
    receipts = [Receipt.from_json(value) for value in answer["receipts"]]
    assert [receipt.index for receipt in receipts] == indices
    for at in (*range(0, len(sent), _EVERY), len(sent) - 1):
        check_receipt(receipts[at], workload.log, sent[at], policy)


def _check_proof(answer: dict[str, Any], policy: Policy) -> None:
    root = RootHash(bytes.fromhex(answer["root"]))
    hashes = [bytes.fromhex(value) for value in answer["hashes"]]
    leaf = bytes.fromhex(answer["leaf_hash"])
    verify_inclusion(answer["index"], answer["tree_size"], leaf, hashes, root)  # type: ignore[arg-type]
    signed = policy.verify(answer["checkpoint"]).checkpoint
    tie = [bytes.fromhex(value) for value in answer["consistency"]["hashes"]]
    verify_consistency(answer["tree_size"], signed.size, root, signed.root, tie)


def check_log(url: str, prefix: str, policy: Policy, *, count: int, seed: int) -> int:
    """Check receipts, proofs, a tile and a bundle of a log at random, over HTTP. Returns how many things were checked."""
    some = random.Random(seed)
    with httpx.Client(base_url=url + prefix, timeout=30) as http:
        size = _published_size(http, policy)
        for index in (some.randrange(size) for _ in range(count)):
            Receipt.parse(_get(http, f"/entries/{index}/receipt")).verify(policy)
            _check_proof(json.loads(_get(http, f"/proof/inclusion?index={index}")), policy)
        return 2 * count + _check_tile(http, some.randrange(max(1, size // TILE_WIDTH)), size)


def _get(http: httpx.Client, path: str) -> bytes:
    answer = http.get(path)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:200]}"
    return answer.content


def _published_size(http: httpx.Client, policy: Policy) -> int:
    return policy.verify(_get(http, "/checkpoint")).checkpoint.size


def _check_tile(http: httpx.Client, index: int, size: int) -> int:
    if size < TILE_WIDTH:
        return 0
    name = f"{index:03}" if index < 1000 else f"x{index // 1000:03}/{index % 1000:03}"
    leaves = decode_bundle(_get(http, f"/tile/entries/{name}"))
    assert b"".join(map(leaf_hash, leaves)) == _get(http, f"/tile/0/{name}"), f"tile {index} is not of its bundle"
    return 1


@cache
def has_fsck() -> bool:
    """Tell whether this server has the command."""
    return not subprocess.run(command("fsck", "--help"), capture_output=True, check=False).returncode


def fsck(data: Path, log: str, database: str | None, at_least: int) -> dict[str, Any] | None:
    """Run `muniment-server fsck` on a log and return its verdict and how long it took; None where there is no such command.

    A check of fewer than `at_least` entries is not clean.
    """
    if not has_fsck():
        return None
    started = time.perf_counter()
    words = command("fsck", "--data", data, "--log", log, "--json")
    done = subprocess.run(
        words, env=environment(database), capture_output=True, text=True, timeout=_FSCK_SECONDS, check=False
    )
    seconds = time.perf_counter() - started
    entries = sum(report["entries"] for report in json.loads(done.stdout)) if not done.returncode else 0
    clean = not done.returncode and entries >= at_least
    output = {} if clean else {"output": (done.stdout + done.stderr)[-2000:]}
    return {"clean": clean, "entries": entries, "seconds": seconds} | output
