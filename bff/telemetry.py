"""Counts metrics and writes log lines, one JSON object a line.

No metric and no line holds a token, a key, an address or an id. The only part of a document is the
name of a top-level field that the gateway does not know.
"""

import logging
import re
import sys
import threading
import traceback
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, TextIO, cast

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
from bff.log_writer import LogWriter
from bff.metrics import METRICS

LINES_PER_SECOND: Final = 50
"""Log lines of one event. A line costs as much CPU as several answers, so browsers must not be able
to cause more of them."""
REPEAT_SECONDS: Final = 60.0
"""Seconds before a message of a library is written again. A collector of spans that fails would
otherwise cause a line with each batch."""
_MAX_MESSAGES: Final = 100
"""Messages of libraries whose times are kept."""
_MAX_FIELDS: Final = 100
"""Names of unknown fields that are logged. Without the bound, upstream could fill the log."""

Gauges = Callable[[], dict[str, dict[tuple[str, ...], float]]]


class Telemetry:
    """Holds the counts and the log of one process.

    A count is a number in a dict, because a hit makes several. Prometheus's objects are made when
    the metrics are read.

    Args:
        stream: where log lines go.
    """

    worker: int | None = None
    """Number of this worker: a label of all its metrics. None if the process is the only one."""

    def __init__(self, stream: LogWriter | TextIO) -> None:
        self._stream = stream
        self.level = logging.INFO
        """Lines below it are not written; `Service` sets it."""
        self.counts: defaultdict[tuple[str | int, ...], float] = defaultdict(int)
        self.observed: dict[str, tuple[tuple[float, ...], list[int], list[float]]] = {
            name: (metric.buckets, [0] * (len(metric.buckets) + 1), [0.0])
            for name, metric in METRICS.items()
            if metric.kind == "histogram"
        }
        """By histogram: its upper bounds, the count of each bucket, and the sum."""
        self.gauges: Gauges = dict
        """Reads all gauges; `Service` sets it."""
        self._fields_logged: set[str] = set()
        self._lines: dict[str, tuple[int, int]] = {}
        self.log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            # Workers share the stream: a line is one write, so that lines do not mix.
            structlog.WriteLogger(cast("TextIO", stream)),
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=[
                self._drop_below_level,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            cache_logger_on_first_use=True,
        )

    def _drop_below_level(self, _: Any, method: str, line: Any) -> Any:
        if getattr(logging, method.upper(), logging.CRITICAL) < self.level:
            raise structlog.DropEvent
        return line

    def count(self, *key: str | int, by: float = 1) -> None:
        """Add to a counter: *key* is its constant in `bff.metrics`, then its label values."""
        self.counts[key] += by

    def often(self, event: str, now: float, level: int = logging.INFO, **fields: Any) -> None:
        """Log an event that browsers can cause, at most `LINES_PER_SECOND` times a second.

        *now* is the monotonic time in seconds.
        """
        if self.may_log(event, now):
            self.log.log(level, event, **fields)

    def may_log(self, event: str, now: float) -> bool:
        """Whether `often` would log one more line, which is counted.

        A flood of refusals need not make the fields of lines that nobody writes.
        """
        at, (second, lines) = int(now), self._lines.get(event, (0, 0))
        lines = lines + 1 if second == at else 1
        self._lines[event] = at, lines
        if lines > LINES_PER_SECOND:
            self.counts[metrics.LOG_LINES_DROPPED, event] += 1
            return False
        return True

    def observe(self, name: str, value: float) -> None:
        """Add *value* to a histogram."""
        bounds, counts, total = self.observed[name]
        counts[bisect_left(bounds, value)] += 1
        total[0] += value

    def unknown_fields(self, names: set[str]) -> None:
        """Count fields that the gateway does not know, and log each name once.

        A name that is not a plain word is not logged: it may hold anything.
        """
        for name in names:
            self.count(metrics.DROPPED_FIELDS)
            if len(self._fields_logged) < _MAX_FIELDS and name not in self._fields_logged:
                self._fields_logged.add(name)
                plain = re.fullmatch(r"\w{1,64}", name, re.ASCII)
                self.log.warning("field_dropped", field=name if plain else "(odd name)")

    def exception(self, event: str, exc: BaseException, **fields: Any) -> None:
        """Log the type and the frames of *exc*, not its text, which may hold a secret."""
        frames = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(exc.__traceback__)
        ]
        self.log.error(event, exception=type(exc).__name__, frames=frames, **fields)

    def set_worker(self, worker: int) -> None:
        """Add this worker's number to each log line and each metric."""
        self.worker = worker
        self.log = self.log.bind(worker=worker)

    def metrics(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        text = generate_latest(registry)
        return text if self.worker is None else _labelled(text, b'worker="%d"' % self.worker)

    def _answers_at_once(self) -> int:
        """Count the answers that did not wait: measuring each would slow down every hit."""
        answers = sum(n for key, n in self.counts.items() if key[0] == metrics.REQUESTS)
        return max(0, int(answers) - sum(self.observed[metrics.ANSWER_SECONDS][1]))

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as `CollectorRegistry` requires of a collector."""
        if isinstance(self._stream, LogWriter):
            for reason, lines in self._stream.lost.items():
                self.counts[metrics.LOG_LINES_LOST, reason] = lines
        gauges = self.gauges()
        for name, metric in METRICS.items():
            family: Metric
            if metric.kind == "histogram":
                _, counts, total = self.observed[name]
                if name == metrics.ANSWER_SECONDS:
                    counts = [counts[0] + self._answers_at_once(), *counts[1:]]
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
                counted.update((key, n) for key, n in gauges.get(name, {}).items())
                counted |= {key[1:]: n for key, n in self.counts.items() if key[0] == name}
                for key, n in counted.items():
                    family.add_metric([str(label) for label in key], n)
            yield family


def _labelled(text: bytes, label: bytes) -> bytes:
    """Add *label* in front of the labels of every sample."""
    return re.sub(
        rb"^(?!#)(\w+)(?:\{(.*)\})?(?= )",
        lambda m: b"%b{%b}" % (m[1], b",".join((label, m[2])) if m[2] else label),
        text,
        flags=re.MULTILINE,
    )


def merge(texts: Mapping[int, str | None]) -> str:
    """Merge the metrics of all workers, by number; None for a worker that did not answer.

    Prometheus requires each family once. Counters of workers are not added up: a sum falls when a
    worker dies, and Prometheus would take that for a restart of all workers.
    """
    families: dict[str, list[str]] = {}
    for text in filter(None, texts.values()):
        for family in text.split("# HELP ")[1:]:
            head, kind, *samples = family.splitlines()
            families.setdefault(f"# HELP {head}\n{kind}", []).extend(samples)
    return "".join(
        "\n".join((head, *samples, *_worker_up(head, texts))) + "\n"
        for head, samples in families.items()
    )


def _worker_up(head: str, texts: Mapping[int, str | None]) -> list[str]:
    if not head.startswith(f"# HELP {metrics.WORKER_UP} "):
        return []
    return [
        f'{metrics.WORKER_UP}{{worker="{number}"}} {float(text is not None)}'
        for number, text in sorted(texts.items())
    ]


_UVICORN: Final = "uvicorn"
_WARNINGS: Final = "py.warnings"


class ServerLog(logging.Handler):
    """Writes the log records of libraries and of Python as lines of the gateway's log.

    Texts of exceptions are left out. Of libraries other than uvicorn only the fixed part of a
    message is kept. Standard error gets nothing: a write to it could block.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry
        self._written: dict[str, float] = {}
        """When each message of a library was written last, in seconds."""

    def install(self) -> None:
        """Take all log records, warnings and unhandled exceptions of this process."""
        root = logging.getLogger()
        root.handlers = [self]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)
        exception = self._telemetry.exception
        sys.excepthook = lambda _, exc, __: exception("server_error", exc)
        sys.unraisablehook = lambda hooked: self._failed(hooked.exc_value)
        threading.excepthook = lambda hooked: self._failed(hooked.exc_value)

    def _failed(self, exc: BaseException | None) -> None:
        if exc is not None:
            self._telemetry.exception("server_error", exc)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if record.exc_info and record.exc_info[1]:
            self._telemetry.exception("server_error", record.exc_info[1])
        else:
            seconds, message = record.relativeCreated / 1000, _message(record)
            if self._repeats(record, seconds, message):
                self._telemetry.count(metrics.LOG_LINES_DROPPED, "server")
            else:
                self._telemetry.often("server", seconds, record.levelno, message=message)

    def _repeats(self, record: logging.LogRecord, seconds: float, message: str) -> bool:
        if record.name.partition(".")[0] == _UVICORN:
            return False
        if seconds - self._written.get(message, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return True
        if len(self._written) >= _MAX_MESSAGES:
            self._written.clear()
        self._written[message] = seconds
        return False


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] == _UVICORN:
        # The last line of a traceback is "type: text"; the text may hold a secret.
        *frames, message = record.getMessage().strip().split("\n")
        return message.partition(":")[0] if frames else message
    text = str(record.msg)
    if record.name == _WARNINGS:
        category = re.search(r": (\w+): ", record.getMessage())
        text = category[1] if category else "warning"
    return f"{record.name}: {text.partition(chr(10))[0]}"
