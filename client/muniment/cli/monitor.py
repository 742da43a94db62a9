"""`muniment monitor`: follow logs, and say what does not fit."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muniment.cli.monitor_check import command as check_command
from muniment.cli.monitor_options import MonitorOptions, api_key_for, monitor_options
from muniment.cli.options import read_policy
from muniment.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, CliError
from muniment.cli.progress import progress
from muniment.errors import FormatError, StateError

if TYPE_CHECKING:
    from muniment.monitor.follower import Follower
    from muniment.monitor.running import Running

_LONG_READ = 10_000
_END = 1.0
"""Seconds that what is under way has to end, and again as many for what is printed to be read."""


class _Default(click.Group):
    """A group of commands, one of which is run when a URL comes first."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that was named, else the one that follows logs."""
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "follow", self.commands["follow"], args

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options of the command that follows too: they may come before the URLs."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["follow", *args]
        return super().parse_args(ctx, args)


@click.group("monitor", cls=_Default, short_help="Follow logs, and say what does not fit.")
def command() -> None:
    """Follow logs: verify each checkpoint against the last, read every new entry, and recompute the root.

    \b
      muniment monitor URL... --policy P --state DIR      follow (the same as muniment monitor follow URL...)
      muniment monitor check RECEIPT --state DIR          tie a receipt to what was seen

    docs/monitor.md says how to run it for good, and what it proves and does not.
    """


@command.command("follow", short_help="Follow logs.")
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@monitor_options
def follow(urls: tuple[str, ...], options: MonitorOptions) -> int:
    """Follow one or many logs: Muniment logs, or any C2SP tlog-tiles log, also a folder of its files (file:///path).

    Every checkpoint is verified against the policy and the one before, every new entry is read, and the root is
    computed anew. Two checkpoints that contradict each other are a fork: a file of evidence is kept in DIR/evidence,
    which `muniment verify` confirms offline. What rests on answers that nothing signs is a finding once it has lasted
    for the grace period. Findings are kept in DIR/findings.jsonl before they are printed or sent. The same log at
    several URLs is compared with itself.

    Exit codes with --once: 0 good, 1 something was found, 3 behind or in doubt, 4 not reachable, 6 refused. Damage to
    DIR is 2 and says nothing about a log. Without --once it ends at SIGTERM, with 0.

    \b
    Examples:
      muniment monitor https://log.example.com --policy policy --state monitor
      muniment monitor https://log.example.com --policy policy --state monitor --once --json
      muniment monitor file:///srv/backup/log --policy policy --state monitor --once
    """
    from muniment.monitor.running import alone

    try:
        with alone(options.folder):
            return asyncio.run(_Session(urls, options).run())
    except StateError as error:
        hint = "What a monitor remembers is in --state DIR."
        raise CliError(EXIT_USAGE, "state_error", str(error), hint) from error


command.add_command(check_command)


class _Session:
    """One run of a monitor."""

    def __init__(self, urls: tuple[str, ...], options: MonitorOptions) -> None:
        from muniment.cli.monitor_lines import line
        from muniment.monitor.lines import Lines

        self._urls = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
        self._options = options
        self._policy = read_policy(options.policy_file)
        self._settings = options.settings()
        self._secret = options.secret()
        self._key = api_key_for(self._urls, options.api_key_file)
        self._ended = 0  # by which signal; EXIT_INTERRUPTED when the reader of our lines has gone
        self._stop: Callable[[int], None] = lambda _: None
        self._lines = Lines(_output(), lambda: self._stop(EXIT_INTERRUPTED))
        self._say = lambda value: self._lines.put(line(value, as_json=options.as_json))

    async def run(self) -> int:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()

        def stop(why: int) -> None:
            self._ended = why
            loop.call_soon_threadsafe(stopped.set)

        self._stop = stop
        for number, code in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, EXIT_INTERRUPTED)):
            loop.add_signal_handler(number, stop, code)
        async with self._opened() as running:
            options = self._options
            work = asyncio.create_task(running.once() if options.once else running.forever(options.interval))
            waiting = asyncio.create_task(stopped.wait())
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=_END)
                running.save()
                self._lines.close(_END)
                return EXIT_INTERRUPTED if self._ended == EXIT_INTERRUPTED else 0
            code = _result(work)
        await asyncio.to_thread(self._lines.close, None) if not stopped.is_set() else self._lines.close(_END)
        return code

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Running]:
        from muniment.monitor.hooks import Outbox, Webhook
        from muniment.monitor.record import Record
        from muniment.monitor.running import Running

        folder, options = self._options.folder, self._options
        record, bar = Record(folder), _Bar(quiet=options.as_json)
        async with AsyncExitStack() as stack:
            stack.callback(bar.close)
            followers = [await self._follower(stack, url, folder, record, bar) for url in self._urls]
            webhook = None
            if self._secret and options.webhook:
                webhook = await stack.enter_async_context(
                    Webhook(options.webhook, self._secret, Outbox(folder, record))
                )
            yield Running(followers, webhook, options.metrics_file, self._say)

    async def _follower(self, stack: AsyncExitStack, url: str, folder: Path, record: Any, bar: _Bar) -> Follower:
        from muniment.monitor.book import Book
        from muniment.monitor.follower import Follower
        from muniment.monitor.reporter import Reporter
        from muniment.monitor.source import Source

        try:
            source = await stack.enter_async_context(Source(url, self._key))
        except FormatError as error:
            raise CliError(EXIT_USAGE, "usage", str(error)) from error
        reporter = Reporter(record, folder, self._policy, self._settings.grace, self._say)
        book = Book.open(folder / "logs", source.url)
        found = Follower(source, self._policy, book, reporter, self._settings, self._say)
        found.advance = bar.advance
        return found


def _output() -> int:
    try:
        return sys.stdout.fileno()
    except UnsupportedOperation as error:
        raise AssertionError("a monitor writes to a descriptor") from error


def _result(work: asyncio.Task[Any]) -> int:
    """Return the exit code of what has ended. Raises what it raised, the first where several were."""
    try:
        return int(work.result() or 0)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


class _Bar:
    """A progress bar of the first long read, when a person watches."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._stack = ExitStack()
        self._step: Callable[[int], None] | None = None

    def advance(self, new: int, left: int) -> None:
        """Move on: so many entries were read, and so many are left."""
        if self._step is None and left > _LONG_READ:
            self._step = self._stack.enter_context(progress("Reading", new + left, quiet=self._quiet))
        if self._step:
            self._step(new)
            if not left:
                self.close()

    def close(self) -> None:
        """Remove it."""
        self._step = None
        with suppress(OSError):
            self._stack.close()
