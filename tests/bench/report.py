"""The result of a bench: a table for people, JSON for everything else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FORMAT = "muniment/bench@v1"
RESULTS = Path(__file__).resolve().parents[2] / "bench-results"
_COLUMNS = (
    "store",
    "series",
    "conns",
    "req/s",
    "entries/s",
    "p50 ms",
    "p99 ms",
    "server us/req",
    "PG us/req",
    "x E",
    "x E (CPU)",
    "x S",
    "PSS MB",
    "server",
    "gen.",
    "foreign",
    "notes",
)


def document(**parts: Any) -> dict[str, Any]:
    """Return the JSON document of a bench."""
    return {"typ": FORMAT, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **parts}


def write(value: dict[str, Any], path: Path | None) -> Path:
    """Write the document to `path`, by default a new file in bench-results/, and return where it is."""
    where = path or RESULTS / f"{value['at'].replace(':', '')}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(value, indent=1) + "\n")
    return where


def table(value: dict[str, Any]) -> str:
    """Return the table of a document, in Markdown."""
    rows = [_COLUMNS, *map(_echo_row, value["stores"]), *map(_row, value["series"])]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*_head(value), "", *lines, "", *map(_ceiling_line, value["stores"])])


def _head(value: dict[str, Any]) -> list[str]:
    machine = value["machine"]
    pinned = "server and generator each on a core of its own" if machine["pinned"] else "NOT pinned: one core"
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {pinned}; Python {machine['python']}.",
        f"fdatasync {machine['fdatasync_us']} us. Load generator: {value['generator']}.",
        "E: raw ASGI echo of the same body, 64 connections, measured before each run.",
        "S: store.log.append of 1,000 without HTTP, measured before each run of batches. Closed loop; medians. Cores: used by server, generator and strangers.",
    ]


def _echo_row(store: dict[str, Any]) -> tuple[str, ...]:
    echo = store["echo"]
    if not echo:
        return (store["store"], "E", *[""] * (len(_COLUMNS) - 2))
    middle = (f"{echo['rate']:,.0f}", "", f"{echo['p50_ms']:.2f}", f"{echo['p99_ms']:.2f}", f"{echo['server_us']:.1f}")
    cores = (f"{echo[name]:.2f}" for name in ("server_cores", "generator_cores", "foreign_cores"))
    return (store["store"], "raw ASGI echo (E)", "64", *middle, "", "1.00", "1.00", "", "", *cores, "")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    ratios, entries = one["ratios"], one["entries_per_request"]
    to_ceiling = ratios.get("entries_to_ceiling", 0.0)
    return (
        one["store"],
        one["title"],
        str(one["connections"]),
        f"{one['rate']:,.0f}",
        f"{ratios['entries_per_second']:,.0f}" if entries else "",
        f"{one['p50_ms']:.2f}",
        f"{one['p99_ms']:.2f}",
        f"{one['server_us']:.1f}",
        f"{one['postgres_us']:.1f}" if one["store"] == "postgres" else "",
        f"{ratios['entries_to_echo' if entries > 1 else 'requests_to_echo']:.2f}",
        f"{ratios['cpu_to_echo'] * max(1, entries):.2f}",
        f"{to_ceiling:.2f}" if to_ceiling else "",
        f"{one['pss_mb']:.0f}",
        *(f"{one[name]:.2f}" for name in ("server_cores", "generator_cores", "foreign_cores")),
        _notes(one),
    )


def _notes(one: dict[str, Any]) -> str:
    checks, notes = one["checks"], []
    if one["failed"]:
        notes.append(f"{one['failed']} FAILED")
    if checks["stored"] < checks["answered"]:
        notes.append("BODIES NOT UNIQUE")
    if checks["wrong_answers"]:
        notes.append("WRONG ANSWERS")
    if checks["fsck"] and not checks["fsck"]["clean"]:
        notes.append("FSCK NOT CLEAN")
    if one["noisy_runs"]:
        notes.append(f"noisy x{one['noisy_runs']}")
    rates = [run["rate"] for run in one["runs"]]
    if max(rates) > 2 * min(rates):
        notes.append("unsteady")
    if one["generator_cores"] > 0.9 and one["server_cores"] < 0.9:
        notes.append("generator-bound")
    return ", ".join(notes)


def _ceiling_line(store: dict[str, Any]) -> str:
    parts = [
        f"{name} {found['entries_per_second']:,.0f}/s (p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms)"
        for name, found in store["ceiling"].items()
    ]
    return f"S, {store['store']}: {'; '.join(parts)}"


def sound(value: dict[str, Any]) -> bool:
    """Tell whether every answer was good: figures of a server that is wrong are worth nothing."""
    verdicts = [one["checks"]["fsck"] for one in value["series"]]
    verdicts += [verdict for store in value["stores"] for verdict in store["fsck"].values()]
    wrong = any(one["failed"] or one["checks"]["wrong_answers"] for one in value["series"])
    lost = any(one["checks"]["stored"] < one["checks"]["answered"] for one in value["series"])
    return not wrong and not lost and all(verdict["clean"] for verdict in verdicts if verdict)
