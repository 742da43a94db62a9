"""What a restore may touch, and who may read the log afterwards: the operator says both, not the backup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from muniment_server.backup.rows import decode_log
from muniment_server.backup.source import read_file
from muniment_server.errors import SetupError
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow


def described(path: Path, name: str | None = None) -> tuple[LogRow, bool]:
    """Return the log that a backup says it is of, called `name` if given, and whether its payloads are there.

    Nothing signs this. Raises Corrupt, or SetupError when it is no backup of one log.
    """
    if not (path / "checkpoint").exists():
        inside = sorted(each.parent.name for each in path.glob("*/checkpoint"))
        hint = f": name the folder of one log in it, {', '.join(inside)}" if inside else ""
        raise SetupError(f"{path} is not a complete backup of a log: there is no file checkpoint in it{hint}")
    file = path / "log.json"
    row, has_payloads = decode_log(read_file(file), file)
    return replace(row, name=name or row.name), has_payloads


async def find(store: Store, row: LogRow, place: str, *, may_exist: bool) -> LogRow | None:
    """Return the log of this name or origin that is in the database already.

    Raises SetupError when it is and `may_exist` does not say that this is meant: a drill would otherwise find the log
    that is served, add nothing to it, and report success. A restore that was interrupted before anything was published
    goes on without a word: a log that was ever served has a published checkpoint.
    """
    for found in await store.catalog.logs():
        if row.name != found.name and row.origin != found.origin:
            continue
        if not may_exist and await store.checkpoints.checkpoint(found.log_id):
            size = (await store.reads.head(found.log_id)).size
            raise SetupError(
                f"log {found.name!r} is already there, with {size} entries, in {place}. Restore into an empty database "
                "(is MUNIMENT_SERVER_DATABASE set to one that is served?). --existing goes on with a restore that was "
                "interrupted, and brings an older copy up to date"
            )
        return found
    return None


def with_access(row: LogRow, existing: LogRow | None, *, public: bool | None, open_payloads: bool | None) -> LogRow:
    """Return the log as it may be read here: as it is already, or as the operator says.

    What the backup says can be edited by everybody who can write the folder. So it never opens anything by itself:
    raises SetupError where it says that more may be read than the operator did.
    """
    if existing:
        return replace(row, public=existing.public, open=existing.open)
    for given, said, question in (
        (public, row.public, "that anyone may read this log: confirm with --public, or say --private"),
        (open_payloads, row.open, "that anyone may read the payloads: confirm with --open, or say --closed"),
    ):
        if given is None and said:
            raise SetupError(f"log.json says {question}. Nothing signs that file")
    return replace(row, public=bool(public), open=bool(open_payloads))
