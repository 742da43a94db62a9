"""What is measured: the workloads, at how many connections, and for how long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ENTRY_SIZE = 308
"""Bytes of every entry posted: an event of 7 members. Raw logs get the same bytes, as a leaf."""
BATCH = 1_000
SMALL_SIZE = 30
"""Bytes of an entry of the log `small`: 256 of them are a bundle of 8 kB, as large as a tile."""
LOG_NAMES = {"event": "default", "raw": "raw", "small": "small"}
PREFIXES = {"event": "", "raw": "/logs/raw", "small": "/logs/small", "": ""}
"""Where a log is mounted; "" is the echo."""
EVENT_ORIGIN = "bench.example/event"
RAW_ORIGINS = {"raw": "bench.example/raw", "small": "bench.example/small"}


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request. `log` is the log it goes to, "" for the echo; `entries` is how many entries one request appends."""

    name: str
    title: str
    log: str
    path: str
    entries: int = 0
    content_type: str = ""

    @property
    def post(self) -> bool:
        """Tell whether requests carry a body."""
        return bool(self.content_type)

    @property
    def prefix(self) -> str:
        """Where the log is mounted."""
        return PREFIXES[self.log]


_OCTETS, _JSON, _LINES = "application/octet-stream", "application/json", "application/x-ndjson"

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("echo", "raw ASGI echo (E)", "", "/", content_type=_OCTETS),
        Workload("raw", "POST raw entry", "raw", "/entries", 1, _OCTETS),
        Workload("event", "POST event", "event", "/entries", 1, _JSON),
        Workload("raw-batch", "batch of 1,000 raw, compact", "raw", "/entries/batch", BATCH, _OCTETS),
        Workload("raw-receipts", "batch of 1,000 raw, receipts", "raw", "/entries/batch?receipts=true", BATCH, _OCTETS),
        Workload("event-batch", "batch of 1,000 events, compact", "event", "/entries/batch", BATCH, _LINES),
        Workload(
            "event-receipts",
            "batch of 1,000 events, receipts",
            "event",
            "/entries/batch?receipts=true",
            BATCH,
            _LINES,
        ),
        Workload("proof", "GET inclusion proof, random", "raw", "/proof/inclusion?index="),
        Workload("tile", "GET full tile, random", "raw", "/tile/0/"),
        Workload("bundle", "GET full bundle of 8 kB, random", "small", "/tile/entries/"),
        Workload("large-bundle", "GET full bundle of 79 kB, random", "raw", "/tile/entries/"),
        Workload("small-batch", "batch of 1,000 small raw", "small", "/entries/batch", BATCH, _OCTETS),
        Workload("mixed", "half appends, proofs, tiles", "raw", "/entries", 1, _OCTETS),
    )
}


@dataclass(frozen=True, slots=True)
class Series:
    """A workload at a number of connections."""

    workload: str
    connections: int

    @property
    def name(self) -> str:
        """Name of the series in JSON: workload and connections."""
        return f"{self.workload}-c{self.connections}"


ECHO = Series("echo", 64)
"""The reference E: the same body, 64 connections."""
SERIES = (  # reads first: on the log as it was preloaded
    *(Series(name, 64) for name in ("proof", "tile", "bundle", "large-bundle")),
    *(Series(name, connections) for name in ("raw", "event") for connections in (1, 64, 256)),
    *(Series(name, 4) for name in ("raw-batch", "raw-receipts", "event-batch", "event-receipts")),
)


@dataclass(frozen=True, slots=True)
class Load:
    """One run of a generator. `size` is the size of the log read from; `requests` ends the run early; `policy` is for checks.

    `rate` is how many requests a second become due, whether or not earlier ones were answered (open loop); 0 means that each
    connection sends the next one when it has its answer (closed loop). `reads` is the part of the log reads are spread over.
    """

    workload: str
    host: str
    port: int
    connections: int
    seconds: float
    seed: int
    size: int = 0
    requests: int = 0
    policy: str = ""
    rate: float = 0.0
    reads: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the load as a JSON value."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how often.

    A run that others disturbed is made again, up to `attempts` in all, and no more than `repeats` times for a store.
    `fsck_each` checks the whole log after each series that wrote to it, else once in the end. `sizes` are those at which growth
    is measured, smallest first. `preload` is how many entries the event log begins with, `reads` the raw one, and the small one a
    quarter of that.
    """

    stores: tuple[str, ...]
    seconds: float = 2.0
    warmup: float = 0.5
    echo_seconds: float = 1.0
    ceiling_seconds: float = 1.0
    runs: int = 3
    attempts: int = 3
    repeats: int = 30
    fsck_each: bool = True
    preload: int = 100_000
    reads: int = 1_000_000
    generator: str = "auto"
    only: re.Pattern[str] = field(default=re.compile(""))
    json: Path | None = None
    study_seconds: float = 5.0
    sizes: tuple[int, ...] = ()

    def series(self) -> Iterator[Series]:
        """Yield the series to measure."""
        return (series for series in SERIES if self.only.search(series.name))


QUICK = {
    "seconds": 0.25,
    "warmup": 0.05,
    "echo_seconds": 0.1,
    "ceiling_seconds": 0.05,
    "runs": 1,
    "attempts": 1,
    "fsck_each": False,
    "preload": 4_000,
    "reads": 8_000,
    "study_seconds": 0.3,
}
"""Too short to be figures: shows that everything runs."""
