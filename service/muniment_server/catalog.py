"""All logs of one instance: making them, opening them, and the API keys that may use them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from muniment.checkpoint import check_origin
from muniment.encoding import b64url
from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment_server import memory
from muniment_server.cache import Cache, most_for
from muniment_server.disk import Disk
from muniment_server.failpoints import step
from muniment_server.guard import Guard, Guarded, GuardRefused, sync_directory
from muniment_server.log import Log
from muniment_server.sequencer import ReadOnly, Sequencer
from muniment_server.settings import Settings
from muniment_server.storage import ApiKeyRow, Head, HeadMoved, LogRow, Replaced, Store, StoreUnavailable
from muniment_server.storage.choice import open_database
from muniment_server.submission import OwnDraft, Submission
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace

DEFAULT_LOG = "default"
SCOPES = frozenset({"append", "read"})
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REFRESH_SECONDS = 1.0
_DISK_SECONDS = 0.1  # a fast disk takes tens of megabytes in a second


class SetupError(Exception):
    """An instance or a log cannot be made or opened as things are. The message says what to do."""


async def open_store(settings: Settings) -> Store:
    """Open the database of an instance. Raises SchemaError, StoreUnavailable or SetupError."""
    if settings.database and not settings.database.startswith(("postgres://", "postgresql://")):
        raise SetupError("the database is not a postgresql:// URL")
    return await open_database(settings.sqlite, settings.database)


# --- keys and policy on disk --------------------------------------------------------------------------------------------


@step("catalog.write_file")
def write_new(path: Path, text: str, mode: int) -> None:
    """Make a file with this text, durably, or leave nothing. Raises FileExistsError when there is one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink()
    sync_directory(path.parent)
    sync_directory(path.parent.parent)  # the folder may be new as well


def read_key(path: Path) -> SigningKey:
    """Return the signing key in a file. Raises SetupError, never quoting the key."""
    try:
        return SigningKey.parse(path.read_text("utf-8").removesuffix("\n"))
    except FileNotFoundError:
        raise SetupError(
            f"the signing key {path} is missing: put the file back; without it the log can only be read"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"the signing key {path} cannot be read: {type(error).__name__}") from None
    except FormatError as error:
        raise SetupError(f"{path}: {error}") from None


def _read_policy(settings: Settings) -> Policy | None:
    """Return the policy of this instance, or None when there is none yet. Raises SetupError."""
    try:
        return Policy.read(settings.policy)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        raise SetupError(f"the policy file cannot be read: {error}") from error


