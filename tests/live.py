"""A real `muniment-server` in a process of its own, on a loopback port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from muniment.policy import Policy
from tests.tracecheck import Checker

ORIGIN = "example.com/log"
PATIENCE = 300.0
"""Seconds that a test waits for what must happen. They are for what hangs: a machine that is busy is not a fault."""
START_SECONDS = PATIENCE
STOP_SECONDS = PATIENCE


def until(condition: Callable[[], object], otherwise: str = "it did not happen") -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*words: str | Path, module: str = "muniment_server.cli") -> list[str]:
    """The server's command line, run by this interpreter."""
    return [sys.executable, "-m", module, *map(str, words)]


def environment(database: str | None = None) -> dict[str, str]:
    """The environment for a server: nothing of ours but the database."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MUNIMENT_SERVER_")}
    always = {"PYTHONWARNINGS": "default", "MUNIMENT_SERVER_MIN_FREE_PERCENT": "0"}  # a full disk is not what is tested
    return clean | ({"MUNIMENT_SERVER_DATABASE": database} if database else {}) | always


_checkers: dict[Path, Checker] = {}


def trace_of(data: Path) -> Path:
    """The trace of an instance: in its folder, so that a copy of the folder has a copy of the trace."""
    return data / "trace"


def check_trace(data: Path) -> None:
    """Check what the servers of an instance wrote down since the last call. Raises Violated."""
    path = trace_of(data)
    if not path.exists():
        return  # nothing was written
    if path not in _checkers or path.stat().st_size < _checkers[path].offset:
        _checkers[path] = Checker(path)
    _checkers[path].check()


def run(*words: str | Path, database: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one server command to its end."""
    data = Path(words[words.index("--data") + 1]) if "--data" in words else None
    traced = {"MUNIMENT_SERVER_TRACE": str(trace_of(data))} if data and words[0] in ("init", "log") else {}
    done = subprocess.run(
        command(*words),
        check=False,
        env=environment(database) | traced,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        raise AssertionError(f"{words} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def init(data: Path, database: str | None = None, kind: str = "event", origin: str = ORIGIN) -> Policy:
    """Make an instance (migrating a Postgres first) and return the policy that trusts it."""
    if database:
        run("migrate", "--data", data, database=database)
    run("init", "--data", data, "--origin", origin, "--kind", kind, database=database)
    return Policy.read(data / "policy")


class LiveServer:
    """A running server. `url` is where it listens; `lines` are the log lines read so far.

    It writes a trace, which is checked whenever a server of its folder stops; `traced` False is for those who measure speed, or check
    themselves. `module` is what runs.
    """

    def __init__(
        self,
        data: Path,
        *flags: str,
        database: str | None = None,
        env: dict[str, str] | None = None,
        traced: bool = True,
        module: str = "muniment_server.cli",
    ) -> None:
        self.data = data
        self.traced = traced
        self.lines: list[dict[str, Any]] = []
        self.url = ""
        self._stderr = data.with_name(f"{data.name}-{time.monotonic_ns()}.stderr")
        settings = {"MUNIMENT_SERVER_LOG_FORMAT": "json"} | (env or {})
        if traced:
            settings.setdefault("MUNIMENT_SERVER_TRACE", str(trace_of(data)))
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command("serve", "--data", data, "--port", "0", *flags, module=module),
                env=environment(database) | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def wait(self) -> LiveServer:
        """Wait until it serves."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for line in self._stderr.read_text("utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    found = json.loads(line)
                    if found.get("event") == "serving":
                        self.url = found["url"]
                        return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"server did not start (exit code {self.process.poll()}): {self.stderr()}")

    def stderr(self) -> str:
        """Everything it wrote so far."""
        return self._stderr.read_text("utf-8")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"server did not stop within {STOP_SECONDS} s: {self.stderr()}") from None
        if self.traced:
            check_trace(self.data)
        return self.process.returncode

    def __enter__(self) -> Self:
        try:
            return self.wait()
        except BaseException:  # left running, it would slow the tests that follow
            self.process.kill()
            self.process.wait()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_of_tracebacks(text: str) -> bool:
    """Tell whether a server's output shows no unexpected error."""
    return "Traceback" not in text and "unexpected" not in text


__all__ = [
    "ORIGIN",
    "PATIENCE",
    "LiveServer",
    "command",
    "environment",
    "free_of_tracebacks",
    "free_port",
    "init",
    "run",
    "until",
]
