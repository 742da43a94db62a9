"""Nodes and explorers as sources: what they say when all is well, and every way in which they may fail or lie."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from muniment.anchor import explorers as explorers_module
from muniment.anchor import node as node_module
from muniment.anchor._web import ask, origin_of
from muniment.anchor.chain import MAIN, REGTEST
from muniment.anchor.explorers import ExplorerSource
from muniment.anchor.node import RestNode, RpcNode
from muniment.anchor.sources import HeaderSource
from muniment.errors import FormatError, NoHeader, SourceUnavailable
from tests.bitcoin import node as faces
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Explorer, Node, RpcError
from tests.bitcoin.web import Answer, Request
from tests.live import PATIENCE

DEADLINE = 1.0
ReceiptBuilder = Callable[[Node], HeaderSource]
MAKERS: list[ReceiptBuilder] = [
    lambda node: RpcNode(node.url, network=REGTEST),
    lambda node: RestNode(node.rest, REGTEST),
]


@pytest.fixture(params=MAKERS, ids=["rpc", "rest"])
def source(request: pytest.FixtureRequest, node: Node) -> HeaderSource:
    """The node, asked one way and the other."""
    return request.param(node)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions with a deadline of a second, for those that are not answered."""

    def quick(question: object, **more: object) -> object:
        return ask(question, **more | {"deadline": DEADLINE})  # type: ignore[arg-type]

    monkeypatch.setattr(node_module, "ask", quick)
    monkeypatch.setattr(explorers_module, "ask", quick)
    monkeypatch.setattr(explorers_module, "PATIENCE", DEADLINE / 2)


@pytest.fixture
def three(chain: Chain) -> Iterator[list[Explorer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Explorer(chain)) for _ in range(3)]


def quorum(three: list[Explorer]) -> ExplorerSource:
    return ExplorerSource([one.url for one in three], network=REGTEST)


# --- nodes --------------------------------------------------------------------------------------------------------------


def test_a_node_says_header_and_depth(source: HeaderSource, node: Node, chain: Chain) -> None:
    for height in (0, 1, 17, 30):
        found = source.at(height)
        assert found.header.raw == chain.blocks[height].raw
        assert (found.height, found.depth, found.kind) == (height, 31 - height, "node")
        assert found.source == source.name == f"Bitcoin Core at 127.0.0.1:{node.port}"
    with pytest.raises(NoHeader, match="its last one is 30"):
        source.at(31)


def test_a_node_shows_a_reorganisation(source: HeaderSource, chain: Chain) -> None:
    before = source.at(29).header
    chain.reorg(5)
    found = source.at(29)
    assert found.header.raw == chain.blocks[29].raw != before.raw
    assert found.depth == 3


def test_a_node_that_is_down(source: HeaderSource, node: Node) -> None:
    node.down()
    with pytest.raises(SourceUnavailable, match="not reachable"):
        source.at(1)
    node.up()
    assert source.at(1).height == 1


@pytest.mark.parametrize("fault", ["hang", "drip", "redirect", "error", "portal", "reset"])
@pytest.mark.usefixtures("impatient")
def test_a_node_with_a_fault(source: HeaderSource, node: Node, fault: str) -> None:
    node.fault = fault
    with Node(node.chain) as other:
        node.elsewhere = other.origin
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match="Bitcoin Core at"):
            source.at(1)
        assert time.monotonic() - started < PATIENCE, "a drip takes minutes"
        assert not other.requests, "a redirect was followed"


