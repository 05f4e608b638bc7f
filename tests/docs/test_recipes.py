"""The recipes of CONTRIBUTING.md name what exists, and the tests that say what was forgotten."""

import ast
import dataclasses
import re
from pathlib import Path

from support.world import World

from bff import metrics
from bff.config import settings
from bff.config.declaration import declared
from bff.config.runtime import Limits
from bff.gateway import routes
from bff.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=\n##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "bff").rglob("*.py"))
}

LOG_FIELDS = {
    *("browser", "ops", "version", "worker", "status", "reason", "remedy", "why"),
    *("request_id", "route", "code", "result", "waited", "answers"),
    *("workers", "each", "environment", "outcome", "seconds", "source", "keys", "kind", "replicas"),
    *("subject", "session", "seq"),
    *("field", "exception", "frames", "problems", "settings", "changed", "now_used"),
    *("message", "open_files", "limit", "needed", "connections", "refused", "task"),
}
"""Every field of a log line. None holds a token, a key, an address of a browser, an id or a part of
a document, except the name of a field that the gateway does not know."""

ROUTES = {
    "session": "GET /api/v1/sessions/{session}",
    "list": "GET /api/v1/sessions",
    "chat_in": "POST /realtime/v1/sessions/{session}/in/append",
    "chat_out": "GET /realtime/v1/sessions/{session}/out",
}
"""The routes by label, with a method; pages are in `RuntimeConfig.pages`."""


def test_each_recipe_names_one_file_and_its_tests() -> None:
    assert list(RECIPES) == [
        "a setting", "a metric", "an error code", "an exposed field", "a log field", "a limit",
        "a route",
    ]  # fmt: skip
    for text in RECIPES.values():
        assert re.match(r"\nStart in `bff/[\w/]+\.py`", text)
        assert "`tests/" in text


def test_each_file_test_and_command_of_the_page_exists() -> None:
    for name in re.findall(r"`((?:bff|tests)/[\w/]+\.py)`", PAGE):
        assert (ROOT / name).is_file(), name
    for name, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE):
        assert re.search(rf"^(async )?def {test}\(", (ROOT / name).read_text(), re.MULTILINE), test
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)", PAGE):
        assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE), target


def test_every_setting_is_used() -> None:
    fields = {name for one in settings.CLASSES for name in declared(one)}
    nodes = [node for text in SOURCES.values() for node in ast.walk(ast.parse(text))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {
        ast.unparse(node.slice).strip("'") for node in nodes if isinstance(node, ast.Subscript)
    }

    assert fields - used == set()


def test_log_fields_come_from_a_fixed_list() -> None:
    logged = set()
    for text in SOURCES.values():
        tree = ast.parse(text)
        keys = {
            ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]): {
                key.value for key in node.value.keys if isinstance(key, ast.Constant)
            }
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and re.search(
                r"\blog\.(info|warning|error|log|bind)$|\.often$|\.exception$",
                ast.unparse(node.func),
            ):
                for keyword in node.keywords:
                    name = keyword.arg or ast.unparse(keyword.value)
                    logged |= {name} if keyword.arg else keys.get(name, set())

    assert logged == LOG_FIELDS


def test_every_limit_is_charged() -> None:
    for field in dataclasses.fields(Limits):
        charged = re.compile(rf"limits\.{field.name}\b")
        assert any(
            charged.search(text) for name, text in SOURCES.items() if name.startswith("bff/gateway")
        ), field.name


async def test_every_limit_is_in_the_description_of_its_metric(world: World) -> None:
    limits = world.service.gateway.config.limits
    for field in dataclasses.fields(Limits):
        assert getattr(limits, field.name).name in METRICS[metrics.LIMITED].help


async def test_every_route_is_described(world: World) -> None:
    await world.start(BFF_CHAT="true")
    labels = {one.label for one in vars(routes).values() if isinstance(one, routes.Route)}
    pages = {f"GET {path.decode()}" for path in world.service.gateway.config.pages}
    paths = (await world.browser.get("/openapi.json")).json()["paths"]
    described = {f"{method.upper()} {path}" for path, row in paths.items() for method in row}
    listed = (await world.browser.get("/")).json()["routes"]

    assert labels == ROUTES.keys() | {"other"}, "add the route to ROUTES"
    assert described == set(ROUTES.values()) | pages
    assert described - {"GET /"} == set(listed)
