"""The ops port: its routes, and the refusal of pages in browsers."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from starlette.routing import Route
from support.clients import FLAGS, need
from support.world import Gateway, World, http, running_upstream

ROOT = Path(__file__).parent.parent.parent


async def test_documentation_lists_every_route_and_no_other(world: World) -> None:
    section = (ROOT / "docs" / "OPERATIONS.md").read_text().partition("\n## The ops port\n")[2]
    table = section.partition("|\n\n")[0]
    documented = set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", table, re.MULTILINE))
    routes = {
        (method, route.path.replace(":path", ""))
        for route in world.service.ops_app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert documented == routes


async def status_class(world: World, **headers: str) -> int:
    """Send a request to each route; they must agree."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    statuses = {
        (await world.ops.request(method, path, headers=sent)).status_code
        for method, path in (
            ("GET", "/metrics"),
            ("GET", "/readyz"),
            ("GET", "/healthz"),
            ("DELETE", "/cache/sessions/chat-1"),
        )
    }
    (kind,) = {status // 100 for status in statuses}
    return kind


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9787",
        "127.0.0.1.evil.example:9787",
        "localhost.evil.example",
        "metrics",
        "",
        ":9787",
        "[::1",
        "127.0.0.1:9787:9787",
        "127.0.0.1, evil.example",
    ],
)
async def test_unknown_host_name_is_refused(world: World, host: str) -> None:
    assert await status_class(world, host=host) == 4


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9787", "10.1.2.3:9787", "[::1]:9787", "[::1]", "localhost", "LocalHost:9787"],
)
async def test_addresses_and_localhost_are_allowed(world: World, host: str) -> None:
    assert await status_class(world, host=host) == 2


async def test_configured_names_are_allowed(world: World) -> None:
    await world.start(BFF_OPS_NAMES="gateway-1,ops.internal")

    assert await status_class(world, host="gateway-1:9787") == 2
    assert await status_class(world, host="OPS.internal") == 2
    assert await status_class(world, host="gateway-2:9787") == 4


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://127.0.0.1:9787"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "same-origin"},
    ],
    ids=repr,
)
async def test_request_of_a_page_is_refused_at_any_host(
    world: World, headers: dict[str, str]
) -> None:
    assert await status_class(world, **headers) == 4


async def test_address_typed_by_hand_is_allowed(world: World) -> None:
    assert await status_class(world, sec_fetch_site="none") == 2


async def test_repeated_host_is_refused(world: World) -> None:
    headers = [("host", "127.0.0.1:9787"), ("host", "127.0.0.1:9787")]
    assert (await world.ops.get("/metrics", headers=headers)).status_code == 400


async def test_refusal_names_the_setting(world: World) -> None:
    response = await world.ops.get("/metrics", headers={"host": "prometheus.example"})

    assert response.json()["code"] == "bad_request"
    assert "BFF_OPS_NAMES" in response.json()["error"]


def test_page_cannot_read_the_ops_port_by_dns_rebinding(
    upstream: running_upstream,
) -> None:
    """Chromium takes the page and the ops port for one origin."""
    path = need("chromium")
    with Gateway(upstream.port) as gateway, sync_playwright() as playwright:
        rule = f"--host-resolver-rules=MAP evil.example 127.0.0.1:{gateway.ops_port}"
        browser = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=False, args=[*FLAGS, rule]
        )
        page = browser.new_page()
        shown = page.goto(f"http://evil.example:{gateway.ops_port}/metrics")
        assert shown is not None
        assert (shown.status, "bff_requests" in shown.text()) == (400, False)
        # For the browser, these are requests to the page's origin.
        statuses = page.evaluate(
            """async () => Promise.all([["GET", "/metrics"], ["DELETE", "/cache/sessions/chat-1"]]
                .map(async ([method, path]) => (await fetch(path, {method})).status))"""
        )
        assert statuses == [400, 400]

        # A request to the address is one to another origin, and has the browser's headers.
        other = page.evaluate(
            """async (url) => fetch(url, {mode: "no-cors"}).then((r) => r.type)""",
            gateway.ops_url + "/metrics",
        )
        assert other == "opaque"
        by_hand = page.goto(gateway.ops_url + "/metrics")
        assert by_hand is not None
        assert "bff_requests" in by_hand.text()
        browser.close()
        assert "bff_purges_total 0.0" in http.get(gateway.ops_url + "/metrics").text
