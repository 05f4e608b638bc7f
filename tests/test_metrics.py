"""Metrics: each is declared once, counted through its constant, exported and documented."""

import ast
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.world import World

from bff import metrics
from bff.metrics import METRICS

CONSTANTS = {
    name: value
    for name, value in vars(metrics).items()
    if name.isupper() and isinstance(value, str)
}


@pytest.fixture(scope="module")
def sources() -> dict[Path, list[ast.AST]]:
    return {
        path: list(ast.walk(ast.parse(path.read_text())))
        for path in Path(metrics.__file__).parent.rglob("*.py")
        if path.name != "metrics.py"
    }


def test_every_metric_has_one_constant() -> None:
    assert sorted(CONSTANTS.values()) == sorted(METRICS)


def test_every_metric_is_used_by_a_module(sources: dict[Path, list[ast.AST]]) -> None:
    """A metric that nothing counts, observes or sets is dead."""
    nodes = [node for nodes in sources.values() for node in nodes]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metrics"
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "bff.metrics":
            used |= {alias.name for alias in node.names}

    assert CONSTANTS.keys() - used == set()


def test_no_module_spells_out_a_metric_name(sources: dict[Path, list[ast.AST]]) -> None:
    for path, nodes in sources.items():
        texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert not texts & METRICS.keys(), path


async def test_metrics_page_holds_the_declared_metrics_only(world: World) -> None:
    families = text_string_to_metric_families((await world.ops.get("/metrics")).text)

    exported = {(f.name, f.type) for f in families if f.name.startswith("bff_")}
    assert exported == {(name, metric.kind) for name, metric in METRICS.items()}


def test_label_names_come_from_a_fixed_list() -> None:
    """No label holds a part of a request."""
    assert {label for metric in METRICS.values() for label in metric.labels} <= {
        "route", "status", "code", "result", "outcome", "limit", "environment", "reason", "key",
        "event", "source", "served_by", "worker", "version", "task", "kind", "name",
    }  # fmt: skip


def test_initial_values_are_in_the_description() -> None:
    for name, metric in METRICS.items():
        assert not metric.initial or len(metric.labels) == 1, name
        if metric.initial and "error code" not in metric.help:
            assert set(metric.initial) <= set(re.findall(r"[\w-]+", metric.help)), name
