"""What rigs against the operating system have in common: an instance, writers that report each acknowledgement, and the judgement.

The judge reads the database with bare SQL, the guard file byte by byte, and recomputes everything (tests/service/audit.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from muniment.policy import Policy
from muniment_server.check.fsck import fsck
from muniment_server.cli.init import init as init_command
from muniment_server.cli.log import log_create as log_create_command
from muniment_server.errors import Refused
from muniment_server.instance.files import read_key
from muniment_server.instance.registry import Registry
from muniment_server.log import Log
from muniment_server.settings import Settings
from muniment_server.storage.open import open_store
from muniment_server.telemetry import Metrics, configure_logging
from muniment_server.write.admission import commit, draft_raw
from muniment_server.write.guard import Guard
from muniment_server.write.submission import Outcome, Submission
from tests.rigs.children import Say
from tests.service.audit import Naive, audit, check_note
from tests.service.rig import packed

ORIGIN = "example.com/log"
PUBLISH = 0.05
_CLIENTS = 6


@dataclass(frozen=True)
class DataPaths:
    """Where an instance is. `guard` None: in the data folder; `database` None: SQLite."""

    data: Path
    guard: Path | None = None
    database: str | None = None
    kind: str = "event"

    def settings(self) -> Settings:
        """Return its settings."""
        places = {"data": self.data, "guard_dir": self.guard, "database": self.database}
        # The rigs' disks are small; and a busy machine is not what they look for.
        return Settings(**places, publish_interval=PUBLISH, min_free_percent=0, max_queue_seconds=30)

    def environment(self) -> dict[str, str]:
        """Return what tells a real server where guard and database are."""
        found = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": str(PUBLISH), "MUNIMENT_SERVER_MIN_FREE_PERCENT": "0"}
        if self.guard:
            found["MUNIMENT_SERVER_GUARD_DIR"] = str(self.guard)
        if self.database:
            found["MUNIMENT_SERVER_DATABASE"] = self.database
        return found


def submission(kind: str, tag: str, random_: random.Random) -> tuple[Submission, dict[str, Any]]:
    """Return a submission of one to five new entries, and what is needed to send it again."""
    count = random_.choice((1, 1, 1, 2, 5))
    bodies = [json.dumps({"n": f"{tag}.{at}"}, separators=(",", ":")) for at in range(count)]
    return again(kind, {"bodies": bodies, "key": tag if random_.random() < 0.5 else None})


def again(kind: str, sent: dict[str, Any]) -> tuple[Submission, dict[str, Any]]:
    """Return a submission of the same bodies under the same Idempotency-Key."""
    if kind == "raw":
        return Submission([draft_raw(body.encode()) for body in sent["bodies"]]), sent
    drafts = [commit(json.loads(body), body.encode(), os.urandom(32)) for body in sent["bodies"]]
    return Submission(drafts, "rig", sent["key"]), sent


def acknowledgement(sent: dict[str, Any], outcome: Outcome, log: str = "default") -> dict[str, Any]:
    """Return what a caller was told, as a JSON value."""
    leaves = [leaf.hex() for leaf in outcome.leaves]
    return {
        "log": log,
        "indices": list(outcome.indices),
        "leaves": leaves,
        "note": outcome.signed.note,
        "size": outcome.signed.size,
        "root": outcome.signed.root.hex(),
        "sent": sent,
    }


# --- the writer ---------------------------------------------------------------------------------------------------------


async def opened(instance: DataPaths) -> Registry:
    """Open an instance as a server does."""
    settings = instance.settings()
    registry = Registry(settings, await open_store(settings), Metrics())
    await registry.open()
    return registry


async def write(instance: DataPaths, seed: int, say: Say) -> None:
    """Append from several callers at once, for good, and say each acknowledgement the moment it is one."""
    registry = await opened(instance)
    log = await default_log(registry)
    say({"ready": True})

    async def caller(number: int) -> None:
        random_ = random.Random(f"{seed}/{number}")
        for at in range(10**9):
            made, sent = submission(instance.kind, f"{seed}.{number}.{at}", random_)
            say(acknowledgement(sent, await log.append(made)))
            await asyncio.sleep(random_.random() * 0.004)

    await asyncio.gather(*(caller(number) for number in range(_CLIENTS)))


async def default_log(registry: Registry) -> Log:
    """Return the default log of an open instance, which must be willing to sign."""
    log = await registry.get("default")
    assert log, "the instance has no default log"
    assert log.sequencer, "the default log is open for reading only"
    assert log.sequencer.refusal is None, f"refused: {log.sequencer.refusal.code}: {log.sequencer.refusal}"
    return log


def in_loop(work: Callable[[Say], Awaitable[None]]) -> Callable[[Say], None]:
    """Make a function for a forked process of a coroutine function."""

    def run(say: Say) -> None:
        configure_logging("json", "warning")

        async def main() -> None:
            await work(say)

        asyncio.run(main())

    return run


# --- commands -----------------------------------------------------------------------------------------------------------


def _command(command: Any, instance: DataPaths, *words: str) -> dict[str, Any]:
    """Run a command of the server in this process, with its own settings, and return the JSON it prints."""
    os.environ.update(instance.environment())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command.main(["--data", str(instance.data), "--kind", instance.kind, "--json", *words], standalone_mode=False)
    value: dict[str, Any] = json.loads(printed.getvalue())
    return value


def init(instance: DataPaths) -> str:
    """Run `muniment-server init` and return the vkey it prints."""
    return str(_command(init_command, instance, "--origin", ORIGIN)["vkey"])


def log_create(instance: DataPaths, name: str) -> str:
    """Run `muniment-server log create` and return the vkey it prints."""
    return str(_command(log_create_command, instance, "--origin", f"{ORIGIN}/{name}", name)["vkey"])


# --- the judge ----------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """Everything callers were told before the fault. What it says must still be true afterwards."""

    told: list[dict[str, Any]] = field(default_factory=list)

    def add(self, said: Iterable[Any]) -> None:
        """Take acknowledgements down."""
        self.told += [one for one in said if "indices" in one]

    @property
    def entries(self) -> int:
        """How many entries were acknowledged."""
        return sum(len(one["indices"]) for one in self.told)

    def check_guard(self, instance: DataPaths, log: str = "default") -> None:
        """Check that the guard knows of every head that was given out. Raises AssertionError."""
        given = max((one["size"] for one in self.told if one["log"] == log), default=0)
        guarded = guarded_size(instance.settings().guard_file(log))
        assert guarded >= given, f"STALE GUARD: a head of {given} was given out, the guard knows {guarded}"

    def check(self, log: str, origin: str, public_key: bytes, leaves: Sequence[bytes]) -> None:
        """Check that the log of these leaves is the one that was spoken of. Raises AssertionError."""
        tree = Naive(leaves)
        seen: set[str] = set()
        for one in (one for one in self.told if one["log"] == log):
            for index, leaf in zip(one["indices"], one["leaves"], strict=bool(one["leaves"])):
                assert index < len(leaves), f"LOST: entry {index} was acknowledged, the log has {len(leaves)}"
                assert leaves[index].hex() == leaf, f"CHANGED: entry {index} is not what was acknowledged"
            assert one["size"] <= len(leaves), f"LOST: a head of {one['size']} was given out, the log has {len(leaves)}"
            if one["note"] not in seen:
                seen.add(one["note"])
                root = tree.root(one["size"])
                assert root.hex() == one["root"], f"FORK: another root was given out for size {one['size']}"
                check_note(one["note"], origin, public_key, one["size"], root)


@dataclass
class _Reader:
    """Reads a database with bare SQL: what tests.service.audit needs of a bench."""

    instance: DataPaths
    row: Any
    key: Any
    guard: Guard
    sequencers: tuple[()] = ()

    @property
    def rig(self) -> _Reader:
        return self

    @property
    def log_id(self) -> int:
        return int(self.row.log_id)

    async def fetch(self, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Return the rows of each statement, of one and the same moment."""
        if self.instance.database:
            connection = await asyncpg.connect(self.instance.database)
            try:
                async with connection.transaction(isolation="repeatable_read"):
                    packs = [packed(one, "postgres") for one in statements]
                    return [[tuple(row) for row in await connection.fetch(one)] for one in packs]
            finally:
                await connection.close()
        database = apsw.Connection(str(self.instance.data / "muniment.sqlite"))
        try:
            with database:
                return [database.execute(one).fetchall() for one in statements]
        finally:
            database.close()


