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

from bff import metrics
from bff.metrics import METRICS

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
            name: (metric.buckets, [0] * (len(metric.buckets) + 1), [0.0])
            for name, metric in METRICS.items()
            if metric.kind == "histogram"
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
            self.count(metrics.LOG_LINES_DROPPED, event)

    def observe(self, name: str, value: float) -> None:
        """Add *value* to a histogram."""
        bounds, counts, total = self.observed[name]
        counts[bisect_left(bounds, value)] += 1
        total[0] += value

    def unknown_fields(self, names: set[str]) -> None:
        """Count fields that are new upstream; each is logged once, and only a plain name is."""
        for name in names:
            self.count(metrics.DROPPED_FIELDS)
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
        for name, metric in METRICS.items():
            family: Metric
            if metric.kind == "histogram":
                _, counts, total = self.observed[name]
                bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
                family = HistogramMetricFamily(name, metric.help)
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                family.add_metric((), buckets, total[0])
            elif metric.kind == "gauge":
                family = GaugeMetricFamily(name, metric.help, labels=metric.labels)
                for labels, value in gauges.get(name, {}).items():
                    family.add_metric(labels, value)
            else:
                family = CounterMetricFamily(name, metric.help, labels=metric.labels)
                counted: dict[tuple[str | int, ...], float]
                counted = {(value,): 0 for value in metric.initial}
                counted |= {} if metric.labels else {(): 0}
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
    if not head.startswith(f"# HELP {metrics.WORKER_UP} "):
        return []
    return [
        f'{metrics.WORKER_UP}{{worker="{number}"}} {float(text is not None)}'
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
