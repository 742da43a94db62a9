"""OpenTimestamps proofs: what is read, what is refused and why, and that merging loses nothing."""

from __future__ import annotations

import time
import tracemalloc
import warnings
from hashlib import sha1, sha256
from random import Random

import pytest
from opentimestamps.core.notary import BitcoinBlockHeaderAttestation, PendingAttestation
from opentimestamps.core.op import OpAppend, OpRIPEMD160, OpSHA1, OpSHA256
from opentimestamps.core.serialize import BytesDeserializationContext
from opentimestamps.core.timestamp import DetachedTimestampFile, Timestamp

from muniment.anchor import scan
from muniment.anchor.proof import (
    MAX_DEPTH,
    MAX_NODES,
    BitcoinAttestation,
    Pending,
    merge_submission,
    merge_upgrade,
    parse_ots,
    reply_attestations,
    submission,
)
from muniment.anchor.uri import origin_of
from muniment.errors import BadTimestamp
from tests.bitcoin.calendar import (
    ATTESTATION,
    BITCOIN_TAG,
    BODY_FAULTS,
    PENDING_TAG,
    SHA256,
    SSRF_URIS,
    append,
    bitcoin,
    pending,
    prepend,
    varbytes,
    varuint,
)
from tests.bitcoin.chain import Chain
from tests.fuzz.anchor_targets import COSTLY_FILES
from tests.unit.ots import MAGIC, detached, file_of, fork, grow, written

DIGEST = sha256(b"a checkpoint").digest()
NONCE = bytes(range(16))
MESSAGE = submission(DIGEST, NONCE)
ALICE, BOB = "https://alice.example", "https://bob.example"
SHA1, RIPEMD160, KECCAK, REVERSE, HEXLIFY = b"\x02", b"\x03", b"\x67", b"\xf2", b"\xf3"


def reply_of(uri: str, mark: bytes = b"m") -> bytes:
    """A calendar's reply to a POST."""
    return append(mark) + SHA256 + pending(uri)


def first(uri: str = ALICE) -> bytes:
    return merge_submission(None, DIGEST, NONCE, reply_of(uri))


# --- reading ------------------------------------------------------------------------------------------------------------


def test_what_a_proof_says() -> None:
    file = detached(DIGEST)
    leaf = file.timestamp.ops.add(OpAppend(NONCE)).ops.add(OpSHA256())
    leaf.attestations |= {PendingAttestation(BOB), PendingAttestation(ALICE), BitcoinBlockHeaderAttestation(300)}
    leaf.ops.add(OpSHA1()).ops.add(OpSHA256()).attestations.add(BitcoinBlockHeaderAttestation(7))
    proof = parse_ots(written(file))
    assert (proof.file_hash, proof.digest, proof.unknown) == ("sha256", DIGEST, 0)
    assert proof.pending == (Pending(ALICE, MESSAGE), Pending(BOB, MESSAGE))
    root = sha256(sha1(MESSAGE).digest()).digest()
    assert proof.bitcoin == (BitcoinAttestation(7, root, ("sha1",)), BitcoinAttestation(300, MESSAGE, ()))


def test_weak_hashes_are_named_along_the_path() -> None:
    tree = SHA1 + SHA256 + SHA1 + KECCAK + fork(bitcoin(2), RIPEMD160 + bitcoin(3))
    assert [found.weak for found in parse_ots(file_of(DIGEST, tree)).bitcoin] == [
        ("sha1", "keccak256"),
        ("sha1", "keccak256", "ripemd160"),
    ]
    for tag, name in ((SHA1, "sha1"), (RIPEMD160, "ripemd160")):
        proof = parse_ots(file_of(DIGEST[:20], SHA256 + bitcoin(1), tag))
        assert (proof.file_hash, proof.bitcoin[0].weak) == (name, (name,))


def test_old_files_have_their_items_in_any_order() -> None:
    tree = fork(
        SHA256 + fork(bitcoin(9), bitcoin(3), pending(BOB)),
        pending(BOB),
        append(b"z") + bitcoin(1),
        pending(ALICE),
        append(b"a") + bitcoin(2),
    )
    proof = parse_ots(file_of(DIGEST, tree))
    assert [found.height for found in proof.bitcoin] == [1, 2, 3, 9]
    assert len(proof.pending) == 3
    with pytest.raises(BadTimestamp, match="does not come back"):
        parse_ots(file_of(DIGEST, tree), own=True)


