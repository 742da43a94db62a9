"""The stock OpenTimestamps client: what it makes we verify, what we make it verifies, what we accept it can print.

The calendars, the node and the chain run here; the client is the published one, in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from hashlib import new, sha256
from pathlib import Path
from random import Random

import pytest

from muniment.anchor.check import check_anchor, check_file
from muniment.anchor.proof import merge_submission, merge_upgrade, parse_ots, submission
from muniment.errors import AnchorMismatch, BadTimestamp
from tests.bitcoin.calendar import SHA256, Calendar, append, bitcoin, confirm, pending
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Node
from tests.fuzz.anchor_targets import info
from tests.live import PATIENCE
from tests.unit.anchors import NONCE, ChainSource, to_block
from tests.unit.ots import detached, file_of, fork, grow, written
from tests.unit.samples import event_log

OTS = Path(sys.executable).with_name("ots")
NOTE = event_log().checkpoint(5).encode()


class OtsNetwork:
    """A chain, its node, two calendars, and the stock client among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = Chain(3)
        self.source = ChainSource(self.chain)
        self.node = Node(self.chain)
        self.calendars = [Calendar(self.chain), Calendar(self.chain)]

    def close(self) -> None:
        for server in (self.node, *self.calendars):
            server.stop()

    def ots(self, *words: str) -> subprocess.CompletedProcess[str]:
        allowed = [word for calendar in self.calendars for word in ("-l", calendar.url)]
        command = [
            str(OTS),
            "--no-cache",
            "--no-default-whitelist",
            "--btc-regtest",
            "--bitcoin-node",
            self.node.url,
            *allowed,
            *words,
        ]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def stamp(self, *names: str) -> None:
        urls = [word for calendar in self.calendars for word in ("-c", calendar.url)]
        done = self.ots("stamp", *urls, "-m", "2", *names)
        assert done.returncode == 0, done.stderr

    def confirm(self, depth: int = 6) -> None:
        confirm(self.chain, self.calendars, depth)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[OtsNetwork]:
    if not OTS.exists():
        pytest.skip("the stock client (opentimestamps-client) is not installed beside this Python")
    made = OtsNetwork(tmp_path)
    yield made
    made.close()


def test_what_the_stock_client_stamps_and_upgrades_we_verify(world: OtsNetwork) -> None:
    (world.folder / "cp").write_bytes(NOTE)
    (world.folder / "other").write_bytes(b"another file in the same stamp")
    world.stamp("cp", "other")
    ots = world.folder / "cp.ots"
    before = parse_ots(ots.read_bytes())
    assert len(before.pending) == 2
    assert check_anchor(NOTE, ots.read_bytes(), world.source).state == "pending"
    world.confirm()
    assert world.ots("upgrade", "cp.ots").returncode == 0
    check = check_anchor(NOTE, ots.read_bytes(), world.source)
    assert (check.state, check.mismatches, check.weak) == ("confirmed", (), ())
    with pytest.raises(AnchorMismatch):
        check_anchor(NOTE + b"x", ots.read_bytes(), world.source)


def test_what_we_make_the_stock_client_verifies(world: OtsNetwork) -> None:
    digest = sha256(NOTE).digest()
    path, block = to_block(world.chain, submission(digest, NONCE))
    early = merge_submission(None, digest, NONCE, append(b"c") + SHA256 + pending(world.calendars[0].url))
    world.chain.mine(5)
    (world.folder / "cp").write_bytes(NOTE)
    for ots in (merge_submission(None, digest, NONCE, path), merge_submission(early, digest, NONCE, path)):
        (world.folder / "cp.ots").write_bytes(ots)
        done = world.ots("verify", "cp.ots")
        assert done.returncode == 0, done.stderr
        assert f"Bitcoin block {block.height} attests existence" in done.stderr
        shown = world.ots("info", "cp.ots")
        assert shown.returncode == 0
        assert digest.hex() in shown.stdout
    (world.folder / "cp").write_bytes(NOTE + b"x")
    assert world.ots("verify", "cp.ots").returncode == 1


