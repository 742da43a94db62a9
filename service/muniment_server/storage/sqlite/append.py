"""Appends to SQLite: each is one transaction of the writer thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import apsw

from muniment.tiles import Tile
from muniment.tree import TileGrowth
from muniment_server.errors import DuplicateLeaf, HeadMoved, OutcomeUnknown, StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage.log import Grown, Head, Reread
from muniment_server.storage.row_ids import row_id
from muniment_server.storage.sqlite import leaf_keys
from muniment_server.storage.sqlite.database import Database
from muniment_server.storage.sqlite.reads import SqliteReads
from muniment_server.storage.sqlite.recent_leaf_keys import Recent

_WRITTEN = 16
"""Logs whose last leaf keys stay in memory, up to 1.5 MB for each. Those of other logs are read again with the next
append: 50 ms."""

_SWAP = (
    "UPDATE heads SET size = ?, root = ?, logged_at = ?, epoch = ?, guard_id = ? "
    "WHERE log_id = ? AND size = ? AND root = ? AND logged_at = ? AND epoch = ? AND guard_id = ?"
)


class SqliteAppend:
    """See :class:`muniment_server.storage.log.Append`.

    `recent` has the last leaf keys of each log. It is changed here alone, in the writer thread.
    """

    def __init__(self, database: Database, reads: SqliteReads, recent: dict[int, Recent]) -> None:
        self._database = database
        self._reads = reads
        self._recent = recent  # the log that was written last stands last

    async def head_to_extend(self, log_id: int) -> Head:
        """See Append. All connections of this store are to the files that check_premises() watches."""
        self._database.check_premises()
        return await self._reads.head(log_id)

    async def reconnect(self, log_id: int) -> None:
        """See Append. The files are those that they were when the store was opened, or check_premises() says so."""

    def check_premises(self, head: Head | None = None) -> None:  # noqa: ARG002 - there are no sessions
        """See Append."""
        self._database.check_premises()

    @step("store.append")
    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """See Append."""
        await self._database.on_writer(self._append, grown, expected, absent)
        self._database.check_premises()  # before anything is guarded: the next process finds another tree there
        if not tiles:
            return [], {}
        try:
            return await self._reads.reread(grown.log_id, expected.size, grown.head.size, tiles)
        except StoreUnavailable as error:
            raise OutcomeUnknown(f"stored, but not read back: {error}") from error

    def _append(self, grown: Grown, expected: Head, absent: Sequence[int]) -> None:
        """Append in the writer thread. What is in memory changes when the transaction is committed, and only then."""

        def work(connection: apsw.Connection) -> Recent:
            _swap(connection, grown.log_id, expected, grown.head)
            recent = leaf_keys.load(connection, grown.log_id, expected.size, self._recent.get(grown.log_id))
            self._keep(grown.log_id, recent)
            try:
                _store(connection, grown, expected.size, absent, recent)
            except apsw.ConstraintError:
                # Perhaps the table of leaf keys was made again: then what is known of it is out of date.
                del self._recent[grown.log_id]
                raise
            return recent

        recent = self._database.transact(work)
        recent.carried()
        recent.add(grown.leaf_keys)

    def _keep(self, log_id: int, recent: Recent) -> None:
        self._recent.pop(log_id, None)
        self._recent[log_id] = recent
        if len(self._recent) > _WRITTEN:
            del self._recent[next(iter(self._recent))]

    @step("store.fence")
    async def fence(self, log_id: int, expected: Head) -> Head:
        """See Append."""
        return await self._replace(log_id, expected, replace(expected, epoch=expected.epoch + 1))

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """See Append."""
        return await self._replace(log_id, expected, replace(expected, epoch=expected.epoch + 1, guard_id=guard_id))

    async def _replace(self, log_id: int, expected: Head, new: Head) -> Head:
        await self._database.write(lambda connection: _swap(connection, log_id, expected, new))
        self._database.check_premises()
        return new


@step("sqlite.swap")
def _swap(connection: apsw.Connection, log_id: int, expected: Head, new: Head) -> None:
    old = (log_id, expected.size, expected.root, expected.logged_at, expected.epoch, expected.guard_id)
    connection.execute(_SWAP, (new.size, new.root, new.logged_at, new.epoch, new.guard_id, *old))
    if not connection.changes():
        raise HeadMoved(f"the head of log {log_id} is no longer at size {expected.size}, epoch {expected.epoch}")


def _store(connection: apsw.Connection, grown: Grown, first: int, absent: Sequence[int], recent: Recent) -> None:
    if absent and leaf_keys.is_any_known(connection, grown.log_id, absent, recent):
        raise DuplicateLeaf("an entry with one of these leaf keys is stored")
    _store_entries(connection, grown, first)
    for tile in grown.tiles:
        _store_tile(connection, grown.log_id, tile)
    _store_keys(connection, grown)
    leaf_keys.carry_over(connection, grown.log_id, recent)


@step("sqlite.entries")
def _store_entries(connection: apsw.Connection, grown: Grown, first: int) -> None:
    log_id = grown.log_id
    start = row_id(log_id, first)
    ids = range(start, start + len(grown.leaves))
    rows = zip(ids, grown.leaf_keys, grown.leaves, strict=True)
    connection.executemany("INSERT INTO entries (id, leaf_key, leaf) VALUES (?, ?, ?)", rows)
    payloads = [(log_id, *payload) for payload in grown.payloads]
    connection.executemany("INSERT INTO payloads VALUES (?, ?, ?, ?)", payloads)


@step("sqlite.keys")
def _store_keys(connection: apsw.Connection, grown: Grown) -> None:
    log_id = grown.log_id
    for key in grown.idempotency:
        connection.execute(
            "DELETE FROM idempotency WHERE log_id = ? AND caller = ? AND key = ? AND expires_at <= ?",
            (log_id, key.caller, key.key, grown.head.logged_at),
        )
        values = (log_id, key.caller, key.key, key.fingerprint, key.first_index, key.count, key.expires_at)
        connection.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)", values)


@step("sqlite.tile")
def _store_tile(connection: apsw.Connection, log_id: int, tile: TileGrowth) -> None:
    # Not an upsert: the trigger that refuses INSERT OR REPLACE cannot tell it from one.
    if tile.old_width:
        sql = 'UPDATE tiles SET data = ? WHERE log_id = ? AND level = ? AND "index" = ?'
        connection.execute(sql, (tile.data, log_id, tile.level, tile.index))
    else:
        connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (log_id, tile.level, tile.index, tile.data))
