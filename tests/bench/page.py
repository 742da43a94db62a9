"""docs/performance.md and its plot, made from the JSON of a bench: `python -m tests.bench.page docs/performance.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.report import table

_DOCS = Path(__file__).resolve().parents[2] / "docs"
STORES = ("postgres", "sqlite")


class Goal(NamedTuple):
    """A line of what was promised: `found` takes the value of a store, `aims` has one number for each store."""

    quantity: str
    unit: str
    found: Callable[[dict[str, Any], str], float | None]
    aims: dict[str, float]
    at_most: bool = False

    def cells(self, value: dict[str, Any]) -> list[str]:
        """Return the cells of its row: what, and for each store what was found and whether that is enough."""
        return [self.quantity, *(self._cell(value, store) for store in STORES)]

    def _cell(self, value: dict[str, Any], store: str) -> str:
        found = self.found(value, store)
        if found is None:
            return "-"
        if store not in self.aims:
            return f"{found:.2f}{self.unit}"
        aim = self.aims[store]
        good = found <= aim if self.at_most else found >= aim
        sign = "<=" if self.at_most else ">="
        return f"{found:.2f}{self.unit} ({'met' if good else '**not met**'}: {sign} {aim:g}{self.unit})"


def _series(value: dict[str, Any], store: str, name: str) -> dict[str, Any] | None:
    return next((one for one in value["series"] if one["store"] == store and one["series"] == name), None)


def _store(value: dict[str, Any], store: str) -> dict[str, Any] | None:
    return next((one for one in value["stores"] if one["store"] == store), None)


def to_echo(name: str, *, entries: bool = False) -> Callable[[dict[str, Any], str], float | None]:
    """Return what reads the throughput of a series as a part of the echo's."""

    def read(value: dict[str, Any], store: str) -> float | None:
        one = _series(value, store, name)
        return None if one is None else float(one["ratios"]["entries_to_echo" if entries else "requests_to_echo"])

    return read


def to_ceiling(name: str) -> Callable[[dict[str, Any], str], float | None]:
    """Return what reads the entries a second of a series as a part of the storage ceiling."""

    def read(value: dict[str, Any], store: str) -> float | None:
        one = _series(value, store, name)
        return one and one["ratios"].get("entries_to_ceiling")

    return read


def _spread(value: dict[str, Any], store: str) -> float | None:
    one = _series(value, store, "raw-c64")
    return one and one["p99_ms"] / one["p50_ms"]


def _in_syncs(value: dict[str, Any], store: str) -> float | None:
    one = _series(value, store, "raw-c1")
    return one and one["p50_ms"] * 1000 / float(one.get("fdatasync_us", value["machine"]["fdatasync_us"]))


def _overload(value: dict[str, Any], store: str) -> float | None:
    of = _store(value, store)
    return of and of["studies"]["overload"].get("p99_ratio")


def _growth(name: str, key: str, *, down: bool = False) -> Callable[[dict[str, Any], str], float | None]:
    def read(value: dict[str, Any], store: str) -> float | None:
        of = _store(value, store)
        grown = of["studies"]["growth"] if of else []
        if len(grown) < 2 or (name and name not in grown[0]):
            return None
        first, last = (one[name][key] if name else one[key] for one in (grown[0], grown[-1]))
        return float(last if not name else (last / first if not down else first / last))

    return read


def _memory(value: dict[str, Any], store: str) -> float | None:
    return max((float(one["pss_mb"]) for one in value["series"] if one["store"] == store), default=None)


def _cold(name: str) -> Callable[[dict[str, Any], str], float | None]:
    def read(value: dict[str, Any], store: str) -> float | None:
        of = _store(value, store)
        found = of["studies"].get("cold", {}).get(name) if of else None
        return found and float(found["over_echo"])

    return read


def _dead(value: dict[str, Any], store: str) -> float | None:
    of = _store(value, store)
    found = of["studies"].get("dead_calendars") if of else None
    return found and float(found["ratio"])


def _hash_index(value: dict[str, Any], store: str) -> float | None:
    of = _store(value, store)
    return of and of["studies"]["stored"].get("hash_index")


def _beyond(value: dict[str, Any], store: str) -> float | None:
    of = _store(value, store)
    return of and of["studies"]["stored"].get("beyond_payload")


def both(number: float) -> dict[str, float]:
    """Return the same aim for both stores."""
    return dict.fromkeys(STORES, number)


