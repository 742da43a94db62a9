"""Makes tiles again from entries, when and only when these hash to what was signed.

In SQLite it makes the table of leaf keys again as well. It may run beside a server: tiles only grow, every write
compares with the bytes that were found wrong, and all of it is one transaction that keeps appends out. The triggers
that make tables append-only are lifted inside that transaction alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from muniment.tiles import Tile
from muniment_server.check.fsck.whole import LEAF_KEYS, Whole
from muniment_server.errors import RepairRefused, StoreUnavailable
from muniment_server.storage.postgres.connect import connect as connect_postgres
from muniment_server.storage.sqlite.connect import connect as connect_sqlite
from muniment_server.storage.sqlite.leaf_keys import rebuild

Changes = Mapping[tuple[int, int], tuple[bytes, bytes]]
"""By (level, index): the bytes that are stored (none: b""), and those that shall be."""
_LOCK_SECONDS = 10


async def repair(whole: Whole, sqlite: Path, url: str | None) -> list[str]:
    """Write what a run found wrong; return the names of the tiles, level/index, and "leaf_keys".

    Raises RepairRefused, StoreUnavailable.
    """
    tiles = await _repair_tiles(whole, sqlite, url)  # first: it may refuse, and then nothing is written
    return tiles + await _repair_leaf_keys(whole, sqlite)


async def _repair_leaf_keys(whole: Whole, sqlite: Path) -> list[str]:
    """Make SQLite's table again: nothing is signed of it, and no look-up believes it without looking at the entry."""
    if not whole.leaf_keys_wrong:
        return []
    await asyncio.to_thread(_write_sqlite, sqlite, ("leaf_keys", "leaf_keys_carried"), rebuild)
    return [LEAF_KEYS]


async def _repair_tiles(whole: Whole, sqlite: Path, url: str | None) -> list[str]:
    if not whole.fold.wrong:
        return []
    _check_signed(whole)
    changes = await _changes(whole)
    log_id = whole.log.log_id
    if url:
        await _write_postgres(url, log_id, changes)
    else:
        await asyncio.to_thread(_write_sqlite, sqlite, ("tiles",), lambda db: _write_tiles(db, log_id, changes))
    return [f"{level}/{index}" for level, index in sorted(changes)]


def _check_signed(whole: Whole) -> None:
    """Raise RepairRefused unless the entries hash to the largest published checkpoint, and to the root of the head."""
    known, signed = whole.fold.known, whole.fold.checkpoints()
    if not signed:
        raise RepairRefused("no published checkpoint with a good signature says what the entries should hash to")
    size, root = max(signed)
    if known.get(size) != root:
        raise RepairRefused(
            f"the entries do not hash to the signed checkpoint of size {size}: it is not only tiles that are wrong. "
            "Compare with a copy (fsck --against), or restore one"
        )
    if known.get(whole.head.size) != whole.head.root:
        raise RepairRefused(f"the entries do not hash to the head's root of size {whole.head.size}")


async def _changes(whole: Whole) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """Return old and new bytes. What a writer has added to a tile meanwhile stays."""
    wrong = whole.fold.wrong
    stored = await whole.store.reads.tiles(whole.log.log_id, [Tile(level, index) for level, index in wrong])
    grown = (await whole.store.reads.head(whole.log.log_id)).size > whole.head.size
    changes = {}
    for where, right in wrong.items():
        old = stored.get(where, b"")
        changes[where] = old, right + (old[len(right) :] if grown else b"")
    return changes


def _write_sqlite(path: Path, tables: Sequence[str], write: Callable[[apsw.Connection], None]) -> None:
    """Write in one transaction, in which the triggers of these tables are lifted."""
    connection = connect_sqlite(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            sql = (
                "SELECT name, sql FROM sqlite_schema "
                "WHERE type = 'trigger' AND tbl_name IN (SELECT value FROM json_each(?))"
            )
            triggers = connection.execute(sql, (json.dumps(tables),)).fetchall()
            for name, _ in triggers:
                connection.execute(f'DROP TRIGGER "{name}"')
            write(connection)
            for _, made in triggers:
                connection.execute(str(made))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except apsw.Error as error:
        raise StoreUnavailable(f"SQLite: {error}") from error
    finally:
        connection.close()


def _write_tiles(connection: apsw.Connection, log_id: int, changes: Changes) -> None:
    for (level, index), (old, new) in changes.items():
        _write_one(connection, (log_id, level, index), old, new)


def _write_one(connection: apsw.Connection, where: tuple[int, int, int], old: bytes, new: bytes) -> None:
    if old:
        sql = 'UPDATE tiles SET data = ? WHERE log_id = ? AND level = ? AND "index" = ? AND data = ?'
        connection.execute(sql, (new, *where, old))
    else:
        connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (*where, new))
    if connection.changes() != 1:
        raise _changed(where)


def _changed(where: tuple[int, int, int]) -> RepairRefused:
    return RepairRefused(f"tile {where[1]}/{where[2]} was changed meanwhile: nothing was written, run fsck again")


async def _write_postgres(url: str, log_id: int, changes: Changes) -> None:
    connection = await connect_postgres(url, command_timeout=None)
    try:
        async with connection.transaction():
            await _write_all(connection, log_id, changes)
    except asyncpg.InsufficientPrivilegeError as error:
        raise RepairRefused(
            f"only the owner of the table tiles can lift its triggers ({error}): "
            "run this with the owner's role in --database"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
    finally:
        await connection.close()


async def _write_all(connection: asyncpg.Connection[Any], log_id: int, changes: Changes) -> None:
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
    # Keeps appends out until the end of the transaction, and comes back with it when it fails.
    await connection.execute("ALTER TABLE tiles DISABLE TRIGGER tiles_append_only")
    where = "log_id = $1 AND level = $2 AND index = $3"
    for (level, index), (old, new) in changes.items():
        tile = (log_id, level, index)
        sql = f"SELECT string_agg(data, '' ORDER BY part) FROM tiles WHERE {where}"  # noqa: S608 - made of constants
        if (await connection.fetchval(sql, *tile) or b"") != old:
            raise _changed(tile)
        await connection.execute(f"DELETE FROM tiles WHERE {where}", *tile)  # noqa: S608 - likewise
        await connection.execute(
            "INSERT INTO tiles (log_id, level, index, part, data) VALUES ($1, $2, $3, 0, $4)", *tile, new
        )
    await connection.execute("ALTER TABLE tiles ENABLE ALWAYS TRIGGER tiles_append_only")
