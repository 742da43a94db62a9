"""An etcd, a Patroni and a Postgres on each of three loopback addresses, HAProxy before them: from the files in deploy/patroni/."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import asyncpg

from tests.rigs import report
from tests.rigs.control import binaries, other_user
from tests.rigs.rig import PATH

FILES = report.ROOT / "deploy" / "patroni"
PROGRAMS = {"etcd": ("etcd", "--config-file"), "patroni": ("patroni",), "haproxy": ("haproxy", "-db", "-f")}
CONFIGURATION = {"etcd": "etcd.yml", "patroni": "patroni.yml", "haproxy": "haproxy.cfg"}
NAMES = ("node1", "node2", "node3")
PASSWORDS = ("POSTGRES_PASSWORD", "REPLICATION_PASSWORD", "REST_PASSWORD")
WRITE = "SELECT pg_logical_emit_message(true, 'rig', '')"
"""What commits something, in no table."""
SECONDS = 180.0
"""Within this a cluster is whole again, whatever happened to it."""


def fill_in(name: str, values: dict[str, str]) -> str:
    """Return a file of deploy/patroni/ with what its operator puts in. Raises KeyError when something is missing."""
    return Template((FILES / name).read_text("utf-8")).substitute(values)


def _family(pid: int) -> list[int]:
    """Return a process and all that it or its threads started, as far as they live."""
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in _words(path)]
    return [pid, *(each for child in children for each in _family(child))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except OSError:  # it has ended
        return []


def _kill(pids: list[int]) -> None:
    """SIGKILL processes, and wait until they do nothing any more."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while any(_words(Path(f"/proc/{pid}/cmdline")) for pid in pids):  # empty for who is dead and not yet missed
        assert time.monotonic() < deadline, f"one of {pids} does not die"
        time.sleep(0.01)


