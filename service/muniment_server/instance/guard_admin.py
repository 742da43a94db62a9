"""Guards in the hands of an operator: what stands in them, and giving a log another one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError, VerificationError
from muniment.hashing import EMPTY_ROOT
from muniment.policy import Policy
from muniment_server.errors import GuardRefused, HeadMoved, Mismatch, OutcomeUnknown, SessionLost, SetupError
from muniment_server.instance.files import read_key
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.write import startup
from muniment_server.write.guard import Guard, Guarded, TreeHead
from muniment_server.write.raising import raise_guard


@dataclass(frozen=True, slots=True)
class GuardReport:
    """A log's guard against its database. `code` is "good", or why nothing may be signed, which `detail` explains."""

    log: str
    file: str
    code: str
    detail: str
    head: Head
    guarded: Guarded | None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        guarded = self.guarded
        return {
            "log": self.log,
            "file": self.file,
            "code": self.code,
            "detail": self.detail,
            "database": _head_json(self.head.size, self.head.root, self.head.guard_id) | {"epoch": self.head.epoch},
            "guard": guarded
            and _head_json(guarded.size, guarded.root, guarded.guard_id)
            | {"origin": guarded.origin, "key_id": guarded.key_id.hex(), "sequence": guarded.sequence},
        }


def _head_json(size: int, root: bytes, guard_id: str) -> dict[str, Any]:
    return {"size": size, "root": root.hex(), "guard_id": guard_id}


async def inspect(settings: Settings, store: Store, row: LogRow, policy: Policy) -> GuardReport:
    """Judge one log as a start would, changing nothing. Raises StoreError."""
    guard = Guard(settings.guard_file(row.name))
    guarded = None
    code, detail = "good", "this database may be extended"
    try:
        guarded = await asyncio.to_thread(guard.read)  # before the head, like a start
        head = await store.reads.head(row.log_id)
        startup.check_guard(guard.path, guarded, row.origin, _key_id(policy, row.origin), head)
        await startup.prove(store.reads, row.log_id, head, guarded)
    except GuardRefused as error:
        code, detail = error.code, str(error)
    except Mismatch as error:
        code, detail = "database_damaged", f"{error} (from entry {error.index}): run `muniment-server fsck`"
    return GuardReport(row.name, str(guard.path), code, detail, await store.reads.head(row.log_id), guarded)


def _key_id(policy: Policy, origin: str) -> bytes:
    for log in policy.logs:
        if log.vkey.name == origin:
            return log.vkey.key_id
    raise GuardRefused("guard_foreign", f"the policy of this instance trusts no key of {origin!r}")


async def take(
    settings: Settings, store: Store, row: LogRow, seen: Sequence[Checkpoint], *, fresh: bool
) -> GuardReport:
    """Let the database name the guard of this instance; writers with another one are fenced off.

    The guard is made now if `fresh`. First everything is checked: all entries since the guard's head (all there are,
    for a new guard), the published checkpoint, and those in `seen`. Can be repeated after a crash. Raises GuardRefused,
    SetupError, Mismatch or StoreError.
    """
    key = (await asyncio.to_thread(read_key, settings.key_file(row.name))).vkey
    guard = Guard(settings.guard_file(row.name))
    guarded = await asyncio.to_thread(_start_from, guard, row, key.key_id, fresh=fresh)
    head = await store.log.head_to_extend(row.log_id)
    if guarded.size > head.size:
        startup.check_guard(guard.path, guarded, row.origin, key.key_id, _named(head, guarded.guard_id))
    await startup.prove(store.reads, row.log_id, head, guarded)
    policy = Policy.read(settings.policy)
    await startup.check_seen(store.reads, row.log_id, head, [*await _published(store, row, policy), *seen])
    if fresh:
        guarded = await asyncio.to_thread(guard.create_at, guarded)
    try:
        head = await store.log.adopt(row.log_id, head, guarded.guard_id)  # durable: no other writer extends it now
    except (HeadMoved, SessionLost) as error:
        raise SetupError(f"another writer is at work on log {row.name!r}: stop it first ({error})") from error
    await _raise(guard, store, row, head, guarded)
    return await inspect(settings, store, row, policy)


async def _raise(guard: Guard, store: Store, row: LogRow, head: Head, proved: Guarded) -> None:
    """Raise the guard to the adopted head, from the one that it was proved to extend.

    Raises SetupError when others write it.
    """
    try:
        await raise_guard(guard, store.reads, row.log_id, head.guard_id, TreeHead(head.size, head.root), {proved.head})
    except OutcomeUnknown as error:
        raise SetupError(
            f"the guard of log {row.name!r} cannot be raised: stop all its writers first ({error})"
        ) from error


def _start_from(guard: Guard, row: LogRow, key_id: bytes, *, fresh: bool) -> Guarded:
    if fresh and guard.path.exists():
        raise SetupError(
            f"{guard.path} exists: `guard show` says what is in it, `guard adopt` lets the database name it"
        )
    if fresh:
        return Guarded(secrets.token_hex(16), 0, row.origin, key_id, 0, EMPTY_ROOT)
    guarded = guard.read()
    if (guarded.origin, guarded.key_id) != (row.origin, key_id):
        raise GuardRefused("guard_foreign", f"{guard.path} guards {guarded.origin!r} with key {guarded.key_id.hex()}")
    return guarded


def _named(head: Head, guard_id: str) -> Head:
    return replace(head, guard_id=guard_id)


async def _published(store: Store, row: LogRow, policy: Policy) -> list[Checkpoint]:
    """Return the largest published checkpoint. Raises GuardRefused when it does not verify."""
    found = await store.checkpoints.checkpoint(row.log_id)
    return [verified(policy, row, found.note)] if found else []


def verified(policy: Policy, row: LogRow, note: str) -> Checkpoint:
    """Return the checkpoint in a note, if it is this log's. Raises GuardRefused."""
    try:
        checkpoint = policy.verify(note).checkpoint
    except (FormatError, VerificationError) as error:
        raise GuardRefused("guard_evidence", f"a checkpoint does not verify: {error}") from error
    if checkpoint.origin != row.origin:
        raise GuardRefused("guard_evidence", f"a checkpoint is of {checkpoint.origin!r}, not of {row.origin!r}")
    return checkpoint
