"""What a monitor tells Prometheus, as a file for the textfile collector of its node exporter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from muniment.errors import StateUnavailable
from muniment.monitor.findings import KINDS
from muniment.monitor.follower import Follower, Status
from muniment.monitor.hooks import Webhook
from muniment.state import replace_file


class _Metric(NamedTuple):
    name: str
    kind: str
    text: str


_SIZE = _Metric("muniment_monitor_tree_size", "gauge", "Entries of the last verified checkpoint.")
_READ = _Metric("muniment_monitor_read_entries", "gauge", "Entries that were read, also beyond it.")
_GROWN = _Metric("muniment_monitor_last_growth_timestamp_seconds", "gauge", "When the last new checkpoint was seen.")
_LOOKED = _Metric("muniment_monitor_last_look_timestamp_seconds", "gauge", "When the log last answered.")
_STATUS = _Metric("muniment_monitor_status", "gauge", "1 for the status of the last look.")
_FORKED = _Metric("muniment_monitor_forked", "gauge", "1 when the log has signed two histories.")
_OPEN = _Metric("muniment_monitor_open", "gauge", "1 for each code that was reported and still holds.")
_FOUND = _Metric("muniment_monitor_findings_total", "counter", "Findings since the monitor started.")
_WAITING = _Metric("muniment_monitor_webhook_waiting_bytes", "gauge", "Findings that the webhook has not taken yet.")


def exposition(followers: Iterable[Follower], webhook: Webhook | None) -> str:
    """Return the metrics as text."""
    samples: dict[_Metric, list[str]] = {}
    for one in followers:
        memory = one.book.memory
        labels = f'origin="{_escaped(memory.origin)}",url="{_escaped(one.source.url)}"'
        head = memory.head()
        rows = [
            (_SIZE, "", head.size if head else 0),
            (_READ, "", one.book.tree.size),
            (_GROWN, "", memory.grown_at / 1000),
            (_LOOKED, "", one.answered_at / 1000),
            (_FORKED, "", int(bool(memory.forked))),
        ]
        rows += [(_STATUS, f',status="{status.name.lower()}"', int(status == one.status)) for status in Status]
        rows += [(_OPEN, f',code="{code}"', 1) for code, known in memory.suspicions.items() if known["told"]]
        rows += [(_FOUND, f',code="{code}"', one.reporter.counts[code]) for code in KINDS]
        for metric, more, value in rows:
            samples.setdefault(metric, []).append(f"{metric.name}{{{labels}{more}}} {value}")
    if webhook:
        samples[_WAITING] = [f"{_WAITING.name} {webhook.outbox.waiting}"]
    lines = []
    for metric, found in samples.items():
        lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *found]
    return "\n".join(lines) + "\n"


def write(path: Path, followers: Iterable[Follower], webhook: Webhook | None) -> None:
    """Replace the file of metrics. Raises StateUnavailable."""
    try:
        replace_file(path, exposition(followers, webhook).encode())
        path.chmod(0o644)  # another user's collector reads it
    except OSError as error:
        raise StateUnavailable(f"cannot write {path}: {error.strerror}") from error


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
