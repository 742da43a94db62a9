"""Fuzzing of everything that reads OpenTimestamps proofs: files, calendars' replies, and the anchors of receipts.

Oracles besides the declared errors: no input costs more than 50 ms of CPU; what is accepted, the library reads alike (and the
stock client can print); merging loses nothing; and no anchor shows a block that does not commit to its checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from hashlib import sha256
from random import Random

from opentimestamps.core.notary import BitcoinBlockHeaderAttestation, PendingAttestation
from opentimestamps.core.serialize import BytesDeserializationContext
from opentimestamps.core.timestamp import DetachedTimestampFile, Timestamp
from otsclient.cmds import info_command

from muniment.anchor.check import check_anchor, check_receipt_anchor
from muniment.anchor.proof import (
    Proof,
    Reply,
    merge_submission,
    merge_upgrade,
    parse_ots,
    reply_attestations,
    submission,
)
from muniment.anchored import AnchoredCheckpoint
from muniment.errors import BadTimestamp, FormatError, VerificationError
from muniment.receipt import Receipt
from tests.bitcoin.calendar import (
    BODY_FAULTS,
    FORK,
    SHA256,
    append,
    bitcoin,
    block_ops,
    pending,
    prepend,
    varuint,
)
from tests.bitcoin.chain import Chain
from tests.fuzz.mutate import mutate
from tests.fuzz.target import TARGETS, Target, expect
from tests.unit.anchors import CALENDAR, NONCE, ChainSource, anchor_of
from tests.unit.ots import file_of, fork, grow, written
from tests.unit.samples import POLICY, event_log

QUICK_SECONDS = 0.05
"""Processor time below which an input needs no closer look."""
MOST_CALLS = 600_000
"""Calls and returns that an input may cost, which a slow machine counts like a fast one. The costliest of 8 kB has 430,000."""
MOST_SECONDS = 0.5
"""Processor time that no input may take, whatever it calls: ten times what the costliest takes on an ordinary machine."""

DIGEST = sha256(b"a checkpoint").digest()
MESSAGE = submission(DIGEST, NONCE)
CHAIN = Chain(3, clock=lambda: 1_795_176_000)
GOOD_REPLY = append(b"\x00" * 16) + SHA256 + prepend(b"time") + append(b"macmacma") + pending(CALENDAR)
FIRST = merge_submission(None, DIGEST, NONCE, GOOD_REPLY)
COMMITMENT = reply_attestations(MESSAGE, GOOD_REPLY).pending[0].commitment


def _path(message: bytes) -> bytes:
    """A calendar's reply about `message`, in a new block."""
    transaction = b"transaction" + bytes(60) + message + bytes(4)
    CHAIN.submit(transaction)
    return prepend(transaction[:71]) + append(bytes(4)) + SHA256 + SHA256 + block_ops(CHAIN.mine(), transaction)


