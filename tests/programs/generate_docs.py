"""`make docs`: writes every table and drawing of the documentation that the code determines.

A table stands between `<!-- name -->` and `<!-- /name -->`. Measured figures come from files that
`make bench` and `make simulate` write: docs/bench/results.json and docs/capacity.json.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from bff.cli import main
from bff.config.declaration import declared
from bff.config.settings import SETTINGS
from bff.config.token_sources import SourceSettings
from bff.errors import REFUSALS
from bff.metrics import METRICS

# The programs below tests/ import one another by name.
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "bench"))
import chart
from programs import capacity

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, "|".join(["", *["---"] * (head.count("|") - 1), ""]), *rows])


def _commands() -> Iterable[str]:
    for name, command in sorted(main.commands.items()):
        options = [
            parameter.opts[0]
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.hidden
        ]
        shown = " ".join(f"`{option}`" for option in options)
        yield f"| `bff {name}` | {shown} | {(command.help or '').splitlines()[0]} |"


def tables() -> dict[str, str]:
    """Return each table of the documentation by its name."""
    return {
        "settings": _table(
            "| name | default | restart | meaning |",
            [
                f"| `{name}`{', `…_FILE`' if row.secret else ''} | {row.shown_default} | "
                f"{'' if row.reloadable else 'yes'} | {row.meaning} |"
                for name, row in SETTINGS.items()
            ],
        ),
        "sources": _table(
            "| key | default | meaning |",
            [
                f"| `{row.name}`{', `…_FILE`' if row.secret else ''} | {row.shown_default} | "
                f"{row.meaning} |"
                for row in declared(SourceSettings).values()
            ],
        ),
        "errors": _table(
            "| code | status | text |",
            [f"| `{code}` | {kind.status} | {kind.text} |" for code, kind in REFUSALS.items()],
        ),
        "metrics": _table(
            "| metric | type | labels | meaning |",
            [
                f"| `{name}{'_total' if row.kind == 'counter' else ''}` | {row.kind} | "
                f"{', '.join(f'`{label}`' for label in row.labels) or '—'} | {row.help} |"
                for name, row in METRICS.items()
            ],
        ),
        "commands": _table("| command | options | effect |", _commands()),
        "simulation": capacity.table(capacity.published()),
        "leases": capacity.leases_table(),
        "bench": chart.summary(_results()),
        "streams": chart.stream_summary(_results()),
    }


def _prometheus_rule() -> str:
    """Wrap the alerts for the Prometheus operator."""
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    head = (
        "# Made from deploy/prometheus/rules.yml: make docs\n"
        "apiVersion: monitoring.coreos.com/v1\n"
        "kind: PrometheusRule\n"
        "metadata:\n"
        "  name: bff\n"
        "spec:\n"
    )
    lines = (
        f"  {line}" if line and not line.startswith("#") else line for line in rules.splitlines()
    )
    return head + "\n".join(line for line in lines if not line.startswith("#")) + "\n"


def _results() -> dict[str, object]:
    results: dict[str, object] = json.loads((ROOT / "docs/bench/results.json").read_text())
    return results


def generated() -> dict[Path, str]:
    """Return each file with generated text, and the text that it must have."""
    files = {
        ROOT / "docs/capacity.svg": capacity.drawing(capacity.published()),
        ROOT / "docs/bench/bench.md": chart.markdown(_results()),
        ROOT / "docs/bench/bench.svg": chart.svg(_results()),
        ROOT / "deploy/prometheus/operator/prometheusrule.yaml": _prometheus_rule(),
    }
    if rows := _results().get("streams"):
        files[ROOT / "docs/bench/streams.svg"] = chart.stream_svg(rows)
    for page in PAGES:
        text = page.read_text()
        for name, table in tables().items():
            marks = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
            text = re.sub(
                marks, lambda m, table=table: f"{m[1]}{table}{m[2]}", text, flags=re.DOTALL
            )
        files[page] = text
    return files


if __name__ == "__main__":
    for path, made in generated().items():
        if not path.exists() or path.read_text() != made:
            path.write_text(made)
            print(f"Written: {path.relative_to(ROOT)}")
