"""What the gateway tells its operator: metrics by table, and one JSON object a line.

Neither ever holds a token, a key, an address, an id or anything of a document but the name of a
field that is new upstream.
"""

import logging
import re
import sys
import traceback
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from bff.errors import REFUSALS


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; the tuple of label values that counts towards it is in the order of `labels`."""

    help: str
    labels: tuple[str, ...] = ()
    gauge: bool = False
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's, beside +Inf; none for what is no histogram."""
    shown: tuple[str, ...] = ()
    """Values of its one label that are there from the start, as 0: of a counter that begins at 1,
    Prometheus sees no increase, so the first of its kind would raise no alert."""

    @property
    def kind(self) -> str:
        """The type, as Prometheus calls it."""
        return "histogram" if self.buckets else "gauge" if self.gauge else "counter"


METRICS: dict[str, Row] = {
    "bff_requests": Row(
        "Answers to browsers, by route, status, code, and the lane they took: fast, asgi, or none "
        "for what was no request.",
        ("route", "status", "code", "lane"),
    ),
    "bff_cache": Row(
        "Answers that hold a session or its absence, by what the cache did: hit, stale, miss, "
        "joined, negative, last_resort.",
        ("result",),
        shown=("hit", "stale", "miss", "joined", "negative", "last_resort"),
    ),
    "bff_loads": Row(
        "Loads from upstream, by outcome: ok or an error code.",
        ("outcome",),
        shown=("ok", *(code for code in REFUSALS if code.startswith("upstream_")), "internal"),
    ),
    "bff_load_seconds": Row(
        "How long loads took.", buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    ),
    "bff_age_served_seconds": Row(
        "How old the copies were that were answered with.", buckets=(0.1, 1.0, 2.0, 5.0, 30.0, 60.0)
    ),
    "bff_token_tests": Row(
        "Tokens put to upstream's test because no key here verifies them, by outcome: ok or an "
        "error code.",
        ("outcome",),
    ),
    "bff_key_fetches": Row(
        "Fetches of a token source's keys, by outcome: ok, unusable or an error code.",
        ("source", "outcome"),
    ),
    "bff_bad_tokens": Row(
        "Requests without a valid token, by reason: token_missing, token_invalid, token_expired, "
        "token_revoked, secret_key_sent.",
        ("reason",),
        shown=(
            *(code for code in REFUSALS if code.startswith("token_")),
            "secret_key_sent",
        ),
    ),
    "bff_limited": Row(
        "Requests over a limit, by what was counted: address, bad-token, caller.",
        ("limit",),
        shown=("address", "bad-token", "caller"),
    ),
    "bff_dropped_fields": Row(
        "Top-level fields new upstream, dropped because no policy names them."
    ),
    "bff_mismatched_copies": Row("Copies dropped because they stood under a key not their own."),
    "bff_store_commands": Row(
        "Commands to the store, by outcome: ok, late, error, foreign (a value not ours, dropped).",
        ("outcome",),
    ),
    "bff_leases": Row("Parts of windows leased from the store, by limit.", ("limit",)),
    "bff_shared_copies": Row(
        "Copies in the store, by what became of them: used, kept, purged (during their load), "
        "superseded (by a later load, or their claim was lost), dropped (foreign or corrupt).",
        ("result",),
    ),
    "bff_shared_verdicts": Row(
        "Upstream's verdicts on tokens in the store, by what became of them: used, kept, "
        "superseded (by a later one, or their claim was lost), dropped (foreign or corrupt).",
        ("result",),
    ),
    "bff_store_up": Row("1 if the store is there, 0 if this replica is on its own.", gauge=True),
    "bff_replicas": Row("Replicas that were seen at the store last.", gauge=True),
    "bff_log_lines_dropped": Row(
        "Log lines left out because there were too many of their kind in a second.", ("event",)
    ),
    "bff_loop_lag_seconds": Row(
        "How late the event loop woke up from a sleep: beyond 0.1 the process has too much to do.",
        buckets=(0.005, 0.025, 0.1, 0.5, 2.0),
    ),
    "bff_worker_up": Row(
        "With --workers: 1 if the worker gave its metrics when it was asked, 0 if it hangs or is "
        "being replaced.",
        ("worker",),
        gauge=True,
    ),
    "bff_build_info": Row("1, with the version.", ("version",), gauge=True),
    "bff_purges": Row("Sessions purged by the operator."),
    "bff_reloads": Row(
        "Attempts to change settings without a restart: ok, failed.",
        ("outcome",),
        shown=("ok", "failed"),
    ),
    "bff_settings_current": Row(
        "0 while changed settings cannot be used and the former ones go on, else 1.", gauge=True
    ),
    "bff_signing_key_used_timestamp_seconds": Row(
        "When a signing key last let someone in (Unix seconds; 0 for never), by its number in the "
        "settings from 1: a key that is being rotated out can go once this stands still.",
        ("environment", "key"),
        gauge=True,
    ),
    "bff_closed_connections": Row(
        "Connections ended by the gateway, by reason: bad_request, head_too_large, "
        "incomplete_request, unread_answer, too_many, too_many_of_address.",
        ("reason",),
        shown=("too_many", "too_many_of_address"),
    ),
    "bff_connections": Row("Connections of browsers that are open.", gauge=True),
    "bff_copies": Row("Sessions and absences kept.", gauge=True),
    "bff_copy_bytes": Row("Bytes they take, about.", gauge=True),
    "bff_loads_in_flight": Row("Loads under way.", gauge=True),
    "bff_verified_tokens": Row("Tokens remembered as verified.", gauge=True),
    "bff_revocations": Row("Revocations kept.", gauge=True),
    "bff_stretched_ttl_seconds": Row(
        "Least time a copy counts as fresh so that all hot sessions fit the budget.",
        ("environment",),
        gauge=True,
    ),
    "bff_budget_left": Row(
        "Loads that may be spent at once, +Inf without a bound.", ("environment",), gauge=True
    ),
    "bff_ready": Row("1 if the environment is ready, else 0.", ("environment",), gauge=True),
}