GOALS = (
    Goal("raw entry, single POST, 64 connections", " E", to_echo("raw-c64"), {"postgres": 0.65, "sqlite": 0.55}),
    Goal("same, 256 connections", " E", to_echo("raw-c256"), both(0.65)),
    Goal("event, single POST, 64 connections", " E", to_echo("event-c64"), both(0.40)),
    Goal("same, 256 connections", " E", to_echo("event-c256"), both(0.40)),
    Goal("p99 / p50 of a raw POST, 64 connections", "", _spread, both(2), at_most=True),
    Goal("p50 of a raw POST, 1 connection, in fsyncs", "", _in_syncs, {"postgres": 14, "sqlite": 9}, at_most=True),
    Goal("batch of 1,000 raw, compact answer", " S", to_ceiling("raw-batch-c4"), both(0.5)),
    Goal("batch of 1,000 raw, every receipt", " S", to_ceiling("raw-receipts-c4"), both(0.35)),
    Goal("batch of 1,000 events, entries/s", " E", to_echo("event-batch-c4", entries=True), both(0.85)),
    Goal("inclusion proof GET, random over 1,000,000 entries", " E", to_echo("proof-c64"), both(0.55)),
    Goal("tile GET, 8 kB", " E", to_echo("tile-c64"), both(0.9)),
    Goal("same, not in memory", " E", _cold("tile-c64"), both(0.3)),
    Goal("bundle GET, 8 kB", " E", to_echo("bundle-c64"), both(0.9)),
    Goal("same, not in memory", " E", _cold("bundle-c64"), both(0.3)),
    Goal(
        "bytes beyond a 308-byte leaf, without the hash index",
        " B",
        _beyond,
        {"postgres": 110, "sqlite": 75},
        at_most=True,
    ),
    Goal("bytes of the hash index", " B", _hash_index, {}),
    Goal("memory at 1,000,000 entries, the most after any series", " MB", _memory, both(120), at_most=True),
    Goal("append at the larger size against the smaller", "x", _growth("raw-c64", "rate"), both(0.7)),
    Goal(
        "proof time at the larger size against the smaller, once the tiles were read",
        "x",
        _growth("proof-kept", "server_us"),
        both(1.3),
        at_most=True,
    ),
    Goal(
        "same, in the first seconds after a restart",
        "x",
        _growth("proof-c64", "server_us"),
        both(1.3),
        at_most=True,
    ),
    Goal("restart after kill -9, larger size", " s", _growth("", "restart_seconds"), both(2), at_most=True),
    Goal("p99 of reads while writes are refused", "x", _overload, both(2), at_most=True),
    Goal("appends with all calendars dead, against anchoring off", "x", _dead, both(0.95)),
)


def page(value: dict[str, Any]) -> str:
    """Return docs/performance.md."""
    return "\n".join(
        [_TITLE, *_plain(value), _HEAD, *_goals(value), _MIDDLE, table(value), "", *_studies(value), _TAIL]
    )


PLAIN = (
    ("events, one a request, 64 connections", "event-c64"),
    ("events, one client that waits for each receipt", "event-c1"),
    ("events in batches of 1,000, 4 connections", "event-receipts-c4"),
    ("raw entries, one a request, 64 connections", "raw-c64"),
    ("raw entries in batches of 1,000, 4 connections", "raw-batch-c4"),
    ("inclusion proofs, 64 connections", "proof-c64"),
    ("tiles of 8 kB, 64 connections", "tile-c64"),
)


def _plain(value: dict[str, Any]) -> Iterable[str]:
    """Yield what a reader wants to know first: how many in a second, and how long one takes."""
    machine = value["machine"]
    yield f"On a machine with {machine['cores']} processors ({machine['cpu']}), of which the server has one; an fsync takes"
    yield f"{machine['fdatasync_us'] / 1000:.1f} ms. Every append counted here was answered with its receipt, or in batches its index, after it was durable and its head signed.\n"
    yield "| | Postgres | SQLite |"
    yield "|---|---|---|"
    for what, name in PLAIN:
        yield f"| {what} | {' | '.join(_figures(_series(value, store, name)) for store in STORES)} |"


