"""`muniment anchor headers`: what it prints, and its exit codes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import rich.console

import muniment.cli
from tests.bitcoin.chain import Chain
from tests.bitcoin.node import Explorer, Node
from tests.client.cli_runner import Cli, Done


@pytest.fixture
def headers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command of the group, wherever the group hangs."""
    monkeypatch.setitem(muniment.cli._COMMANDS, "headers", "headers")
    monkeypatch.delenv("MUNIMENT_BITCOIN_RPC", raising=False)
    cli = Cli(capsys, monkeypatch)

    class Headers(Cli):
        def __init__(self) -> None: ...

        def __call__(self, *words: object, stdin: bytes = b"") -> Done:
            return cli("headers", *words, "--network", "regtest", stdin=stdin)

    return Headers()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "headers.bin"


def test_sync_and_check(headers: Cli, node: Node, chain: Chain, path: Path) -> None:
    done = headers("sync", path, "--rest", node.rest)
    assert done.code == 0, done.err
    assert f"31 headers from Bitcoin Core at 127.0.0.1:{node.port}" in done.out
    assert f"31 headers of regtest\n  tip   block 30, {chain.tip.block_hash}, mined about ~20" in done.out
    assert path.read_bytes() == chain.file
    done = headers("check", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("Every rule of the header chain holds.\n")


def test_json(headers: Cli, node: Node, chain: Chain, path: Path) -> None:
    done = headers("sync", path, "--rest", node.rest, "--json")
    said = done.json
    assert said | {"tip_time": ""} == {
        "file": str(path),
        "network": "regtest",
        "headers": 31,
        "height": 30,
        "tip": chain.tip.block_hash,
        "tip_time": "",
        "work": "3e",
        "enough_work": True,
        "source": f"Bitcoin Core at 127.0.0.1:{node.port}",
        "added": 31,
        "dropped": 0,
    }
    chain.reorg(2)
    said = headers("sync", path, "--rest", node.rest, "--json").json
    assert (said["added"], said["dropped"], said["headers"]) == (3, 2, 32)
    assert headers("check", path, "--json").json["tip"] == chain.tip.block_hash


def test_every_source(headers: Cli, node: Node, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, url, source = tmp_path / "cookie", tmp_path / "url", tmp_path / "source.bin"
    cookie.write_text(node.cookie)
    url.write_text(node.url + "\n")
    source.write_bytes(chain.file)
    with Explorer(chain) as one, Explorer(chain) as two:
        for at, words in enumerate(
            (
                ("--rpc", node.rest, "--rpc-cookie", cookie),
                ("--rpc-url-file", url),
                ("--rest", node.rest),
                ("--from", source),
                ("--explorer", one.url, "--explorer", two.url),
            )
        ):
            target = tmp_path / f"{at}.bin"
            done = headers("sync", target, *words)
            assert done.code == 0, done.err
            assert target.read_bytes() == chain.file
            assert "s3cret" not in done.out + done.err
    monkeypatch.setenv("MUNIMENT_BITCOIN_RPC", node.url)
    assert headers("sync", tmp_path / "env.bin").code == 0


def test_a_broken_rule_is_1(headers: Cli, node: Node, chain: Chain, path: Path) -> None:
    headers("sync", path, "--rest", node.rest)
    good = path.read_bytes()
    chain.reorg(3, longer_by=0)
    done = headers("sync", path, "--rest", node.rest, "--json")
    assert (done.code, done.error["code"]) == (1, "bad_header_chain")
    assert "no more work" in done.error["message"]
    assert path.read_bytes() == good
    path.write_bytes(good[:800] + b"\x01" + good[801:])
    for words in (("check", path), ("sync", path, "--rest", node.rest)):
        done = headers(*words)
        assert done.code == 1
        assert "header 10 " in done.err or "header 11 " in done.err  # half of all changed headers have enough work
    path.write_bytes(b"")
    assert headers("check", path).code == 1


def test_wrong_use_is_2(headers: Cli, node: Node, path: Path, tmp_path: Path) -> None:
    for words in (
        ("sync", path),
        ("sync", path, "--rest", node.rest, "--from", path),
        ("sync", path, "--rest", "nonsense"),
        ("sync", path, "--rpc", node.url),
        ("sync", path, "--rpc-url-file", tmp_path / "none"),
        ("sync", path, "--explorer", "https://one.example/api"),
        ("sync", path, "--explorer", "http://one.example/api", "--explorer", "https://two.example/api"),
        ("check", path),
    ):
        done = headers(*words)
        assert done.code == 2, words
        assert "s3cret" not in done.out + done.err
        assert not path.exists()


def test_a_source_out_of_reach_is_4(headers: Cli, node: Node, path: Path, tmp_path: Path) -> None:
    node.down()
    done = headers("sync", path, "--rest", node.rest, "--json")
    assert (done.code, done.error["code"]) == (4, "source_unavailable")
    assert headers("sync", path, "--from", tmp_path / "none").code == 4
    assert headers("sync", tmp_path / "url" / "x", "--rpc", node.rest, "--rpc-cookie", tmp_path / "none").code == 4


def test_a_bar_for_those_who_watch(headers: Cli, node: Node, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("muniment.cli.progress.sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(rich.console, "Console", lambda **_: _CONSOLE(file=shown, force_terminal=True))
    assert headers("sync", path, "--rest", node.rest).code == 0
    assert "Fetching headers" in shown.getvalue()


_CONSOLE = rich.console.Console
