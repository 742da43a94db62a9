"""What the guard file says against the database: every state it can be in, and damage that a start would not notice."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from muniment.errors import FormatError
from muniment.hashing import RootHash
from muniment.policy import Policy
from muniment_server.check.fsck.report import Finding, Report
from muniment_server.errors import GuardRefused
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.write.guard import FILE_SIZE, Guard, Guarded, copies_of, is_first_format


def read_guard(report: Report, guard: Guard) -> Guarded | None:
    """Return what the guard remembers, or None; note what is wrong with the file itself. Blocks on the disk."""
    try:
        found = guard.read()
    except GuardRefused as error:
        report.add_one(error.code, None, str(error))
        return None
    report.add(*_slots(guard.path))
    return found


def _slots(path: Path) -> list[Finding]:
    """Check every copy of every slot.

    A start makes do with one of each, and would not say that the other one is damaged.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # a writer fills a slot only with the other kind of lock
        data = os.pread(descriptor, FILE_SIZE + 1, 0)
    finally:
        os.close(descriptor)
    if is_first_format(data):
        return []  # one copy of each slot: a damaged one would have been refused
    if len(data) != FILE_SIZE:
        return [Finding("guard_slot", None, f"{path} has {len(data)} bytes, not {FILE_SIZE}")]
    findings = []
    for slot, copies in enumerate(copies_of(data)):
        for number, copy in enumerate(copies):
            try:
                Guarded.decode(copy)
            except FormatError as error:
                detail = (
                    f"copy {number} of slot {slot} of {path} is damaged ({error}); one of the next two appends mends it"
                )
                findings.append(Finding("guard_slot", None, detail))
    return findings


def check_guard(report: Report, log: LogRow, policy: Policy, guarded: Guarded, head: Head) -> dict[int, RootHash]:
    """Compare a guard that was read before the head with it; return the root it remembers, by size."""
    keys = {key.vkey.key_id for key in policy.logs if key.vkey.name == log.origin}
    if guarded.origin != log.origin or guarded.key_id not in keys:
        report.add_one(
            "guard_foreign", None, f"the guard is that of {guarded.origin!r} with key {guarded.key_id.hex()}"
        )
        return {}
    if guarded.guard_id != head.guard_id:
        report.add_one("guard_foreign", None, "the database names another guard than the one that is there")
    if guarded.size > head.size:
        report.add_one(
            "database_behind", head.size, f"the guard remembers a head of {guarded.size} entries: an old database"
        )
    return {guarded.size: guarded.root}
