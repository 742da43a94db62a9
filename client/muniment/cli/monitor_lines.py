"""What a monitor says, as lines: JSON, or for people."""

from __future__ import annotations

from typing import Any

from muniment.monitor.record import line_of
from muniment.verify import printable


def line(value: dict[str, Any], *, as_json: bool) -> bytes:
    """Return something that a monitor says as a line."""
    return line_of(value) if as_json else (printable(_human(value)) + "\n").encode()


def _human(value: dict[str, Any]) -> str:
    start = f"{value.get('seen_at', '')} {value.get('origin') or value.get('url', '')}: "
    match value["event"]:
        case "head":
            return f"{start}size {value['tree_size']}, {value['new']} new, root {value['root'][:16]}…"
        case "finding":
            rests = f" (rests on: {value['rests_on']})"
            return f"{start}{value['severity'].upper()} {value['code']}: {value['detail']}{rests}"
        case "cleared":
            return f"{start}no longer: {value['code']}"
        case "status":
            return f"{start}{value['status']}" + (f": {value['detail']}" if value["detail"] else "")
    return f"{start}{value}"
