"""The ASGI side serves every route, and answers what fails."""

import json
from typing import NoReturn

import pytest
from support.differential import GOOD, both_sides, connect_both, feed_both, request, statuses
from support.world import ORIGIN, PATH, Clock

pytestmark = pytest.mark.anyio


async def test_starlette_app_serves_every_route_like_the_fast_path(clock: Clock) -> None:
    """Each of the routes, with every method, with a token and without."""
    async with both_sides(clock) as sides:
        page = await feed_both(sides, request(target="/"))
        routes = [
            line.partition(" ")[2] for line in json.loads(page.partition(b"\r\n\r\n")[2])["routes"]
        ]
        assert {"/healthz", "/openapi.json", "/api/v1/sessions"} <= set(routes)
        for path in [*routes, "/", "/nowhere", PATH + "nope", "/api/v1/runs"]:
            for method in ("GET", "HEAD", "OPTIONS", "POST"):
                for lines in ((GOOD,), (GOOD, "if-none-match: *"), ()):
                    target = path.replace("{session}", "chat-1")
                    transports = connect_both(sides)
                    data = request(*lines, method=method, target=target)
                    first = await feed_both(sides, data, transports=transports)
                    again = await feed_both(sides, data, transports=transports)
                    assert statuses(first) == statuses(again)
        ways = [
            {key[4] for key in side.world.telemetry.counts if key[0] == "bff_requests"}
            for side in sides
        ]
        assert ways == [{"asgi"}, {"fast"}]
        assert sides[0].records() == sides[1].records()


async def test_unexpected_exception_is_answered_with_json(clock: Clock) -> None:
    def broken(*_: object) -> NoReturn:
        raise RuntimeError

    async with both_sides(clock) as sides:
        for side in sides:
            side.world.service.gateway._decide = broken
        answer = await feed_both(sides, request(GOOD, f"origin: {ORIGIN}"))
        assert b"HTTP/1.1 500" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "internal"
        assert b"access-control-allow-origin: " + ORIGIN.encode() in answer
        assert sides[1].records()[0] == sides[0].records()[0]
