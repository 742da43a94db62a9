"""The part of `make demo` that finds entries, shows a part of one, and takes many away as evidence: by commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.anchor_demo import muniment
from tests.live import until

_QUERY = "action:install.file package:click"


def find(url: str, policy: Path, size: int) -> str:
    """Search once the index has all entries below `size`; each hit is proved before it is printed."""
    where = ("--url", url, "--policy", policy, "--no-state")  # the demo before this one made another key
    until(lambda: _lines(muniment("search", "action:install.file", "--oldest", "--limit", "1", "--json", *where)) != [])
    hits = _lines(muniment("search", _QUERY, "--verify", "--json", *where))
    if not hits or any(hit["event"]["package"] != "click" or hit["index"] >= size for hit in hits):
        raise SystemExit(f"a search found what it should not have: {hits[:1]}")
    return f"{len(hits)} entries have {_QUERY}, each proved; the newest is entry {hits[0]['index']}"


def show_part(whole: Path, policy: Path) -> str:
    """Cut a receipt down to one member, and verify what is left of it."""
    part = whole.with_name("part.json")
    muniment("disclose", whole, "--only", "action", "-o", part)
    found = _verified(part, policy)
    if found["event"].keys() != {"action"} or found["complete"]:
        raise SystemExit(f"a receipt that was cut down shows {found}")
    return f"the receipt of entry {found['index']} shows action; not shown: {', '.join(found['hidden'])}"


def take_away(url: str, policy: Path, bundle: Path) -> str:
    """Export a range as a bundle of receipts, and verify it."""
    words = ("--format", "receipts", "--range", "0..1000", "-o", bundle)
    muniment("export", *words, "--url", url, "--policy", policy, "--no-state")
    found = _verified(bundle, policy)
    if found["range"] != [0, 1000] or found["entries"] != 1000:
        raise SystemExit(f"a bundle of receipts proves {found}")
    return f"{found['entries']} receipts, {bundle.stat().st_size:,} bytes: {found['completeness']}"


def _verified(path: Path, policy: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(muniment("verify", path, "--policy", policy, "--json"))["results"][0]
    return result


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]