@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 300, b"\xff" * 8192])
def test_unknown_attestations_are_kept(payload: bytes) -> None:
    strange = ATTESTATION + b"strange!" + varbytes(payload)
    ots = merge_submission(None, DIGEST, NONCE, fork(strange, pending(ALICE)))  # in order of their tags
    assert parse_ots(ots).unknown == 1
    assert strange in merge_upgrade(ots, MESSAGE, bitcoin(5))


def test_reverse_is_read_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert parse_ots(file_of(DIGEST, REVERSE + bitcoin(5))).bitcoin[0].message == DIGEST[::-1]
    assert not seen


@pytest.mark.parametrize("seed", range(300))
def test_whatever_the_library_builds_is_read_alike(seed: int) -> None:
    rng = Random(seed)
    own = rng.random() < 0.5
    file = (
        detached(DIGEST)
        if own
        else rng.choice([detached(DIGEST), detached(b"s" * 20, OpSHA1()), detached(b"r" * 20, OpRIPEMD160())])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        grow(file.timestamp, rng, own=own)
        data = written(file)
        pairs = list(DetachedTimestampFile.deserialize(BytesDeserializationContext(data)).timestamp.all_attestations())
    proof = parse_ots(data, own=own)
    assert len(pairs) == len(proof.pending) + len(proof.bitcoin) + proof.unknown
    assert sorted((a.height, m) for m, a in pairs if isinstance(a, BitcoinBlockHeaderAttestation)) == [
        (found.height, found.message) for found in proof.bitcoin
    ]
    assert sorted((a.uri, m) for m, a in pairs if isinstance(a, PendingAttestation)) == [
        (found.uri, found.commitment) for found in proof.pending
    ]


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_bounds_are_exact() -> None:
    assert parse_ots(file_of(DIGEST, SHA256 * (MAX_DEPTH - 1) + bitcoin(1)), own=True)
    with pytest.raises(BadTimestamp, match="deeper than"):
        parse_ots(file_of(DIGEST, SHA256 * MAX_DEPTH + bitcoin(1)))
    branches = [append(bytes([at])) + SHA256 * 99 + bitcoin(1) for at in range(10)]
    assert parse_ots(
        file_of(DIGEST, fork(*branches[:9], append(b"\x09") + SHA256 * 98 + bitcoin(1)))
    )  # 1 + 9 * 100 + 99 nodes
    with pytest.raises(BadTimestamp, match=f"more than {MAX_NODES} nodes"):
        parse_ots(file_of(DIGEST, fork(*branches)))
    assert reply_attestations(MESSAGE, fork(*branches[:4], append(b"\x09") + SHA256 * 98 + bitcoin(1)))
    with pytest.raises(BadTimestamp, match=f"more than {scan.MAX_REPLY_NODES} nodes"):
        reply_attestations(MESSAGE, fork(*branches[:5]))
    heights = [bitcoin(height) for height in range(scan.MAX_ATTESTATIONS + 1)]
    assert len(parse_ots(file_of(DIGEST, fork(*heights[:-1]))).bitcoin) == scan.MAX_ATTESTATIONS
    with pytest.raises(BadTimestamp, match="attestations"):
        parse_ots(file_of(DIGEST, fork(*heights)))
    assert parse_ots(file_of(DIGEST, bitcoin(scan.MAX_HEIGHT - 1))).bitcoin[0].height == scan.MAX_HEIGHT - 1


def _padded(size: int) -> bytes:
    """A good file of exactly `size` bytes, most of them unknown attestations."""

    def attestation(at: int, payload: int) -> bytes:
        return ATTESTATION + b"\xff" + at.to_bytes(7, "big") + varbytes(bytes(payload))

    items = [attestation(at, 8000) for at in range(8)]
    rest = size - len(file_of(DIGEST, fork(*items, attestation(9, 1000))))
    return file_of(DIGEST, fork(*items, attestation(9, 1000 + rest)))


def test_size_of_files_and_replies() -> None:
    assert parse_ots(_padded(65_536), own=True).unknown == 9
    with pytest.raises(BadTimestamp, match="at most 65536 bytes"):
        parse_ots(_padded(65_537))
    strange = ATTESTATION + b"\x01strange"
    large = strange + varbytes(bytes(8000))
    reply = fork(large, strange + varbytes(b"\x01" * (10_000 - len(large) - len(strange) - 3)))
    assert len(reply) == 10_000
    assert reply_attestations(MESSAGE, reply).unknown == 2
    with pytest.raises(BadTimestamp, match="at most 10000 bytes"):
        reply_attestations(MESSAGE, reply + b"x")


def test_messages_may_not_expand() -> None:
    """Nine kilobytes of three-byte operations would be nine megabytes of messages."""
    big = append(bytes(3_900))
    assert parse_ots(file_of(DIGEST, big + append(b"a") * 160 + pending(ALICE)))
    with pytest.raises(BadTimestamp, match="a message of 4097 bytes"):
        parse_ots(file_of(DIGEST, append(bytes(4_065)) + pending(ALICE)))
    with pytest.raises(BadTimestamp, match="a message of"):
        parse_ots(file_of(DIGEST, append(bytes(2_017)) + HEXLIFY + pending(ALICE)))
    assert parse_ots(file_of(DIGEST, append(bytes(2_016)) + HEXLIFY + pending(ALICE)))
    with pytest.raises(BadTimestamp, match="messages of the proof"):
        parse_ots(file_of(DIGEST, big + fork(*(append(bytes([at])) + append(b"b") + bitcoin(1) for at in range(140)))))


TREES: dict[str, bytes] = {
    "nothing": b"",
    "no attestation": SHA256,
    "cut": pending(ALICE)[:-1],
    "cut tag": ATTESTATION + PENDING_TAG[:5],
    "trailing": pending(ALICE) + b"\x00",
    "two items unmarked": pending(ALICE) + bitcoin(1),
    "mark without item": b"\xff",
    "double mark": b"\xff\xff" + pending(ALICE) + bitcoin(1),
    "unknown operation": b"\x09" + pending(ALICE),
    "empty argument": b"\xf0\x00" + pending(ALICE),
    "long argument": append(bytes(4097)) + pending(ALICE),
    "argument beyond the end": b"\xf0\x20abc",
    "varuint of six bytes": b"\xf0" + b"\x80" * 5 + b"\x01" + pending(ALICE),
    "varuint without end": b"\xf0" + b"\xff" * 9_000,
    "padded varuint": b"\xf0\x81\x00x" + pending(ALICE),
    "padded height": ATTESTATION + BITCOIN_TAG + b"\x02\x85\x00",
    "height too large": bitcoin(2**28),
    "height of 57,000 bits": bitcoin(2**57_000),
    "height with a tail": ATTESTATION + BITCOIN_TAG + varbytes(varuint(5) + b"x"),
    "no height": ATTESTATION + BITCOIN_TAG + b"\x00",
    "URI with a tail": ATTESTATION + PENDING_TAG + varbytes(varbytes(b"a") + b"b"),
    "URI too long": pending("a" * 1001),
    "URI with a question mark": pending("https://a.example/?x"),
    "URI with a space": pending("https://a.example/ x"),
    "payload too long": ATTESTATION + b"strange!" + varbytes(bytes(8193)),
    "operation twice": fork(append(b"x") + bitcoin(1), append(b"x") + bitcoin(2)),
    "operation twice, apart": fork(SHA256 + bitcoin(1), append(b"x") + bitcoin(1), SHA256 + bitcoin(2)),
    "attestation twice": fork(bitcoin(1), bitcoin(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_refused_trees(name: str) -> None:
    for refused in (
        lambda: parse_ots(file_of(DIGEST, TREES[name])),
        lambda: reply_attestations(MESSAGE, TREES[name]),
        lambda: merge_submission(None, DIGEST, NONCE, TREES[name]),
        lambda: merge_upgrade(merge_submission(None, DIGEST, NONCE, pending(ALICE)), MESSAGE, TREES[name]),
    ):
        with pytest.raises(BadTimestamp):
            refused()


GOOD = file_of(DIGEST, pending(ALICE))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:31],
        b"\x01" + GOOD[1:],
        GOOD.replace(MAGIC, MAGIC[:-1] + b"\x02"),
        GOOD.replace(MAGIC, MAGIC[:-1] + b"\x81\x00"),
        file_of(DIGEST, pending(ALICE), b"\x67"),
        file_of(DIGEST, pending(ALICE), b"\xf0"),
        file_of(DIGEST[:20], pending(ALICE)),
    ],
)
def test_refused_files(data: bytes) -> None:
    with pytest.raises(BadTimestamp):
        parse_ots(data)


def test_every_cut_and_every_tail_is_refused() -> None:
    data = merge_upgrade(
        first(), reply_attestations(MESSAGE, reply_of(ALICE)).pending[0].commitment, SHA256 + bitcoin(5)
    )
    for end in range(len(data)):
        with pytest.raises(BadTimestamp):
            parse_ots(data[:end])
    with pytest.raises(BadTimestamp, match="bytes follow"):
        parse_ots(data + b"\x00")


@pytest.mark.parametrize("op", [SHA1, RIPEMD160, KECCAK, REVERSE, HEXLIFY])
def test_our_own_proofs_and_replies_use_sha256_alone(op: bytes) -> None:
    assert parse_ots(file_of(DIGEST, op + bitcoin(1)))
    for refused in (
        lambda: parse_ots(file_of(DIGEST, op + bitcoin(1)), own=True),
        lambda: reply_attestations(MESSAGE, op + bitcoin(1)),
    ):
        with pytest.raises(BadTimestamp, match="not allowed here"):
            refused()
    with pytest.raises(BadTimestamp, match="sha256 digest"):
        parse_ots(file_of(DIGEST[:20], pending(ALICE), SHA1), own=True)


@pytest.mark.parametrize("fault", sorted(set(BODY_FAULTS) - {"lie", "future", "wide", "empty"}))
def test_bodies_of_faulty_calendars(fault: str) -> None:
    good = prepend(b"time") + append(b"macmacma") + SHA256 + bitcoin(1)
    reply_attestations(MESSAGE, good)
    with pytest.raises(BadTimestamp):
        reply_attestations(MESSAGE, BODY_FAULTS[fault](good, Chain(1)))


@pytest.mark.parametrize("at", range(len(COSTLY_FILES)))
def test_the_costliest_proofs_stay_within_50_ms_and_64_megabytes(at: int) -> None:
    data = COSTLY_FILES[at]
    tracemalloc.start()
    try:
        parse_ots(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64_000_000
    spent = []
    for _ in range(3):  # the best of three: a busy machine is not the proof's fault
        start = time.thread_time()
        parse_ots(data)
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.05


# --- merging ------------------------------------------------------------------------------------------------------------


def test_what_is_posted_is_the_nonce_step_of_the_stock_client() -> None:
    file = detached(DIGEST)
    assert file.timestamp.ops.add(OpAppend(NONCE)).ops.add(OpSHA256()).msg == MESSAGE
    for digest, nonce in ((DIGEST[1:], NONCE), (DIGEST, NONCE[1:]), (DIGEST, b"")):
        with pytest.raises(BadTimestamp):
            submission(digest, nonce)
        with pytest.raises(BadTimestamp):
            merge_submission(None, digest, nonce, pending(ALICE))


def test_replies_of_all_calendars_end_up_in_one_proof_in_any_order() -> None:
    one = merge_submission(first(ALICE), DIGEST, NONCE, reply_of(BOB, b"n"))
    other = merge_submission(first(BOB).replace(b"\x01m", b"\x01n"), DIGEST, NONCE, reply_of(ALICE))
    assert one == other
    assert merge_submission(one, DIGEST, NONCE, reply_of(BOB, b"n")) == one
    assert {found.uri for found in parse_ots(one, own=True).pending} == {ALICE, BOB}


def test_an_upgrade_keeps_the_pending_attestation() -> None:
    ots = merge_submission(first(ALICE), DIGEST, NONCE, reply_of(BOB, b"n"))
    before = parse_ots(ots)
    commitment = next(found.commitment for found in before.pending if found.uri == BOB)
    reply = append(b"path") + SHA256 + bitcoin(912_095)
    after = parse_ots(merge_upgrade(ots, commitment, reply), own=True)
    assert after.pending == before.pending
    assert after.bitcoin == reply_attestations(commitment, reply).bitcoin
    assert after.bitcoin == (BitcoinAttestation(912_095, sha256(commitment + b"path").digest()),)


def test_an_upgrade_needs_its_commitment() -> None:
    for commitment in (MESSAGE, DIGEST, b"", b"x" * 44):
        with pytest.raises(BadTimestamp):
            merge_upgrade(first(), commitment, bitcoin(1))


def test_a_proof_of_another_digest_is_not_merged_into() -> None:
    with pytest.raises(BadTimestamp, match="another digest"):
        merge_submission(first(), sha256(b"other").digest(), NONCE, reply_of(BOB))


def test_two_proofs_within_the_bounds_may_be_beyond_them_together() -> None:
    deep = SHA256 * 150 + pending(ALICE)
    ots = merge_submission(None, DIGEST, NONCE, deep)
    commitment = parse_ots(ots).pending[0].commitment
    assert reply_attestations(commitment, deep)
    with pytest.raises(BadTimestamp, match="deeper than"):
        merge_upgrade(ots, commitment, deep)


@pytest.mark.parametrize("seed", range(60))
def test_merging_loses_nothing(seed: int) -> None:
    rng = Random(seed)
    trees = []
    for _ in range(2):
        tree = Timestamp(MESSAGE)
        grow(tree, rng, own=True)
        trees.append(written(tree))
    one = merge_submission(merge_submission(None, DIGEST, NONCE, trees[0]), DIGEST, NONCE, trees[1])
    assert one == merge_submission(merge_submission(None, DIGEST, NONCE, trees[1]), DIGEST, NONCE, trees[0])
    merged = parse_ots(one, own=True)
    for tree in trees:
        found = reply_attestations(MESSAGE, tree)
        assert set(found.bitcoin) <= set(merged.bitcoin)
        assert set(found.pending) <= set(merged.pending)
        for promise in found.pending:
            assert set(merged.pending) <= set(parse_ots(merge_upgrade(one, promise.commitment, bitcoin(77))).pending)


# --- calendar URIs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("https://alice.btc.calendar.opentimestamps.org", "https://alice.btc.calendar.opentimestamps.org"),
        ("https://alice.btc.calendar.opentimestamps.org/", "https://alice.btc.calendar.opentimestamps.org"),
        ("https://a.example:443/", "https://a.example"),
        ("https://a.example:8443/cal/x/", "https://a.example:8443/cal/x"),
        ("http://127.0.0.1:14788/", "http://127.0.0.1:14788"),
        ("http://localhost:80", "http://localhost"),
    ],
)  # fmt: skip
def test_one_spelling_of_a_calendar(uri: str, origin: str) -> None:
    assert origin_of(uri) == origin == origin_of(origin)


