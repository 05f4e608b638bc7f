"""Formats the results of `make bench` as Markdown tables and as a chart."""

from html import escape
from typing import Any

import inside
import load

COLOURS = {
    "bff": "#2563eb",
    "bff, no fast path": "#93b4f5",
    "bff, Valkey": "#60a5fa",
    "bff, Valkey, 2 workers": "#60a5fa",
}
BARE = "bare starlette"
GREY = "#a8a29e"


def markdown(results: dict[str, Any]) -> str:
    table = results["table"]
    bare = table.get("hits", {}).get(BARE, {}).get("rate")
    lines = [
        told(results),
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
    if results.get("cold"):
        lines += ["", *load.table(results["cold"])]
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
    """Return the table of the README."""
    shown = ("hits", "preflights", "10,000 sessions x 1,000")
    names = sorted(
        results["table"]["hits"], key=lambda name: -results["table"]["hits"][name]["rate"]
    )
    lines = [
        f"| requests/s on one core | {' | '.join(shown)} | CPU µs a hit |",
        "|---|" + "---:|" * (len(shown) + 1),
    ]
    for name in names:
        cells = [results["table"].get(workload, {}).get(name) for workload in shown]
        rates = [f"{cell['rate']:,.0f}" if cell else "—" for cell in cells]
        cpu = results["table"]["hits"][name]["cpu"]
        shown_as = f"{name} (none of the job)" if name.startswith("bare") else name
        lines.append(f"| {shown_as} | {' | '.join(rates)} | {cpu:.0f} |")
    return "\n".join([*lines, "", told(results)])


def svg(results: dict[str, Any]) -> str:
    """Draw bars of requests a second, a group for each workload."""
    shown: list[str] = []
    y = 34
    for workload, rows in results["table"].items():
        shown.append(f'<text x="16" y="{y + 12}" font-weight="bold">{escape(workload)}</text>')
        y += 20
        top = max(r["rate"] for r in rows.values())
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["rate"]):
            width = 400 * r["rate"] / top
            shown += [
                f'<text x="150" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
                (
                    f'<rect x="158" y="{y}" width="{width:.1f}" height="14" '
                    f'fill="{COLOURS.get(name, GREY)}"/>'
                ),
                f'<text x="{164 + width:.1f}" y="{y + 11}">{r["rate"]:,.0f}</text>',
            ]
            y += 18
        y += 12
    title = f"Requests a second on one core ({results['date']})"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {y}" width="660" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(title)}"><rect width="660" height="{y}" fill="#fff"/>'
        f'<text x="16" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
        + "".join(shown)
        + "</svg>\n"
    )
