"""What `serve` says of itself when it starts: what it is, and what an operator may not have meant."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from muniment_server import __version__
from muniment_server.database_url import has_password
from muniment_server.settings import FILE, Settings
from muniment_server.telemetry import get_logger


def about(settings: Settings) -> dict[str, str]:
    """Return what goes with the address at start."""
    at = f"[{settings.metrics_host}]" if ":" in settings.metrics_host else settings.metrics_host
    metrics = f"http://{at}:{settings.metrics_port}/metrics" if settings.metrics_port else "off"
    return {"version": __version__, "metrics": metrics}


async def warn(settings: Settings, service: Any) -> None:
    """Say what is weaker than it could be."""
    for path in (*(settings.key_file(log.row.name) for log in service.registry.logs()), *_passwords(settings)):
        if _others_may_read(path):
            get_logger().warning(
                "others on this machine can read a secret", file=str(path), hint=f"run: chmod 600 {path}"
            )
    who = await _who_needs_no_key(settings, service)
    if who:
        what, scope = ("read payloads", "read") if settings.read_only else ("append and read payloads", "append")
        hint = f"make an API key: muniment-server key create --scope {scope}"
        get_logger().warning(f"{who} may {what} without a key", hint=hint)


async def _who_needs_no_key(settings: Settings, service: Any) -> str | None:
    from muniment_server.access.asking import is_loopback

    if settings.allow_anonymous_writes and not settings.read_only:
        return "anyone who reaches this server"
    if is_loopback(settings.host) and not await service.registry.store.catalog.api_keys():
        return "anyone on this machine"
    return None


def _passwords(settings: Settings) -> list[Path]:
    """Return the settings file if a password may stand in it."""
    if settings.anchor_node or (settings.database and has_password(settings.database)):
        return [settings.data / FILE]
    return []


def _others_may_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False
