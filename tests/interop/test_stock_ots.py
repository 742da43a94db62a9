"""The stock `ots` command stamps, upgrades and verifies against our calendars and node: they speak the real protocol.

It runs on this Python and on the newest other one found here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bitcoin.calendar import Calendar, confirm
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Node
from tests.bitcoin.stock import newest, run_ots


class StockOts:
    """Two calendars, a node, and the client that uses them."""

    def __init__(self, interpreter: str, chain: Chain, node: Node, calendars: list[Calendar]) -> None:
        self.interpreter, self.chain, self.node, self.calendars = interpreter, chain, node, calendars

    def ots(self, *words: object) -> tuple[int, str]:
        """Run one command; return its exit code and all it printed."""
        allowed = [word for calendar in self.calendars for word in ("-l", calendar.url)]
        node = ("--btc-regtest", "--bitcoin-node", self.node.url)
        done = run_ots(self.interpreter, "--no-cache", *node, *allowed, *words)
        return done.returncode, done.stdout + done.stderr

    def stamp(self, file: Path, at_least: int = 2) -> tuple[int, str]:
        urls = [word for calendar in self.calendars for word in ("-c", calendar.url)]
        return self.ots("stamp", *urls, "-m", at_least, "--timeout", 5, file)


@pytest.fixture
def world() -> Iterator[StockOts]:
    chain = Chain(10)
    with Node(chain) as node, Calendar(chain) as one, Calendar(chain, confirmations=3) as two:
        yield StockOts(sys.executable, chain, node, [one, two])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    target.write_text("example.com/log\n1000\n")
    return target


def proof(file: Path) -> Path:
    return file.with_name(f"{file.name}.ots")


@pytest.mark.parametrize("python", ["this", "newest"])
def test_stamp_upgrade_verify(world: StockOts, file: Path, python: str) -> None:
    if python == "newest":
        if newest() is None:
            pytest.skip(
                f"no Python newer than 3.{sys.version_info.minor} here can run the client (MUNIMENT_TEST_PYTHON)"
            )
        world.interpreter = newest() or ""
    code, said = world.stamp(file)
    assert code == 0, said
    code, said = world.ots("upgrade", proof(file))
    assert code == 1
    assert said.count("Pending confirmation in Bitcoin blockchain") == 2
    block = confirm(world.chain, world.calendars, depth=1)
    code, said = world.ots("upgrade", proof(file))
    assert code == 0, said
    assert "Got 1 attestation(s)" in said
    assert "waiting for 2 confirmations" in said
    world.chain.mine(2)
    code, said = world.ots("verify", proof(file))
    assert code == 0, said
    assert f"Success! Bitcoin block {block.height} attests existence" in said
    code, said = world.ots("info", proof(file))
    assert code == 0
    assert f"BitcoinBlockHeaderAttestation({block.height})" in said
    assert block.root[::-1].hex() in said


def test_a_changed_file_and_a_cut_proof_fail(world: StockOts, file: Path) -> None:
    assert world.stamp(file)[0] == 0
    confirm(world.chain, world.calendars)
    assert world.ots("upgrade", proof(file))[0] == 0
    content = file.read_text()
    file.write_text(content + "x")
    code, said = world.ots("verify", proof(file))
    assert code == 1
    assert "File does not match original!" in said
    file.write_text(content)
    assert world.ots("verify", proof(file))[0] == 0
    proof(file).write_bytes(proof(file).read_bytes()[:-1])
    assert world.ots("verify", proof(file))[0] == 1


def test_a_reorganisation_and_a_lie_do_not_verify(world: StockOts, file: Path) -> None:
    assert world.stamp(file)[0] == 0
    confirm(world.chain, world.calendars[:1], depth=2)
    assert world.ots("upgrade", proof(file))[0] == 0
    world.chain.reorg(3)
    code, said = world.ots("verify", proof(file))
    assert code == 1
    assert "Bitcoin verification failed" in said

    other = file.with_name("other")
    other.write_text("another checkpoint")
    assert world.stamp(other)[0] == 0
    world.calendars[1].fault = "lie"
    assert world.ots("upgrade", proof(other))[0] == 0, "the stock client believes an attestation it has not checked"
    code, said = world.ots("verify", proof(other))
    assert code == 1
    assert "Bitcoin verification failed" in said
