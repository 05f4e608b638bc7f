"""What the gateway tells its operator: metrics by table, and one JSON object a line.

Neither ever holds a token, a key, an address, an id or anything of a document but the name of a
field that is new upstream.
"""

import logging
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; the tuple of label values that counts towards it is in the order of `labels`."""

    help: str
    labels: tuple[str, ...] = ()
    gauge: bool = False


METRICS: dict[str, Row] = {
    "bff_requests": Row(
        "Answers to browsers, by route, status and code.", ("route", "status", "code")
    ),
    "bff_cache": Row(
        "Answers that hold a session or its absence, by what the cache did: hit, stale, miss, "
        "joined, negative, last_resort.",
        ("result",),
    ),
    "bff_loads": Row("Loads from upstream, by outcome: ok or an error code.", ("outcome",)),
    "bff_load_seconds": Row("Seconds spent in loads, added up."),
    "bff_token_tests": Row(
        "Tokens put to upstream's test because no key here verifies them, by outcome: ok or an "
        "error code.",
        ("outcome",),
    ),
    "bff_key_fetches": Row(
        "Fetches of a token source's keys, by outcome: ok, unusable or an error code.",
        ("source", "outcome"),
    ),
    "bff_limited": Row("Requests over a limit, by what was counted.", ("limit",)),
    "bff_dropped_fields": Row(
        "Top-level fields new upstream, dropped because no policy names them."
    ),
    "bff_mismatched_copies": Row("Copies dropped because they stood under a key not their own."),
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

Gauges = Callable[[], dict[str, dict[tuple[str, ...], float]]]


class Telemetry:
    """Counts in plain numbers, which cost a hit next to nothing, and shows them when asked.

    Args:
        stream: where log lines go.
        level: the least level that is written.
    """

    def __init__(self, stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
        self.counts: defaultdict[tuple[str, ...], float] = defaultdict(int)
        self.gauges: Gauges = dict
        self._fields_seen: set[str] = set()
        self.log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stdout),
            wrapper_class=structlog.make_filtering_bound_logger(level),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            cache_logger_on_first_use=True,
        )

    def count(self, *key: str, by: float = 1) -> None:
        """Add to a metric: *key* is its name, then its label values."""
        self.counts[key] += by

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

    def metrics(self) -> bytes:
        """Everything counted, in the Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the table (the protocol of a Prometheus collector)."""
        gauges = self.gauges()
        for name, row in METRICS.items():
            family: Metric
            if row.gauge:
                family = GaugeMetricFamily(name, row.help, labels=row.labels)
                for labels, value in gauges.get(name, {}).items():
                    family.add_metric(labels, value)
            else:
                family = CounterMetricFamily(name, row.help, labels=row.labels)
                counted = {key[1:]: n for key, n in self.counts.items() if key[0] == name}
                for labels, value in (counted or ({} if row.labels else {(): 0})).items():
                    family.add_metric(labels, value)
            yield family


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
            level = record.levelname.lower()
            getattr(self._telemetry.log, level)("server", message=record.getMessage())