def test_an_upgrade_by_us_of_a_stamp_by_the_stock_client(world: OtsNetwork) -> None:
    (world.folder / "cp").write_bytes(NOTE)
    world.stamp("cp")
    ots = (world.folder / "cp.ots").read_bytes()
    world.confirm()
    for promise in parse_ots(ots, own=True).pending:
        calendar = next(one for one in world.calendars if one.url == promise.uri)
        ots = merge_upgrade(ots, promise.commitment, calendar._state(promise.commitment).body)
    assert len(parse_ots(ots, own=True).bitcoin) == 2
    (world.folder / "cp.ots").write_bytes(ots)
    assert world.ots("verify", "cp.ots").returncode == 0
    assert check_anchor(NOTE, ots, world.source).state == "confirmed"


@pytest.mark.parametrize(("tag", "name"), [(b"\x02", "sha1"), (b"\x03", "ripemd160")])
def test_old_proofs_of_weak_digests_in_any_order_verify_alike(tag: bytes, name: str, world: OtsNetwork) -> None:
    """As old clients wrote them: a short file digest, and operations before attestations."""
    data = b"a file of 2016"
    digest = new(name, data, usedforsecurity=False).digest()
    path, block = to_block(world.chain, sha256(digest + b"n").digest())
    world.chain.mine(5)
    ots = file_of(
        digest,
        fork(
            append(b"n") + SHA256 + path,
            append(b"a") + SHA256 + pending("https://b.example"),
            pending("https://a.example"),
        ),
        tag,
    )
    (world.folder / "old").write_bytes(data)
    (world.folder / "old.ots").write_bytes(ots)
    done = world.ots("verify", "old.ots")
    assert done.returncode == 0, done.stderr
    with (world.folder / "old").open("rb") as file:
        check = check_file(file, ots, world.source)
    assert (check.state, check.weak) == ("confirmed", (name,))
    assert check.found is not None
    assert check.found.height == block.height
    assert f"by way of {name}, which is weak" in check.claim


def test_a_false_attestation_beside_a_true_one(world: OtsNetwork) -> None:
    """The stock client takes the first that holds, and so do we; only false ones: both refuse."""
    digest = sha256(NOTE).digest()
    path, _ = to_block(world.chain, submission(digest, NONCE))
    world.chain.mine(5)
    lie = merge_submission(None, digest, NONCE, append(b"lie") + SHA256 + bitcoin(1))
    (world.folder / "cp").write_bytes(NOTE)
    for ots, code, state in ((lie, 1, "mismatch"), (merge_submission(lie, digest, NONCE, path), 0, "confirmed")):
        (world.folder / "cp.ots").write_bytes(ots)
        assert world.ots("verify", "cp.ots").returncode == code
        assert check_anchor(NOTE, ots, world.source).state == state


def test_what_we_accept_the_stock_client_prints() -> None:
    printed = 0
    for seed in range(150):
        file = detached(sha256(NOTE).digest())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            grow(file.timestamp, Random(seed), own=seed % 2 == 0)
            data = bytearray(written(file))
        rng = Random(seed)
        for _ in range(6):
            try:
                proof = parse_ots(bytes(data))
            except BadTimestamp:
                pass
            else:
                assert proof.digest.hex() in info(bytes(data))
                printed += 1
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    assert printed > 150


DIGEST = bytes(32)
DIFFERENCES = {
    "depth 200": SHA256 * 200 + bitcoin(1),
    "nodes": fork(*(append(bytes([at])) + SHA256 * 190 + bitcoin(1) for at in range(6))),
    "attestations": fork(*(bitcoin(at) for at in range(501))),
    "message bytes": append(bytes(3_900))
    + fork(*(append(bytes([at])) + append(b"b") + bitcoin(1) for at in range(140))),
    "padded number": b"\xf0\x81\x00x" + bitcoin(1),
    "large height": bitcoin(2**28),
    "operation twice": fork(append(b"x") + bitcoin(1), append(b"x") + bitcoin(2)),
    "attestation twice": fork(bitcoin(1), bitcoin(1)),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_are_those_of_the_specification(name: str) -> None:
    """docs/spec/anchor.md section 3: accepted there, refused here."""
    data = file_of(DIGEST, DIFFERENCES[name])
    assert DIGEST.hex() in info(data)
    with pytest.raises(BadTimestamp):
        parse_ots(data)


def test_a_keccak_file_hash_is_read_by_the_library_and_breaks_the_client() -> None:
    data = file_of(DIGEST, bitcoin(1), b"\x67")
    with pytest.raises(AttributeError):
        info(data)
    with pytest.raises(BadTimestamp):
        parse_ots(data)
