"""The files of a backup that no other standard defines, as bytes: log.json, payloads/<N> and checkpoints/<N>.

All are canonical JSON (RFC 8785), one object in a line, and decode only to what encodes to the same bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muniment import strictjson
from muniment.checkpoint import check_origin, parse_checkpoint
from muniment.encoding import b64url, parse_b64url
from muniment.errors import EventRefused, FormatError
from muniment.event import SEED_SIZE
from muniment.note import parse_note
from muniment.tiles import Bundle, Tile, format_bundle, format_tile
from muniment_server.errors import Corrupt
from muniment_server.instance.registry import LOG_NAME
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import StoredPayload

TYPE = "muniment/backup@v1"
_MEMBERS = {"created_at", "kind", "name", "open", "origin", "payloads", "public", "typ"}
_FEED = {"note", "previous", "published_at"}
_SEED = re.compile(rb'(.*),"seed":"([A-Za-z0-9_-]{43})"}', re.DOTALL)


def path_of(place: Tile | Bundle, folder: str | None = None) -> str:
    """Return the path of a tile or bundle, or of the file of a bundle in `folder` ("payloads" or "checkpoints")."""
    if isinstance(place, Tile):
        return f"tile/{format_tile(place)}"
    path = format_bundle(place)
    return f"{folder}/{path.removeprefix('entries/')}" if folder else f"tile/{path}"


# --- log.json ---------------------------------------------------------------------------------------------------------


def encode_log(row: LogRow, *, payloads: bool) -> bytes:
    """Return log.json."""
    value = {
        "created_at": row.created_at,
        "kind": row.kind,
        "name": row.name,
        "open": row.open,
        "origin": row.origin,
        "payloads": payloads,
        "public": row.public,
        "typ": TYPE,
    }
    return strictjson.canonical(value) + b"\n"


def decode_log(data: bytes, path: Path) -> tuple[LogRow, bool]:
    """Return the log that log.json describes (log_id 0), and whether the folder holds its payloads. Raises Corrupt."""
    try:
        value = _about(strictjson.parse(data))
    except (EventRefused, FormatError) as error:
        raise Corrupt(f"{path}: {error}") from error
    row = LogRow(0, *(value[name] for name in ("name", "origin", "kind", "public", "open", "created_at")))
    if encode_log(row, payloads=value["payloads"]) != data:
        raise Corrupt(f"{path} is not in canonical form")
    return row, value["payloads"]


def _about(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != _MEMBERS or value["typ"] != TYPE:
        raise FormatError(f"not an object of type {TYPE} with exactly {', '.join(sorted(_MEMBERS))}")
    flags = all(type(value[name]) is bool for name in ("open", "payloads", "public"))
    texts = all(type(value[name]) is str for name in ("kind", "name", "origin"))
    if not flags or not texts or type(value["created_at"]) is not int or value["created_at"] < 0:
        raise FormatError("a member is not of its type")
    if value["kind"] not in ("event", "raw") or not LOG_NAME.fullmatch(value["name"]):
        raise FormatError("a member has a value that it cannot have")
    check_origin(value["origin"])
    return value


# --- payloads/<N> -----------------------------------------------------------------------------------------------------


def encode_payloads(events: Sequence[int], payloads: Sequence[StoredPayload]) -> bytes:
    """Return the lines of the events of one bundle, those without a payload (it was erased) too."""
    stored = {each.index: each for each in payloads}
    return b"".join(_payload_line(index, stored.get(index)) for index in events)


def _payload_line(index: int, stored: StoredPayload | None) -> bytes:
    if stored is None:
        return b'{"index":%d}\n' % index
    return b'{"index":%d,"payload":%b,"seed":"%b"}\n' % (index, stored.payload, b64url(stored.seed).encode())


def decode_payloads(data: bytes, events: Sequence[int], path: Path) -> list[StoredPayload]:
    """Return the payloads in the lines of `events`. Raises Corrupt.

    Whether they are canonical and right is for the caller to check.
    """
    lines = data.split(b"\n")  # canonical JSON has no newline
    if lines.pop() or len(lines) != len(events):
        raise Corrupt(f"{path} has {len(lines)} lines, not one for each of the {len(events)} events")
    found: list[StoredPayload] = []
    for index, line in zip(events, lines, strict=True):
        if line == b'{"index":%d}' % index:
            continue
        head = b'{"index":%d,"payload":' % index
        match = _SEED.fullmatch(line[len(head) :]) if line.startswith(head) else None
        if match is None:
            raise Corrupt(f"{path}: not the line of entry {index}")
        try:
            seed = parse_b64url(match[2].decode(), "seed", SEED_SIZE)
        except FormatError as error:
            raise Corrupt(f"{path}: entry {index}: {error}") from error
        found.append(StoredPayload(index, match[1], seed))
    return found


# --- checkpoints/<N> --------------------------------------------------------------------------------------------------


def encode_published(published: Sequence[Published], previous: int) -> bytes:
    """Return the lines of the published checkpoints that end in one bundle.

    `previous` is the size of the one before them.
    """
    lines = []
    for each in published:
        value = {"note": each.note, "previous": previous, "published_at": each.published_at}
        lines.append(strictjson.canonical(value) + b"\n")
        previous = each.size
    return b"".join(lines)


def decode_published(data: bytes, path: Path) -> tuple[int, list[Published]]:
    """Return the size that the first of these lines names as the one before it, and the published checkpoints.

    Raises Corrupt. Their signatures are for the caller to check.
    """
    try:
        values = [_link(strictjson.parse(line)) for line in data.split(b"\n")[:-1]]
        found = [Published(_size(each["note"]), each["note"], each["published_at"]) for each in values]
    except (EventRefused, FormatError) as error:
        raise Corrupt(f"{path}: {error}") from error
    if not values:
        raise Corrupt(f"{path} holds no whole line")
    previous = values[0]["previous"]
    sizes = [previous, *(each.size for each in found)]
    if encode_published(found, previous) != data or sizes != sorted(set(sizes)):
        raise Corrupt(f"{path} is not in canonical form, or lacks a line")
    return previous, found


def _link(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != _FEED:
        raise FormatError("a line is not an object with exactly note, previous and published_at")
    if type(value["note"]) is not str or not all(type(value[name]) is int for name in ("previous", "published_at")):
        raise FormatError("a member is not of its type")
    return value


def _size(note: str) -> int:
    return parse_checkpoint(parse_note(note).text).size
