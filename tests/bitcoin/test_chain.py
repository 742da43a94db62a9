"""The rules of the header chain, each broken on its own, on chains with real work."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from muniment.anchor.chain import MAIN, MILESTONE, NETWORKS, REGTEST, HeaderChain, Network, next_bits
from muniment.anchor.header import bits_of, target_of
from muniment.errors import BadHeaderChain
from tests.bitcoin.chain import Chain, sha256d, solve
from tests.bitcoin.headers import START, grow, synthetic, work

INTERVAL = 20


@pytest.fixture(scope="module")
def hard() -> tuple[Network, bytes]:
    """A chain of 1,000 headers whose difficulty changes every 20."""
    network, data = synthetic(1000, interval=INTERVAL, pace=0.1, seed=1)
    return network, bytes(data)


@pytest.fixture(scope="module")
def easy() -> tuple[Network, bytes]:
    """A chain of 20,000 headers of one difficulty."""
    network, data = synthetic(20_000, seed=2)
    return network, bytes(data)


def checked(network: Network, data: bytes, step: int = 4096) -> HeaderChain:
    chain = HeaderChain(network)
    for at in range(0, len(data), 80 * step):
        chain.extend(data[at : at + 80 * step])
    return chain


def with_tail(data: bytes, height: int, *, seconds: int | None = None, bits: int | None = None) -> bytes:
    """The first headers up to and with `height`, whose header gets another time or other bits, and its work done again."""
    raw = data[80 * height : 80 * height + 80]
    seconds = int.from_bytes(raw[68:72], "little") if seconds is None else seconds
    bits = int.from_bytes(raw[72:76], "little") if bits is None else bits
    return data[: 80 * height] + solve(raw[4:36], raw[36:68], seconds, bits)


def bits_at(data: bytes, height: int) -> int:
    return int.from_bytes(data[80 * height + 72 : 80 * height + 76], "little")


def time_at(data: bytes, height: int) -> int:
    return int.from_bytes(data[80 * height + 68 : 80 * height + 72], "little")


@pytest.mark.parametrize("step", [1, 7, 2016, 4096, 20_000])
def test_a_good_chain_holds_however_it_is_cut(easy: tuple[Network, bytes], step: int) -> None:
    network, data = easy
    chain = checked(network, data, step)
    assert chain.count == 20_000
    assert chain.work == work(data)
    assert chain.tip == sha256d(data[-80:])
    assert chain.milestones == [sha256d(data[80 * at - 80 : 80 * at]) for at in range(MILESTONE, 20_001, MILESTONE)]
    assert list(chain.times) == [time_at(data, at) for at in range(19_989, 20_000)]


def test_difficulty_follows_the_rules(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    chain = checked(network, data, 33)
    assert chain.work == work(data)
    levels = [bits_at(data, at) for at in range(0, 1000, INTERVAL)]
    assert len(set(levels)) > 40, "the difficulty really moves"
    assert min(map(target_of, levels)) * 4 < target_of(network.limit)


def test_every_flipped_bit_of_a_header_is_refused(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    for height in (0, 1, INTERVAL - 1, INTERVAL, 500, 998):
        before = checked(network, data[: 80 * height])
        for bit in range(640):
            flipped = bytearray(data[80 * height : 80 * height + 160])
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BadHeaderChain):
                before.copy().extend(bytes(flipped))


def test_an_error_names_the_height_and_changes_nothing(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    chain = checked(network, data[: 80 * 100])
    before = chain.copy()
    bad = bytearray(data[80 * 100 : 80 * 300])
    bad[80 * 50 + 40] ^= 1
    with pytest.raises(BadHeaderChain, match="header 150 "):
        chain.extend(bytes(bad))
    assert chain == before
    chain.extend(data[80 * 100 :])
    assert chain == checked(network, data)


def test_a_copy_goes_its_own_way(easy: tuple[Network, bytes]) -> None:
    network, data = easy
    chain = checked(network, data[: 80 * 3000])
    other = chain.copy()
    other.extend(data[80 * 3000 :])
    assert (chain.count, len(chain.milestones)) == (3000, 1)


@pytest.mark.parametrize("length", [1, 79, 81])
def test_headers_are_whole(length: int) -> None:
    with pytest.raises(BadHeaderChain, match="whole number"):
        HeaderChain(REGTEST).extend(bytes(length))


def test_a_missing_and_a_repeated_header_are_refused(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    with pytest.raises(BadHeaderChain, match="header 500 does not follow"):
        checked(network, data[: 80 * 500] + data[80 * 501 :])
    with pytest.raises(BadHeaderChain, match="header 501 does not follow"):
        checked(network, data[: 80 * 501] + data[80 * 500 :])


def test_work_is_checked_not_only_links(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    raw = bytearray(data[80 * 999 :])
    raw[76:] = next(
        nonce.to_bytes(4, "little")
        for nonce in range(1000)
        if int.from_bytes(sha256d(bytes(raw[:76]) + nonce.to_bytes(4, "little")), "little")
        > target_of(bits_at(data, 999))
    )
    with pytest.raises(BadHeaderChain, match=r"header 999 .* has not the work"):
        checked(network, data[: 80 * 999] + bytes(raw))


@pytest.mark.parametrize("height", [INTERVAL - 1, INTERVAL, INTERVAL + 1, 500])
def test_bits_must_be_those_of_the_rules(hard: tuple[Network, bytes], height: int) -> None:
    """Neither easier nor harder, not even by one: with all the work done for them."""
    network, data = hard
    right = bits_at(data, height)
    for wrong in (bits_of(target_of(right) * 2), right + 1, right - 1, network.limit):
        if wrong == right or wrong > network.limit:
            continue
        with pytest.raises(BadHeaderChain, match=f"header {height} has bits"):
            checked(network, with_tail(data, height, bits=wrong))
    checked(network, with_tail(data, height, bits=right))


@pytest.mark.parametrize(
    ("seconds", "factor"),
    [(1209600, 1), (302400, 0.25), (1, 0.25), (-5000, 0.25), (604800, 0.5), (2419200, 2), (4838400, 4), (10**9, 4)],
)
def test_difficulty_moves_at_most_by_four(seconds: int, factor: float) -> None:
    before = 0x1B0404CB
    expected = int(target_of(before) * int(factor * 4)) // 4
    assert next_bits(MAIN, before, seconds) == bits_of(expected)


def test_difficulty_never_falls_below_the_limit() -> None:
    assert next_bits(MAIN, MAIN.limit, 10**9) == MAIN.limit
    assert next_bits(MAIN, MAIN.limit, 1209600) == MAIN.limit


def test_a_real_change_of_difficulty() -> None:
    """The first one of Bitcoin, at block 32,256: times of blocks 30,240 and 32,255."""
    assert next_bits(MAIN, 0x1D00FFFF, 1262152739 - 1261130161) == 0x1D00D86A


def test_time_is_later_than_the_median_of_eleven(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    for height in (5, 11, 12, 400):
        before = sorted(time_at(data, at) for at in range(max(0, height - 11), height))
        median = before[len(before) // 2]
        checked(network, with_tail(data, height, seconds=median + 1))
        for late in (median, median - 1, 0):
            with pytest.raises(BadHeaderChain, match=f"header {height} is not later than the median"):
                checked(network, with_tail(data, height, seconds=late))


def test_times_may_go_back_a_little(easy: tuple[Network, bytes]) -> None:
    _, data = easy
    assert sum(time_at(data, at) < time_at(data, at - 1) for at in range(1, 5000)) > 500


def test_pins(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    pinned = replace(network, pins={**network.pins, 700: sha256d(data[80 * 700 : 80 * 701])})
    for step in (1, 700, 701, 4096):
        checked(pinned, data, step)
    checked(pinned, data[: 80 * 600])
    headers = bytearray(data[: 80 * 650])
    for raw in grow(network, data[: 80 * 650], random.Random(9), 0.1):
        headers += raw
        if len(headers) == 80 * 800:
            break
    checked(network, bytes(headers))
    for step in (1, 700, 701, 4096):
        with pytest.raises(BadHeaderChain, match="header 700 is"):
            checked(pinned, bytes(headers), step)


def test_genesis_is_pinned_for_real_networks() -> None:
    assert all(0 in network.pins for network in NETWORKS.values())
    other = solve(bytes(32), bytes(32), START)
    with pytest.raises(BadHeaderChain, match="header 0 is"):
        HeaderChain(REGTEST).extend(other)
    with pytest.raises(BadHeaderChain, match="header 0 has bits 207fffff; the difficulty rules say 1d00ffff"):
        HeaderChain(MAIN).extend(other)
    chain = Chain(30)
    assert checked(REGTEST, chain.file).tip == chain.tip.hash


def test_the_first_headers_of_mainnet() -> None:
    genesis = bytes.fromhex(
        "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e"
        "67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c"
    )
    chain = HeaderChain(MAIN)
    chain.extend(genesis)
    assert chain.work == 0x100010001
    with pytest.raises(BadHeaderChain, match="too little"):
        chain.require_work()


def test_a_chain_with_too_little_work_is_not_believed(hard: tuple[Network, bytes]) -> None:
    network, data = hard
    total = work(data)
    checked(replace(network, minimum_work=total), data).require_work()
    with pytest.raises(BadHeaderChain, match="too little"):
        checked(replace(network, minimum_work=total + 1), data).require_work()
    with pytest.raises(BadHeaderChain, match="too little"):
        HeaderChain(network).require_work()


@pytest.mark.parametrize("height", [0, 1, 2015, 2016, 4031, 4032, 4999])
def test_a_header_is_proven_by_links_to_a_remembered_hash(easy: tuple[Network, bytes], height: int) -> None:
    network, data = easy
    chain = checked(network, data[: 80 * 5000])
    stretch = data[80 * height : 80 * chain.stop_of(height)]
    assert chain.proven(height, stretch).raw == data[80 * height : 80 * height + 80]
    for at in (0, 40, len(stretch) - 1):
        changed = bytearray(stretch)
        changed[at] ^= 1
        with pytest.raises(BadHeaderChain, match="not those"):
            chain.proven(height, bytes(changed))
    for other in (stretch[80:], stretch + bytes(80), stretch[:-1], b""):
        with pytest.raises(BadHeaderChain, match="not those"):
            chain.proven(height, other)
