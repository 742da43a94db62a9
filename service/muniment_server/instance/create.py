"""Makes a log: key, guard, policy line, genesis entry and first checkpoint; or finishes what a crash interrupted."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from muniment.checkpoint import check_origin
from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT
from muniment.note import SigningKey
from muniment_server.errors import (
    GuardRefused,
    HeadMoved,
    InstanceRefused,
    SetupError,
    StoreUnavailable,
)
from muniment_server.failpoints import step
from muniment_server.instance.files import add_to_policies, exclusive, read_key, read_policy, write_new
from muniment_server.instance.registry import LOG_NAME, new_sequencer
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.telemetry import Metrics
from muniment_server.trace import Trace
from muniment_server.write.guard import Guard, Guarded
from muniment_server.write.submission import OwnDraft, Submission


async def create_log(
    settings: Settings,
    store: Store,
    name: str,
    origin: str,
    kind: str,
    *,
    public: bool = True,
    open_payloads: bool = False,
) -> SigningKey:
    """Make a log with its key, guard, policy line, genesis entry and first checkpoint.

    Or finish one that a crash interrupted. Raises SetupError, and StoreError when the database does not answer.
    """
    if not LOG_NAME.fullmatch(name):
        raise SetupError(f"a log is named by lowercase letters, digits and hyphens, at most 63: not {name!r}")
    try:
        check_origin(origin)
    except FormatError as error:
        raise SetupError(str(error)) from None
    row = LogRow(0, name, origin, kind, public, open_payloads, time.time_ns() // 1_000_000)
    async with exclusive(settings.data):
        return await _create_log(settings, store, row)


@step("instance.create")
async def _create_log(settings: Settings, store: Store, row: LogRow) -> SigningKey:
    existing = await _existing(store, row.name, row.origin, row.kind)
    read_policy(settings)  # refused before anything is made
    key, guarded = await asyncio.to_thread(_key_and_guard, settings, row.name, row.origin, exists=existing is not None)
    try:
        row = await store.catalog.create_log(row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))
    except HeadMoved as error:
        raise SetupError(f"another log has the name {row.name!r} or the origin {row.origin!r}: {error}") from error
    await _write_genesis(settings, store, row, key)
    add_to_policies(settings, row.name, key)
    return key


async def _existing(store: Store, name: str, origin: str, kind: str) -> LogRow | None:
    for row in await store.catalog.logs():
        if (row.name, row.origin, row.kind) == (name, origin, kind):
            return row
        if row.name == name:
            raise SetupError(
                f"log {name!r} exists with origin {row.origin!r} and kind {row.kind!r}: these never change"
            )
        if row.origin == origin:
            raise SetupError(f"origin {origin!r} belongs to log {row.name!r}: an origin is used once")
    return None


def _key_and_guard(settings: Settings, name: str, origin: str, *, exists: bool) -> tuple[SigningKey, Guarded]:
    """Return key and guard of a log, made now only if nothing was ever signed.

    A second of either could be a second history. The guard is made before the key, so that a key without a guard can
    only mean that the guard was lost. `exists` says that the database holds the log.
    """
    path, guard = settings.key_file(name), Guard(settings.guard_file(name))
    if not path.exists():
        return _new_key_and_guard(path, guard, origin, exists=exists)
    key = read_key(path)
    if key.vkey.name != origin:
        raise SetupError(f"{path} is the key of {key.vkey.name!r}, not of {origin!r}")
    guarded = _guarded(guard)
    if (guarded.origin, guarded.key_id) != (origin, key.vkey.key_id):
        raise InstanceRefused(
            "guard_foreign",
            f"{guard.path} guards {guarded.origin!r} with key {guarded.key_id.hex()}, not this log and key: "
            "put the right files back",
        )
    if guarded.size and not exists:
        raise InstanceRefused(
            "database_missing",
            f"{guard.path} says that {guarded.size} entries were signed, but the database does not hold log "
            f"{name!r}: put the database back, or use a new name and origin",
        )
    return key, guarded


def _new_key_and_guard(path: Path, guard: Guard, origin: str, *, exists: bool) -> tuple[SigningKey, Guarded]:
    if exists:
        raise SetupError(f"the database holds this log, but its key {path} is missing: put it back")
    if guard.path.exists():
        if _guarded(guard).size:
            raise SetupError(
                f"{guard.path} guards a log whose key {path} is missing: put key and database back, or use a new name"
            )
        guard.path.unlink()  # of an init that was interrupted before it made the key: nothing was signed
    key = SigningKey.generate(origin)
    guarded = guard.create(origin, key.vkey.key_id)
    write_new(path, key.reveal() + "\n", 0o600)
    return key, guarded


def _guarded(guard: Guard) -> Guarded:
    try:
        return guard.read()
    except GuardRefused as error:
        raise InstanceRefused(error.code, str(error)) from error


@step("instance.genesis")
async def _write_genesis(settings: Settings, store: Store, row: LogRow, key: SigningKey) -> None:
    trace = Trace(settings.trace) if settings.trace else None
    sequencer = new_sequencer(settings, store, row, key, trace)
    log = Log(store, row, settings, Metrics(), Cache(2**20), sequencer, trace=trace)
    await log.start()
    try:
        if log.refusal:
            raise InstanceRefused(log.refusal.code, str(log.refusal))
        if not (log.sequencer and log.sequencer.signed):
            raise StoreUnavailable("the first head cannot be signed now: its guard cannot be raised")
        if not (await store.reads.head(row.log_id)).size:
            genesis = OwnDraft("genesis@v1", {"kind": row.kind, "origin": row.origin, "vkeys": [str(key.vkey)]})
            await log.append(Submission([genesis]))
    finally:
        await log.close()
        if trace:
            trace.close()
