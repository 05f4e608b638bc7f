"""`bff check --probe --url`: a gateway, and proxies in front that spoil its answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ops.test_check import check
from support.listening import check as stream_checks
from support.listening import listen
from support.world import NEW_KEY, Clock, Gateway, World, environ

from bff.config import reader
from bff.demo.upstream import Answer
from bff.live.listeners import HEARTBEAT_SECONDS
from bff.ops import check_gateway
from bff.ops.check import Finding, Page, Result
from bff.ops.check_gateway import GatewayChecker
from bff.request import RequestHead
from bff.response import EventStream, StreamResponse
from bff.server.asgi import WaitingEvents
from bff.upstream.other_hosts import Client


class Body(httpx2.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class Events(httpx2.AsyncByteStream):
    """A stream; a proxy passes its first parts on at once. A heartbeat follows each part."""

    def __init__(self, world: World, stream: EventStream, passed: int, beside: bytes) -> None:
        self._world = world
        self._stream = stream
        self._passed = passed
        self._beside = beside

    async def __aiter__(self) -> AsyncIterator[bytes]:
        number = 0
        events = WaitingEvents(self._stream)
        self._stream.attach(events)
        while (part := await events.next()) is not None:
            number += 1
            if number > self._passed:
                await asyncio.Event().wait()
            yield part
            if self._beside and number == 1:
                yield self._beside
            self._world.clock.advance(HEARTBEAT_SECONDS)
            stream_checks(self._world)

    async def aclose(self) -> None:
        self._stream.release("browser")


class ProxyTransport(httpx2.AsyncBaseTransport):
    """Reaches the gateway in this process through a proxy, which is `change`."""

    def __init__(self, world: World) -> None:
        self._gateway = httpx2.ASGITransport(world.service.browser_app)
        self._clock = world.clock
        self.change: Callable[[httpx2.Request, httpx2.Response], Any] = lambda _, answer: answer
        self.skew = 0.0
        self.passed = 9
        self.beside = b""
        self._world = world

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.headers["accept"] == "text/event-stream":
            return await self._stream(request)
        answer = await self._gateway.handle_async_request(request)
        await answer.aread()
        answer.headers["date"] = formatdate(self._clock.wall + self.skew, usegmt=True)
        answer = self.change(request, answer)
        return httpx2.Response(
            answer.status_code, headers=answer.headers, stream=Body(answer.content)
        )

    async def _stream(self, request: httpx2.Request) -> httpx2.Response:
        gateway, path = self._world.service.gateway, request.url.raw_path
        head = RequestHead.read("GET", path, b"", request.headers.raw, "192.0.2.1")
        answer = await gateway.finish(gateway.decide(head, *self._world.clock()))
        body = (
            Events(self._world, answer.stream, self.passed, self.beside)
            if isinstance(answer, StreamResponse)
            else Body(answer.body)
        )
        sent = httpx2.Response(answer.status, headers=answer.headers())
        sent = self.change(request, sent)
        return httpx2.Response(sent.status_code, headers=sent.headers, stream=body)


async def findings(
    world: World, proxy: ProxyTransport, session: str | None = "chat-1", **changes: str
) -> list[Finding]:
    settings = reader.load(environ(**changes))
    checker = GatewayChecker(settings, world.clock, client=Client(proxy, connect_timeout=1))
    (environment,) = settings.environments
    return [one async for one in checker.findings(environment, "http://gateway", session)]


def problems(findings: list[Finding]) -> str:
    return "\n".join(finding.text for finding in findings if finding.result is Result.PROBLEM)


def pages(findings: list[Finding]) -> list[Page | None]:
    return [finding.page for finding in findings if finding.result is Result.PROBLEM]


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


async def test_stream_without_a_proxy_comes_at_once(world: World) -> None:
    results = await findings(world, ProxyTransport(world))

    assert "the events of a stream come at once" in [finding.text for finding in results]
    assert len(world.service.gateway.listeners) == 0, "the check has left"


@pytest.mark.parametrize("session", ["chat-1", None])
@pytest.mark.parametrize(
    ("passed", "text"),
    [(0, "no event of a stream has come"), (1, "after its first event, a stream is silent")],
)
@pytest.mark.parametrize("beside", [b"", b":\n\n"])
async def test_proxy_that_collects_events_is_a_problem(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    session: str | None,
    passed: int,
    text: str,
    beside: bytes,
) -> None:
    """A heartbeat that is due at once may lie beside the first event."""
    monkeypatch.setattr(check_gateway, "FIRST_EVENT_SECONDS", 0.1 if passed == 0 else 10.0)
    monkeypatch.setattr(check_gateway, "LATER_EVENT_SECONDS", 0.1)
    proxy = ProxyTransport(world)
    proxy.passed, proxy.beside = passed, beside
    results = await findings(world, proxy, session)

    (problem,) = (one for one in results if one.result is Result.PROBLEM)
    assert problem.text.startswith(text)
    assert "a proxy in front collects answers; turn its buffering off" in problem.text
    assert problem.page is Page.BUFFERING


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"content-encoding": "gzip"}, "compresses event streams"),
        ({"content-type": "application/json"}, "changes Accept, or the gateway runs with BFF_LIVE"),
    ],
)
async def test_proxy_that_changes_streams_is_a_problem(
    world: World, headers: dict[str, str], text: str
) -> None:
    proxy = ProxyTransport(world)

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.headers["accept"] == "text/event-stream":
            answer.headers.update(headers)
        return answer

    proxy.change = change
    results = await findings(world, proxy)

    assert text in problems(results)
    assert problems(results).count("\n") == 0


async def test_refused_stream_is_a_problem_with_its_code(world: World) -> None:
    await world.start(BFF_MAX_LISTENERS="1", BFF_MAX_LISTENERS_PER_CALLER="1")
    await listen(world, "chat-1")
    results = await findings(world, ProxyTransport(world))

    assert "a request for an event stream gets 503 overloaded, not 200" in problems(results)
    assert pages(results) == [Page.CODES]


async def test_streams_that_are_off_are_not_tested(world: World) -> None:
    await world.start(BFF_LIVE="false")
    results = await findings(world, ProxyTransport(world), BFF_LIVE="false")

    texts = {finding.text: finding.result for finding in results}
    assert texts["event streams are not tested: BFF_LIVE is false"] is Result.UNSURE
    assert problems(results) == ""


async def test_gateway_with_other_keys_is_not_called_a_leak(world: World) -> None:
    results = await findings(world, ProxyTransport(world), BFF_SIGNING_KEYS=NEW_KEY)

    assert "it runs with other settings" in problems(results)


async def test_refused_session_is_a_problem_with_its_code(world: World) -> None:
    async def down(_: object) -> Answer:
        return Answer(500, {})

    world.upstream.override = down

    results = await findings(world, ProxyTransport(world))

    text = "gets 502 upstream_unavailable, not 200: read the gateway's log"
    assert text in problems(results)
    assert set(pages(results)) == {Page.UPSTREAM}, "no proxy changed the answer"


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


def test_page_says_how_long_the_check_waits_for_events() -> None:
    page = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()

    assert f"waits up to {check_gateway.LATER_EVENT_SECONDS:g} seconds for the second event" in page
