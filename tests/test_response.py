"""Header lines of every answer."""

import pytest
from support.world import (
    ORIGIN,
    PATH,
    World,
    read,
)


async def test_preflight_needs_no_token_and_no_limit(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="1/minute")
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "x-own"}

    responses = [
        await world.browser.options(path, headers={"origin": ORIGIN, **asked})
        for path in (PATH + "chat-1", PATH + "chat-1", "/realtime/v1/x", PATH + "..%2f")
    ]

    assert [r.status_code for r in responses] == [204] * 4
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "GET" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].split(", ")
        assert "authorization" in allowed
        assert "*" in allowed
        assert response.headers["vary"] == "Authorization, Origin, Accept"
    assert world.calls == 0


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        ORIGIN + ".evil",
        ORIGIN + ":8443",
        ORIGIN.replace("https", "http"),
        ORIGIN.upper(),
        "",
    ],
)
async def test_other_origin_gets_no_cors_headers(world: World, origin: str) -> None:
    response = await world.get("chat-1", origin=origin)
    preflight = await world.browser.options(PATH + "chat-1", headers={"origin": origin})

    for headers in (response.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "Authorization, Origin, Accept"


async def test_any_origin_is_allowed_only_without_credentials(world: World) -> None:
    await world.start(BFF_ALLOWED_ORIGINS="*")

    response = await world.get("chat-1", origin="https://anywhere.example")

    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


async def test_every_answer_carries_the_common_headers(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="3/minute")
    token = world.token(*read("chat-1", "nope"))
    etag = (await world.get("chat-1", token=token)).headers["etag"]
    responses = [
        await world.get("chat-1", token=token, if_none_match=etag),
        await world.get("nope", token=token),
        await world.get("chat-1", token=token),
        await world.get("chat-2", token=token),
        await world.get("chat-1", token="bad"),
        await world.browser.get("/", headers={"origin": ORIGIN}),
        await world.browser.get("/healthz", headers={"origin": ORIGIN}),
        await world.browser.post("/healthz", headers={"origin": ORIGIN}),
        await world.browser.get("/api/v2", headers={"origin": ORIGIN}),
    ]
    statuses = [r.status_code for r in responses]
    assert statuses == [304, 404, 429, 403, 401, 200, 200, 405, 410]

    ids = set()
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["vary"] == "Authorization, Origin, Accept"
        assert response.headers["x-content-type-options"] == "nosniff"
        kept = "private, no-cache" if response.status_code == 304 else "no-store"
        assert response.headers["cache-control"] == kept
        ids.add(response.headers["x-request-id"])
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        safelisted = {"content-type", "content-length"}
        unexposed = set(response.headers) - set(exposed) - safelisted
        assert not [name for name in unexposed if not name.startswith("access-control")]
    assert len(ids) == len(responses)
