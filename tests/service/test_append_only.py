"""What nobody may do to a stored log, tried with bare SQL: each statement is refused by the database itself, and changes nothing.

A tripwire, not the proof: whoever owns the tables can drop the triggers first.
"""

from __future__ import annotations

import time

import apsw
import asyncpg
import pytest

from muniment_server.storage.anchors import AnchorRow, CalendarRow
from muniment_server.storage.catalog import ApiKeyRow
from muniment_server.storage.checkpoints import Published
from tests.service.rig import NOW, SQLITE_TABLES, Bench, Rig, new_entry

SEED = bytes(range(32))
REFUSED = (apsw.ConstraintError, asyncpg.IntegrityConstraintViolationError)

# {log} is the log's id (its head at size 3 of 3 entries, published at 2), {tile} the data of its tile 0/0, {zero} 32 zero bytes.
BOTH = {
    "change a leaf": 'UPDATE entries SET leaf = {zero} WHERE log_id = {log} AND "index" = 1',
    "write a leaf anew": "UPDATE entries SET leaf = leaf",
    "renumber an entry": 'UPDATE entries SET "index" = 3 WHERE "index" = 2',
    "give an entry to another log": "UPDATE entries SET log_id = {log} + 1 WHERE log_id = {log}",
    "delete an entry": 'DELETE FROM entries WHERE "index" = 2',
    "delete all entries": "DELETE FROM entries",
    "leave a gap": "INSERT INTO entries VALUES ({log}, 7, 0, {zero})",
    "add an entry beyond the head": "INSERT INTO entries VALUES ({log}, 3, 0, {zero})",
    "add an entry before the first": "INSERT INTO entries VALUES ({log}, -1, 0, {zero})",
    "add an entry to a log without head": "INSERT INTO entries VALUES ({log} + 1, 0, 0, {zero})",
    "store an entry again": "INSERT INTO entries VALUES ({log}, 1, 0, {zero})",
    "replace an entry by an upsert": (
        "INSERT INTO entries VALUES ({log}, 1, 0, {zero}) "
        'ON CONFLICT (log_id, "index") DO UPDATE SET leaf = excluded.leaf'
    ),
    "change a payload": "UPDATE payloads SET payload = {zero}",
    "change a seed": "UPDATE payloads SET seed = {zero}",
    "delete a payload": "DELETE FROM payloads",
    "replace a payload by an upsert": (
        "INSERT INTO payloads VALUES ({log}, 0, {zero}, {zero}) "
        'ON CONFLICT (log_id, "index") DO UPDATE SET payload = excluded.payload'
    ),
    "rewrite a tile": "UPDATE tiles SET data = {garbage} WHERE level = 0",
    "rewrite a tile and let it grow": "UPDATE tiles SET data = {wide_garbage} WHERE level = 0",
    "write a tile anew": "UPDATE tiles SET data = data",
    "shrink a tile": "UPDATE tiles SET data = {zero} WHERE level = 0",
    "shrink a tile to its prefix": "UPDATE tiles SET data = {prefix} WHERE level = 0",
    "move a tile": 'UPDATE tiles SET "index" = 9, data = {grown}',
    "raise a tile": "UPDATE tiles SET level = 1, data = {grown}",
    "delete a tile": "DELETE FROM tiles",
    "replace a tile by an upsert": (
        "INSERT INTO tiles VALUES ({log}, 0, 0, {wide_garbage}) "
        'ON CONFLICT (log_id, level, "index") DO UPDATE SET data = excluded.data'
    ),
    "store half a hash": "UPDATE tiles SET data = {half}",
    "take the head back": "UPDATE heads SET size = 2",
    "give the head another root": "UPDATE heads SET root = {zero}",
    "take the time back": "UPDATE heads SET logged_at = logged_at - 1",
    "take the epoch back": "UPDATE heads SET epoch = epoch - 1",
    "leap the epoch": "UPDATE heads SET epoch = epoch + 2",
    "end the epochs": "UPDATE heads SET epoch = 9223372036854775807",
    "move the time alone": "UPDATE heads SET logged_at = logged_at + 1",
    "move the time into the future": "UPDATE heads SET size = size + 1, logged_at = {future}",
    "end the times": "UPDATE heads SET size = size + 1, logged_at = 9223372036854775807",
    "take publication back": "UPDATE heads SET published_size = 1",
    "publish beyond the head": "UPDATE heads SET published_size = 4",
    "publish what is no checkpoint": "UPDATE heads SET published_size = 3",
    "give the head to another log": "UPDATE heads SET log_id = {log} + 1",
    "delete the head": "DELETE FROM heads",
    "replace the head by an upsert": (
        "INSERT INTO heads VALUES ({log}, 0, {zero}, 0, 0, 'g', 0) ON CONFLICT (log_id) DO UPDATE SET size = 0"
    ),
    "rename a log": "UPDATE logs SET name = 'another'",
    "change an origin": "UPDATE logs SET origin = 'example.com/another'",
    "change a kind": "UPDATE logs SET kind = 'raw'",
    "change a creation time": "UPDATE logs SET created_at = 0",
    "delete a log": "DELETE FROM logs",
    "rewrite a checkpoint": "UPDATE checkpoints SET note = 'forged'",
    "move a checkpoint": "UPDATE checkpoints SET size = 3",
    "delete a checkpoint": "DELETE FROM checkpoints",
    "publish an older size afterwards": "INSERT INTO checkpoints VALUES ({log}, 1, 'late', 0)",
    "publish a size again": "INSERT INTO checkpoints VALUES ({log}, 2, 'again', 0)",
    "store a checkpoint beyond the head": "INSERT INTO checkpoints VALUES ({log}, 4, 'next', 0)",
    "end the checkpoints": "INSERT INTO checkpoints VALUES ({log}, 9223372036854775807, 'last', 0)",
    "store a checkpoint of no log": "INSERT INTO checkpoints VALUES ({log} + 1, 0, 'none', 0)",
    "give a revoked key back": "UPDATE api_keys SET revoked_at = NULL",
    "revoke a key at another time": "UPDATE api_keys SET revoked_at = revoked_at + 1 WHERE revoked_at IS NOT NULL",
    "widen a key": "UPDATE api_keys SET scopes = 'append read'",
    "change a key": "UPDATE api_keys SET digest = {garbage_digest} WHERE key_id = 'live'",
    "delete the keys": "DELETE FROM api_keys",  # then any caller on loopback may append
    "replace a key by an upsert": (
        "INSERT INTO api_keys VALUES ('dead', {garbage_digest}, 'read', NULL, '', 0, NULL) "
        "ON CONFLICT (key_id) DO UPDATE SET revoked_at = NULL"
    ),
    "replace a checkpoint by an upsert": (
        "INSERT INTO checkpoints VALUES ({log}, 2, 'again', 0) ON CONFLICT (log_id, size) DO UPDATE SET note = 'forged'"
    ),
    "rewrite what is anchored": "UPDATE anchors SET checkpoint = {zero}, revision = revision + 1",
    "anchor another digest": "UPDATE anchors SET digest = {garbage_digest}, revision = revision + 1",
    "anchor another root": "UPDATE anchors SET root = {garbage_digest}, revision = revision + 1",
    "anchor another size": "UPDATE anchors SET tree_size = 3, revision = revision + 1",
    "anchor with another nonce": "UPDATE anchors SET nonce = {nonce}, revision = revision + 1",
    "take an anchor's time back": "UPDATE anchors SET created_at = 0, revision = revision + 1",
    "drop a proof": "UPDATE anchors SET ots = NULL, revision = revision + 1",
    "shrink a proof": "UPDATE anchors SET ots = {nonce}, revision = revision + 1",
    "take a revision back": "UPDATE anchors SET state = 'confirmed'",
    "log an anchor elsewhere": "UPDATE anchors SET logged = 1, revision = revision + 1",
    "invent a state": "UPDATE anchors SET state = 'certain', revision = revision + 1",
    "delete an anchor": "DELETE FROM anchors",
    "anchor an older size afterwards": (
        "INSERT INTO anchors (log_id, tree_size, root, checkpoint, digest, nonce, created_at, state, revision) "
        "VALUES ({log}, 1, {zero}, {zero}, {zero}, {nonce}, 0, 'queued', 0)"
    ),
    "anchor a size again": (
        "INSERT INTO anchors (log_id, tree_size, root, checkpoint, digest, nonce, created_at, state, revision) "
        "VALUES ({log}, 2, {zero}, {zero}, {zero}, {nonce}, 0, 'queued', 0)"
    ),
    "give a calendar another anchor": "UPDATE anchor_calendars SET tree_size = 1",
    "rename a calendar": "UPDATE anchor_calendars SET url = 'https://other.example'",
    "delete a calendar": "DELETE FROM anchor_calendars",
}
SQLITE = {
    "change a leaf key": "UPDATE entries SET leaf_key = 0",
    "replace an entry": "INSERT OR REPLACE INTO entries VALUES ({log}, 1, 0, {zero})",
    "REPLACE INTO entries": "REPLACE INTO entries VALUES ({log}, 2, 0, {zero})",
    "replace a payload": "INSERT OR REPLACE INTO payloads VALUES ({log}, 0, {zero}, {zero})",
    "replace a tile": "INSERT OR REPLACE INTO tiles VALUES ({log}, 0, 0, {wide_garbage})",
    "replace a tile by its row id": 'INSERT OR REPLACE INTO tiles (rowid, log_id, level, "index", data) VALUES (1, {log}, 0, 7, {zero})',
    "replace the head": "INSERT OR REPLACE INTO heads VALUES ({log}, 0, {zero}, 0, 0, 'g', 0)",
    "replace a checkpoint": "REPLACE INTO checkpoints VALUES ({log}, 2, 'again', 0)",
    "replace a key": "REPLACE INTO api_keys VALUES ('dead', {garbage_digest}, 'append', NULL, '', 0, NULL)",
    "replace a key by its digest": "REPLACE INTO api_keys VALUES ('new', {zero}, 'append', NULL, '', 0, NULL)",
    "replace an anchor": (
        "INSERT OR REPLACE INTO anchors (log_id, tree_size, root, checkpoint, digest, nonce, created_at, state, revision) "
        "VALUES ({log}, 2, {zero}, {zero}, {zero}, {nonce}, 0, 'queued', 0)"
    ),
    "replace a calendar": "REPLACE INTO anchor_calendars (log_id, tree_size, url, state, attempts) VALUES ({log}, 2, 'https://c', 'queued', 0)",
    "replace a log": "INSERT OR REPLACE INTO logs VALUES ({log}, 'other', 'other', 'raw', 1, 1, 0)",
    "replace a log by its name": "REPLACE INTO logs (name, origin, kind, public, open, created_at) VALUES ('log-1', 'new', 'raw', 1, 1, 0)",
    "renumber by UPDATE OR REPLACE": 'UPDATE OR REPLACE entries SET "index" = 0 WHERE "index" = 1',
    "move a tile by UPDATE OR REPLACE": "UPDATE OR REPLACE tiles SET level = 1, data = {grown}",
    "replace a tile by moving another over it": (
        "INSERT INTO tiles VALUES ({log}, 0, 7, {zero}); "
        'UPDATE OR REPLACE tiles SET rowid = 1, data = CAST(data || {zero} AS BLOB) WHERE level = 0 AND "index" = 7'
    ),
    "ignore the refusal": "UPDATE OR IGNORE entries SET leaf = {zero}",
}
POSTGRES = {
    "empty the entries": "TRUNCATE entries",
    "empty the payloads": "TRUNCATE payloads",
    "empty the tiles": "TRUNCATE tiles",
    "empty the checkpoints": "TRUNCATE checkpoints",
    "empty the heads": "TRUNCATE heads",
    "empty the anchors": "TRUNCATE anchors CASCADE",
    "empty the calendars": "TRUNCATE anchor_calendars",
    "empty the keys": "TRUNCATE api_keys",
    "empty everything": "TRUNCATE logs CASCADE",
    "merge over an entry": (
        "MERGE INTO entries e USING (SELECT 1 AS at) u ON id & 1 = u.at WHEN MATCHED THEN UPDATE SET leaf = {zero}"
    ),
    "merge an entry away": "MERGE INTO entries e USING (SELECT 1 AS at) u ON id & 1 = u.at WHEN MATCHED THEN DELETE",
    "change a leaf in a CTE": "WITH changed AS (UPDATE entries SET leaf = {zero} RETURNING 1) SELECT * FROM changed",
    "change a leaf through a cursor": (
        "DO $$ DECLARE c CURSOR FOR SELECT * FROM entries FOR UPDATE; r record; "
        "BEGIN OPEN c; FETCH c INTO r; UPDATE entries SET leaf = {zero} WHERE CURRENT OF c; END $$"
    ),
    "leave a gap within one statement": ("INSERT INTO entries VALUES ({log}, 3, 0, {zero}), ({log}, 5, 0, {zero})"),
    "change a leaf through the view": "UPDATE log_entries SET leaf = {zero} WHERE index = 1",
    "delete an entry through the view": "DELETE FROM log_entries WHERE index = 1",
    "add an entry through the view": "INSERT INTO log_entries (id, leaf) VALUES (({log}::bigint << 40) + 3, {zero})",
    "add a part behind a gap": "INSERT INTO tiles (log_id, level, index, part, data) VALUES ({log}, 0, 0, 1, {zero})",
    "begin a tile with a later part": "INSERT INTO tiles (log_id, level, index, part, data) VALUES ({log}, 0, 1, 1, {zero})",
    "number a part anew": "UPDATE tiles SET part = 1",
    "number a part anew and let it grow": "UPDATE tiles SET part = 1, data = {grown}",
}
REPLICA = "SET LOCAL session_replication_role = replica"


