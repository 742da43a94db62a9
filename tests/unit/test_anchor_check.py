"""What an anchor shows, and each way in which it does not hold."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from hashlib import new, sha256

import pytest

from muniment import strictjson
from muniment.anchor.check import MAX_LOOKUPS, AnchorCheck, check_anchor, check_file, check_receipt_anchor, look_up
from muniment.anchor.header import parse_header
from muniment.anchor.proof import BitcoinAttestation, merge_submission, parse_ots
from muniment.anchor.sources import Found
from muniment.anchored import AnchoredCheckpoint
from muniment.cli.sources import exit_code
from muniment.errors import (
    AnchorMismatch,
    BadHeader,
    BadProof,
    BadSignature,
    BadTimestamp,
    FormatError,
    Inconsistent,
    NoHeader,
    PolicyNotMet,
    SourceUnavailable,
    VerificationError,
)
from muniment.note import SigningKey
from muniment.policy import Policy
from tests.bitcoin.calendar import ATTESTATION, SHA256, append, bitcoin, pending, varbytes, varuint
from tests.bitcoin.chain import GENESIS, Chain, solve
from tests.unit.anchors import CALENDAR, NONCE, NOON, ChainSource, anchor_of, stamp, to_block
from tests.unit.ots import file_of, fork
from tests.unit.samples import KEY, POLICY, Logged, SampleLog, event_log, raw_log

LOG = event_log()
NOTE = LOG.checkpoint(5).encode()
DIGEST = sha256(NOTE).digest()
LIE = append(b"lie") + SHA256 + bitcoin(1)


@pytest.fixture
def chain() -> Chain:
    return Chain(2, clock=lambda: NOON)


@pytest.fixture
def source(chain: Chain) -> ChainSource:
    return ChainSource(chain)


def summary(check: AnchorCheck) -> tuple[str, int | None, int]:
    return check.state, check.found and check.found.height, len(check.mismatches)


# --- checkpoints --------------------------------------------------------------------------------------------------------


def test_depth_decides_between_complete_and_confirmed(chain: Chain, source: ChainSource) -> None:
    ots, block = stamp(chain, NOTE)
    for depth in range(1, 9):
        check = check_anchor(NOTE, ots, source)
        assert summary(check) == ("confirmed" if depth >= 6 else "complete", block.height, 0)
        assert check.found is not None
        assert check.found.depth == depth
        assert ("reorganisation may undo" in check.claim) is (depth < 6)
        chain.mine()
    assert check_anchor(NOTE, ots, source, min_depth=100).state == "complete"


def test_the_claim_says_exactly_what_is_shown(chain: Chain, source: ChainSource) -> None:
    ots, block = stamp(chain, NOTE)
    chain.mine(5)
    check = check_anchor(NOTE, ots, source)
    assert check.claim == (
        f"existed before block {block.height}, mined about ~2026-11-20 12:00 UTC, depth 6, according to the test chain"
        " (Bitcoin block times are good to a couple of hours)"
    )
    value = check.to_json()
    assert value["block"] == {"height": block.height, "hash": block.block_hash, "time": block.time}
    assert (value["state"], value["depth"], value["source"], value["claim"]) == (
        "confirmed",
        6,
        "the test chain",
        check.claim,
    )
    assert value["calendars"] == [CALENDAR]


def test_a_reorganisation_takes_it_back(chain: Chain, source: ChainSource) -> None:
    ots, _ = stamp(chain, NOTE)
    chain.mine(6)
    assert check_anchor(NOTE, ots, source).state == "confirmed"
    chain.reorg(7)
    check = check_anchor(NOTE, ots, source)
    assert summary(check) == ("mismatch", None, 1)
    assert "does not have the Merkle root" in check.claim


def test_the_earliest_that_holds_decides(chain: Chain, source: ChainSource) -> None:
    first, block = to_block(chain, message := sha256(DIGEST + NONCE).digest())
    second, _ = to_block(chain, sha256(message + b"again").digest())
    chain.mine(5)
    ots = merge_submission(None, DIGEST, NONCE, append(b"again") + SHA256 + second)
    later = check_anchor(NOTE, ots, source)
    assert summary(later) == ("confirmed", block.height + 1, 0)
    assert summary(check_anchor(NOTE, merge_submission(ots, DIGEST, NONCE, first), source)) == (
        "confirmed",
        block.height,
        0,
    )


def test_a_lying_branch_does_not_hide_an_honest_one(chain: Chain, source: ChainSource) -> None:
    ots, block = stamp(chain, NOTE)
    chain.mine(5)
    assert summary(check_anchor(NOTE, merge_submission(ots, DIGEST, NONCE, LIE), source)) == (
        "confirmed",
        block.height,
        1,
    )
    lies = merge_submission(None, DIGEST, NONCE, LIE)
    assert summary(check_anchor(NOTE, lies, source)) == ("mismatch", None, 1)
    assert summary(check_anchor(NOTE, merge_submission(lies, DIGEST, NONCE, pending(CALENDAR)), source)) == (
        "mismatch",
        None,
        1,
    )


def test_promises_prove_nothing_yet(source: ChainSource) -> None:
    ots = merge_submission(None, DIGEST, NONCE, pending(CALENDAR))
    for where in (source, None):
        check = check_anchor(NOTE, ots, where)
        assert summary(check) == ("pending", None, 0)
        assert check.claim == "a calendar's promise; proves nothing yet"
        assert check.calendars == (CALENDAR,)
    assert source.asked == []


def test_attestations_of_unknown_kinds_are_nobodys_promise(source: ChainSource) -> None:
    """Of another chain, say, or of a calendar to come: nothing to wait for, and not a false claim either."""
    other = ATTESTATION + b"\x06\x86\x9a\x0d\x73\xd7\x1b\x45" + varbytes(varuint(2_000_000))
    alone = file_of(DIGEST, other)
    for where in (source, None):
        check = check_file(io.BytesIO(NOTE), alone, where)
        assert (check.state, check.calendars, check.unknown) == ("unknown", (), 1)
        assert check.claim.startswith("only attestations of a kind that is not known here; proves nothing here")
        assert check_anchor(NOTE, alone, where) == check
    assert exit_code([check]) == 1
    beside = merge_submission(None, DIGEST, NONCE, fork(other, pending(CALENDAR)))
    promised = check_anchor(NOTE, beside, source)
    assert (promised.state, promised.unknown, exit_code([promised])) == ("pending", 1, 3)
    assert check_anchor(NOTE, merge_submission(beside, DIGEST, NONCE, LIE), source).state == "mismatch"
    assert promised.to_json()["unknown"] == 1


def test_without_an_answer_nothing_is_said(chain: Chain, source: ChainSource) -> None:
    ots, _ = stamp(chain, NOTE)
    check = check_anchor(NOTE, ots, None)
    assert (check.state, check.claim) == ("no_source", "proof complete, not checked here: no source of block headers")
    source.down = True
    assert check_anchor(NOTE, ots, source).claim == "proof complete, not checked here: the test chain is down"
    source.down = False
    future = merge_submission(None, DIGEST, NONCE, append(b"x") + SHA256 + bitcoin(2**28 - 1))
    check = check_anchor(NOTE, future, source)
    assert check.state == "no_source"
    assert "no block 268435455 yet" in check.claim


def test_a_source_that_answers_about_another_block_is_not_believed(chain: Chain, source: ChainSource) -> None:
    ots, block = stamp(chain, NOTE)

    class Confused(ChainSource):
        def at(self, height: int):
            return replace(super().at(height), height=height + 1)

    attestation = parse_ots(ots).bitcoin[0]
    assert look_up(attestation, source).height == block.height
    with pytest.raises(SourceUnavailable, match="answers about block"):
        look_up(attestation, Confused(chain))
    assert check_anchor(NOTE, ots, Confused(chain)).state == "no_source"


def test_other_bytes_are_a_mismatch(chain: Chain, source: ChainSource) -> None:
    ots, _ = stamp(chain, NOTE)
    for other in (LOG.checkpoint(4).encode(), NOTE + b"\n", NOTE[:-1], b""):
        with pytest.raises(AnchorMismatch, match="other bytes"):
            check_anchor(other, ots, source)


@pytest.mark.parametrize("size", [20, 31, 33, 44])
def test_only_32_bytes_can_be_a_merkle_root(size: int, chain: Chain, source: ChainSource) -> None:
    with pytest.raises(AnchorMismatch, match="not 32"):
        look_up(BitcoinAttestation(1, bytes(size)), source)
    ots = merge_submission(None, DIGEST, NONCE, append(b"xxxxxxxxxxxx") + bitcoin(1))
    assert check_anchor(NOTE, ots, source).mismatches == ("what is attested of block 1 has 44 bytes, not 32",)


@pytest.mark.parametrize(("tag", "name"), [(b"\x02", "sha1"), (b"\x03", "ripemd160"), (b"\x67", "keccak256")])
def test_weak_hashes_never_count_for_a_checkpoint(tag: bytes, name: str, chain: Chain, source: ChainSource) -> None:
    message = parse_ots(file_of(DIGEST, tag + bitcoin(1))).bitcoin[0].message
    ops, block = to_block(chain, message)
    chain.mine(5)
    ots = file_of(DIGEST, tag + ops)
    assert look_up(parse_ots(ots).bitcoin[0], source).height == block.height, "the attestation itself is true"
    check = check_anchor(NOTE, ots, source)
    assert summary(check) == ("mismatch", None, 1)
    assert name in check.claim
    as_file = check_file(io.BytesIO(NOTE), ots, source)
    assert (as_file.state, as_file.weak) == ("confirmed", (name,))
    assert as_file.claim.endswith(f"; by way of {name}, which is weak")


def test_a_proof_of_a_sha1_digest_is_no_anchor_of_a_checkpoint(chain: Chain, source: ChainSource) -> None:
    digest = new("sha1", NOTE, usedforsecurity=False).digest()
    ops, _ = to_block(chain, digest)
    chain.mine(5)
    ots = file_of(digest, ops, b"\x02")
    with pytest.raises(AnchorMismatch):
        check_anchor(NOTE, ots, source)
    check = check_file(io.BytesIO(NOTE), ots, source)
    assert (check.state, check.weak) == ("confirmed", ("sha1",))
    with pytest.raises(AnchorMismatch, match="another file"):
        check_file(io.BytesIO(NOTE + b"x"), ots, source)


def test_look_ups_are_bounded(source: ChainSource) -> None:
    heights = [append(bytes([at])) + SHA256 + bitcoin(at) for at in range(MAX_LOOKUPS + 1)]
    assert check_anchor(NOTE, file_of(DIGEST, fork(*heights[:-1])), source).state in ("mismatch", "no_source")
    assert len(source.asked) == MAX_LOOKUPS
    with pytest.raises(BadTimestamp, match="looked up at most"):
        check_anchor(NOTE, file_of(DIGEST, fork(*heights)), source)


# --- receipts -----------------------------------------------------------------------------------------------------------

RECEIPT = LOG.receipt(2)


@pytest.fixture
def anchor(chain: Chain) -> AnchoredCheckpoint:
    made = anchor_of(chain, LOG, 2, 5)
    chain.mine(5)
    return made


def test_an_entry_is_covered_by_a_larger_or_smaller_checkpoint(chain: Chain, source: ChainSource) -> None:
    for size in (3, 5, 9):
        anchor = anchor_of(chain, LOG, 2, size)
        chain.mine(5)
        assert check_receipt_anchor(RECEIPT, anchor, POLICY, source).state == "confirmed"


def test_an_embedded_header_is_not_a_chain(anchor: AnchoredCheckpoint) -> None:
    check = check_receipt_anchor(RECEIPT, anchor, POLICY, None)
    assert check.state == "no_source"
    assert "header embedded, not checked against a chain" in check.claim
    assert "~2026-11-20 12:00 UTC" in check.claim
    bare = check_receipt_anchor(RECEIPT, replace(anchor, header=None), POLICY, None)
    assert (bare.state, bare.claim) == ("no_source", "proof complete, not checked here: no source of block headers")


def test_a_forged_block_on_top_of_nothing_is_never_confirmed(chain: Chain, source: ChainSource) -> None:
    """At regtest difficulty a header with any Merkle root costs two hashes; an embedded one therefore shows nothing."""
    note = LOG.checkpoint(5)
    message = sha256(sha256(note.encode()).digest() + NONCE).digest()
    root = sha256(message).digest()
    header = solve(chain.tip.hash, root, 1_300_000_000)
    ots = merge_submission(None, sha256(note.encode()).digest(), NONCE, SHA256 + bitcoin(1))
    forged = AnchoredCheckpoint(note, 5, tuple(LOG.tree.path(2, 5)), ots, 1, header)
    assert check_receipt_anchor(RECEIPT, forged, POLICY, None).state == "no_source"
    assert check_receipt_anchor(RECEIPT, forged, POLICY, source).state == "mismatch"


def test_what_makes_an_anchor_of_a_receipt_fail(anchor: AnchoredCheckpoint, chain: Chain, source: ChainSource) -> None:
    other_log = SampleLog([Logged(b"x"), *LOG.entries[1:]])
    stranger = SampleLog(LOG.entries, SigningKey(KEY.vkey.name, b"s" * 32))
    assert anchor.header is not None
    unworked = bytearray(anchor.header)
    while True:  # about every second nonce fails
        unworked[76] += 1
        try:
            parse_header(bytes(unworked))
        except BadHeader:
            break
    cases: dict[str, tuple[AnchoredCheckpoint, type[Exception]]] = {
        "another key": (anchor_of(chain, stranger, 2, 5), BadSignature),
        "another origin": (anchor_of(chain, raw_log(), 2, 5), PolicyNotMet),
        "another size": (replace(anchor, tree_size=4), BadProof),
        "no such place": (replace(anchor, proof=anchor.proof[::-1]), BadProof),
        "no hashes": (replace(anchor, proof=()), BadProof),
        "too small": (replace(anchor_of(chain, LOG, 0, 2), proof=()), BadProof),
        "another tree": (replace(anchor_of(chain, other_log, 2, 5), proof=anchor.proof), BadProof),
        "proof of another checkpoint": (replace(anchor, ots=stamp(chain, b"other")[0]), AnchorMismatch),
        "another height": (replace(anchor, height=anchor.height + 1), AnchorMismatch),
        "another header": (replace(anchor, header=GENESIS), AnchorMismatch),
        "a header without work": (replace(anchor, header=bytes(unworked)), BadHeader),
        "no proof": (replace(anchor, ots=b""), BadTimestamp),
        "no checkpoint": (replace(anchor, checkpoint="x"), FormatError),
    }
    assert check_receipt_anchor(RECEIPT, anchor, POLICY, source).state == "confirmed"
    for name, (spoiled, error) in cases.items():
        with pytest.raises(error):
            check_receipt_anchor(RECEIPT, spoiled, POLICY, source)
        assert issubclass(error, FormatError | VerificationError), name


def test_every_bit_of_an_anchor_counts(anchor: AnchoredCheckpoint, source: ChainSource) -> None:
    """A changed anchor is refused, or shows nothing, or shows the same block: what is free is promises, and bytes in operations of
    branches that do not lead to it."""
    good = json.dumps(anchor.to_json()).encode()
    shown, refused = check_receipt_anchor(RECEIPT, anchor, POLICY, source).found, 0
    for at in range(len(good)):
        for bit in range(8):
            changed = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            try:
                spoiled = AnchoredCheckpoint.from_json(strictjson.parse(changed))
                found = check_receipt_anchor(RECEIPT, spoiled, POLICY, source).found
            except (FormatError, VerificationError):
                refused += 1
            else:
                assert found in (shown, None), changed
                refused += found is None
    assert refused > 0.8 * 8 * len(good)


def test_two_roots_of_one_size_are_evidence(chain: Chain, source: ChainSource) -> None:
    other = SampleLog([*LOG.entries[:3], Logged(b"another story"), *LOG.entries[4:]])
    anchor = anchor_of(chain, other, 2, 9)
    with pytest.raises(Inconsistent) as found:
        check_receipt_anchor(RECEIPT, anchor, POLICY, source)
    assert found.value.notes == (RECEIPT.checkpoint, anchor.checkpoint)


def test_a_quorum_is_asked_of_the_receipt_and_not_of_the_frozen_note(
    anchor: AnchoredCheckpoint, source: ChainSource
) -> None:
    strict = Policy(POLICY.logs, POLICY.witnesses, POLICY.groups, "w")
    with pytest.raises(PolicyNotMet):
        RECEIPT.verify(strict)
    assert check_receipt_anchor(RECEIPT, anchor, strict, source).state == "confirmed"


def test_a_missing_block_is_no_answer(anchor: AnchoredCheckpoint) -> None:
    short = ChainSource(Chain(1))
    with pytest.raises(NoHeader):
        short.at(anchor.height)
    assert check_receipt_anchor(RECEIPT, anchor, POLICY, short).state == "no_source"


@pytest.mark.parametrize(
    ("height", "raw", "root"),
    [
        (358_391, "02000000b96394585a281b7e5f438fd1c9ed492645a1fd61cb3802040000000000000000007ee445d23ad061af4a36b809501fab1ac4f2d7e7a739817dd0cbb7ec661b8a1e376755f58616186272def6", "8a1b66ecb7cbd07d8139a7e7d7f2c41aab1f5009b8364aaf61d03ad245e47e00"),
        (428_648, "000000208d4d8ed1a5fd3babdbc78d738384042b0ead38c1439b4f000000000000000000da18fe135a3bac24ea548961c6638c29d97f6258166bc9583c2e9fc8e9dd8c071baccf5708fb0418d71bd783", "078cdde9c89f2e3c58c96b1658627fd9298c63c6618954ea24ac3b5a13fe18da"),
    ],
)  # fmt: skip
def test_real_headers_and_the_messages_that_were_attested(height: int, raw: str, root: str) -> None:
    """Two blocks of the main chain that real proofs name."""

    class One:
        name = "one header"

        def at(self, at: int) -> Found:
            return Found(parse_header(bytes.fromhex(raw)), at, 6, self.name, "chain")

    assert look_up(BitcoinAttestation(height, bytes.fromhex(root)[::-1]), One()).height == height
    for wrong in (bytes.fromhex(root), bytes.fromhex(root)[::-1][:-1] + b"\xff"):
        with pytest.raises(AnchorMismatch):
            look_up(BitcoinAttestation(height, wrong), One())
