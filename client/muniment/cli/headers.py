"""`muniment anchor headers`: the local file of Bitcoin block headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muniment.cli.options import json_option
from muniment.cli.output import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, CliError, emit
from muniment.cli.progress import progress
from muniment.errors import BadHeaderChain, FormatError, NoHeader, SourceUnavailable

if TYPE_CHECKING:
    from muniment.anchor.chain import HeaderChain, Network
    from muniment.anchor.headerfile import HeaderFile
    from muniment.anchor.sync import HeaderFeed, Synced

_FILE = click.Path(dir_okay=False, path_type=Path)
_RPC_ENV = "MUNIMENT_BITCOIN_RPC"
_network_option = click.option(
    "--network",
    type=click.Choice(["main", "regtest"]),
    default="main",
    show_default=True,
    help="Which chain it is.",
)


@click.group("headers", short_help="Keep a local file of Bitcoin block headers.")
def command() -> None:
    """Keep a local file of all Bitcoin block headers (80 bytes each), with which anchors are checked offline.

    The file is checked from genesis: links, proof of work, difficulty, times, pinned blocks, total work.
    """


@command.command("sync", short_help="Bring the file up to a source.")
@click.argument("file", type=_FILE)
@click.option(
    "--rpc", metavar="URL", help="Bitcoin Core by JSON-RPC: http://127.0.0.1:8332, with --rpc-cookie. No password here."
)
@click.option("--rpc-cookie", type=_FILE, metavar="FILE", help="The .cookie file of Bitcoin Core.")
@click.option(
    "--rpc-url-file",
    type=_FILE,
    metavar="FILE",
    help=f"File that holds http://user:password@host:8332. [default: {_RPC_ENV}, when no other source is named]",
)
@click.option("--rest", metavar="URL", help="Bitcoin Core with -rest=1: http://127.0.0.1:8332.")
@click.option("--from", "source", type=_FILE, metavar="FILE", help="Another header file.")
@click.option(
    "--explorer",
    "explorers",
    multiple=True,
    metavar="URL",
    help="API of an Esplora explorer: https://host/api. Give three, of different operators; slow for many headers.",
)
@click.option("--quorum", type=click.IntRange(1), default=2, show_default=True, help="Explorers that must agree.")
@_network_option
@json_option
def sync_command(file: Path, quorum: int, network: str, as_json: bool, **named: Any) -> None:
    """Bring FILE up to a source, making it if need be. Can be interrupted, and goes on where it was.

    What comes is checked like a file from a stranger. Headers that FILE has already are given up only
    for a chain with more work.

    \b
    Examples:
      muniment anchor headers sync headers.bin --rpc http://127.0.0.1:8332 --rpc-cookie ~/.bitcoin/.cookie
      muniment anchor headers sync headers.bin --rest http://127.0.0.1:8332
      muniment anchor headers sync headers.bin --from /mnt/usb/headers.bin

    Exit codes: 0 good, 1 the chain breaks a rule, 2 usage, 4 the source is not reachable.
    """
    from muniment.anchor.chain import NETWORKS
    from muniment.anchor.sync import sync

    with _explained():
        feed = _feed(NETWORKS[network], quorum, **named)
        opened = _opened(file, NETWORKS[network], as_json)
        left = max(0, feed.tip() + 1 - opened.chain.count)
        with progress("Fetching headers", left, quiet=as_json) as advance:
            done = sync(opened, feed, advance)
    value = _facts(file, opened) | {"source": feed.name, "added": done.added, "dropped": done.dropped}
    _show(value, _sync_text(value, done), as_json)


@command.command("check", short_help="Check a header file from genesis.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_network_option
@json_option
def check_command(file: Path, network: str, as_json: bool) -> None:
    """Check FILE from genesis, by every rule of the header chain. Uses no network.

    \b
    Example:
      muniment anchor headers check headers.bin

    Exit code 0 when the chain is good, 1 when it breaks a rule or has less work than Bitcoin had long ago.
    """
    from muniment.anchor.chain import NETWORKS

    with _explained():
        opened = _opened(file, NETWORKS[network], as_json)
        opened.chain.require_work()
    value = _facts(file, opened)
    _show(value, f"{_text(value)}\nEvery rule of the header chain holds.", as_json)


def _opened(path: Path, network: Network, as_json: bool) -> HeaderFile:
    from muniment.anchor.header import HEADER_SIZE
    from muniment.anchor.headerfile import HeaderFile

    count = path.stat().st_size // HEADER_SIZE if path.exists() else 0
    with progress("Checking headers", count, quiet=as_json) as advance:
        return HeaderFile(path, network, advance)


def _feed(network: Network, quorum: int, **named: Any) -> HeaderFeed:
    """Return the one source that was named. Raises CliError when there is none or more than one."""
    import os

    from muniment.anchor.explorers import ExplorerSource
    from muniment.anchor.node import RestNode, RpcNode
    from muniment.anchor.sync import FileFeed

    makers: dict[str, Callable[[Any], HeaderFeed]] = {
        "rpc": lambda url: RpcNode(_public(url), named["rpc_cookie"], network),
        "rpc_url_file": lambda path: RpcNode(_url_in(path), named["rpc_cookie"], network),
        "rest": lambda url: RestNode(url, network),
        "source": lambda path: FileFeed(path, network),
        "explorers": lambda urls: ExplorerSource(urls, quorum, network),
    }
    given = [name for name in makers if named[name]]
    if not given and (url := os.environ.get(_RPC_ENV, "").strip()):
        return _made(lambda: RpcNode(url, named["rpc_cookie"], network))
    if len(given) != 1:
        raise CliError(EXIT_USAGE, "usage", "name one source: --rpc, --rpc-url-file, --rest, --from or --explorer")
    return _made(lambda: makers[given[0]](named[given[0]]))


def _made(make: Callable[[], HeaderFeed]) -> HeaderFeed:
    try:
        return make()
    except BadHeaderChain:
        raise
    except FormatError as error:
        raise CliError(EXIT_USAGE, "usage", f"the source: {error}") from error


def _public(url: str) -> str:
    if "@" in url:
        hint = f"Others can read a command line. Put the URL into a file (--rpc-url-file) or into {_RPC_ENV}."
        raise CliError(EXIT_USAGE, "usage", "--rpc takes no user and password", hint)
    return url


def _url_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {path}") from error


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what sources and chains raise into exit codes."""
    try:
        yield
    except BadHeaderChain as error:
        hint = "No header of this source was kept that breaks a rule; a file that does is of no use as evidence."
        raise CliError(EXIT_FAILED, "bad_header_chain", str(error), hint) from error
    except (SourceUnavailable, NoHeader) as error:
        hint = "Headers that came before are kept; the next sync goes on from there."
        raise CliError(EXIT_UNREACHABLE, "source_unavailable", str(error), hint) from error


def _facts(file: Path, opened: HeaderFile) -> dict[str, Any]:
    chain: HeaderChain = opened.chain
    tip = opened.header(chain.count - 1)
    return {
        "file": str(file),
        "network": chain.network.name,
        "headers": chain.count,
        "height": chain.count - 1,
        "tip": tip.block_hash,
        "tip_time": datetime.fromtimestamp(tip.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "work": f"{chain.work:x}",
        "enough_work": chain.work >= chain.network.minimum_work,
    }


def _text(value: dict[str, Any]) -> str:
    return (
        f"{value['file']}: {value['headers']:,} headers of {value['network']}\n"
        f"  tip   block {value['height']:,}, {value['tip']}, mined about ~{value['tip_time']}\n"
        f"  work  2^{int(value['work'], 16).bit_length() - 1} hashes"
    )


def _sync_text(value: dict[str, Any], done: Synced) -> str:
    dropped = f", {done.dropped:,} replaced by a chain with more work" if done.dropped else ""
    few = "" if value["enough_work"] else "\nStill too little work to check anchors with: sync on."
    return f"{done.added:,} headers from {value['source']}{dropped}\n{_text(value)}{few}"


def _show(value: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        emit(value)
    else:
        click.echo(text)
