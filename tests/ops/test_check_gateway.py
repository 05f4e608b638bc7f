"""`bff check --probe --url`: a gateway, and proxies in front that spoil its answers."""

from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from ops.test_check import check
from support.world import Clock, Gateway, World, environ

from bff.config import reader
from bff.demo.upstream import Answer
from bff.ops.check import Finding, Result
from bff.ops.check_gateway import GatewayChecker
from bff.upstream.other_hosts import Client


class Body(httpx2.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class ProxyTransport(httpx2.AsyncBaseTransport):
    """Reaches the gateway in this process through a proxy, which is `change`."""

    def __init__(self, world: World) -> None:
        self._gateway = httpx2.ASGITransport(world.service.browser_app)
        self._clock = world.clock
        self.change: Callable[[httpx2.Request, httpx2.Response], Any] = lambda _, answer: answer
        self.skew = 0.0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._gateway.handle_async_request(request)
        await answer.aread()
        answer.headers["date"] = formatdate(self._clock.wall + self.skew, usegmt=True)
        answer = self.change(request, answer)
        return httpx2.Response(
            answer.status_code, headers=answer.headers, stream=Body(answer.content)
        )


async def findings(
    world: World, proxy: ProxyTransport, session: str | None = "chat-1", **changes: str
) -> list[Finding]:
    settings = reader.load(environ(**changes))
    checker = GatewayChecker(settings, world.clock, client=Client(proxy, connect_timeout=1))
    (environment,) = settings.environments
    return [one async for one in checker.findings(environment, "http://gateway", session)]


def problems(findings: list[Finding]) -> str:
    return "\n".join(finding.text for finding in findings if finding.result is Result.PROBLEM)


async def test_gateway_without_a_proxy_passes_every_test(world: World) -> None:
    results = await findings(world, ProxyTransport(world))

    assert {finding.result for finding in results} == {Result.OK}, results


async def test_proxy_that_caches_by_url_is_a_problem(world: World) -> None:
    proxy, kept = ProxyTransport(world), {}

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        return kept.setdefault(str(request.url), answer)

    proxy.change = change
    results = await findings(world, proxy)

    assert "isolation: a token for another session gets 200" in problems(results)
    assert "two requests got the same answer" in problems(results)


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"cache-control": "public, max-age=60"}, "changes Cache-Control"),
        ({"vary": "Accept-Encoding"}, "removes Vary"),
        ({"access-control-allow-origin": "*"}, "adds CORS headers"),
    ],
)
async def test_proxy_that_changes_headers_is_a_problem(
    world: World, headers: dict[str, str], text: str
) -> None:
    proxy = ProxyTransport(world)

    def change(_: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        answer.headers.update(headers)
        return answer

    proxy.change = change
    results = await findings(world, proxy)

    assert text in problems(results)


@pytest.mark.parametrize(("skew", "count"), [(4.0, 0), (30.0, 1), (-30.0, 1)])
async def test_clocks_that_differ_are_a_problem(clock: Clock, skew: float, count: int) -> None:
    async with World(clock) as world:
        proxy = ProxyTransport(world)
        proxy.skew = skew
        results = await findings(world, proxy)

        assert problems(results).count("synchronise both with NTP") == count


async def test_proxy_that_routes_the_ops_port_is_a_problem(world: World) -> None:
    proxy = ProxyTransport(world)

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.url.path != "/metrics":
            return answer
        return httpx2.Response(200, content=world.telemetry.metrics())

    proxy.change = change
    results = await findings(world, proxy)

    assert "everybody can read the ops port's /metrics" in problems(results)


async def test_gateway_with_other_keys_is_not_called_a_leak(world: World) -> None:
    results = await findings(world, ProxyTransport(world), BFF_SIGNING_KEYS="x" * 40)

    assert "it runs with other settings" in problems(results)


async def test_refused_session_is_a_problem_with_its_code(world: World) -> None:
    async def down(_: object) -> Answer:
        return Answer(500, {})

    world.upstream.override = down

    results = await findings(world, ProxyTransport(world))

    text = "gets 502 upstream_unavailable, not 200: read the gateway's log"
    assert text in problems(results)


async def test_isolation_is_unsure_without_a_session(world: World) -> None:
    results = await findings(world, ProxyTransport(world), session=None)

    assert problems(results) == ""
    assert any(f.result is Result.UNSURE and "pass --session ID" in f.text for f in results)


def test_wrong_address_is_not_called_a_leak(gateway: Gateway, live: dict[str, str]) -> None:
    done = check(live, "--probe", "--url", gateway.ops_url)

    assert "has no X-Request-Id: it is not the gateway's" in done.stdout
    assert "isolation" not in done.stdout
    assert done.stdout.endswith("\nProblems: 1\n")


def test_isolation_is_unsure_without_a_signing_key(gateway: Gateway, live: dict[str, str]) -> None:
    changes = {name: text for name, text in live.items() if name != "BFF_SIGNING_KEYS"}

    done = check(changes, "--probe", "--url", gateway.url)

    assert "isolation is not tested: minting" in done.stdout
    assert "Traceback" not in done.stderr
