"""The report: one JSON file to which every shard of every rig adds what it did."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTED = ("client", "service", "migrations")
"""A result holds while these folders are as they were."""


def git(*words: str) -> str:
    """Return what a git command prints, or "" where this is no checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def state() -> dict[str, Any]:
    """Return what code is being tested: the commit, the trees that matter, and whether they differ from it."""
    trees = {name: git("rev-parse", f"HEAD:{name}") for name in TESTED}
    return {
        "commit": git("rev-parse", "HEAD"),
        "trees": trees,
        "dirty": bool(git("status", "--porcelain", "--", *TESTED)),
    }


def machine() -> dict[str, Any]:
    """Return what this ran on, without names of its own."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def append(path: Path, shard: dict[str, Any]) -> None:
    """Add a shard to the report, also when others do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        shards = json.loads(file.read() or "[]")
        file.seek(0)
        file.truncate()
        json.dump([*shards, shard], file, indent=1, sort_keys=True)
        file.write("\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the shards of a report; none when there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def holding(shards: Iterable[dict[str, Any]], trees: dict[str, str]) -> list[dict[str, Any]]:
    """Return the shards whose result still holds: passed, clean, and of the same trees."""
    return [shard for shard in shards if shard["ok"] and not shard["dirty"] and shard["trees"] == trees]


def totals(shards: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each rig: distinct seeds, points, seconds and counts. A seed that ran twice counts once."""
    seen: dict[str, set[int]] = {}
    found: dict[str, dict[str, Any]] = {}
    for shard in shards:
        first, stop = shard["seeds"]
        seeds = set(range(first, stop))
        if seeds <= seen.setdefault(shard["rig"], set()):
            continue
        seen[shard["rig"]] |= seeds
        total = found.setdefault(shard["rig"], {"points": 0, "seconds": 0.0, "counts": Counter(), "commits": []})
        total["points"] += shard["points"]
        total["seconds"] += shard["seconds"]
        total["counts"].update(shard["counts"])
        if shard["commit"] not in total["commits"]:
            total["commits"].append(shard["commit"])
    return {name: {**total, "seeds": len(seen[name])} for name, total in found.items()}
