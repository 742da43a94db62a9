"""Instances to test over HTTP: made in this process, because five `muniment-server` commands would take five seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import pytest

from muniment.checkpoint import parse_checkpoint
from muniment.note import parse_note
from muniment.policy import Policy
from muniment_server.access.keys import create_api_key
from muniment_server.instance.create import create_log
from muniment_server.settings import read_settings
from muniment_server.storage.anchors import AnchorRow
from muniment_server.storage.open import open_store
from tests.bitcoin.chain import Chain
from tests.databases import databases
from tests.live import ORIGIN, LiveServer
from tests.unit.anchors import stamp


@dataclass(frozen=True)
class LogSpec:
    """A log to make. Its origin is derived from its name."""

    name: str
    kind: str = "event"
    public: bool = True
    open: bool = False

    @property
    def origin(self) -> str:
        return ORIGIN if self.name == "default" else f"{ORIGIN}/{self.name}"


@dataclass(frozen=True)
class KeySpec:
    """An API key to make, known to the test by `label`."""

    label: str
    scopes: frozenset[str]
    log: str | None = None
    revoked: bool = False


DEFAULT = LogSpec("default")
RAW = LogSpec("raw", "raw")


@dataclass
class Instance:
    """An instance on disk (and in a Postgres database), with the secrets of its API keys by label."""

    data: Path
    database: str | None
    policy: Policy
    keys: dict[str, str] = field(default_factory=dict)
    key_ids: dict[str, str] = field(default_factory=dict)

    def server(self, *flags: str, env: dict[str, str] | None = None) -> LiveServer:
        """A server process on it; use it as a context manager. Entries may wait for as long as a busy machine takes."""
        patient = {"MUNIMENT_SERVER_MAX_QUEUE_SECONDS": "60"}
        return LiveServer(self.data, *flags, database=self.database, env=patient | (env or {}))


def make_instance(
    data: Path, database: str | None = None, logs: Sequence[LogSpec] = (DEFAULT,), keys: Sequence[KeySpec] = ()
) -> Instance:
    """Make an instance with these logs and API keys. A Postgres `database` is a migrated one."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    instance = Instance(data, database, Policy(()))
    asyncio.run(_make(instance, logs, keys))
    instance.policy = Policy.read(data / "policy")
    return instance


async def _make(instance: Instance, logs: Sequence[LogSpec], keys: Sequence[KeySpec]) -> None:
    settings = read_settings({"data": instance.data, "database": instance.database}, {})
    store = await open_store(settings)
    try:
        for log in logs:
            await create_log(settings, store, log.name, log.origin, log.kind, public=log.public, open_payloads=log.open)
        for key in keys:
            token, row = await create_api_key(store.catalog, key.scopes, key.log, key.label)
            instance.keys[key.label], instance.key_ids[key.label] = token, row.key_id
            if key.revoked:
                await store.catalog.revoke_key(row.key_id, time.time_ns() // 1_000_000)
    finally:
        await store.close()


def in_store(instance: Instance, work: Callable[..., object]) -> object:
    """Run `await work(settings, store)` on the instance's database, from outside any server."""

    async def run() -> object:
        settings = read_settings({"data": instance.data, "database": instance.database}, {})
        store = await open_store(settings)
        try:
            return await work(settings, store)  # type: ignore[misc]
        finally:
            await store.close()

    return asyncio.run(run())


@contextmanager
def instance_on(
    engine: str,
    request: pytest.FixtureRequest,
    folder: Path,
    logs: Sequence[LogSpec] = (DEFAULT,),
    keys: Sequence[KeySpec] = (),
) -> Iterator[Instance]:
    """An instance on one of the stores, for fixtures of any scope."""
    if engine == "sqlite":
        yield make_instance(folder / "data", None, logs, keys)
        return
    with databases(request.getfixturevalue("postgres_server")) as made:
        yield make_instance(folder / "data", made.migrated(), logs, keys)


@contextmanager
def anchored(instance: Instance) -> Iterator[None]:
    """Anchor the genesis checkpoint of every log, as an anchorer would have: by a calendar that has promised."""
    asyncio.run(_plant(instance))
    yield


async def _plant(instance: Instance) -> None:
    store = await open_store(read_settings({"data": instance.data, "database": instance.database}, {}))
    try:
        for log in await store.catalog.logs():
            published = await store.checkpoints.checkpoint(log.log_id)
            assert published, "init publishes the genesis checkpoint"
            note = published.note.encode()
            root = parse_checkpoint(parse_note(note).text).root
            row = AnchorRow(published.size, root, note, sha256(note).digest(), bytes(16), published.published_at)
            assert await store.anchors.add_anchor(log.log_id, row, [])
            stored = await store.anchors.anchor(log.log_id)
            assert stored
            assert await store.anchors.save_anchor(
                log.log_id, replace(stored, ots=stamp(Chain(1), note)[0], state="pending", submitted_at=row.created_at)
            )
    finally:
        await store.close()