@step("catalog.policy")
def _add_to_policy(settings: Settings, key: SigningKey) -> None:
    """Make sure that the policy file of this instance trusts `key`. What else is in it stays, comments too."""
    old = _read_policy(settings)
    if old is None:
        write_new(settings.policy, str(Policy((LogKey(key.vkey),))), 0o644)
    elif not any(log.vkey == key.vkey for log in old.logs):
        lines = settings.policy.read_text("utf-8").splitlines(keepends=True)
        after = max((at for at, line in enumerate(lines, 1) if line.split()[:1] == ["log"]), default=0)
        temporary = settings.policy.with_name(f".policy.{secrets.token_hex(4)}")
        write_new(temporary, "".join((*lines[:after], f"log {key.vkey}\n", *lines[after:])), 0o644)
        temporary.replace(settings.policy)
        sync_directory(settings.policy.parent)


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Keep others who make a log in this folder out: two of them could take half of their files from each other."""
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- logs ---------------------------------------------------------------------------------------------------------------


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
    """Make a log with its key, guard, policy line, genesis entry and first checkpoint; or finish one that a crash interrupted.

    Raises SetupError, and StoreError when the database does not answer.
    """
    if not _NAME.fullmatch(name):
        raise SetupError(f"a log is named by lowercase letters, digits and hyphens, at most 63: not {name!r}")
    try:
        check_origin(origin)
    except FormatError as error:
        raise SetupError(str(error)) from None
    row = LogRow(0, name, origin, kind, public, open_payloads, time.time_ns() // 1_000_000)
    async with _alone(settings.data):
        return await _create_log(settings, store, row)


@step("catalog.create")
async def _create_log(settings: Settings, store: Store, row: LogRow) -> SigningKey:
    existing = await _existing(store, row.name, row.origin, row.kind)
    _read_policy(settings)  # refused before anything is made
    key, guarded = await asyncio.to_thread(_key_and_guard, settings, row.name, row.origin, exists=existing is not None)
    try:
        row = await store.create_log(row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))
    except HeadMoved as error:
        raise SetupError(f"another log has the name {row.name!r} or the origin {row.origin!r}: {error}") from error
    await _write_genesis(settings, store, row, key)
    _add_to_policy(settings, key)
    return key


async def _existing(store: Store, name: str, origin: str, kind: str) -> LogRow | None:
    for row in await store.logs():
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
    """Return key and guard of a log, made now only if nothing was ever signed: a second of either could be a second history.

    The guard is made before the key, so that a key without a guard can only mean that the guard was lost. `exists` says that the
    database holds the log.
    """
    path, guard = settings.key_file(name), Guard(settings.guard_file(name))
    if not path.exists():
        return _new_key_and_guard(path, guard, origin, exists=exists)
    key = read_key(path)
    if key.vkey.name != origin:
        raise SetupError(f"{path} is the key of {key.vkey.name!r}, not of {origin!r}")
    guarded = _guarded(guard)
    if (guarded.origin, guarded.key_id) != (origin, key.vkey.key_id):
        raise SetupError(
            f"guard_foreign: {guard.path} guards {guarded.origin!r} with key {guarded.key_id.hex()}, not this log and key: "
            "put the right files back"
        )
    if guarded.size and not exists:
        raise SetupError(
            f"database_missing: {guard.path} says that {guarded.size} entries were signed, but the database does not hold log "
            f"{name!r}: put the database back, or use a new name and origin"
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
        raise SetupError(f"{error.code}: {error}") from error


@step("catalog.genesis")
async def _write_genesis(settings: Settings, store: Store, row: LogRow, key: SigningKey) -> None:
    trace = Trace(settings.trace) if settings.trace else None
    sequencer = _sequencer(settings, store, row, key, trace)
    log = Log(store, row, settings, Metrics(), Cache(2**20), sequencer, trace=trace)
    await log.start()
    try:
        if log.refusal:
            raise SetupError(f"{log.refusal.code}: {log.refusal}")
        if not sequencer.signed:
            raise StoreUnavailable("the first head cannot be signed now: its guard cannot be raised")
        if not (await store.head(row.log_id)).size:
            genesis = OwnDraft("genesis@v1", {"kind": row.kind, "origin": row.origin, "vkeys": [str(key.vkey)]})
            await log.append(Submission([genesis]))
    finally:
        await log.close()
        if trace:
            trace.close()


def _sequencer(settings: Settings, store: Store, row: LogRow, key: SigningKey, trace: Trace | None = None) -> Sequencer:
    if key.vkey.name != row.origin:
        raise SetupError(f"{settings.key_file(row.name)} is the key of {key.vkey.name!r}, not of {row.origin!r}")
    guard = Guard(settings.guard_file(row.name))
    return Sequencer(store, row, key, guard, settings.idempotency_ttl, trace=trace, steady=_steady)


def _steady() -> float:
    """Return seconds that go on while the machine sleeps, so that waking up is no jump of the clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Catalog:
    """The open logs of a running server."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self.store = store
        self.settings = settings
        self._metrics = metrics
        self._cache = Cache(settings.cache_bytes or most_for(memory.available()))
        self._logs: dict[str, Log] = {}
        self._refreshed = 0.0
        self._lock = asyncio.Lock()
        self._trace = Trace(settings.trace) if settings.trace else None
        self._disk = Disk((settings.data, settings.guards), settings.min_free_percent)
        self._watch: asyncio.Task[None] | None = None
        self._replaced = False  # the database's files, as far as the operator was told

    def logs(self) -> list[Log]:
        """Return the open logs."""
        return list(self._logs.values())

    async def open(self) -> None:
        """Open every log of the database. Raises SetupError when there is none, StoreError when it does not answer.

        When it raises, everything is closed again, the store too.
        """
        try:
            await self._refresh(strict=True)
        except BaseException:
            await self.close()
            raise
        if not self._logs:
            await self.close()
            raise self._no_log()
        self._watch = asyncio.create_task(self._watch_disk(), name="disk watch")

    def _no_log(self) -> SetupError:
        """Guards without a log: the database is another one, or empty. A new genesis under an old key would be a second history."""
        guards = sorted(self.settings.guards.glob("*.guard"))
        if not guards:
            return SetupError("the database holds no log: run `muniment-server init` first")
        return SetupError(
            f"database_missing: {self.settings.guards} guards {len(guards)} log(s), the first is {guards[0].stem!r}, but the database "
            "holds none: put the database back, or run init again if it was interrupted"
        )

    async def _watch_disk(self) -> None:
        while True:
            was = self._disk.low
            self._disk.measure()
            self._metrics.disk_free_ratio.set(self._disk.free_ratio)
            if self._disk.low != was:
                say = get_logger().error if self._disk.low else get_logger().info
                say("disk is nearly full: appends are refused" if self._disk.low else "disk has room again")
            self._check_premises()
            await asyncio.sleep(_DISK_SECONDS)

    def _check_premises(self) -> None:
        """Let every log be refused when the database's files are gone or others: what is committed into them would be lost."""
        try:
            self.store.check_premises()
        except Replaced as error:
            if not self._replaced:
                get_logger().error("database files were replaced", detail=str(error))
            self._replaced = True
            for log in self._logs.values():
                log.withdraw(ReadOnly("database_replaced", str(error)))

    async def get(self, name: str) -> Log | None:
        """Return an open log, also one that was made since the last call."""
        if name not in self._logs and _NAME.fullmatch(name) and time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            await self._refresh(strict=False)
        return self._logs.get(name)

    def opened(self, name: str) -> Log | None:
        """Return a log that is open already."""
        return self._logs.get(name)

    async def _refresh(self, *, strict: bool) -> None:
        async with self._lock:
            for row in await self.store.logs():
                # A log without genesis is still being made, and index 0 is not for others.
                if row.name in self._logs or not (await self.store.head(row.log_id)).size:
                    continue
                try:
                    await self._open(row)
                except SetupError as error:
                    if strict:
                        raise
                    get_logger().error("a log cannot be opened", log=row.name, error=str(error))  # the others can
            self._refreshed = time.monotonic()

    async def _open(self, row: LogRow) -> None:
        sequencer, unwritable = None, None
        if not self.settings.read_only:
            try:
                key = await asyncio.to_thread(read_key, self.settings.key_file(row.name))
                sequencer = _sequencer(self.settings, self.store, row, key, self._trace)
            except SetupError as error:  # no route signs: what is there can still be read and proved
                unwritable = ReadOnly("key_unreadable", str(error))
                get_logger().error("log is read-only", log=row.name, code=unwritable.code, detail=str(error))
        log = Log(
            self.store,
            row,
            self.settings,
            self._metrics,
            self._cache,
            sequencer,
            unwritable=unwritable,
            disk=self._disk,
            trace=self._trace,
        )
        await log.start()
        self._logs[row.name] = log

    async def close(self) -> None:
        """Answer everything that was taken, publish, and close the database."""
        if self._watch:
            self._watch.cancel()
        try:
            await asyncio.gather(*(log.close() for log in self._logs.values()))
        finally:
            await self.store.close()
            if self._trace:
                self._trace.close()
                self._trace = None


# --- API keys -----------------------------------------------------------------------------------------------------------


def digest_of_key(token: str) -> bytes:
    """Return what is stored of an API key. A plain hash is enough: the key has 256 random bits."""
    return sha256(token.encode()).digest()


async def create_api_key(
    store: Store, scopes: frozenset[str], log_name: str | None, label: str
) -> tuple[str, ApiKeyRow]:
    """Make an API key and return it, the only time it is seen, with its row. Raises SetupError on an unknown scope or log."""
    if not scopes or scopes - SCOPES:
        raise SetupError(f"scopes are {', '.join(sorted(SCOPES))}: not {', '.join(sorted(scopes - SCOPES)) or 'none'}")
    if log_name is not None and log_name not in {row.name for row in await store.logs()}:
        raise SetupError(f"there is no log {log_name!r}")
    token = "mk_" + b64url(secrets.token_bytes(32))
    digest = digest_of_key(token)
    row = ApiKeyRow(digest.hex()[:12], digest, scopes, log_name, label, time.time_ns() // 1_000_000, None)
    await store.create_key(row)
    return token, row
