"""Processes that a rig forks off itself: warm within milliseconds, killed at any instant, heard through a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

Say = Callable[[Any], None]
_PIPE = 1 << 20
_SECONDS = 120.0


class Child:
    """A forked process that runs `work(say)`. What it says is heard here in order, also when it was killed right afterwards.

    What it prints goes to `output`. The forking process must have no threads and no running event loop.
    """

    def __init__(self, work: Callable[[Say], Any], output: Path) -> None:
        read, write = os.pipe()
        with contextlib.suppress(OSError):  # more than an unprivileged process may have
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE)
        self.output = output
        self._before = output.stat().st_size if output.exists() else 0
        self._heard = b""
        self._status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            _run(work, write, output)
        os.close(write)
        os.set_blocking(read, False)
        self._read = read

    def hear(self) -> list[Any]:
        """Return what it has said since the last call, without waiting."""
        while True:
            try:
                data = os.read(self._read, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        said = [json.loads(line) for line in lines]
        for one in said:
            if isinstance(one, dict) and "_traceback" in one:
                raise AssertionError(f"a forked process failed: {one['_traceback']}\n{self.printed()}")
        return said

    def listen(self, seconds: float) -> list[Any]:
        """Return what it says within some time."""
        said, deadline = self.hear(), time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._read], [], [], left)
            said += self.hear()
            if self.ended():
                time.sleep(max(deadline - time.monotonic(), 0))
                return said + self.hear()
        return said

    def finish(self, seconds: float = _SECONDS) -> list[Any]:
        """Wait until it ends by itself, and return what it said. Raises AssertionError when it fails or takes too long."""
        said, deadline = [], time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"a forked process hangs: {self.printed()}")
            select.select([self._read], [], [], 0.01)
            said += self.hear()
        said += self.hear()
        if self._status:
            raise AssertionError(f"a forked process ended with {self._status}: {self.printed()}")
        return said

    def ended(self) -> bool:
        """Tell whether it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is not None

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._status if self.ended() else None

    def signal(self, sig: int) -> None:
        """Send it a signal, if it still runs."""
        if not self.ended():
            os.kill(self.pid, sig)

    def pause(self) -> None:
        """Stop it where it is, calls that are in flight done; SIGCONT lets it go on."""
        self.signal(signal.SIGSTOP)
        if self._status is None:
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            self._status = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        """Kill it, and wait until it is gone."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def printed(self) -> str:
        """Return the end of what it printed, or others did since it was started."""
        return (
            self.output.read_bytes()[self._before :][-1500:].decode("utf-8", "replace") if self.output.exists() else ""
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self._read)


def _run(work: Callable[[Say], Any], write: int, output: Path) -> None:
    """Be the child: never returns, and never runs the parent's clean-up."""

    def say(value: Any) -> None:
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(write, data) :]

    code = 0
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work(say)
    except BaseException:
        code = 70
        with contextlib.suppress(BaseException):
            say({"_traceback": traceback.format_exc()})
    os._exit(code)


def call(work: Callable[[Say], Any], output: Path, seconds: float = _SECONDS) -> list[Any]:
    """Run `work(say)` in a process of its own, and return what it said. Raises AssertionError when it fails."""
    with Child(work, output) as child:
        return child.finish(seconds)