LINES_PER_SECOND = 50
"""Of one kind: a line costs as much as several answers, and a flood must not be worth more."""

Gauges = Callable[[], dict[str, dict[tuple[str, ...], float]]]


class Telemetry:
    """Counts in plain numbers, which cost a hit next to nothing, and shows them when asked.

    Args:
        stream: where log lines go.
    """

    worker: int | None = None
    """This process among several: a label of all its metrics."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.counts: defaultdict[tuple[str | int, ...], float] = defaultdict(int)
        self.observed: dict[str, tuple[tuple[float, ...], list[int], list[float]]] = {
            name: (row.buckets, [0] * (len(row.buckets) + 1), [0.0])
            for name, row in METRICS.items()
            if row.buckets
        }
        """By histogram: its bounds, how many fell in each bucket, and their sum."""
        self.gauges: Gauges = dict
        self._fields_seen: set[str] = set()
        self._lines: dict[str, tuple[int, int]] = {}
        self.log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            # Each line in one write: workers share the stream.
            structlog.WriteLogger(stream or sys.stdout),
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            cache_logger_on_first_use=True,
        )

    def count(self, *key: str | int, by: float = 1) -> None:
        """Add to a metric: *key* is its name, then its label values."""
        self.counts[key] += by

    def often(self, event: str, now: float, level: int = logging.INFO, **fields: Any) -> None:
        """Log what browsers can bring about at will, up to a number of lines in each second.

        *now* is seconds on the clock that never jumps.
        """
        second, lines = self._lines.get(event, (0, 0))
        lines = lines + 1 if second == int(now) else 1
        self._lines[event] = int(now), lines
        if lines <= LINES_PER_SECOND:
            self.log.log(level, event, **fields)
        else:
            self.count("bff_log_lines_dropped", event)

    def observe(self, name: str, value: float) -> None:
        """Add *value* to a histogram."""
        bounds, counts, total = self.observed[name]
        counts[bisect_left(bounds, value)] += 1
        total[0] += value

    def unknown_fields(self, names: set[str]) -> None:
        """Count fields that are new upstream; each is logged once, and only a plain name is."""
        for name in names:
            self.count("bff_dropped_fields")
            if len(self._fields_seen) < 100 and name not in self._fields_seen:  # noqa: PLR2004
                self._fields_seen.add(name)
                shown = name if re.fullmatch(r"\w{1,64}", name, re.ASCII) else "(odd name)"
                self.log.warning("field_dropped", field=shown)

    def exception(self, event: str, exc: BaseException, **fields: Any) -> None:
        """Log where *exc* came from; never its text, which may hold what no log may."""
        frames = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(exc.__traceback__)
        ]
        self.log.error(event, exception=type(exc).__name__, frames=frames, **fields)

    def be(self, worker: int) -> None:
        """Say in each line and each metric which of several processes this is."""
        self.worker = worker
        self.log = self.log.bind(worker=worker)

    def metrics(self) -> bytes:
        """Everything counted, in the Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        text = generate_latest(registry)
        return text if self.worker is None else _labelled(text, b'worker="%d"' % self.worker)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the table (the protocol of a Prometheus collector)."""
        gauges = self.gauges()
        for name, row in METRICS.items():
            family: Metric
            if row.buckets:
                _, counts, total = self.observed[name]
                bounds = [*map(floatToGoString, row.buckets), "+Inf"]
                family = HistogramMetricFamily(name, row.help)
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                family.add_metric((), buckets, total[0])
            elif row.gauge:
                family = GaugeMetricFamily(name, row.help, labels=row.labels)
                for labels, value in gauges.get(name, {}).items():
                    family.add_metric(labels, value)
            else:
                family = CounterMetricFamily(name, row.help, labels=row.labels)
                counted: dict[tuple[str | int, ...], float] = {(value,): 0 for value in row.shown}
                counted |= {} if row.labels else {(): 0}
                counted |= {key[1:]: n for key, n in self.counts.items() if key[0] == name}
                for key, n in counted.items():
                    family.add_metric([str(label) for label in key], n)
            yield family


def _labelled(text: bytes, label: bytes) -> bytes:
    """Put one more label first at every sample."""
    return re.sub(
        rb"^(?!#)(\w+)(?:\{(.*)\})?(?= )",
        lambda m: b"%b{%b}" % (m[1], b",".join((label, m[2])) if m[2] else label),
        text,
        flags=re.MULTILINE,
    )


def together(texts: Mapping[int, str | None]) -> str:
    """Make one text of those of several workers; None is that of a worker which did not answer.

    Each family stands once, as Prometheus wants it. Nothing is added up: a worker that dies takes
    its counters along, and a sum that falls would be taken for a restart of them all.
    """
    families: dict[str, list[str]] = {}
    for text in filter(None, texts.values()):
        for family in text.split("# HELP ")[1:]:
            head, kind, *samples = family.splitlines()
            families.setdefault(f"# HELP {head}\n{kind}", []).extend(samples)
    return "".join(
        "\n".join((head, *samples, *_up(head, texts))) + "\n" for head, samples in families.items()
    )


def _up(head: str, texts: Mapping[int, str | None]) -> list[str]:
    if not head.startswith("# HELP bff_worker_up "):
        return []
    return [
        f'bff_worker_up{{worker="{number}"}} {float(text is not None)}'
        for number, text in sorted(texts.items())
    ]


class ServerLog(logging.Handler):
    """Brings what the HTTP server logs into the same lines, without its tracebacks' texts."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if record.exc_info and record.exc_info[1]:
            self._telemetry.exception("server_error", record.exc_info[1])
        else:
            # Of a traceback that came as text, what it was and no more.
            *before, message = record.getMessage().strip().split("\n")
            message = message.partition(":")[0] if before else message
            getattr(self._telemetry.log, record.levelname.lower())("server", message=message)
