"""Formats the results of `make bench` as Markdown tables and as a chart."""

from html import escape
from typing import Any

import inside
import load
import streams

COLOURS = {
    "bff": "#2563eb",
    "bff, no fast path": "#93b4f5",
    "bff, Valkey": "#60a5fa",
    "bff, Valkey, 2 workers": "#60a5fa",
}
BARE = "bare starlette"
FORWARDS = "Starlette + httpx2"
"""The route that one would write by hand."""
MISSES, ONE_MISS = "misses, 32 browsers", "one miss at a time"
DIRECTLY = "upstream, directly"
STREAMS = "streams"
GREY = "#a8a29e"


def markdown(results: dict[str, Any]) -> str:
    table = results["table"]
    bare = table.get("hits", {}).get(BARE, {}).get("rate")
    lines = [
        told(results),
        *_later(results),
        "",
        "| workload | server | requests/s | bff's, to this | to the bare route | p50 ms | p99 ms | p99.9 ms | CPU µs a request | of bff's | MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload, rows in table.items():
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["rate"]):
            share, cost = (f"{r[key]:.2f}" if key in r else "—" for key in ("lead", "saving"))
            route = f"{r['rate'] / bare:.2f}" if bare else "—"
            lines.append(
                f"| {workload} | {name} | {r['rate']:,.0f} | {share} | {route} | {r['p50']:.2f} | "
                f"{r['p99']:.2f} | {r['p999']:.2f} | {r['cpu']:.1f} | {cost} | {r['rss']:.0f} |"
            )
    lines += added(table)
    if results.get("cold"):
        lines += ["", *load.table(results["cold"])]
    if results.get("streams"):
        lines += ["", *streams.table(results["streams"])]
    if results.get("inside"):
        lines += ["", *inside.table(results["inside"])]
    if results.get("startup"):
        seconds = ", ".join(f"{one:.2f}" for one in sorted(results["startup"]))
        lines += ["", f"From exec of `bff serve` to its first answer: {seconds} s."]
    return "\n".join(lines) + "\n"


def told(results: dict[str, Any]) -> str:
    rounds = f"{results['rounds']} rounds" if results["rounds"] > 1 else "one round"
    return (
        f"Measured {results['date']} on {results['machine']}; the server on one core (2 workers "
        f"on both), wrk on another; median of {rounds} of {results['seconds']:g} s, in turns."
    )


def summary(results: dict[str, Any]) -> str:
    """Return the tables of the README: the servers from best to worst, and the baselines apart."""
    table = results["table"]
    shown = ("hits", MISSES, "preflights", "10,000 sessions x 1,000")
    named = dict.fromkeys(name for workload in shown[:2] for name in table[workload])
    names = sorted(named, key=lambda name: -_best(table, name))
    head = [
        f"| {{title}} | {' | '.join(shown)} | CPU µs a hit | CPU µs a miss |",
        "|---|" + "---:|" * (len(shown) + 2),
    ]
    lines: list[str] = []
    for title, baseline in (("requests/s on one core", False), ("none of the job", True)):
        lines += ["", *head] if lines else head
        lines[-2] = lines[-2].format(title=title)
        for name in names:
            if _is_baseline(name) is not baseline:
                continue
            cells = [table[workload].get(name) for workload in shown]
            numbers = [f"{cell['rate']:,.0f}" if cell else "—" for cell in cells]
            numbers += [f"{cell['cpu']:.0f}" if cell else "—" for cell in cells[:2]]
            lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join([*lines, "", told(results), *_later(results)])


def stream_summary(results: dict[str, Any]) -> str:
    """Return the table of chat streams, with its drawing."""
    rows = results.get("streams")
    if not rows:
        return "No run has measured chat streams yet: `make bench` does."
    had = results["streams_load"]
    text = (
        f"{had['busy']} streams with {had['rate']:g} events a second and {had['quiet']:,} with pings. "
        f"{results.get('later', {}).get(STREAMS, told(results))}"
    )
    drawn = "[Drawn](bench/streams.svg)."
    return "\n".join([*streams.table(rows), "", text, drawn])


def stream_svg(rows: dict[str, streams.Row]) -> str:
    """Draw bars of CPU an event, of the latency of the first delta, and of hits beside streams."""
    groups = {
        streams.KEYS[key]: {
            name: (row[key], f"{row[key]:.0%}" if key == "hits" else f"{row[key]:.1f}")
            for name, row in sorted(rows.items(), key=lambda one: one[1].get(key, 0.0))
            if key in row
        }
        for key in ("cpu", "first", "hits")
    }
    return _bars("Chat streams on one core: less is better, but for hits", groups)


def _is_baseline(name: str) -> bool:
    return name.startswith("bare") or name == FORWARDS


def _best(table: dict[str, Any], name: str) -> float:
    """Requests a second of hits, or of misses for a server that keeps nothing."""
    rate: float = (table["hits"].get(name) or table[MISSES][name])["rate"]
    return rate


def _later(results: dict[str, Any]) -> list[str]:
    """Name the workloads of other runs; rates of two runs do not compare."""
    later = results.get("later", {}).items()
    return [f"In a run of its own: {name}. {text}" for name, text in later]


def added(table: dict[str, Any]) -> list[str]:
    """Say what one miss adds to asking upstream directly."""
    rows = table.get(ONE_MISS, {})
    if not {"bff", DIRECTLY} <= rows.keys():
        return []
    p50, p99 = (rows["bff"][key] - rows[DIRECTLY][key] for key in ("p50", "p99"))
    return ["", f"One miss adds {p50:.2f} ms at p50 and {p99:.2f} ms at p99 to asking upstream."]


def svg(results: dict[str, Any]) -> str:
    """Draw bars of requests a second, a group for each workload."""
    groups = {
        workload: {
            name: (r["rate"], f"{r['rate']:,.0f}")
            for name, r in sorted(rows.items(), key=lambda row: -row[1]["rate"])
        }
        for workload, rows in results["table"].items()
    }
    return _bars(f"Requests a second on one core ({results['date']})", groups)


def _bars(title: str, groups: dict[str, dict[str, tuple[float, str]]]) -> str:
    """Draw groups of bars, each with its value and the text of it."""
    shown: list[str] = []
    y = 34
    for group, bars in groups.items():
        shown.append(f'<text x="16" y="{y + 12}" font-weight="bold">{escape(group)}</text>')
        y += 20
        top = max((value for value, _ in bars.values()), default=0.0)
        for name, (value, text) in bars.items():
            width = 400 * value / top
            shown += [
                f'<text x="150" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
                (
                    f'<rect x="158" y="{y}" width="{width:.1f}" height="14" '
                    f'fill="{COLOURS.get(name, GREY)}"/>'
                ),
                f'<text x="{164 + width:.1f}" y="{y + 11}">{text}</text>',
            ]
            y += 18
        y += 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {y}" width="660" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(title)}"><rect width="660" height="{y}" fill="#fff"/>'
        f'<text x="16" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
        + "".join(shown)
        + "</svg>\n"
    )