async def _stored(rig: Rig) -> tuple[Bench, dict[str, str]]:
    bench = await rig.log("event")
    entries = [new_entry(b"%d" % n, payload=b"{}", seed=SEED) for n in range(3)]
    await bench.extend(*entries)
    await rig.store.log.fence(bench.log_id, await rig.store.reads.head(bench.log_id))
    await rig.store.checkpoints.publish(bench.log_id, Published(2, "note", NOW))
    anchor = AnchorRow(2, bytes(32), b"note", bytes(32), bytes(16), NOW, ots=bytes(64), logged=0)
    await rig.store.anchors.add_anchor(bench.log_id, anchor, [CalendarRow(2, "https://c")])
    for key_id, digest in (("dead", bytes(32)), ("live", bytes(31) + b"x")):
        await rig.store.catalog.create_key(ApiKeyRow(key_id, digest, frozenset({"read"}), None, "", NOW, None))
    await rig.store.catalog.revoke_key("dead", NOW)
    ((tile,),) = await rig.sql("SELECT data FROM tiles")
    names = {
        "zero": bytes(32),
        "half": tile + bytes(16),
        "prefix": tile[:64],
        "grown": tile + bytes(32),
        "garbage": bytes(len(tile)),
        "wide_garbage": bytes(len(tile) + 32),
        "garbage_digest": bytes(range(32)),
        "nonce": bytes(range(16)),
    }
    future = str(int(time.time() * 1000) + 2 * 86_400_000)
    return bench, {"log": str(bench.log_id), "future": future} | {name: rig.blob(data) for name, data in names.items()}


