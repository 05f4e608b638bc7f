"""What `make bench` shows: a Markdown table, and a drawing of it."""

from html import escape
from typing import Any

COLOURS = {"bff": "#2563eb", "bff, lane off": "#93b4f5"}
GREY = "#a8a29e"


def markdown(results: dict[str, Any]) -> str:
    lines = [
        (
            f"Measured {results['date']} on {results['machine']}; the server on one core, wrk on "
            f"another; median of {results['rounds']} rounds of {results['seconds']:g} s."
        ),
        "",
        "| workload | server | requests/s | of bff | p50 ms | p99 ms | p99.9 ms | CPU µs a request | of bff's | MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload, rows in results["table"].items():
        bff = rows.get("bff", {"rate": 0.0, "cpu": 0.0})
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["rate"]):
            share = f"{r['rate'] / bff['rate']:.2f}" if bff["rate"] else "—"
            cost = f"{r['cpu'] / bff['cpu']:.2f}" if bff["cpu"] else "—"
            lines.append(
                f"| {workload} | {name} | {r['rate']:,.0f} | {share} | {r['p50']:.2f} | "
                f"{r['p99']:.2f} | {r['p999']:.2f} | {r['cpu']:.1f} | {cost} | {r['rss']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def svg(results: dict[str, Any]) -> str:
    """Bars of requests a second, a group for each workload."""
    shown: list[str] = []
    y = 34
    for workload, rows in results["table"].items():
        shown.append(f'<text x="16" y="{y + 12}" font-weight="bold">{escape(workload)}</text>')
        y += 20
        top = max(r["rate"] for r in rows.values())
        for name, r in sorted(rows.items(), key=lambda row: -row[1]["rate"]):
            width = 420 * r["rate"] / top
            shown += [
                f'<text x="130" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
                (
                    f'<rect x="138" y="{y}" width="{width:.1f}" height="14" '
                    f'fill="{COLOURS.get(name, GREY)}"/>'
                ),
                f'<text x="{144 + width:.1f}" y="{y + 11}">{r["rate"]:,.0f}</text>',
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
