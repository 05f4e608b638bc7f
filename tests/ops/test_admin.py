"""The ops port: for programs of the operator's, and for no page in any browser."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from support.clients import FLAGS, need
from support.world import Gateway, World, http, running_upstream

ROOT = Path(__file__).parent.parent.parent


async def test_the_documentation_names_every_route_and_no_other(world: World) -> None:
    section = (ROOT / "docs" / "OPERATIONS.md").read_text().partition("\n## The ops port\n")[2]
    table = section.partition("|\n\n")[0]
    documented = set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", table, re.MULTILINE))
    routes = {
        (method, route.path.replace(":path", ""))
        for route in world.service.ops_app.routes
        for method in route.methods - {"HEAD"}
    }

    assert documented == routes


async def ask(world: World, **headers: str) -> int:
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
async def test_a_name_that_is_not_ours_is_refused(world: World, host: str) -> None:
    assert await ask(world, host=host) == 4


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9787", "10.1.2.3:9787", "[::1]:9787", "[::1]", "localhost", "LocalHost:9787"],
)
async def test_addresses_and_localhost_are_answered(world: World, host: str) -> None:
    assert await ask(world, host=host) == 2


async def test_names_can_be_given(world: World) -> None:
    await world.start(BFF_OPS_NAMES="gateway-1,ops.internal")

    assert await ask(world, host="gateway-1:9787") == 2
    assert await ask(world, host="OPS.internal") == 2
    assert await ask(world, host="gateway-2:9787") == 4


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
async def test_what_a_page_asks_is_refused_whatever_its_host(
    world: World, headers: dict[str, str]
) -> None:
    assert await ask(world, **headers) == 4


async def test_an_address_typed_by_hand_is_answered(world: World) -> None:
    assert await ask(world, sec_fetch_site="none") == 2


async def test_a_host_that_stands_twice_is_refused(world: World) -> None:
    headers = [("host", "127.0.0.1:9787"), ("host", "127.0.0.1:9787")]
    assert (await world.ops.get("/metrics", headers=headers)).status_code == 400


async def test_the_refusal_says_what_to_do(world: World) -> None:
    response = await world.ops.get("/metrics", headers={"host": "prometheus.example"})

    assert response.json()["code"] == "bad_request"
    assert "BFF_OPS_NAMES" in response.json()["error"]


def test_a_page_whose_name_is_pointed_at_the_ops_port_reads_nothing(
    upstream: running_upstream,
) -> None:
    """DNS rebinding, in Chromium: the page and the ops port are one origin to the browser."""
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
        # Its script asks its own origin, as far as the browser knows.
        told = page.evaluate(
            """async () => Promise.all([["GET", "/metrics"], ["DELETE", "/cache/sessions/chat-1"]]
                .map(async ([method, path]) => (await fetch(path, {method})).status))"""
        )
        assert told == [400, 400]

        # And of another origin it may ask by address, but is told apart by its headers.
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
