"""Spans: they continue the browser's trace, end at the gateway, and hold no secret."""

import asyncio
import gzip
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.raw_upstream import certificate
from support.world import (
    FRIENDLY,
    OFF,
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


def _refuse(_: socket.socket) -> None:
    pass


def _answering(head: bytes, body: bytes = b"") -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)

    return answer


def _answer_without_end(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(1024):
        connection.sendall(bytes(65536))
    raise AssertionError("64 MiB were read")


def _hang(connection: socket.socket) -> None:
    connection.settimeout(PATIENCE)
    while connection.recv(65536):
        pass


COLLECTORS: dict[str, Callable[[socket.socket], None]] = {
    "closes at once": _refuse,
    "fails": _answering(b"500 x\r\ncontent-length: 0"),
    "limits": _answering(b"429 x\r\nretry-after: 3600\r\ncontent-length: 0"),
    "is away": _answering(b"503 x\r\nretry-after: 3600\r\ncontent-length: 0"),
    "closes in its answer": _answering(b"200 OK\r\ncontent-length: 100", b"half"),
    "is no HTTP server": _answering(b"\xff\x00 OK"),
    "answers without end": _answer_without_end,
    "hangs": _hang,
}


@pytest.mark.parametrize("collector", [*COLLECTORS, "speaks TLS", "has no address"])
async def test_collector_delays_and_fills_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collector: str
) -> None:
    """The queue is bounded, the end waits for its seconds only, and 64 MiB are not read."""
    monkeypatch.setattr("bff.ops.tracing.MAX_SPANS", 16)
    monkeypatch.setattr("bff.ops.tracing.CLOSE_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    failures: list[BaseException] = []
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    context = certificate(tmp_path, "own") if collector == "speaks TLS" else None

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            try:
                if context:
                    connection = context.wrap_socket(connection, server_side=True)
                COLLECTORS.get(collector, _refuse)(connection)
            except OSError:
                pass
            except AssertionError as exc:
                failures.append(exc)
            finally:
                connection.close()
                ended.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    scheme = "https" if context else "http"
    host = "no-such-host.invalid" if collector == "has no address" else "127.0.0.1"
    endpoint = f"{scheme}://{host}:{server.getsockname()[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    world = World(clock, **OFF)
    world.tracing = tracing = Tracing()
    async with world:
        for _ in range(30):
            assert (await world.get("chat-1")).status_code == 200
            await asyncio.sleep(0.005)
            assert tracing._waiting <= 16
        ends = asyncio.get_running_loop().time() + 20
    assert asyncio.get_running_loop().time() < ends
    if collector == "answers without end":
        await asyncio.to_thread(ended.wait, PATIENCE)
    server.close()
    assert not failures
    if collector not in ("answers without end", "closes in its answer"):  # their status is 200
        assert tracing.lost
