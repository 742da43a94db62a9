"""All fuzz targets: those of the client, and those of the server."""

from __future__ import annotations

from tests.fuzz import server_targets, targets
from tests.fuzz.target import TARGETS

__all__ = ["TARGETS", "server_targets", "targets"]