def _figures(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    rate = float(one["rate"]) * int(one["entries_per_request"] or 1)
    return f"{rate:,.0f} a second; half within {one['p50_ms']:.1f} ms, 99 of 100 within {one['p99_ms']:.1f} ms"


def _goals(value: dict[str, Any]) -> Iterable[str]:
    yield "| quantity | Postgres | SQLite |"
    yield "|---|---|---|"
    for goal in GOALS:
        yield f"| {' | '.join(goal.cells(value))} |"


def _studies(value: dict[str, Any]) -> Iterable[str]:
    yield "## Latency at a given rate\n"
    yield "Requests become due at a fixed rate, and latency counts from that moment (no coordinated omission).\n"
    yield "| store | request | part of capacity | due/s | answered/s | p50 ms | p90 ms | p99 ms | p99.9 ms |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for store in value["stores"]:
        for one in store["studies"]["open_loop"]:
            if "skipped" not in one:
                times = " | ".join(f"{one[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms"))
                rates = f"{one['part']:.0%} | {one['asked_rate']:,.0f} | {one['rate']:,.0f}"
                yield f"| {store['store']} | {one['workload']} | {rates} | {times} |"
    yield "\n## Mixed load\n"
    yield "Half appends of raw entries, a quarter proofs, a quarter tiles, 64 connections, closed loop.\n"
    yield "| store | request | requests/s | p50 ms | p99 ms |"
    yield "|---|---|---|---|---|"
    for store in value["stores"]:
        mixed = store["studies"]["mixed"]
        for name, one in mixed["parts"].items():
            rate = one["requests"] / mixed["seconds"]
            yield f"| {store['store']} | {name} | {rate:,.0f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} |"
    yield from _imports(value)
    yield ""


def _imports(value: dict[str, Any]) -> Iterable[str]:
    yield "\n## Import\n"
    yield "One `muniment import` of a file, start of the process included. Beside it the rate of a generator that verifies nothing, with 4 batches of"
    yield "1,000 under way: compact answers for raw leaves, receipts for events, which is what an import asks for.\n"
    yield "| store | rows | entries/s | of the generator's | server, cores | client, cores | client, MB |"
    yield "|---|---|---|---|---|---|---|"
    for store in value["stores"]:
        for one in store["studies"].get("imports", []):
            part = f"{one['of_batches']:.0%}" if "of_batches" in one else ""
            cores = f"{one['server_cores']:.2f} | {one['client_cores']:.2f}"
            memory = f"{one['client_mb']:.0f}" if "client_mb" in one else "-"
            yield f"| {store['store']} | {one['rows']:,} {one['kind']} | {one['rate']:,.0f} | {part} | {cores} | {memory} |"


# --- the plot -------------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 50
_COLOURS = {"postgres": "#31648c", "sqlite": "#c8692b"}
_DASHES = {"raw": "", "event": "5 4", "proof": "2 3"}
Line = tuple[str, str, list[tuple[float, float]]]


def plot(value: dict[str, Any]) -> str:
    """Return an SVG: throughput and p99 by connections, and throughput by the log's size."""
    charts = [
        _chart("requests/s by connections", _by_connections(value, "rate")),
        _chart("p99 (ms) by connections", _by_connections(value, "p99_ms")),
        _chart("requests/s by log size", _by_size(value)),
    ]
    body = "".join(f'<g transform="translate({at * _WIDTH},0)">{one}</g>' for at, one in enumerate(charts))
    size = f'width="{3 * _WIDTH}" height="{_HEIGHT + 24}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{body}{_legend()}</svg>\n'


def _by_connections(value: dict[str, Any], what: str) -> list[Line]:
    lines: list[Line] = []
    for store in STORES:
        for name in ("raw", "event"):
            found = [one for one in value["series"] if (one["store"], one["workload"]) == (store, name)]
            lines.append((store, name, sorted((one["connections"], one[what]) for one in found)))
    return lines


