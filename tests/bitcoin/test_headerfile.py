"""The header file on disk: growth, forks, crashes, and a file that changes under its reader."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from muniment.anchor.chain import REGTEST, Network
from muniment.anchor.headerfile import HeaderFile
from muniment.anchor.sources import FileSource
from muniment.errors import BadHeaderChain, NoHeader, SourceUnavailable
from tests.bitcoin.chain import Chain, sha256d
from tests.bitcoin.headers import grow, synthetic


@pytest.fixture
def path(tmp_path: Path, chain: Chain) -> Path:
    target = tmp_path / "headers.bin"
    target.write_bytes(chain.file)
    return target


def beside(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir()} - {path.name, f"{path.name}.lock"}


def test_a_file_is_headers_and_nothing_else(path: Path, chain: Chain) -> None:
    file = HeaderFile(path, REGTEST)
    assert file.chain.count == 31
    assert [file.header(height).raw for height in range(31)] == [block.raw for block in chain.blocks]
    for height in (-1, 31):
        with pytest.raises(NoHeader):
            file.header(height)


def test_no_file_is_a_chain_without_headers(tmp_path: Path) -> None:
    file = HeaderFile(tmp_path / "none", REGTEST)
    assert file.chain.count == 0
    with pytest.raises(NoHeader):
        file.header(0)
    with pytest.raises(SourceUnavailable, match="no headers"):
        FileSource(tmp_path / "none", REGTEST)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="cannot read"):
        HeaderFile(tmp_path, REGTEST)


@pytest.mark.parametrize("cut", [1, 79, 81])
def test_a_file_that_was_cut_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(BadHeaderChain, match="whole number"):
        HeaderFile(path, REGTEST)


def test_growing(path: Path, chain: Chain) -> None:
    file = HeaderFile(path, REGTEST)
    chain.mine(5)
    assert file.replace(31, chain.file[31 * 80 :]).count == 36
    assert path.read_bytes() == chain.file
    assert HeaderFile(path, REGTEST).chain == file.chain
    assert not beside(path)


def test_a_new_file_is_made(tmp_path: Path, chain: Chain) -> None:
    path = tmp_path / "new" / "headers.bin"
    HeaderFile(path, REGTEST).replace(0, chain.file)
    assert path.read_bytes() == chain.file


def test_bad_headers_change_nothing(path: Path, chain: Chain) -> None:
    file = HeaderFile(path, REGTEST)
    before = path.read_bytes()
    chain.mine(3)
    bad = bytearray(chain.file[31 * 80 :])
    bad[100] ^= 1
    with pytest.raises(BadHeaderChain, match="header 32 "):
        file.replace(31, bytes(bad))
    assert path.read_bytes() == before
    assert file.chain.count == 31
    assert not beside(path)


@pytest.mark.parametrize(("depth", "longer_by", "wins"), [(3, 1, True), (3, 0, False), (30, 1, True), (5, -2, False)])
def test_a_fork_needs_more_work(path: Path, chain: Chain, depth: int, longer_by: int, wins: bool) -> None:
    file = HeaderFile(path, REGTEST)
    before = path.read_bytes()
    chain.reorg(depth, longer_by)
    keep = 31 - depth
    if wins:
        assert file.replace(keep, chain.file[keep * 80 :]).count == 31 + longer_by
        assert path.read_bytes() == chain.file
    else:
        with pytest.raises(BadHeaderChain, match="no more work"):
            file.replace(keep, chain.file[keep * 80 :])
        assert path.read_bytes() == before


def test_work_decides_and_not_length(tmp_path: Path) -> None:
    """A fork with fewer headers of a higher difficulty wins over a longer one."""
    network, made = synthetic(400, interval=20, pace=0.3, seed=5)
    stem = bytes(made[: 80 * 200])
    slow, fast = (_branch(network, stem, count, pace) for count, pace in ((150, 2.0), (120, 0.05)))
    path = tmp_path / "headers.bin"
    path.write_bytes(stem + slow)
    file = HeaderFile(path, network)
    assert file.replace(200, fast).count == 320
    with pytest.raises(BadHeaderChain, match="no more work"):
        file.replace(200, slow)
    assert path.read_bytes() == stem + fast


def _branch(network: Network, stem: bytes, count: int, pace: float) -> bytes:
    headers = grow(network, stem, random.Random(count), pace)
    return b"".join(next(headers) for _ in range(count))


def test_taking_headers_away_is_refused(path: Path) -> None:
    file = HeaderFile(path, REGTEST)
    for keep in (0, 30, 32, -1):
        with pytest.raises(BadHeaderChain):
            file.replace(keep, b"")
    assert file.replace(31, b"").count == 31


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    path: Path, chain: Chain, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = HeaderFile(path, REGTEST)
    before = path.read_bytes()
    chain.mine()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner = Path if failing == "replace" else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, full)
        with pytest.raises(SourceUnavailable, match="No space left"):
            file.replace(31, chain.file[31 * 80 :])
    assert path.read_bytes() == before
    assert not beside(path)
    assert file.replace(31, chain.file[31 * 80 :]).count == 32


def _die_while_writing(path: Path, data: bytes, at: str) -> None:
    owner = Path if at == "replace" else os
    setattr(owner, at, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    HeaderFile(path, REGTEST).replace(31, data)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_crash_leaves_a_valid_file(path: Path, chain: Chain, at: str) -> None:
    before = path.read_bytes()
    chain.mine(2)
    child = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(path, chain.file[2480:], at))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    child.close()
    assert path.read_bytes() == before
    file = HeaderFile(path, REGTEST)
    assert file.replace(31, chain.file[2480:]).count == 33
    assert not beside(path)


def test_two_writers_do_not_lose_each_others_headers(path: Path, chain: Chain) -> None:
    first, second = HeaderFile(path, REGTEST), HeaderFile(path, REGTEST)
    chain.mine(4)
    first.replace(31, chain.file[31 * 80 : 33 * 80])
    with pytest.raises(BadHeaderChain):
        second.replace(31, chain.file[31 * 80 : 32 * 80])  # it would take header 32 away
    assert second.replace(33, chain.file[33 * 80 :]).count == 35
    assert path.read_bytes() == chain.file


# --- as a source ----------------------------------------------------------------------------------------------------------


def test_the_source_says_what_it_is(path: Path, chain: Chain) -> None:
    source = FileSource(path, REGTEST)
    found = source.at(25)
    assert found.header.raw == chain.blocks[25].raw
    assert (found.height, found.depth, found.kind) == (25, 6, "chain")
    assert found.source == "header file headers.bin (31 headers, validated from genesis)"
    assert source.at(30).depth == 1
    with pytest.raises(NoHeader):
        source.at(31)


def test_the_source_follows_the_file(path: Path, chain: Chain) -> None:
    source = FileSource(path, REGTEST)
    chain.mine(3)
    HeaderFile(path, REGTEST).replace(31, chain.file[31 * 80 :])
    assert source.at(30).depth == 4
    dropped = chain.reorg(10)
    HeaderFile(path, REGTEST).replace(24, chain.file[24 * 80 :])
    found = source.at(30)
    assert found.header.raw == chain.blocks[30].raw != dropped[6].raw
    assert found.depth == 5


def test_a_file_that_goes_bad_is_unavailable_and_then_good_again(path: Path, chain: Chain) -> None:
    source = FileSource(path, REGTEST)
    good = path.read_bytes()
    for bad in (good[:-1], good + bytes(80), b"", good[:1760] + bytes(80) + good[1840:]):
        path.write_bytes(bad)
        with pytest.raises((SourceUnavailable, NoHeader)):
            source.at(20)
        path.write_bytes(good)
        os.utime(path, (1, 1))  # a clock too coarse to tell two writes apart is not what is tested
        assert source.at(20).header.raw == chain.blocks[20].raw
    path.unlink()
    with pytest.raises(SourceUnavailable):
        source.at(20)


def test_a_header_changed_in_place_is_never_given_out(path: Path, chain: Chain) -> None:
    """Even when size and time of the file do not show it: the links to what was checked do."""
    source = FileSource(path, REGTEST)
    stat = path.stat()
    other = Chain(30)
    with path.open("r+b") as file:
        file.seek(20 * 80)
        file.write(other.blocks[20].raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SourceUnavailable, match="damaged"):
        source.at(20)
    with pytest.raises(SourceUnavailable, match="damaged"):
        source.at(5)
    assert source.at(25).header.raw == chain.blocks[25].raw


def test_a_source_with_too_little_work_is_refused(path: Path, chain: Chain) -> None:
    wants = Network("regtest", 0x207FFFFF, REGTEST.pins, minimum_work=1000)
    with pytest.raises(BadHeaderChain, match="too little"):
        FileSource(path, wants)


def test_a_source_may_be_shared_between_threads(path: Path, chain: Chain) -> None:
    source, wrong = FileSource(path, REGTEST), []

    def look() -> None:
        for height in [*range(31)] * 5:
            found = source.at(height)
            if sha256d(found.header.raw) != chain.blocks[height].hash:
                wrong.append(height)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for count in range(31, 41):
        chain.mine()
        HeaderFile(path, REGTEST).replace(count, chain.file[count * 80 :])
    for thread in threads:
        thread.join()
    assert not wrong
    assert source.at(30).depth == 11
