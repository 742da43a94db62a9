"""Block headers: two real ones, every bit of them, and the compact form of targets."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from muniment.anchor.chain import MAIN, REGTEST
from muniment.anchor.header import bits_of, parse_header, target_of, work_of
from muniment.errors import BadHeader
from tests.bitcoin.chain import GENESIS, Chain

BLOCK_358391 = bytes.fromhex(
    "02000000b96394585a281b7e5f438fd1c9ed492645a1fd61cb3802040000000000000000"
    "007ee445d23ad061af4a36b809501fab1ac4f2d7e7a739817dd0cbb7ec661b8a1e376755f58616186272def6"
)
BLOCK_428648 = bytes.fromhex(
    "000000208d4d8ed1a5fd3babdbc78d738384042b0ead38c1439b4f000000000000000000"
    "da18fe135a3bac24ea548961c6638c29d97f6258166bc9583c2e9fc8e9dd8c071baccf5708fb0418d71bd783"
)
REAL = {358391: BLOCK_358391, 428648: BLOCK_428648}


@pytest.mark.parametrize(
    ("height", "root", "time"),
    [
        (358391, "8a1b66ecb7cbd07d8139a7e7d7f2c41aab1f5009b8364aaf61d03ad245e47e00", 1432827678),
        (428648, "078cdde9c89f2e3c58c96b1658627fd9298c63c6618954ea24ac3b5a13fe18da", 1473227803),
    ],
)
def test_real_headers_meet_their_own_target(height: int, root: str, time: int) -> None:
    header = parse_header(REAL[height])
    assert header.merkle_root[::-1].hex() == root
    assert header.time == time
    assert int(header.block_hash, 16) <= target_of(header.bits) < 2**192
    assert header.hash[::-1].hex() == header.block_hash
    assert header.hash == MAIN.pins[height]
    assert header.raw == REAL[height]
    assert header.previous[::-1].hex().startswith("0" * 16)


def test_the_work_of_real_headers_is_that_of_their_days() -> None:
    assert 2**67 < parse_header(BLOCK_358391).work < 2**68
    assert 2**69 < parse_header(BLOCK_428648).work < 2**70


@pytest.mark.parametrize("raw", REAL.values())
def test_no_bit_of_a_real_header_can_be_flipped(raw: bytes) -> None:
    for bit in range(640):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            header = parse_header(bytes(flipped))
        except BadHeader:
            continue
        # Bits that ask for less work can make a bad hash good: the rules of the chain then refuse the bits.
        assert 72 * 8 <= bit < 76 * 8
        assert header.work < parse_header(raw).work


@pytest.mark.parametrize("length", [0, 79, 81, 160])
def test_a_header_has_80_bytes(length: int) -> None:
    with pytest.raises(BadHeader, match="80 bytes"):
        parse_header((BLOCK_358391 * 2)[:length])


@pytest.mark.parametrize(
    "bits",
    [
        0,
        0x1D000000,  # zero
        0x1D80FFFF,  # negative
        0x1D00007F,  # not the shortest form
        0x04000100,
        0x037FFFFF + 0x00800000,
        0x01000001,  # digits that length 1 cuts off
        0x21010000,  # 2**256
        0xFF7FFFFF,
        0x207FFFFF | 0x800000,
    ],
)
def test_bits_have_one_spelling(bits: int) -> None:
    with pytest.raises(BadHeader, match="bits"):
        target_of(bits)


@pytest.mark.parametrize(
    ("bits", "target"),
    [
        (0x1D00FFFF, 0xFFFF << 208),
        (0x207FFFFF, 0x7FFFFF << 232),
        (0x01010000, 1),
        (0x02008000, 0x80),
        (0x03123456, 0x123456),
        (0x04123456, 0x12345600),
        (0x05009234, 0x92340000),
    ],
)
def test_compact_form(bits: int, target: int) -> None:
    assert target_of(bits) == target
    assert bits_of(target) == bits


@hypothesis.given(st.integers(1, 2**256 - 1))
def test_compact_form_rounds_down_and_then_stays(target: int) -> None:
    rounded = target_of(bits_of(target))
    assert target - (target >> 15) - 1 <= rounded <= target
    assert bits_of(rounded) == bits_of(target)


def test_work_is_the_number_of_hashes() -> None:
    assert work_of(2**255) == 1
    assert work_of(2**256 - 1) == 1
    assert work_of(target_of(0x1D00FFFF)) == 0x100010001
    assert parse_header(GENESIS).work == 2


def test_mined_headers_parse() -> None:
    chain = Chain(3, clock=lambda: 1_800_000_000)
    for block in chain.blocks:
        header = parse_header(block.raw)
        assert (header.hash, header.merkle_root, header.time) == (block.hash, block.root, block.time)
    assert chain.blocks[0].hash == REGTEST.pins[0]
