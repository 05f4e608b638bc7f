"""Routes and methods that the gateway does not serve."""

import json

import pytest
from support.hostile import raw_request
from support.world import (
    ORIGIN,
    World,
)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/sessions/chat-1/close", 410, "not_served"),
        ("/api/v1/sessions/chat-1/", 410, "not_served"),
        ("/api/v1//sessions/chat-1", 410, "not_served"),
        ("/api/v1/%53essions/chat-1", 410, "not_served"),
        ("/api/v1/runs/run_1", 410, "not_served"),
        ("/realtime/v1/sessions/chat-1/out", 410, "not_served"),
        ("//api/v1/sessions/chat-1", 410, "not_served"),
        ("/trigger/api/v1/sessions", 410, "not_served"),
        ("/trigger/realtime/v1/sessions/chat-1/in/append", 410, "not_served"),
        ("/API/v1/sessions/chat-1", 404, "not_found"),
        ("/metrics", 404, "not_found"),
        ("/cache/sessions/chat-1", 404, "not_found"),
        ("/readyz", 404, "not_found"),
        ("/%0a", 404, "not_found"),
    ],
)
async def test_other_routes_are_refused_with_cors_headers(
    world: World, path: str, status: int, code: str
) -> None:
    headers = {"authorization": f"Bearer {world.token('read:sessions')}", "origin": ORIGIN}
    messages = await raw_request(world.service.browser_app, path.encode(), headers)

    assert messages[0]["status"] == status
    assert json.loads(messages[1]["body"])["code"] == code
    names = dict(messages[0]["headers"])
    assert names[b"access-control-allow-origin"] == ORIGIN.encode()
    assert names[b"x-should-retry"] == b"false"
    assert world.calls == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods_get_405(world: World, method: str) -> None:
    response = await world.get("chat-1", method=method)

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"