def test_a_node_that_gives_another_header(source: HeaderSource, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be the header of the hash, whatever the node says."""
    other = Chain(30)
    monkeypatch.setattr(node.chain, "by_hash", lambda _: other.blocks[3])
    with pytest.raises(SourceUnavailable, match=f"got {other.blocks[3].block_hash}"):
        source.at(3)


def test_a_chain_of_too_little_work_is_not_mainnet(node: Node) -> None:
    for source in (RpcNode(node.url), RestNode(node.rest)):
        with pytest.raises(SourceUnavailable, match="not of main"):
            source.at(1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[1]",
        b"[{}]",
        b"[" * 60_000,
        b'[{"id":[],"result":1}]',
        b'[{"id":0,"result":"x"}]',
        b'[{"id":0,"result":true}]',
        b'[{"id":0,"result":-1}]',
        b'[{"id":0,"result":1e9}]',
        b"\xff",
        b"x" * 100_000,
    ],
)
def test_nonsense_from_a_node(source: HeaderSource, node: Node, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "answer", lambda _: Answer(200, body))
    with pytest.raises(SourceUnavailable):
        source.at(1)


def test_compressed_answers_are_refused(source: HeaderSource, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "answer", lambda _: Answer(200, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(SourceUnavailable, match="compresses"):
        source.at(1)


def test_a_node_that_warms_up(node: Node) -> None:
    node.rpc_errors["getblockcount"] = RpcError(-28, "Loading block index...")
    with pytest.raises(SourceUnavailable, match=r"error -28: 'Loading block index\.\.\.'"):
        RpcNode(node.url).at(1)


def test_credentials_come_from_the_url_or_the_cookie(node: Node, tmp_path: Path) -> None:
    cookie = tmp_path / ".cookie"
    cookie.write_text(node.cookie)
    source = RpcNode(node.rest, cookie, REGTEST)
    assert source.at(1).height == 1
    node.cookie = "__cookie__:another"  # the node was started again
    with pytest.raises(SourceUnavailable, match="does not take our user and password"):
        source.at(1)
    cookie.write_text(node.cookie)
    assert source.at(1).height == 1
    node.cookie = "us er:p@ss/w%rd"
    assert RpcNode(f"http://us%20er:p%40ss%2Fw%25rd@127.0.0.1:{node.port}", network=REGTEST).at(1).height == 1


def test_bad_cookie_files(node: Node, tmp_path: Path) -> None:
    cookie = tmp_path / ".cookie"
    source = RpcNode(node.rest, cookie, REGTEST)
    for content in (None, b"", b"nocolon", b"\xff\xfe"):
        if content is not None:
            cookie.write_bytes(content)
        with pytest.raises(SourceUnavailable, match="cookie file"):
            source.at(1)


def test_credentials_are_never_shown(node: Node) -> None:
    source = RpcNode(f"http://alice:topsecret@127.0.0.1:{node.port}", network=REGTEST)
    assert "topsecret" not in f"{source!r} {source.name}"
    for fault in ("", "redirect", "reset"):
        node.fault = fault
        with pytest.raises(SourceUnavailable) as raised:
            source.at(1)
        shown: BaseException | None = raised.value
        while shown:
            assert "topsecret" not in str(shown)
            shown = shown.__cause__
    with pytest.raises(FormatError) as refused:
        RpcNode("ftp://alice:topsecret@127.0.0.1")
    assert "topsecret" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8332", "ftp://host", "http://", "http://h/?x=1", "http://h/#x", "http://[::", "http://h:x"])  # fmt: skip
def test_not_a_url(url: str) -> None:
    for builder in (origin_of, RpcNode, RestNode, lambda one: ExplorerSource([one, one + "x"])):
        with pytest.raises(FormatError):
            builder(url)


def test_rest_takes_no_credentials(node: Node) -> None:
    with pytest.raises(FormatError, match="no credentials"):
        RestNode(node.url)


# --- explorers ------------------------------------------------------------------------------------------------------------


def test_explorers_agree(three: list[Explorer], chain: Chain) -> None:
    source = quorum(three)
    hosts = ", ".join(f"127.0.0.1:{one.port}" for one in three)
    for height in (0, 12, 30):
        found = source.at(height)
        assert found.header.raw == chain.blocks[height].raw
        assert (found.depth, found.kind, found.source) == (31 - height, "explorers", f"3 of 3 explorers: {hosts}")
    with pytest.raises(NoHeader):
        source.at(31)
    assert source.tip() == 30


def test_an_explorer_without_the_header_route(three: list[Explorer], chain: Chain) -> None:
    """The header is put together from the fields, and its hash checked."""
    for one in three:
        one.header_route = False
    for height in (0, 30):
        assert quorum(three).at(height).header.raw == chain.blocks[height].raw


def test_two_of_three_are_enough(three: list[Explorer], chain: Chain) -> None:
    three[0].chain = Chain(40)  # lies, or follows another chain
    found = quorum(three).at(20)
    assert found.header.raw == chain.blocks[20].raw
    assert found.source.startswith("2 of 3 explorers: ")
    assert f":{three[0].port}" not in found.source
    three[0].down()
    assert quorum(three).at(20).header.raw == chain.blocks[20].raw


def test_the_smallest_depth_counts(three: list[Explorer], chain: Chain) -> None:
    behind = Chain(0)
    behind.blocks = chain.blocks[:27]
    behind._heights = {block.hash: block.height for block in behind.blocks}
    three[1].chain = behind
    assert quorum(three).at(25).depth == 2
    assert quorum(three).at(28).depth == 3  # the one behind is not of this quorum
    assert quorum(three).tip() == 30


def test_explorers_that_disagree(three: list[Explorer]) -> None:
    three[0].chain, three[1].chain = Chain(30), Chain(30)
    with pytest.raises(SourceUnavailable, match="no 2 of 3 explorers agree about block 20") as raised:
        quorum(three).at(20)
    for one in three:
        assert one.chain.blocks[20].block_hash in str(raised.value)


def test_one_that_answers_is_no_quorum(three: list[Explorer]) -> None:
    three[0].down()
    three[2].fault = "portal"
    for question in (lambda: quorum(three).at(20), quorum(three).tip):
        with pytest.raises(SourceUnavailable):
            question()


@pytest.mark.parametrize("fault", ["hang", "drip", "redirect", "error", "portal", "reset"])
@pytest.mark.usefixtures("impatient")
def test_one_fault_does_not_matter_two_do(three: list[Explorer], chain: Chain, fault: str) -> None:
    three[0].fault = fault
    assert quorum(three).at(20).header.raw == chain.blocks[20].raw
    three[1].fault = fault
    with pytest.raises(SourceUnavailable):
        quorum(three).at(20)


def test_no_agreement_that_there_is_no_such_block(three: list[Explorer], chain: Chain) -> None:
    longer = Chain(0)
    longer.blocks = [*chain.blocks, *Chain(40).blocks[31:]]
    longer._heights = {block.hash: block.height for block in longer.blocks}
    three[0].chain = longer
    with pytest.raises(NoHeader):
        quorum(three).at(35)
    three[1].down()
    with pytest.raises(SourceUnavailable):
        quorum(three).at(35)


@pytest.mark.parametrize(
    "spoil",
    [
        {"version": "x"}, {"version": None}, {"nonce": -1}, {"nonce": 2**32}, {"bits": 1.5}, {"timestamp": "1"},
        {"merkle_root": "00"}, {"merkle_root": 7}, {"previousblockhash": "zz"}, {"nonce": 0, "timestamp": 0}, {"bits": 0},
    ],
)  # fmt: skip
def test_fields_that_make_no_header(
    three: list[Explorer], monkeypatch: pytest.MonkeyPatch, spoil: dict[str, object]
) -> None:
    good = faces._fields
    monkeypatch.setattr(faces, "_fields", lambda *args, **more: good(*args, **more) | spoil)
    for one in three:
        one.header_route = False
    with pytest.raises(SourceUnavailable):
        quorum(three).at(20)


@pytest.mark.parametrize("body", [b"", b"x", b"0x10", b"-1", b"1_0", "٣".encode(), b"1" * 60, b"1" * 70])
def test_a_tip_that_is_no_height(three: list[Explorer], body: bytes) -> None:
    def answer(_: Request) -> Answer:
        return Answer(200, body)

    for one in three:
        one.answer = answer  # type: ignore[method-assign]
    with pytest.raises(SourceUnavailable):
        quorum(three).at(0)


def test_which_explorers_may_be_asked() -> None:
    ExplorerSource(["https://a.example/api", "https://b.example/api", "https://c.example/api/"])
    ExplorerSource(["https://a.example/api"], quorum=1)
    for urls, count in (
        (["https://a.example/api", "https://a.example/other", "https://b.example"], 2),
        (["https://a.example", "https://A.example"], 2),
        (["http://a.example", "https://b.example"], 2),
        (["https://u:p@a.example", "https://b.example"], 2),
        (["https://a.example"], 2),
        (["https://a.example", "https://b.example", "https://c.example"], 1),
        (["https://a.example", "https://b.example"], 1),
        ([], 0),
    ):
        with pytest.raises(FormatError):
            ExplorerSource(urls, quorum=count)


def test_explorers_of_mainnet_show_no_regtest(three: list[Explorer]) -> None:
    with pytest.raises(SourceUnavailable, match="not of main"):
        ExplorerSource([one.url for one in three], network=MAIN).at(3)


def test_a_header_file_needs_no_http_library() -> None:
    code = "import sys, muniment.anchor.sources, muniment.anchor.node; sys.exit(bool({'httpx', 'opentimestamps'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE).returncode == 0
