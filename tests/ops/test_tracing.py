"""Spans: they continue the browser's trace, end at the gateway, and hold no secret."""

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.world import (
    FRIENDLY,
    OWN_KEY,
    PATH,
    PATIENCE,
    ROOT_KEY,
    SECRET_KEY,
    Clock,
    Gateway,
    World,
    claims,
    environ,
    http,
    read,
    running_upstream,
    sign,
)

from bff.ops.tracing import Tracing
from bff.sessions.ids import LIST_ROUTE

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced(World):
    """The service with spans kept in memory."""

    def __init__(self, clock: Clock, **changes: str | None) -> None:
        super().__init__(clock, **changes)
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)

    async def spans(self) -> list[tuple[str, dict[str, object]]]:
        await asyncio.to_thread(self.tracing._provider.force_flush)
        return [(s.name, dict(s.attributes or {})) for s in self.exporter.get_finished_spans()]


@pytest.fixture
async def traced(clock: Clock) -> AsyncIterator[Traced]:
    async with Traced(clock) as world:
        yield world


async def test_load_has_a_span_below_the_browsers_trace(traced: Traced) -> None:
    await traced.get("chat-1", traceparent=f"00-{TRACE}-{PARENT}-01", baggage="user=sentinel")
    await traced.get("chat-1")

    spans = await traced.spans()
    route = {"http.request.method": "GET", "http.route": "/api/v1/sessions/{session}"}
    answered = route | {"http.response.status_code": 200}
    assert spans == [
        ("decide", {}),
        ("load", {"bff.outcome": "ok"}),
        ("GET /api/v1/sessions/{session}", answered | {"bff.joined": False}),
        ("decide", {}),
        ("GET /api/v1/sessions/{session}", answered),
    ]
    decide, load, request, _, second = traced.exporter.get_finished_spans()
    assert request.parent is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert decide.parent is not None
    assert decide.parent.span_id == request.context.span_id
    assert load.context.trace_id == request.context.trace_id
    assert second.context.trace_id != request.context.trace_id


async def test_load_with_the_callers_token_has_a_span(clock: Clock) -> None:
    traced = Traced(clock, BFF_SIGNING_KEYS=None)
    async with traced:
        for key in (ROOT_KEY, OWN_KEY):
            await traced.get("chat-1", token=sign(claims(clock.wall, *read("chat-1")), key))
        loads = [attributes for name, attributes in await traced.spans() if name == "load"]

    assert loads == [{"bff.outcome": "ok"}, {"bff.outcome": "token_invalid"}]


async def test_upstream_gets_no_trace_and_no_baggage(traced: Traced) -> None:
    await traced.get("chat-1", traceparent=f"00-{TRACE}-{PARENT}-01", baggage="user=sentinel")

    (seen,) = traced.upstream.seen
    sent = dict(seen.headers)
    assert not {"traceparent", "tracestate", "baggage"} & set(sent)
    assert TRACE not in str(sent)


async def test_spans_hold_no_id_no_token_and_no_key(traced: Traced) -> None:
    token = traced.token(*read("chat-1"))
    await traced.get("chat-1", token=token)
    await traced.get("nope", token=token)
    await traced.browser.request("PROPFIND", "/api/v1/sessions/chat-1")
    traced.answer(500, {"error": "sentinel"})
    response = await traced.get("chat-2")
    assert response.status_code == 502

    await traced.spans()
    shown = "".join(span.to_json() for span in traced.exporter.get_finished_spans())
    for secret in ("chat-1", "nope", FRIENDLY["chat-1"], token, SECRET_KEY, "sentinel", "PROPFIND"):
        assert secret not in shown
    assert '"bff.outcome": "upstream_unavailable"' in shown
    assert '"status_code": "ERROR"' in shown


async def test_list_and_introspection_have_spans(clock: Clock) -> None:
    traced = Traced(clock, BFF_SIGNING_KEYS=None, BFF_VERIFY="upstream")
    traced.tracing = Tracing(traced.exporter)
    async with traced:
        token = sign(claims(clock.wall, *read("chat-1")), ROOT_KEY)
        await traced.browser.get(LIST_ROUTE.decode(), headers={"authorization": f"Bearer {token}"})
        names = [(name, attributes.get("bff.outcome")) for name, attributes in await traced.spans()]

    assert names == [("decide", None), ("load", "ok"), (f"GET {LIST_ROUTE.decode()}", None)]


def test_process_sends_spans_to_the_otlp_endpoint(upstream: running_upstream) -> None:
    """Spans of the last requests are sent before the process ends."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        with Gateway(upstream.port, BFF_TRACING="true", **endpoint) as gateway:
            headers = {"authorization": f"Bearer {gateway.token(*read('chat-1'))}"}
            headers["traceparent"] = f"00-{TRACE}-{PARENT}-01"
            assert http.get(gateway.url + PATH + "chat-1", headers=headers).status_code == 200
        collector.shutdown()

    assert gateway.process.returncode == 0
    sent = b"".join(gzip.decompress(r) if r[:2] == b"\x1f\x8b" else r for r in received)
    for text in (b"GET /api/v1/sessions/{session}", b"decide", b"load", bytes.fromhex(TRACE)):
        assert text in sent
    assert b"chat-1" not in sent


def test_nothing_is_imported_without_tracing() -> None:
    code = "import sys, bff.cli; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout.strip() == "[]"


def test_serve_names_the_missing_extra() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; from bff.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"],
        env=environ(BFF_TRACING="true", BFF_PORT="0", BFF_OPS_PORT="0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "pip install 'bff-gateway[tracing]'" in done.stderr


class Silent(InMemorySpanExporter):
    """A collector that never answers."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__()
        self.free = free

    def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002
        self.free.wait(60)
        return SpanExportResult.FAILURE


async def test_end_does_not_wait_for_a_collector(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bff.ops.tracing.CLOSE_SECONDS", 0.05)
    world, free = World(clock), threading.Event()
    world.tracing = Tracing(Silent(free))
    try:
        async with world:
            await world.get("chat-1")
            ends = asyncio.get_running_loop().time() + 20
        assert asyncio.get_running_loop().time() < ends
    finally:
        free.set()


async def test_spans_that_are_not_sent_are_counted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bff.ops.tracing.MAX_SPANS", 4)
    monkeypatch.setattr("bff.ops.tracing.CLOSE_SECONDS", 0.05)
    world, free = World(clock), threading.Event()
    world.tracing = Tracing(Silent(free))
    try:
        async with world:
            for _ in range(5):  # two spans and more each
                await world.get("chat-1")
            assert world.tracing.lost >= 6
            lost = f"bff_spans_lost_total {float(world.tracing.lost)}"
            assert lost in (await world.ops.get("/metrics")).text
    finally:
        free.set()