async def _each_is_refused(rig: Rig, deeds: dict[str, str], *first: str) -> None:
    bench, values = await _stored(rig)
    before = await rig.dump()
    assert all(before[table] for table in ("logs", "heads", "entries", "payloads", "tiles", "checkpoints", "anchors"))
    for deed, sql in deeds.items():
        try:
            await rig.sql(*first, sql.format(**values))
        except REFUSED:
            pass
        else:
            raise AssertionError(f"not refused: {deed}")
        assert await rig.dump() == before, deed
    await bench.extend(b"goes on")


async def test_each_is_refused(rig: Rig):
    await _each_is_refused(rig, BOTH | (POSTGRES if rig.database else SQLITE))


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_each_is_refused_with_recursive_triggers_too(rig: Rig):
    await _each_is_refused(rig, SQLITE, "PRAGMA recursive_triggers = ON")


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_each_is_refused_on_a_replica_too(rig: Rig):
    """A superuser who says session_replication_role = replica skips ordinary triggers, but not those that are ENABLE ALWAYS."""
    await _each_is_refused(rig, BOTH | POSTGRES, REPLICA)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_every_trigger_fires_always(rig: Rig):
    rows = await rig.sql(
        "SELECT c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE NOT t.tgisinternal AND t.tgenabled <> 'A'"
    )
    assert rows == []