def guarded_size(path: Path) -> int:
    """Return the larger size of the two slots of a guard file, read without our code; a torn slot does not count."""
    sizes = []
    data = path.read_bytes()
    for at in (0, 1024):
        lines = data[at : at + 1024].rstrip(b"\0").split(b"\n")
        if len(lines) == 9 and sha256(b"\n".join(lines[:7]) + b"\n").hexdigest().encode() == lines[7]:
            sizes.append(int(lines[5]))
    return max(sizes)


async def recover(instance: DataPaths, account: Account, tag: str) -> int:
    """Start on what a fault left: the guard must agree, what was told must be true, and more entries must go in.

    Then every log must be clean to fsck and to the audit. Returns the number of entries. Raises AssertionError.
    """
    account = Account(list(account.told))
    told = list(account.told)
    registry = await opened(instance)
    try:
        await default_log(registry)
        for log in registry.logs():
            await _append_more(log, account, told, tag)
    finally:
        await registry.close()
    return await judge(instance, account)


async def _append_more(log: Log, account: Account, told: Sequence[dict[str, Any]], tag: str) -> None:
    random_ = random.Random(tag)
    for at in range(3):
        made, sent = submission(log.row.kind, f"{tag}.{at}", random_)
        account.add([acknowledgement(sent, await log.append(made), log.row.name)])
    known = [one for one in told if one["log"] == log.row.name and (one["sent"]["key"] or log.row.kind == "raw")]
    for one in known[-2:]:  # what was acknowledged is found again, not logged twice
        outcome = await log.append(again(log.row.kind, one["sent"])[0])
        assert (list(outcome.indices), outcome.new) == (one["indices"], 0), (
            f"a retry of {one['indices']} was logged anew"
        )


async def judge(instance: DataPaths, account: Account) -> int:
    """Check a stored instance that nobody serves: fsck, audit, and all that was told. Returns the number of entries."""
    settings = instance.settings()
    store = await open_store(settings)
    try:
        rows = await store.catalog.logs()
        policy = Policy.read(settings.policy)
        for row in rows:
            report = await fsck(store, row, policy, Guard(settings.guard_file(row.name)), lambda *_: None)
            assert report.clean, f"fsck of {row.name}: {report.findings}"
    finally:
        await store.close()
    count = 0
    for row in rows:
        key = read_key(settings.key_file(row.name))
        leaves = await audit(_Reader(instance, row, key, Guard(settings.guard_file(row.name))))  # type: ignore[arg-type]
        account.check(row.name, row.origin, key.vkey.public_key, leaves)
        account.check_guard(instance, row.name)
        count += len(leaves)
    return count


__all__ = ["ORIGIN", "Account", "DataPaths", "Refused", "in_loop", "init", "judge", "log_create", "recover", "write"]