def _by_size(value: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    for store in value["stores"]:
        for name in ("raw", "proof"):
            points = [(one["size"], one[f"{name}-c64"]["rate"]) for one in store["studies"]["growth"]]
            lines.append((store["store"], name, points))
    return lines


def _chart(title: str, lines: Sequence[Line]) -> str:
    points = [point for _, _, line in lines for point in line]
    text = f'<text x="{_MARGIN}" y="16" font-weight="bold">{title}</text>'
    if not points:
        return text + f'<text x="{_MARGIN}" y="40">not measured</text>'
    xs = sorted({x for x, _ in points})
    top = max(y for _, y in points) * 1.1

    def place(x: float, y: float) -> str:
        across = xs.index(x) / max(1, len(xs) - 1)
        return f"{_MARGIN + across * (_WIDTH - 2 * _MARGIN):.1f},{_HEIGHT - 30 - y / top * (_HEIGHT - 70):.1f}"

    drawn = []
    for store, name, line in lines:
        path = " ".join(place(x, y) for x, y in line)
        style = f'fill="none" stroke="{_COLOURS[store]}" stroke-width="2" stroke-dasharray="{_DASHES[name]}"'
        drawn.append(f'<polyline points="{path}" {style}/>')
        drawn += [
            f'<circle cx="{at.split(",")[0]}" cy="{at.split(",")[1]}" r="2.5" fill="{_COLOURS[store]}"/>'
            for at in path.split()
        ]
    ticks = [f'<text x="{place(x, 0).split(",")[0]}" y="{_HEIGHT - 12}" text-anchor="middle">{x:,}</text>' for x in xs]
    levels = [top * part / 4 for part in range(5)]
    ticks += [
        f'<text x="{_MARGIN - 6}" y="{place(xs[0], y).split(",")[1]}" text-anchor="end">{y:,.0f}</text>' for y in levels
    ]
    return text + "".join(drawn + ticks)


def _legend() -> str:
    parts = []
    for at, (label, colour, dash) in enumerate(
        [("Postgres", _COLOURS["postgres"], ""), ("SQLite", _COLOURS["sqlite"], "")]
        + [(name, "#555", dash) for name, dash in _DASHES.items()]
    ):
        x = _MARGIN + at * 110
        line = f'<line x1="{x}" y1="{_HEIGHT + 10}" x2="{x + 26}" y2="{_HEIGHT + 10}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        parts.append(f'{line}<text x="{x + 32}" y="{_HEIGHT + 14}">{label}</text>')
    return "".join(parts)


_TITLE = """# Performance
"""
_HEAD = """
## Where the figures come from

Made by `make bench` and `python -m tests.bench.page`; every ratio is of figures from one run, with fsync, guard and the check before each signature
on. Growth with the size of the log is of a run of its own (`--series "^proof" --sizes 1000000,10000000`), the newest here: appends at the two sizes
are minutes apart, so that changes of the machine's speed are in their ratio, which was 0.75 (Postgres) in the run before. Reads beside refused writes on
Postgres are of a third run, the middle one of three.
E is a raw ASGI echo of the same body under the same uvicorn settings, 64 connections, on the same core. S is the store's own append of 1,000 entries in
a loop: no HTTP, no guard, no signature. Both are measured before each run of what is compared with them, because the speed of this machine changes by a
third and more from one minute to the next. Ratios carry over to other machines; absolute figures do not.
Postgres, and imports, are of a full run (one connection of a run of its own, in which an fsync took 74 us) made after
[decision 0014](decisions/0014-read-back-by-the-append.md); SQLite, whose code that does not touch, of earlier ones: one of batches and S, a full one for the rest. The machine was slow all the time, and slower still in the last run: a batch of 1,000
raw entries on SQLite took 42 ms of processor time there, 26 in the run of batches, and 18 in a quiet minute. What that run gave for SQLite, which
is less to be trusted: raw entries 0.29 E (64 connections) and 0.50 E (256), events 0.28 and 0.20 E, batches of raw entries 0.43 S (compact) and 0.37 S (every
receipt), of events 0.52 E, proofs 0.76 E, tiles 0.96 E (0.32 E not in memory), bundles 1.49 E (0.36 E), p99 / p50 2.77, 119.96 MB of memory.

## Goals
"""
_MIDDLE = """
![Throughput and latency by connections and by log size](performance.svg)

## All series
"""
_TAIL = """## Where the time goes

Why single appends stay below their goals, in processor time of the server for one raw entry at 64 connections on SQLite (`perf` and cProfile, on a
small log and before the leaf keys were written behind; the echo takes 26 us in all):

| us | what |
|---|---|
| 13 | kernel and event loop: as much as the echo's own |
| 8 | from the request to the queue: head, access, draft, leaf hash |
| 13 | SQLite: one insert with its hash index, triggers, two fsyncs a batch |
| 18 | the rest of a batch, 1.2 ms whatever is in it: signature 60 us, its check 130 us, two thread hops 50 us, right edge, tiles, read-back, proof |
| 9 | the answer: receipt, header, write |

The goal of 0.55 E leaves 21 us beside the kernel and the echo's own share, and SQLite takes 13 of them. With Postgres
the server is idle for a third of the time at 64 connections: all of them wait for the batch that Postgres stores. At 256 connections
batches are larger, and the same work is shared by more. An event costs 25 us more: 21 hashes, base64 and canonical JSON.

Tried, and no faster: base64 of all members at once, several rows in one INSERT (the triggers make SQLite copy them), a thread of our own instead of the
loop's (14 us a batch), storing the next batch while the last one is checked and signed: batches get smaller, and each
has its price, so 64 connections got about a tenth less, and batches of 1,000 hardly more. On Postgres the server then has no time to wait (0.81 of a core instead of 0.69
at 64 connections), but takes as much longer for each entry (131 us instead of 109), since the two processors of this machine are threads of one core:
6,200 entries a second instead of 6,350. Signing while the guard is written gained nothing on either store, and mypyc made drafts of events a twentieth faster:
of the 30 us that one takes, more than half are hashing. What helped is in [decision 0009](decisions/0009-the-short-way.md).

The cache grows with the log, 40 bytes an entry, up to `cache_bytes`: a sixteenth of the memory of the machine, at most 512 MiB. Within that a proof
over 10,000,000 entries costs no more than over 1,000,000 (the server then took 464 MB with Postgres and 470 MB with SQLite, and 120 MB at
1,250,000 entries), once its tile was read, which takes 255 hashes (0.1 ms) and a query: after a restart
nearly every proof over 10,000,000 entries is the first of its tile for a while. Proofs of a log larger than the cache read a tile again: 13 hashes
and a query, since the upper rows of a tile are kept for longer than its hashes.

Waiting up to 0.2 ms for those who were just answered to ask again fills batches at 64 connections (64 entries instead of 56), and changes neither
throughput nor the 99th percentile. That is one commit in two hundred that carries SQLite's write-ahead log over (13 ms); a thread and a connection of its own
for that gave 10 to 11 ms where it was 11. Carrying over every 32 commits, in the thread that writes while the last batch is signed and answered, took the
percentile from 2.5 to 2.0 times the median on a small log, and gained nothing at 400,000 entries. Leaf keys carried over 128 at a time instead of 1,024 changed nothing either.

The settings of the C library's allocator that keep memory down cost batches of raw entries a fortieth of their processor time on SQLite (servers with
and without, in turns). A larger page cache for SQLite's writer gained nothing at a million entries: 9.8 us an entry with 8 MB, 8.7 with 2.

Of a batch of 1,000 raw entries on SQLite the thread that writes has 55 % of the processor time and the event loop 39 % (`perf`). The loop's part is 1.3 us
an entry to understand it, 0.3 to place it, 0.8 to grow the tree and 1.4 to check it (on a small log in memory), more than half of that SHA-256.

Of an append of 64 entries in Postgres, 2.8 ms when the machine was slow, the commit takes 0.3 ms, the client's part 0.5 and the index by leaf hash 1.0.
In batches of 1,000 (`perf`) 15 % of Postgres's 19 us an entry is SHA-256 for that index, and at least 20 % the way down its tree, once to look an entry up
and once to insert it.

An import of raw leaves asks for compact answers and proves each batch by the inclusion proofs of its first and last leaf: the client then has time
left, and the server waits for the next batch, which is sent when the last one was answered, so that the order is that of the file. Of an import of
events the client has nearly as much work as the server: it hashes every disclosure again, to see that each leaf commits to the event that was sent.

While writes are refused a read waits for steps of the event loop of one or two milliseconds, and on one core for the thread that writes and for Postgres.

SQLite's index of leaf hashes took more than all the rest of an append at a million entries until it was written behind ([decision
0012](decisions/0012-leaf-keys-are-written-behind.md)). S, the store's own append, is twice as fast since, so that the same part of S is twice as many
entries.

## How it is measured

Server and load generator have a core each; Postgres may use both. Every body is unique. Medians of at least three runs; a run during which
strangers used more than a quarter of a core is made again. After each series a sample of answers is verified with the log's policy, and
`muniment-server fsck` checks the whole log. `make bench` takes about twenty minutes, growth as long again; `python -m tests.bench --help` lists
what can be chosen.
"""


def main() -> None:
    """Write the page and the plot."""
    value = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    (_DOCS / "performance.md").write_text(page(value), "utf-8")
    (_DOCS / "performance.svg").write_text(plot(value), "utf-8")


if __name__ == "__main__":
    main()