async def test_every_table_of_the_log_has_its_triggers(rig: Rig):
    if rig.database:
        sql = (
            "SELECT DISTINCT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal"
        )
    else:
        sql = "SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'trigger'"
    assert {name for (name,) in await rig.sql(sql)} == {
        *("logs", "heads", "entries", "payloads", "tiles", "checkpoints", "anchors", "anchor_calendars", "api_keys"),
        *(() if rig.database else SQLITE_TABLES),
    }


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_copy_is_refused_like_an_insert(rig: Rig):
    bench, _ = await _stored(rig)
    before = await rig.dump()
    connection = await asyncpg.connect(rig.database)
    try:
        for index in (1, 4):
            with pytest.raises(REFUSED):
                await connection.copy_records_to_table("entries", records=[((bench.log_id << 40) + index, b"x")])
    finally:
        await connection.close()
    assert await rig.dump() == before


async def test_what_may_change_still_can(rig: Rig):
    """Settings of a log, keys of clients, and a log's guard (by `guard adopt`) are not history."""
    await _stored(rig)
    true = "true" if rig.database else "1"
    await rig.sql(f"UPDATE logs SET open = {true}", "SELECT 1")
    await rig.sql("UPDATE api_keys SET revoked_at = 5 WHERE key_id = 'live'", "SELECT 1")
    hour = int(time.time() * 1000) + 3_600_000  # clocks differ
    await rig.sql(f"UPDATE heads SET size = size + 1, logged_at = {hour}", "SELECT 1")
    await rig.sql("UPDATE heads SET guard_id = 'adopted', epoch = epoch + 1", "SELECT 1")
    await rig.sql("DELETE FROM idempotency", "SELECT 1")
