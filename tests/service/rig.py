"""What every test of the service stands on: a real database, logs in it, and ways to look and poke past our own code."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import asyncpg

from muniment.hashing import EMPTY_ROOT, RootHash, leaf_hash
from muniment.note import SigningKey
from muniment.tree import Edge, grow, partial_tiles
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Grown, Head, IdempotencyRow, StoredPayload, leaf_key
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.admission import RawDraft, commit, draft_raw
from muniment_server.write.clock import Clock
from muniment_server.write.guard import BLOCK, Guard, Guarded, TreeHead
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import OwnDraft, Submission

TABLES = (
    *("logs", "heads", "entries", "payloads", "tiles", "checkpoints", "idempotency", "api_keys"),
    *("anchors", "anchor_calendars", "followers"),
    *("search_state", "search_terms", "search_chunks"),
    "sinks",
)
SQLITE_TABLES = ("leaf_keys", "leaf_keys_carried")
"""What SQLite has besides: in Postgres an index does it."""
NOW = 1_700_000_000_000
"""A time in milliseconds, in the past, where a test needs no real clock."""


_SQLITE = (
    (r"INTO entries VALUES \((.+?), (-?\d+), ", r"INTO entries (id, leaf_key, leaf) VALUES (((\1) << 40) + (\2), "),
    (
        r'INTO entries \(log_id, "index", leaf_key, leaf\) VALUES \((\d+), (\d+), ',
        r"INTO entries (id, leaf_key, leaf) VALUES ((\1 << 40) + \2, ",
    ),
    (r'(INTO entries .*ON CONFLICT) \(log_id, "index"\)', r"\1 (id)"),
    (r'(UPDATE (?:OR REPLACE )?entries SET) "index" = (\d+)', r"\1 id = (id >> 40 << 40) + \2"),
    (r"(UPDATE entries SET) log_id = (\d+) \+ 1", r"\1 id = ((\2 + 1) << 40) + (id & 1099511627775)"),
)


# In Postgres log and index of an entry are not columns at all, its leaf key stands in an index alone, and a tile may have parts.
_POSTGRES_ENTRIES = (
    (r"\(([^()]+?), (-?\d+), -?\d+, (?='|\{)", r"((\1)::bigint * 1099511627776 + (\2), "),
    (r' \(log_id, "index", leaf_key, leaf\)', " (id, leaf)"),
    (r'ON CONFLICT \(log_id, "?index"?\)', "ON CONFLICT (id)"),
    (r'SET "index" = (\d+)', r"SET id = (id >> 40 << 40) + \1"),
    (r"SET log_id = (\d+) \+ 1", r"SET id = (\1 + 1) * 1099511627776 + (id & 1099511627775)"),
    (r"\blog_id\b", "(id >> 40)::integer"),
    (r'"index"|\be\.index\b', "(id & 1099511627775)"),
    (r"\bleaf_key\b", "muniment_leaf_key(leaf)"),
)
_POSTGRES_TILES = (
    (r"(INTO tiles VALUES \(.+?, \d+), (\d+), ", r"\1, 0, \2, "),
    (r'(INTO tiles .*ON CONFLICT \(log_id, level, "index")', r"\1, part"),
    (
        r'(SELECT level, "index"), data (FROM tiles WHERE log_id = \d+)',
        r"\1, string_agg(data, '' ORDER BY part) \2 GROUP BY level, index",
    ),
    (r"SELECT data (FROM tiles WHERE )", r"SELECT string_agg(data, '' ORDER BY part) \1"),
)


def packed(sql: str, engine: str = "sqlite") -> str:
    """Return a statement about entries and tiles, written as if log and index were columns and tiles had no parts, as it is to be run."""
    for pattern, replacement in _patterns(sql, engine):
        sql = re.sub(pattern, replacement, sql)
    return sql


def _patterns(sql: str, engine: str) -> tuple[tuple[str, str], ...]:
    if engine == "sqlite":
        return _SQLITE
    if re.search(r"\b(FROM|INTO|UPDATE) entries\b", sql):
        return _POSTGRES_ENTRIES
    return _POSTGRES_TILES


@dataclass
class Rig:
    """One database of one test. `store` is a store on it; `open` gives more of them."""

    engine: str
    database: str | None
    folder: Path
    store: Store
    _stack: contextlib.AsyncExitStack
    _made: int = 0

    async def open(self) -> Store:
        """Open another store on the same database, as another process would."""
        if self.database:
            opened: Store = await open_postgres(self.database)
        else:
            opened = await open_sqlite(self.folder / "store.sqlite")
        self._stack.push_async_callback(opened.close)
        return opened

    async def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements in one transaction on a bare connection, not one of ours; return the rows of the last one."""
        return (await self.fetch(*statements))[-1]

    async def fetch(self, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Likewise, and return the rows of each: of one and the same moment."""
        if not self.database:
            return await asyncio.to_thread(self._sqlite, statements)
        connection = await asyncpg.connect(self.database)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                packs = [packed(statement, "postgres") for statement in statements]
                return [[tuple(row) for row in await connection.fetch(statement)] for statement in packs]
        finally:
            await connection.close()

    def _sqlite(self, statements: Sequence[str]) -> list[list[tuple[Any, ...]]]:
        # apsw and not sqlite3: two copies of SQLite in one process drop each other's locks on the file.
        connection = apsw.Connection(str(self.folder / "store.sqlite"))
        try:
            connection.set_busy_timeout(10_000)
            with connection:
                return [connection.execute(packed(statement)).fetchall() for statement in statements]
        finally:
            connection.close()

    async def set_default(self, setting: str) -> None:
        """Change a setting of the Postgres database for connections to come: set_default("lock_timeout = 5")."""
        await self.sql(
            f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ' || $s${setting}$s$, current_database()); END $$"
        )

    def blob(self, data: bytes) -> str:
        """`data` as a literal of this database's SQL."""
        return f"'\\x{data.hex()}'::bytea" if self.database else f"x'{data.hex()}'"

    async def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table, in an order of its own."""
        rows = await self.fetch(*(f"SELECT * FROM {table}" for table in TABLES))
        return {table: sorted(found, key=repr) for table, found in zip(TABLES, rows, strict=True)}

    async def log(self, kind: str = "event", origin: str | None = None) -> Bench:
        """Make a log with a key and a guard, and no entry."""
        self._made += 1
        name = f"log-{self._made}"
        origin = origin or f"example.com/{name}"
        key = SigningKey.generate(origin)
        guard = Guard(self.folder / "guard" / f"{name}.guard")
        guarded = guard.create(origin, key.vkey.key_id)
        row = LogRow(0, name, origin, kind, True, False, NOW)
        row = await self.store.catalog.create_log(row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))
        return Bench(self, row, key, guard)


class NewEntry(NamedTuple):
    """An entry to append: the leaf, the key it is found by, and what an event has beside it."""

    leaf: bytes
    leaf_key: int
    payload: bytes | None = None
    seed: bytes | None = None


@dataclass
class Bench:
    """One log of a rig, with what its writers share."""

    rig: Rig
    row: LogRow
    key: SigningKey
    guard: Guard
    clock: Callable[[], float] | None = None
    sequencers: list[Sequencer] = field(default_factory=list)

    @property
    def log_id(self) -> int:
        return self.row.log_id

    def sequencer(self, store: Store | None = None, ttl: int = 3600, **changes: Any) -> Sequencer:
        """A sequencer of this log, by default on the rig's own store."""
        # A guard of its own, as every process has: one would otherwise know what another one wrote.
        parts = {"log": self.row, "key": self.key, "guard": Guard(self.guard.path)} | changes
        if self.clock:
            parts.setdefault("clock", Clock(self.clock))
        made = Sequencer(store or self.rig.store, idempotency_ttl=ttl, **parts)
        self.sequencers.append(made)
        return made

    def new_sequencer(self, store: Store | None = None, **changes: Any) -> Callable[[Observer], Sequencer]:
        """What makes a sequencer of this log for a Log, which is its observer."""
        return lambda observer: self.sequencer(store, observer=observer, **changes)

    async def grown(
        self,
        leaves: Sequence[bytes | NewEntry],
        expected: Head | None = None,
        at: int | None = None,
        idempotency: Sequence[IdempotencyRow] = (),
    ) -> tuple[Grown, Head]:
        """What an append of these leaves would store, and the head it expects: arguments of store.log.append."""
        old = expected or await self.rig.store.reads.head(self.log_id)
        edge = Edge.of(old.size, await self.rig.store.reads.tiles(self.log_id, partial_tiles(old.size)))
        entries = [entry if isinstance(entry, NewEntry) else new_entry(entry) for entry in leaves]
        payloads = [
            StoredPayload(index, entry.payload, entry.seed)
            for index, entry in enumerate(entries, old.size)
            if entry.payload is not None and entry.seed is not None
        ]
        stored, keys = [entry.leaf for entry in entries], [entry.leaf_key for entry in entries]
        growth = grow(edge, [leaf_hash(leaf) for leaf in stored])
        head = replace(
            old, size=growth.edge.size, root=growth.edge.root(), logged_at=old.logged_at + 1 if at is None else at
        )
        return Grown(self.log_id, head, stored, keys, payloads, growth.tiles, idempotency), old

    async def extend(self, *leaves: bytes | NewEntry) -> Head:
        """Append leaves through the store alone, and return the new head."""
        grown, expected = await self.grown(leaves)
        await self.rig.store.log.append(grown, expected)
        return grown.head


def write_guard(path: Path, says: Guarded) -> None:
    """Make a guard file say this, whatever it said before."""
    path.write_bytes(2 * (2 * says.encode()).ljust(BLOCK, b"\0"))


def lift_guard(path: Path, size: int, root: RootHash) -> None:
    """Raise a guard to a head, proved or not."""
    held = Guard(path).read()
    if not Guard(path).swap(held.guard_id, TreeHead(size, root), {held.head})[1]:
        raise AssertionError("the guard was not raised")


def new_entry(leaf: bytes, *, payload: bytes | None = None, seed: bytes | None = None) -> NewEntry:
    """An entry as the sequencer would store it."""
    return NewEntry(leaf, leaf_key(leaf_hash(leaf)), payload, seed)


def raw(*leaves: bytes) -> Submission:
    """A submission of raw leaves."""
    drafts: list[RawDraft] = [draft_raw(leaf) for leaf in leaves]
    return Submission(drafts)


def event(*numbers: int, key: str | None = None, caller: str = "alice", seed: bytes | None = None) -> Submission:
    """A submission of one small event for each number."""
    drafts = [commit({"n": n}, b'{"n":%d}' % n, seed or (n % 2**64).to_bytes(32, "big")) for n in numbers]
    return Submission(drafts, caller, key)


def genesis(bench: Bench) -> Submission:
    """The submission that makes entry 0."""
    members: dict[str, object] = {
        "kind": bench.row.kind,
        "origin": bench.row.origin,
        "vkeys": [str(bench.key.vkey)],
    }
    return Submission([OwnDraft("genesis@v1", members)])


@contextlib.asynccontextmanager
async def open_rig(engine: str, database: str | None, folder: Path, store: Store) -> AsyncIterator[Rig]:
    async with contextlib.AsyncExitStack() as stack:
        yield Rig(engine, database, folder, store, stack)
