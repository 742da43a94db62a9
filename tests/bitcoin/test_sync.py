"""Syncing a header file: from every kind of source, resumed, over reorganisations, and against sources that cheat or fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from muniment.anchor import sync as sync_module
from muniment.anchor.chain import REGTEST
from muniment.anchor.explorers import ExplorerSource
from muniment.anchor.headerfile import HeaderFile
from muniment.anchor.node import RestNode, RpcNode
from muniment.anchor.sync import FileFeed, HeaderFeed, sync
from muniment.errors import BadHeaderChain, NoHeader, SourceUnavailable
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Explorer, Node


class ChainFeed:
    """A feed straight from a chain, in small batches; `fail_at` is the height it fails at."""

    name = "the chain"

    def __init__(self, chain: Chain, batch: int = 7, fail_at: int | None = None, error: type[BaseException] = SourceUnavailable) -> None:  # fmt: skip
        self.chain, self.batch, self.fail_at, self.error = chain, batch, fail_at, error
        self.asked: list[int] = []

    def tip(self) -> int:
        return self.chain.height

    def hash_at(self, height: int) -> bytes:
        block = self.chain.at(height)
        if block is None:
            raise NoHeader
        return block.hash

    def headers(self, start: int, count: int) -> bytes:
        if self.fail_at is not None and start >= self.fail_at:
            raise self.error("gone")
        self.asked.append(start)
        return self.chain.file[80 * start : 80 * (start + min(count, self.batch))]


@pytest.fixture
def file(tmp_path: Path) -> HeaderFile:
    return HeaderFile(tmp_path / "headers.bin", REGTEST)


@pytest.fixture(params=["rpc", "rest", "file", "explorers"])
def feed(request: pytest.FixtureRequest, chain: Chain, tmp_path: Path) -> Iterator[Callable[[], HeaderFeed]]:
    """Make the feed of a kind, on the chain as it is then."""
    with ExitStack() as stack:
        node = stack.enter_context(Node(chain))
        explorers = [stack.enter_context(Explorer(chain)).url for _ in range(3)]

        def make() -> HeaderFeed:
            source = tmp_path / "source.bin"
            source.write_bytes(chain.file)
            makers: dict[str, Callable[[], HeaderFeed]] = {
                "rpc": lambda: RpcNode(node.url, network=REGTEST),
                "rest": lambda: RestNode(node.rest, REGTEST),
                "file": lambda: FileFeed(source, REGTEST),
                "explorers": lambda: ExplorerSource(explorers, network=REGTEST),
            }
            return makers[request.param]()

        yield make


def test_from_nothing_then_on_then_over_a_fork(feed: Callable[[], HeaderFeed], file: HeaderFile, chain: Chain) -> None:
    done = sync(file, feed())
    assert (done.count, done.added, done.dropped, done.tip) == (31, 31, 0, chain.tip.hash)
    chain.mine(5)
    done = sync(file, feed())
    assert (done.count, done.added, done.dropped) == (36, 5, 0)
    assert sync(file, feed()) == sync_module.Synced(36, 0, 0, chain.tip.hash)
    chain.reorg(6, longer_by=2)
    done = sync(file, feed())
    assert (done.count, done.added, done.dropped, done.tip) == (38, 8, 6, chain.tip.hash)
    assert file.path.read_bytes() == chain.file


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 8, 29, 30])
def test_the_fork_is_found_at_every_depth(file: HeaderFile, chain: Chain, depth: int) -> None:
    sync(file, ChainFeed(chain))
    chain.reorg(depth)
    done = sync(file, ChainFeed(chain))
    assert (done.count, done.added, done.dropped) == (32, depth + 1, depth)
    assert file.path.read_bytes() == chain.file


@pytest.mark.parametrize(("depth", "longer_by"), [(3, 0), (5, -1), (30, -10), (1, 0)])
def test_a_fork_without_more_work_is_refused(file: HeaderFile, chain: Chain, depth: int, longer_by: int) -> None:
    sync(file, ChainFeed(chain))
    before = file.path.read_bytes()
    chain.reorg(depth, longer_by)
    with pytest.raises(BadHeaderChain, match="no more work"):
        sync(file, ChainFeed(chain))
    assert file.path.read_bytes() == before


def test_a_source_that_is_behind_changes_nothing(file: HeaderFile, chain: Chain) -> None:
    sync(file, ChainFeed(chain))
    behind = Chain(0)
    behind.blocks = chain.blocks[:20]
    assert sync(file, ChainFeed(behind)).added == 0
    assert file.path.read_bytes() == chain.file


def test_another_network_is_refused(file: HeaderFile, chain: Chain) -> None:
    sync(file, ChainFeed(chain))
    other = Chain(40)
    other.blocks[0] = other.blocks[1]
    with pytest.raises(BadHeaderChain, match="another network"):
        sync(file, ChainFeed(other))


@pytest.mark.parametrize("error", [SourceUnavailable, KeyboardInterrupt])
def test_an_interrupted_sync_goes_on_where_it_was(file: HeaderFile, chain: Chain, error: type[BaseException]) -> None:
    chain.mine(70)
    with pytest.raises(error):
        sync(file, ChainFeed(chain, fail_at=50, error=error))
    assert HeaderFile(file.path, REGTEST).chain.count == 56
    feed = ChainFeed(chain)
    assert sync(file, feed).added == 45
    assert feed.asked[0] == 56
    assert file.path.read_bytes() == chain.file


def test_an_interrupted_fork_leaves_the_old_chain(file: HeaderFile, chain: Chain) -> None:
    sync(file, ChainFeed(chain))
    before = file.path.read_bytes()
    chain.reorg(20, longer_by=5)
    with pytest.raises(SourceUnavailable):
        sync(file, ChainFeed(chain, fail_at=25))
    assert file.path.read_bytes() == before


def test_long_syncs_are_saved_now_and_then(file: HeaderFile, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "SAVE", 10)
    chain.mine(69)
    saved = []
    sync(file, ChainFeed(chain), lambda _: saved.append(file.path.stat().st_size // 80 if file.path.exists() else 0))
    assert saved == [0, 0, 14, 14, 28, 28, 42, 42, 56, 56, 70, 70, 84, 84, 98]
    assert file.path.read_bytes() == chain.file


def test_a_lying_source_adds_nothing_bad(file: HeaderFile, chain: Chain) -> None:
    class Liar(ChainFeed):
        def headers(self, start: int, count: int) -> bytes:
            raw = bytearray(super().headers(start, count))
            raw[40] ^= start == 28
            return bytes(raw)

    with pytest.raises(
        BadHeaderChain, match=r"header 2[89] "
    ):  # half of all changed headers have enough work by chance
        sync(file, Liar(chain))
    assert not file.path.exists()


@pytest.mark.parametrize("given", [b"", bytes(79), bytes(81), bytes(80 * 40)])
def test_a_source_that_gives_no_headers(file: HeaderFile, chain: Chain, given: bytes) -> None:
    feed = ChainFeed(chain)
    feed.headers = lambda *_: given  # type: ignore[method-assign]
    with pytest.raises(SourceUnavailable, match="has no header 0"):
        sync(file, feed)


def test_more_than_one_batch_of_a_node(file: HeaderFile, tmp_path: Path) -> None:
    """REST gives 2,000 headers at a time, RPC 500."""
    chain = Chain(2100)
    with Node(chain) as node:
        assert sync(file, RestNode(node.rest, REGTEST)).added == 2101
        other = HeaderFile(tmp_path / "other.bin", REGTEST)
        assert sync(other, RpcNode(node.url, network=REGTEST)).added == 2101
    assert file.path.read_bytes() == other.path.read_bytes() == chain.file


def test_a_feed_needs_headers(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="no headers"):
        FileFeed(tmp_path / "none", REGTEST)