class Node:
    """A machine of the cluster, or the one with HAProxy: an address, a folder, and what runs there."""

    def __init__(self, name: str, address: str, folder: Path, values: dict[str, str]) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.data = folder / "postgres"
        self._as = other_user()
        folder.mkdir()
        folder.chmod(0o711)
        places = {"ETCD_DATA": folder / "etcd", "PG_DATA": self.data, "PG_BIN": binaries()}
        self._values = values | {"NODE": name, "ADDRESS": address} | {key: str(path) for key, path in places.items()}
        if self._as:
            shutil.chown(folder, **self._as)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, what: str) -> None:
        """Start etcd, patroni or haproxy, unless it runs."""
        if what in self._running:
            return
        path = self.folder / CONFIGURATION[what]
        path.write_text(fill_in(path.name, self._values), "utf-8")
        path.chmod(0o600)
        if self._as:
            shutil.chown(path, **self._as)
        program, *flags = PROGRAMS[what]
        environment = {"PATH": PATH, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        with (self.folder / f"{what}.log").open("ab") as log:
            self._running[what] = subprocess.Popen(
                [str(shutil.which(program, path=PATH)), *flags, str(path)],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as,
            )  # fmt: skip

    def postgres(self) -> list[int]:
        """Return the processes of Postgres, the postmaster first; none where it does not run."""
        try:
            return _family(int((self.data / "postmaster.pid").read_text("ascii").split("\n")[0]))
        except (FileNotFoundError, ValueError):
            return []

    def kill_postgres(self) -> None:
        """SIGKILL Postgres alone: Patroni sees it."""
        _kill(self.postgres())

    def kill(self) -> None:
        """SIGKILL everything, as when the machine is gone."""
        # Patroni first: nothing is started again.
        pids = [pid for what in sorted(self._running, reverse=True) for pid in _family(self._running[what].pid)]
        _kill(pids + self.postgres())
        while self._running:
            self._running.popitem()[1].wait()

    def stop(self) -> None:
        """Stop Patroni, and so Postgres, in good order."""
        process = self._running.pop("patroni")
        process.terminate()
        process.wait(60)

    def wipe(self) -> None:
        """Remove its database, as `patronictl reinit` does: it will be made from the primary's."""
        shutil.rmtree(self.data)

    def forget_cluster(self) -> None:
        """Let etcd forget who is in the cluster, so that the first node that starts becomes the primary."""
        words = ["patronictl", "-c", str(self.folder / CONFIGURATION["patroni"]), "remove", "muniment"]
        said = b"muniment\nYes I am aware\n"
        done = subprocess.run(
            words, input=said, env={"PATH": PATH, "LC_ALL": "C.UTF-8"}, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"patronictl remove: {done.stdout!r} {done.stderr!r}"

    def said(self) -> str:
        """Return the end of what its programs wrote."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{self.name} {log.name}: {log.read_text('utf-8', 'replace')[-1500:]}" for log in logs)


class Cluster:
    """The cluster, in `folder`. Its addresses are its own, so its ports are those of the files."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o711)
        net = f"127.{16 + os.getpid() // 256 % 200}.{os.getpid() % 256}"
        addresses = {name.upper(): f"{net}.{number}" for number, name in enumerate((*NAMES, "server"), 1)}
        self._values = addresses | {name: f"{name.lower()}-of-the-rig" for name in PASSWORDS}
        self.nodes = {name: Node(name, addresses[name.upper()], folder / name, self._values) for name in NAMES}
        self._front = Node("server", addresses["SERVER"], folder / "server", self._values)

    def url(self, database: str, node: str | None = None) -> str:
        """URL of a database: by way of HAProxy, or on one node."""
        address = f"{self.nodes[node].address}:5432" if node else f"{self._front.address}:5000"
        return f"postgresql://postgres:{self._values['POSTGRES_PASSWORD']}@{address}/{database}"

    async def sql(self, statement: str, database: str = "postgres", node: str | None = None) -> list[Any]:
        """Run a statement on a connection of its own."""
        connection = await asyncpg.connect(self.url(database, node), timeout=5)
        try:
            return list(await connection.fetch(statement, timeout=5))
        finally:
            connection.terminate()

    def start(self) -> None:
        """Start everything."""
        for node in self.nodes.values():
            node.start("etcd")
        for node in self.nodes.values():
            node.start("patroni")
        self._front.start("haproxy")

    def close(self) -> None:
        """Kill everything."""
        for node in (*self.nodes.values(), self._front):
            node.kill()

    def said(self) -> str:
        """Return the end of what all programs wrote."""
        return "\n".join(node.said() for node in (*self.nodes.values(), self._front))

    # --- Patroni's API ------------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, value: Any = None) -> Any:
        """Ask Patroni, on the first node that answers. Raises AssertionError when it refuses."""
        return await asyncio.to_thread(self._ask, method, path, json.dumps(value).encode() if value else None)

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        login = base64.b64encode(f"patroni:{self._values['REST_PASSWORD']}".encode()).decode()
        for node in self.nodes.values():
            headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
            url = f"http://{node.address}:8008{path}"
            request = urllib.request.Request(url, body, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                    text = answer.read().decode()
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{method} {path}: {error.code} {error.read()!r}") from None
            except OSError:
                continue
            return json.loads(text) if text.startswith("{") else text
        raise AssertionError("no Patroni answers")

    async def roles(self) -> dict[str, str]:
        """Return what each node is: leader, sync_standby, replica."""
        with contextlib.suppress(AssertionError):
            members = (await self.ask("GET", "/cluster"))["members"]
            return {member["name"]: member["role"] for member in members if member["state"] in ("running", "streaming")}
        return {}

    async def find(self, role: str) -> str | None:
        """Return the node that has a role."""
        return next((name for name, found in (await self.roles()).items() if found == role), None)

    async def leader(self) -> str:
        """Return the primary. Raises AssertionError when there is none."""
        found = await self.find("leader")
        assert found, f"there is no primary: {await self.roles()}"
        return found

    async def pause_senders(self) -> None:
        """Stop what sends to the standbys."""
        for row in await self.sql("SELECT pid FROM pg_stat_replication"):
            os.kill(row["pid"], signal.SIGSTOP)

    async def accepts(self, before: str) -> tuple[str, float]:
        """Wait for another primary than `before`; return it, and when it first had committed something."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for name in NAMES:
                with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    if name != before and await self.sql(WRITE, node=name):
                        return name, time.monotonic()
            await asyncio.sleep(0.05)
        raise AssertionError(f"no new primary within {SECONDS:.0f} s:\n{self.said()}")

    async def watch(self, held_up: Callable[[float], object]) -> None:
        """Commit by way of HAProxy again and again; tell when a commit that failed, or took over a second, ended.

        A primary may commit one thing, and then wait for a standby that goes away again.
        """
        while True:
            started = time.monotonic()
            failed = True
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self.sql(WRITE)
                failed = False
            if failed or time.monotonic() - started > 1:
                held_up(time.monotonic())
            await asyncio.sleep(0.1)

    async def whole(self, *, synchronous: bool) -> None:
        """Wait until two standbys follow a primary, one of them synchronously or none, and Patroni agrees."""
        sql = "SELECT state, sync_state FROM pg_stat_replication WHERE state = 'streaming'"
        wanted = {"leader": 1, "sync_standby": int(synchronous), "replica": 2 - synchronous}
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                rows = await self.sql(sql)
                found = [*(await self.roles()).values()]
                following = [row["sync_state"] for row in rows]
                agreed = {role: found.count(role) for role in wanted} == wanted
                if agreed and len(following) == 2 and ("sync" in following) == synchronous:
                    return
            await asyncio.sleep(0.2)
        raise AssertionError(f"the cluster is not whole after {SECONDS:.0f} s: {await self.roles()}\n{self.said()}")


@contextlib.contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """A running cluster, gone afterwards."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
