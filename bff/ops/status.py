"""Shows the state of a gateway: the text of ``/readyz?verbose``, and the screen of `bff status`.

The screen needs only two pages of the ops port, `/readyz` and `/metrics`. Two readings give
the rates between them; one alone gives the totals since the start.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from bff import metrics
from bff.ops.client import send

_TOP: Final = 5
"""Reasons of refusals that are shown, most frequent first."""
_HITS: Final = ("hit", "stale", "last_resort")
"""Results of lookups that cost browsers no wait."""
Labels = tuple[str, ...]
Gauges = Mapping[str, Mapping[Labels, float]]
Sample = tuple[Mapping[str, str], float]
"""Labels and value."""


def breakdown(body: Mapping[str, Any], gauges: Gauges, *, ready: bool) -> str:
    """Format readiness one line a check: ``[+]`` for good, ``[-]`` for bad."""
    lines = [_line(_value(gauges, metrics.SETTINGS_CURRENT, ()) != 0, "settings", _SETTINGS)]
    for name, one in body["environments"].items():
        lines.append(_line(one["ready"], f"tokens of {name}", ("can be verified", one["reason"])))
        if one["ready"]:
            up = gauges.get(metrics.UPSTREAM_UP, {}).get((name,)) == 1
            lines.append(_line(up, f"upstream of {name}", (one["reason"],) * 2))
        number = _value(gauges, metrics.SECRET_KEY_IN_USE, (name,))
        texts = ("the first is used", f"number {number:.0f} is used: upstream rejected the first")
        lines.append(_line(number <= 1, f"secret keys of {name}", texts))
    if "background" in body:
        tasks = ", ".join(body["background"]["restarting"])
        lines.append(f"[-] background: {tasks} is down and starts again")
    if "workers" in body:
        silent = body["workers"]["silent"]
        texts = ("all answer", f"{', '.join(map(str, silent))} do not answer")
        lines.append(_line(not silent, "workers", texts))
    if "store" in body:
        lines.append(_line(body["store"].startswith("up"), "store", (body["store"],) * 2))
    lines.append("ready" if ready else "not ready")
    return "\n".join(lines) + "\n"


_SETTINGS: Final = (
    "are current",
    "the last change is invalid, and the former settings stay (settings_not_reloaded in the log)",
)


def _line(good: bool, subject: str, texts: tuple[str, str]) -> str:  # noqa: FBT001  reads as a row
    return f"[{'+' if good else '-'}] {subject}: {texts[0] if good else texts[1]}"


def _value(gauges: Gauges, name: str, labels: Labels) -> float:
    return gauges.get(name, {}).get(labels, 1.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers of the ops port at one moment."""

    when: float
    """Seconds on the clock that never jumps."""
    readiness: Mapping[str, Any]
    samples: Mapping[str, list[Sample]]
    """By the name of the sample, of all workers."""

    def total(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """Add up samples over all labels but *by*; an empty *by* gives one total."""
        totals: defaultdict[str, float] = defaultdict(float)
        for sample, value in self._with(name, labels):
            totals[sample.get(by, "")] += value
        return totals

    def worst(self, name: str, pick: Any, **labels: str) -> float:
        """The value of a gauge that *pick* (`min` or `max`) selects of all workers."""
        return float(pick((value for _, value in self._with(name, labels)), default=math.nan))

    def _with(self, name: str, labels: Mapping[str, str]) -> Iterable[Sample]:
        samples = self.samples.get(name, ())
        return (one for one in samples if labels.items() <= one[0].items())


def read(host: str, port: int, now: float) -> Reading:
    """Read the ops port.

    Raises:
        OpsError: no gateway answers there.
    """
    readiness: Any = json.loads(send(host, port, "GET", "/readyz")[1])
    samples: dict[str, list[Sample]] = {}
    _, text = send(host, port, "GET", "/metrics")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Reading(now, readiness, samples)


def screen(now: Reading, before: Reading | None) -> str:
    """Format one screen; with a reading *before*, the numbers are those since then."""
    seconds = None if before is None else max(now.when - before.when, 0.001)
    (version,) = now.total(metrics.BUILD_INFO, "version") or ("?",)
    period = "since the start" if seconds is None else f"in the last {seconds:.0f} s"
    ready = "ready" if now.readiness.get("status") == "ready" else "NOT READY"
    lines = [f"bff {version}  {ready}  ({period})"]
    answers = _grown(now, before, f"{metrics.REQUESTS}_total", "status")
    lines.append(
        f"answers      {_count(sum(answers.values()), seconds)}{_answer_time(now, before)}"
    )
    lines.append(f"connections  {now.total(metrics.CONNECTIONS, '').get('', 0):.0f}")
    lines.append(f"store        {now.readiness.get('store', 'none')}")
    workers = now.readiness.get("workers")
    if workers:
        silent = f"; silent: {', '.join(map(str, workers['silent']))}" if workers["silent"] else ""
        lines.append(f"workers      {workers['answering']} answer{silent}")
    for name, environment in now.readiness.get("environments", {}).items():
        lines += ["", f"environment {name}", *_environment(now, before, name, environment)]
    lines += ["", "refusals", *_refusals(now, before, seconds)]
    return "\n".join(lines)


def _environment(
    now: Reading, before: Reading | None, name: str, environment: Mapping[str, Any]
) -> Iterable[str]:
    yield f"  health     {environment['reason']}"
    budget = now.worst(metrics.BUDGET_LEFT, min, environment=name)
    stretch = now.worst(metrics.STRETCHED_TTL_SECONDS, max, environment=name)
    left = "no bound" if math.isinf(budget) else f"{budget:.0f} loads left now"
    yield f"  budget     {left}; longest stretch {stretch:.1f} s"
    key = now.worst(metrics.SECRET_KEY_IN_USE, max, environment=name)
    if key > 1:
        yield f"  key        number {key:.0f} is used: upstream rejected the first"
    lookups = _grown(now, before, f"{metrics.CACHE}_total", "result", environment=name)
    total = sum(lookups.values())
    hits = sum(lookups.get(result, 0.0) for result in _HITS)
    share = f"{100 * hits / total:.1f} % of {total:.0f} lookups" if total else "no lookups"
    yield f"  hits       {share}"
    loads = _grown(now, before, f"{metrics.LOADS}_total", "outcome", environment=name)
    shown = ", ".join(f"{count:.0f} {outcome}" for outcome, count in loads.items() if count)
    yield f"  loads      {shown or 'none'}"


def _refusals(now: Reading, before: Reading | None, seconds: float | None) -> Iterable[str]:
    codes = _grown(now, before, f"{metrics.REQUESTS}_total", "code")
    refused = sorted(((n, code) for code, n in codes.items() if code and n), reverse=True)
    for count, code in refused[:_TOP]:
        yield f"  {code:<30} {_count(count, seconds)}"
    if not refused:
        yield "  none"


def _answer_time(now: Reading, before: Reading | None) -> str:
    buckets = _grown(now, before, f"{metrics.ANSWER_SECONDS}_bucket", "le")
    total = max(buckets.values(), default=0.0)
    if not total:
        return ""
    bounds = sorted((float(le.replace("+Inf", "inf")), count) for le, count in buckets.items())
    bound = next(le for le, count in bounds if count >= 0.99 * total)
    return f", 99 % within {bound:g} s"


def _grown(
    now: Reading, before: Reading | None, name: str, by: str, **labels: str
) -> dict[str, float]:
    """Return how much a counter grew; a total that fell counts from 0 (a replaced worker)."""
    old = {} if before is None else before.total(name, by, **labels)
    return {
        key: value - old.get(key, 0.0) if value >= old.get(key, 0.0) else value
        for key, value in now.total(name, by, **labels).items()
    }


def _count(number: float, seconds: float | None) -> str:
    return f"{number:.0f}" if seconds is None else f"{number / seconds:.1f} a second"
