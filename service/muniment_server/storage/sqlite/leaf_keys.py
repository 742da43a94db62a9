"""The table of leaf keys in SQLite, and the entries it does not hold yet.

What writes, and what an append asks, runs in the transaction of the append. The other reads need none: see
:func:`find`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw

from muniment_server.failpoints import step
from muniment_server.storage.row_ids import MOST, row_id, row_ids
from muniment_server.storage.sqlite.recent_leaf_keys import SPANS, STEP, Recent, floor_of

_STEPS = "SELECT coalesce((SELECT steps FROM leaf_keys_carried WHERE log_id = ?), 0)"
_STEPPED = "INSERT INTO leaf_keys_carried VALUES (?, ?) ON CONFLICT (log_id) DO UPDATE SET steps = excluded.steps"
_KEYS = "SELECT leaf_key FROM entries WHERE id >= ? AND id < ? ORDER BY id"
_ENTRY = 'SELECT "index", leaf FROM entries WHERE id = ?'
_SCAN = 'SELECT "index", leaf FROM entries WHERE id >= ? AND id < ? AND leaf_key IN (SELECT value FROM json_each(?))'
_FIND = (
    'SELECT e."index", leaf FROM leaf_keys k CROSS JOIN entries e ON e.id = (?1 << 40) + k."index" '
    "WHERE k.log_id = ?1 AND k.leaf_key = ?2"
)
_ANY = "SELECT 1 FROM json_each(?2) CROSS JOIN leaf_keys WHERE log_id = ?1 AND leaf_key = json_each.value LIMIT 1"
# The index below which the entries with keys of one span are in the table, and from which on they are not.
_SPAN = f"({{row}}.leaf_key >> 58 & {SPANS - 1})"
_CARRIED = f"CASE WHEN steps > {_SPAN} THEN (steps - (steps - 1 - {_SPAN}) % {SPANS}) * {STEP} ELSE 0 END"
_WRONG = (
    'SELECT k.log_id, k."index" FROM leaf_keys k '  # noqa: S608 - composed of constants
    "LEFT JOIN leaf_keys_carried c ON c.log_id = k.log_id "
    'LEFT JOIN entries e ON e.id = (k.log_id << 40) + k."index" '
    f'WHERE e.leaf_key IS NOT k.leaf_key OR k."index" >= coalesce({_CARRIED.format(row="k")}, 0) LIMIT 20'
)
_CARRIED_ENTRIES = (
    "leaf_keys_carried c CROSS JOIN entries e ON e.id >= c.log_id << 40 AND e.id < (c.log_id + 1) << 40 "
    f'AND e."index" < {_CARRIED.format(row="e")}'
)
_COUNTS = (
    "SELECT (SELECT count(*) FROM leaf_keys) "  # noqa: S608 - likewise
    f"<> (SELECT count(*) FROM {_CARRIED_ENTRIES})"
)
_LACKING = (
    f'SELECT e.log_id, e."index" FROM {_CARRIED_ENTRIES} '  # noqa: S608 - likewise
    "WHERE NOT EXISTS (SELECT 1 FROM leaf_keys k "
    'WHERE k.log_id = e.log_id AND k.leaf_key = e.leaf_key AND k."index" = e."index") LIMIT 20'
)
_REBUILD = (
    "DELETE FROM leaf_keys",
    "DELETE FROM leaf_keys_carried",
    (
        f"INSERT INTO leaf_keys_carried SELECT log_id, size / {STEP} FROM heads "  # noqa: S608 - likewise
        f"WHERE size >= {STEP}"
    ),
    (
        'INSERT INTO leaf_keys SELECT e.log_id, e.leaf_key, e."index" '  # noqa: S608 - likewise
        f"FROM {_CARRIED_ENTRIES} ORDER BY 1, 2, 3"
    ),
)


def load(connection: apsw.Connection, log_id: int, size: int, recent: Recent | None) -> Recent:
    """Return the last leaf keys of the entries below `size`.

    What `recent` lacks, others wrote, or it was before our time.
    """
    if recent is None or recent.size != size:
        steps = _steps(connection, log_id)
        if recent is None or recent.steps != steps or recent.size > size:
            recent = Recent(steps)
        recent.add(key for (key,) in connection.execute(_KEYS, row_ids(log_id, recent.size, size)))
    return recent


def _steps(connection: apsw.Connection, log_id: int) -> int:
    return int(connection.execute(_STEPS, (log_id,)).get)


def is_any_known(connection: apsw.Connection, log_id: int, keys: Sequence[int], recent: Recent) -> bool:
    """Tell whether an entry has one of these leaf keys."""
    return recent.holds(keys) or connection.execute(_ANY, (log_id, str(list(keys)))).fetchone() is not None


@step("sqlite.leaf_keys")
def carry_over(connection: apsw.Connection, log_id: int, recent: Recent) -> None:
    """Write the rows that are due: those of each STEP entries that the log has grown by."""
    if recent.size // STEP > recent.steps:
        rows = [(log_id, *row) for row in recent.due()]
        connection.executemany("INSERT INTO leaf_keys VALUES (?, ?, ?)", rows)
        connection.execute(_STEPPED, (log_id, recent.size // STEP))


def find(
    log_id: int, keys: Sequence[int], recent: Recent | None
) -> Callable[[apsw.Connection], list[tuple[int, bytes]]]:
    """Return what reads (index, leaf) of every entry with one of these leaf keys, lowest index first.

    Call it before the read begins: what is carried over in between is then found in the table, and what is added is
    found among the entries themselves.
    """
    stop = recent.size if recent else None
    indices = list(recent.find(keys)) if recent else []

    def look_up(connection: apsw.Connection) -> list[tuple[int, bytes]]:
        start = floor_of(_steps(connection, log_id)) if stop is None else stop
        found = set(connection.execute(_SCAN, (*row_ids(log_id, start, MOST), str(list(keys)))))
        for index in indices:
            found.update(connection.execute(_ENTRY, (row_id(log_id, index),)))
        for key in set(keys):
            found.update(connection.execute(_FIND, (log_id, key)))
        return sorted(found)

    return look_up


def damage(connection: apsw.Connection) -> list[str]:
    """Return what differs between the table and what it should hold by now, up to twenty rows of each kind."""
    found = [f"leaf_keys has a wrong row for entry {index} of log {log}" for log, index in connection.execute(_WRONG)]
    # No row is wrong, and there are as many as there should be: then none is missing.
    if found or connection.execute(_COUNTS).get:
        lacking = connection.execute(_LACKING)
        found += [f"leaf_keys lacks the row of entry {index} of log {log}" for log, index in lacking]
    return found


def rebuild(connection: apsw.Connection) -> None:
    """Make the table again from the entries. The triggers that let it only grow have to be lifted."""
    for sql in _REBUILD:
        connection.execute(sql)