def _refused(uri: str) -> bool:
    try:
        origin_of(uri)
    except BadTimestamp:
        return True
    return False


@pytest.mark.parametrize(
    "uri",
    [
        "", "https://", "https:///x", "http://a.example", "HTTPS://a.example", "https://A.example", "ftp://a.example", "file:///etc/passwd",
        "//a.example", "https://u@a.example", "https://u:p@a.example", "https://a.example?x", "https://a.example#x", "https://a.example/%2e",
        "https://a.example//", "https://a.example/x//y", "https://a.example/../x", "https://a.example/./x", "https://a.example/x/..",
        "https://a.example:0", "https://a.example:0443", "https://a.example:65536", "https://a.example:", "https://[::1]", "https://a..example",
        "https://-a.example", "https://a.example.", "https://evil.com:443.calendar.opentimestamps.org", "http://127.0.0.1.evil.example",
        "http://169.254.169.254/x", "http://0.0.0.0", "https://a.example\n", " https://a.example", "https://a.example/ü", "https://" + "a" * 1000,
    ],
)  # fmt: skip
def test_everything_else_is_no_calendar(uri: str) -> None:
    assert _refused(uri)


def test_uris_that_nobody_may_contact_match_no_calendar() -> None:
    calendars = {"https://alice.btc.calendar.opentimestamps.org", "http://127.0.0.1:14788"}
    assert not any(origin_of(uri) in calendars for uri in SSRF_URIS if not _refused(uri))
