"""All fuzz targets: those of the client, of anchors, and of the server."""

from __future__ import annotations

from tests.fuzz import anchor_targets, server_targets, targets
from tests.fuzz.target import TARGETS

__all__ = ["TARGETS", "anchor_targets", "server_targets", "targets"]