def _random_tree(seed: int, start: bytes, *, own: bool) -> bytes:
    tree = Timestamp(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        grow(tree, Random(seed), own=own)
    return written(tree)


# What costs most of what the bounds allow, and what is just beyond.
_COSTLY = [
    fork(*(append(bytes([at])) + SHA256 * 190 + bitcoin(at) for at in range(5))),
    fork(*(append(bytes([at])) + SHA256 * 160 + bitcoin(at) for at in range(3))),
    fork(*(append(at.to_bytes(2, "big")) + pending("a") for at in range(490))),
    fork(*(bitcoin(height) for height in range(450))),
    append(bytes(3_800)) + fork(*(append(bytes([at])) + append(b"b") + bitcoin(1) for at in range(120))),
    SHA256 * 199 + bitcoin(1),
]
_LIES = [spoil(GOOD_REPLY, CHAIN) for name, spoil in sorted(BODY_FAULTS.items()) if name not in ("lie", "future")]
_LIES += [append(b"lie") + SHA256 + bitcoin(1), append(b"future") + SHA256 + bitcoin(1_000_000)]
REPLIES = [GOOD_REPLY, _path(COMMITMENT), _path(MESSAGE), *_LIES]
REPLIES += [_random_tree(seed, MESSAGE, own=True) for seed in range(20)]
FILES = [FIRST, merge_upgrade(FIRST, COMMITMENT, REPLIES[1])]
FILES += [file_of(DIGEST, _random_tree(seed, DIGEST, own=seed % 2 == 0)) for seed in range(30)]
FILES += [file_of(bytes(20), _random_tree(seed, bytes(20), own=False), bytes([2 + seed % 2])) for seed in range(6)]
COSTLY_FILES = [file_of(DIGEST, tree) for tree in _COSTLY]
_WORDS = [
    b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\x08", b"\x02", b"\x03", b"\x67", FORK, b"\xff\xff", b"\x00", b"\x08" * 60, varuint(2**28), varuint(2**35),
    b"\x80" * 9, b"\xff" * 300, bytes.fromhex("0083dfe30d2ef90c8e"), bytes.fromhex("000588960d73d71901"), bitcoin(5), pending("x"), append(b"y"),
    FORK + bitcoin(9), FORK + SHA256 + pending("z"), append(bytes(4000)), append(b"a") * 50,
]  # fmt: skip


def _bounded(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Fail an input that costs more than it may."""

    @wraps(function)
    def run(data: bytes) -> None:
        spent = _seconds(function, data)
        if spent > QUICK_SECONDS:
            spent, calls = min(spent, _seconds(function, data)), _calls(function, data)
            expect(
                calls <= MOST_CALLS and spent <= MOST_SECONDS,
                f"an input took {calls} calls and {spent * 1000:.0f} ms",
            )
        function(data)

    return run


def _calls(function: Callable[[bytes], None], data: bytes) -> int:
    count = 0

    def called(*_: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        with contextlib.suppress(FormatError, VerificationError):
            function(data)
    finally:
        sys.setprofile(before)
    return count


def _seconds(function: Callable[[bytes], None], data: bytes) -> float:
    gc.disable()  # the garbage of earlier inputs is not this one's
    start = time.thread_time()
    try:
        with contextlib.suppress(FormatError, VerificationError):
            function(data)
        return time.thread_time() - start
    finally:
        gc.enable()


def _target(
    name: str,
    seeds: list[bytes],
    costly: list[bytes],
    run: Callable[[bytes], None],
    check: Callable[[bytes], None],
) -> None:
    """Register a target: `run` within the bounds, and `check` what must hold of what it accepted."""

    def make(rng: Random) -> bytes:
        return mutate(rng, costly if rng.random() < 0.04 else seeds, _WORDS)

    def whole(data: bytes) -> bool:
        try:
            _bounded(run)(data)
        except BadTimestamp:
            return False
        check(data)
        return True

    TARGETS[name] = Target(name, make, whole)


def _same_attestations(tree: Timestamp, found: Proof | Reply) -> None:
    pairs = list(tree.all_attestations())
    heights = sorted((one.height, message) for message, one in pairs if isinstance(one, BitcoinBlockHeaderAttestation))
    expect(heights == [(one.height, one.message) for one in found.bitcoin], "the library finds other blocks")
    promises = sorted((one.uri, message) for message, one in pairs if isinstance(one, PendingAttestation))
    expect(promises == [(one.uri, one.commitment) for one in found.pending], "the library finds other promises")
    expect(len(pairs) == len(heights) + len(promises) + found.unknown, "an attestation is not counted")


def info(data: bytes) -> str:
    """Return what the stock client prints of a proof. Raises SystemExit when it refuses it."""
    file = io.BytesIO(data)
    file.name = "fuzzed.ots"
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        info_command(argparse.Namespace(file=file, verbosity=0))
    return printed.getvalue()


def _check_ots(data: bytes) -> None:
    proof = parse_ots(data)
    expect(f"{proof.file_hash} hash: {proof.digest.hex()}" in info(data), "the stock client reads another digest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        file = DetachedTimestampFile.deserialize(BytesDeserializationContext(data))
    _same_attestations(file.timestamp, proof)
    again = written(file)
    expect(len(again) == len(data), "something is lost in writing")
    check = check_anchor(b"a checkpoint", data, None) if proof.digest == DIGEST and len(proof.bitcoin) <= 16 else None
    expect(check is None or check.found is None, "an anchor without a source")


_target("ots", FILES, COSTLY_FILES, lambda data: void(parse_ots(data)), _check_ots)


def void(_: object) -> None:
    """Drop a value."""


def _check_reply(start: bytes, data: bytes, merged: bytes, before: bytes | None) -> None:
    found, proof = reply_attestations(start, data), parse_ots(merged, own=True)
    tree = Timestamp.deserialize(BytesDeserializationContext(data), start)
    _same_attestations(tree, found)
    expect(written(tree) == data, "a reply has two spellings")
    expect({*found.pending, *found.bitcoin} <= {*proof.pending, *proof.bitcoin}, "merging loses what the reply says")
    if before is not None:
        old = parse_ots(before)
        expect({*old.pending, *old.bitcoin} <= {*proof.pending, *proof.bitcoin}, "merging loses what was there")
        expect(old.unknown <= proof.unknown, "merging loses an unknown attestation")
    expect(proof.digest == DIGEST, "merging changes the digest")


_target(
    "ots-submission", REPLIES, _COSTLY, lambda data: void(merge_submission(FIRST, DIGEST, NONCE, data)),
    lambda data: _check_reply(MESSAGE, data, merge_submission(FIRST, DIGEST, NONCE, data), FIRST),
)  # fmt: skip
_target(
    "ots-upgrade", REPLIES, _COSTLY, lambda data: void(merge_upgrade(FIRST, COMMITMENT, data)),
    lambda data: _check_reply(COMMITMENT, data, merge_upgrade(FIRST, COMMITMENT, data), FIRST),
)  # fmt: skip

# --- the anchors of a receipt -------------------------------------------------------------------------------------------

LOG = event_log()
RECEIPT = LOG.receipt(2)
ANCHORS = [anchor_of(CHAIN, LOG, 2, size) for size in (3, 5, 9)]
CHAIN.mine(6)
SOURCE = ChainSource(CHAIN)
STAMPED = {(anchor.checkpoint, anchor.height) for anchor in ANCHORS}


def _receipts() -> list[bytes]:
    whole = [replace(RECEIPT, anchors=(anchor,)) for anchor in ANCHORS]
    whole += [replace(RECEIPT, anchors=(replace(anchor, header=None),)) for anchor in ANCHORS]
    whole += [replace(RECEIPT, anchors=(replace(ANCHORS[0], ots=data),)) for data in FILES[:6]]
    return [str(receipt).encode() for receipt in (*whole, replace(RECEIPT, anchors=tuple(ANCHORS[:2])))]


def _make_receipt(rng: Random) -> bytes:
    """A receipt with spoiled JSON, or with a spoiled proof in good JSON."""
    if rng.random() < 0.5:
        return mutate(
            rng, _RECEIPTS, [b'"ots"', b'"height"', b'"header"', b'"anchors"', b'"inclusion"', b'"checkpoint"']
        )
    anchor = rng.choice(ANCHORS)
    spoiled = replace(anchor, ots=mutate(rng, [anchor.ots], _WORDS))
    value = spoiled.to_json()
    if rng.random() < 0.2:
        value["height"] = rng.choice([0, 1, anchor.height - 1, anchor.height + 1, 2**28 - 1])
    return json.dumps(RECEIPT.to_json() | {"anchors": [value]}).encode()


def _run_receipt(data: bytes) -> bool:
    try:
        receipt = Receipt.parse(data)
        receipt.verify(POLICY)
    except (FormatError, VerificationError):
        return False
    held = [_bounded_check(receipt, anchor) for anchor in receipt.anchors]
    return bool(held) and all(held)


def _bounded_check(receipt: Receipt, anchor: AnchoredCheckpoint) -> bool:
    try:
        offline: list[str] = []
        _bounded(lambda _: offline.append(check_receipt_anchor(receipt, anchor, POLICY, None).state))(b"")
        found = check_receipt_anchor(receipt, anchor, POLICY, SOURCE)
    except (FormatError, VerificationError):
        return False
    expect(offline[0] in ("no_source", "mismatch", "pending"), "confirmed without a source")
    if found.found is not None:
        expect(
            (anchor.checkpoint, found.found.height) in STAMPED, "a block was shown that does not hold this checkpoint"
        )
    return found.state == "confirmed"


_RECEIPTS = _receipts()
TARGETS["anchor"] = Target("anchor", _make_receipt, _run_receipt)

__all__ = ["COMMITMENT", "COSTLY_FILES", "FILES", "REPLIES", "info"]
