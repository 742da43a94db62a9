"""Metrics and log lines, derived from a few events. The only one outside `cli` that names Prometheus or structlog."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from muniment_server import __version__

# Otherwise each counter and histogram has a second series, which no rule and no panel asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Timing:
    """How often something took how long: one histogram. Owned by one thread; others only read it."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one.

        Several times faster than prometheus_client's own, which takes two locks: this is called for each request.
        """
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative counts by upper bound, and the sum."""
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True)), self._sum


class Timings(Collector):
    """A family of timings, one for each combination of labels."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._timings: dict[tuple[str, ...], Timing] = {}

    def labels(self, *values: object) -> Timing:
        """Return the timing with these labels."""
        return self._timings.setdefault(tuple(map(str, values)), Timing())

    def describe(self) -> Iterable[Metric]:
        """Return the family without values."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterable[Metric]:
        """Return what Prometheus reads."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, timing in list(self._timings.items()):
            buckets, total = timing.buckets()
            family.add_metric(labels, buckets, total)
        yield family


class Told(Collector):
    """A counter whose value for each log is told by what counts it, when Prometheus asks."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._sources: dict[str, Callable[[], float]] = {}

    def set_function(self, log: str, count: Callable[[], float]) -> None:
        """Say how to find out the value of a log."""
        self._sources[log] = count

    def describe(self) -> Iterable[Metric]:
        """Return the family without values."""
        yield CounterMetricFamily(self._name, self._text, labels=("log",))

    def collect(self) -> Iterable[Metric]:
        """Return what Prometheus reads."""
        family = CounterMetricFamily(self._name, self._text, labels=("log",))
        for log, count in list(self._sources.items()):
            family.add_metric((log,), count())
        yield family


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.build_info = Gauge("muniment_build_info", "1; which release this is.", ["version"], registry=self.registry)
        self.build_info.labels(__version__).set(1)
        # prometheus_client adds "_total" to counters itself.
        self.appends = Counter(
            "muniment_appends",
            "Entries answered, by outcome (new, known, replayed).",
            ["log", "outcome"],
            registry=self.registry,
        )
        self.batch_entries = Histogram(
            "muniment_batch_entries",
            "Entries in one commit.",
            ["log"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000),
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "muniment_commit_seconds",
            "From taking a batch to its signed checkpoint.",
            ["log"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.request_seconds = Timings("muniment_request_seconds", "Time to answer.", ("log", "route", "status"))
        self.registry.register(self.request_seconds)
        self.head_size = Gauge(
            "muniment_head_size", "Entries in the last signed head.", ["log"], registry=self.registry
        )
        self.published_size = Gauge(
            "muniment_published_size",
            "Entries in the last published checkpoint.",
            ["log"],
            registry=self.registry,
        )
        self.uncovered = Gauge(
            "muniment_uncovered_timestamp_seconds",
            "When the oldest entry was logged that no published checkpoint, or no confirmed anchor, covers; 0: none.",
            ["log", "by"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "muniment_queue_depth", "Entries waiting for the sequencer.", ["log"], registry=self.registry
        )
        self.refused = Counter(
            "muniment_refused",
            "Requests refused, by error code. Those about no log that there is have an empty label.",
            ["log", "reason"],
            registry=self.registry,
        )
        self.connections = Gauge("muniment_connections", "Open HTTP connections.", registry=self.registry)
        self.subscribers = Gauge(
            "muniment_subscribers", "Clients that follow the log.", ["log"], registry=self.registry
        )
        self.connections_refused = Counter(
            "muniment_connections_refused",
            "HTTP connections and requests ended for being too many, too slow or malformed.",
            ["reason"],
            registry=self.registry,
        )
        self.held_bytes = Gauge(
            "muniment_held_bytes",
            "Bytes that clients make this server hold: bodies that come, and answers that wait to be read.",
            ["room"],
            registry=self.registry,
        )
        self.writable = Gauge("muniment_writable", "1 while the log takes entries.", ["log"], registry=self.registry)
        self.database_up = Gauge(
            "muniment_database_up",
            "1 while the database answers; 0 also while a server that starts waits for it.",
            registry=self.registry,
        )
        self.races_lost = Told("muniment_races_lost", "Times another writer of the log was quicker.")
        self.registry.register(self.races_lost)
        self.database_seconds = Timings(
            "muniment_database_seconds", "Time the database took to store a batch and to read it back.", ("log",)
        )
        self.registry.register(self.database_seconds)
        self.disk_free_ratio = Gauge(
            "muniment_disk_free_ratio",
            "Free part of the fullest volume this server writes to, in [0, 1].",
            registry=self.registry,
        )
        self.guard_refusals = Counter(
            "muniment_guard_refusals",
            "Times a log became read-only: an operator must look.",
            ["log"],
            registry=self.registry,
        )

        self.anchors = Gauge("muniment_anchors", "Anchors, by state.", ["log", "state"], registry=self.registry)
        self.anchor_oldest = Gauge(
            "muniment_anchor_oldest_unconfirmed_timestamp_seconds",
            "When the oldest anchor that is neither confirmed nor superseded was made; 0 when there is none.",
            ["log"],
            registry=self.registry,
        )
        self.anchor_confirmed = Gauge(
            "muniment_anchor_last_confirmed_timestamp_seconds",
            "When the last anchor was confirmed, or the log was made when none ever was.",
            ["log"],
            registry=self.registry,
        )
        self.anchors_degraded = Gauge(
            "muniment_anchors_degraded",
            "Open anchors that fewer calendars hold than should.",
            ["log"],
            registry=self.registry,
        )
        self.anchor_bad = Gauge(
            "muniment_anchor_bad_attestations",
            "Attestations of calendars that are not true: none was kept.",
            ["log"],
            registry=self.registry,
        )
        self.anchor_refused = Gauge(
            "muniment_anchor_refused",
            "1 while the stored log is not the one that is anchored: an operator must look.",
            ["log"],
            registry=self.registry,
        )
        self.anchor_calendar = Counter(
            "muniment_anchor_calendar",
            "Answers of calendars, by outcome (taken, pending, upgraded, unchecked, lied, failed).",
            ["log", "calendar", "outcome"],
            registry=self.registry,
        )
        self.anchor_calendar_good = Gauge(
            "muniment_anchor_calendar_last_good_timestamp_seconds",
            "When a calendar last answered as it should.",
            ["log", "calendar"],
            registry=self.registry,
        )
        self.search_size = Gauge(
            "muniment_search_size", "Entries in the search index.", ["log"], registry=self.registry
        )
        self.search_lag = Gauge(
            "muniment_search_lag_entries",
            "Entries that the search index lacks yet.",
            ["log"],
            registry=self.registry,
        )
        self.push_size = Gauge(
            "muniment_push_size",
            "Entries below this index were taken by a sink.",
            ["log", "sink"],
            registry=self.registry,
        )
        self.push_lag = Gauge(
            "muniment_push_lag_entries",
            "Published entries that a sink has not taken yet, or that are not looked at yet for its query.",
            ["log", "sink"],
            registry=self.registry,
        )
        self.push_oldest = Gauge(
            "muniment_push_oldest_waiting_timestamp_seconds",
            "When the first of these entries was published; 0 when there is none.",
            ["log", "sink"],
            registry=self.registry,
        )
        self.push_failures = Counter(
            "muniment_push_failures",
            "Tries to have a batch taken by a sink that failed, in this process.",
            ["log", "sink"],
            registry=self.registry,
        )
        self.scrub_entries = Counter(
            "muniment_scrub_entries", "Entries recomputed by the scrub.", ["log"], registry=self.registry
        )
        self.scrub_position = Gauge(
            "muniment_scrub_position", "Entries the scrub has recomputed in this pass.", ["log"], registry=self.registry
        )
        self.scrub_last_pass = Gauge(
            "muniment_scrub_last_pass_timestamp_seconds",
            "When the scrub last got to the end.",
            ["log"],
            registry=self.registry,
        )
        self.scrub_mismatches = Counter(
            "muniment_scrub_mismatches",
            "Places where what is stored contradicts itself: an operator must look.",
            ["log"],
            registry=self.registry,
        )


def configure_logging(form: Literal["json", "console"], level: str) -> None:
    """Send structured log lines to standard error. Values are escaped, so that no submitter can forge a line."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape,
            structlog.processors.format_exc_info if form == "json" else _same,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_on_stderr,
        cache_logger_on_first_use=False,
    )


def bind_to_lines(**values: str) -> None:
    """Put these values into every line that the running task writes from now on."""
    structlog.contextvars.bind_contextvars(**values)


def _on_stderr(*_: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def _same(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def _escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode("ascii")
    return event


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the server's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger("muniment")
    return logger


# A command that does not choose how lines look writes them too. Left alone structlog sends all of them to stdout, where
# programs read the command's result.
configure_logging("console", "warning")
