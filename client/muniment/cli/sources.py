"""The options that say where Bitcoin block headers come from, for the commands that check anchors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from muniment.cli.output import EXIT_FAILED, EXIT_NOT_YET, EXIT_UNREACHABLE, EXIT_USAGE, CliError
from muniment.errors import BadHeaderChain, FormatError
from muniment.verify import code_of

if TYPE_CHECKING:
    from muniment.anchor.check import AnchorCheck
    from muniment.anchor.sources import HeaderSource

R = TypeVar("R")

RPC_ENV = "MUNIMENT_BITCOIN_RPC"

NO_SOURCE = (
    "Give a source of Bitcoin headers: --headers FILE, --bitcoin-rpc URL, --bitcoin-rest URL,"
    " or --explorer URL three times."
)
_EXIT_CODES = {
    "confirmed": 0,
    "mismatch": EXIT_FAILED,
    "unknown": EXIT_FAILED,
    "no_source": EXIT_UNREACHABLE,
    "complete": EXIT_NOT_YET,
    "pending": EXIT_NOT_YET,
}


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Which source was asked for, at most one; without one nothing is confirmed."""

    headers: Path | None
    rpc: str | None
    rpc_cookie: Path | None
    rest: str | None
    explorers: tuple[str, ...]
    network: str

    @property
    def given(self) -> bool:
        """Tell whether a source was named on the command line."""
        return bool(self.headers or self.rpc or self.rest or self.explorers)

    def open(self) -> HeaderSource | None:
        """Return the source, or None when none was named, here or in the environment.

        Raises CliError or SourceUnavailable.
        """
        try:
            return self._open()
        except BadHeaderChain as error:
            hint = "This says nothing about the anchor. `muniment anchor headers sync` makes a header file."
            raise CliError(EXIT_FAILED, code_of(error), f"not a header file to rely on: {error}", hint) from error
        except FormatError as error:
            raise CliError(EXIT_USAGE, "usage", f"the source of headers: {error}") from error

    def _open(self) -> HeaderSource | None:
        from muniment.anchor.chain import NETWORKS

        network, rpc = NETWORKS[self.network], self.rpc or (os.environ.get(RPC_ENV, "").strip() or None)
        if self.headers is not None:
            from muniment.anchor.sources import FileSource

            return FileSource(self.headers, network)
        if self.explorers:
            from muniment.anchor.explorers import ExplorerSource

            return ExplorerSource(self.explorers, network=network)
        if self.rest is not None:
            from muniment.anchor.node import RestNode

            return RestNode(self.rest, network)
        if rpc is not None:
            from muniment.anchor.node import RpcNode

            return RpcNode(rpc, self.rpc_cookie, network)
        return None


def source_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add the options of a command that checks anchors; it gets them as the argument `source`, a SourceOptions."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        headers: Path | None,
        rpc: str | None,
        rpc_cookie: Path | None,
        rest: str | None,
        explorers: tuple[str, ...],
        network: str,
        **others: Any,
    ) -> R:
        source = SourceOptions(headers, rpc, rpc_cookie, rest, explorers, network)
        _check(source)
        return command(*args, source=source, **others)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _check(source: SourceOptions) -> None:
    if sum((source.headers is not None, source.rpc is not None, source.rest is not None, bool(source.explorers))) > 1:
        raise click.UsageError("give one source: --headers, --bitcoin-rpc, --bitcoin-rest or --explorer")
    if source.explorers and len(source.explorers) != 3:
        raise click.UsageError("give --explorer three times, of different operators: two of them must agree")
    if source.rpc is not None and "@" in source.rpc:
        raise click.UsageError(
            f"others can read a command line: --bitcoin-rpc takes no password. Use --bitcoin-rpc-cookie, or {RPC_ENV}"
        )


_OPTIONS = (
    click.option(
        "--headers",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A file of all block headers, checked from genesis: works offline"
        " (muniment anchor headers sync makes one).",
    ),
    click.option(
        "--bitcoin-rpc",
        "rpc",
        metavar="URL",
        help=f"A Bitcoin Core node: http://127.0.0.1:8332. [default, when no other source is named: {RPC_ENV}]",
    ),
    click.option(
        "--bitcoin-rpc-cookie",
        "rpc_cookie",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Its .cookie file.",
    ),
    click.option("--bitcoin-rest", "rest", metavar="URL", help="A Bitcoin Core node by its REST interface (-rest=1)."),
    click.option(
        "--explorer",
        "explorers",
        multiple=True,
        metavar="URL",
        help="API of an Esplora explorer: https://host/api. Give three: two must agree."
        " They learn which blocks you look at.",
    ),
    click.option(
        "--network",
        type=click.Choice(["main", "regtest"]),
        default="main",
        show_default=True,
        help="Which chain the source has.",
    ),
)


def anchor_library() -> None:
    """Raise CliError unless proofs can be read: the library for that comes with an extra."""
    try:
        import muniment.anchor.proof  # noqa: F401 - only whether it can be
    except ImportError as error:
        hint = "It is an extra: pip install './client[anchor]' in a checkout of Muniment"
        raise CliError(
            EXIT_USAGE, "no_anchor_library", f"the library that reads proofs is missing ({error.name})", hint
        ) from error


def exit_code(checks: Iterable[AnchorCheck]) -> int:
    """Return the exit code for all of `checks`: 1 before 4 before 3, and 0 when all are confirmed."""
    codes = {_EXIT_CODES[check.state] for check in checks}
    return next((code for code in (EXIT_FAILED, EXIT_UNREACHABLE, EXIT_NOT_YET) if code in codes), 0)
