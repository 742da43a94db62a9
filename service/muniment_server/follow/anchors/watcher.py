"""What anchoring tells of itself."""

from __future__ import annotations

from typing import Protocol

from muniment_server.storage.anchors import AnchorSummary


class Watcher(Protocol):
    """Is told what happens: the metrics of a server, or a watcher that keeps nothing."""

    def asked(self, url: str, outcome: str) -> None:
        """Count an answer of a calendar: "taken", "upgraded", "pending", "failed", "lied" or "unchecked"."""

    def summary(self, found: AnchorSummary) -> None:
        """Take all anchors at a glance."""

    def refused(self, code: str | None) -> None:
        """Take the reason why nothing is anchored any more, or None."""
