"""The ASGI side of the gateway: reads request heads, writes responses."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bff.clock import Clock
from bff.errors import Refused
from bff.gateway.decide import Gateway
from bff.gateway.pending import Pending
from bff.request import HeaderFields, RequestHead
from bff.response import EventStream, Response, StreamResponse
from bff.server.uvicorn_adapter import LOCAL_PEER

HOLD: Final = "bff.hold"
"""The extension that counts bytes that a request holds in memory; False if there is no room."""
STREAM: Final = "bff.stream"
"""The extension that tells a connection that its answer is a stream, which ends it."""
CUT: Final = "bff.cut"
"""The extension that closes the connection, so that a stream has no last chunk."""
ADMIT: Final = "bff.admit"
"""The extension that returns a response if there is room for it in memory, else a refusal."""
PENDING: Final = "bff.pending"
"""The extension of an ASGI scope that holds the decision of the fast path on this request."""
_UNREAD_BYTES: Final = 8192
"""Bytes of events that may wait for their task; beyond them a stream stops."""


class Endpoint:
    """Answers browsers."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self._gateway = gateway
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # A request is decided, and so counted, once.
        answer = scope.get("extensions", {}).get(PENDING)
        if answer is None:
            answer = self._gateway.decide(read_head(scope), *self._clock())
        with suppress(BrowserLeft):
            prepare(answer, scope, receive)
            response = await self._gateway.finish(answer)
            await write(response, scope, receive, send)


class ErrorBoundary:
    """Answers unexpected exceptions with JSON that the browser may read.

    Starlette's own boundary is outside the middleware, so its answers lack the CORS headers.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; if that fails before an answer began, answer 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as exc:  # noqa: BLE001  the last place that can answer
            response = self._gateway.failed(read_head(scope), exc)
            if not began:
                await send_response(response, send)


def read_head(scope: Scope) -> RequestHead:
    """Read the request head from an ASGI *scope*."""
    peer = scope["client"][0] if scope.get("client") else LOCAL_PEER
    method, path, query = scope["method"], scope["raw_path"], scope.get("query_string", b"")
    return RequestHead.read(method, path, query, scope["headers"], peer)


def admitted(scope: Scope, response: Response) -> Response:
    """Return *response*, or a refusal if the connection has no room for it in memory."""
    admit = scope.get("extensions", {}).get(ADMIT)
    if admit is None:
        return response
    admitted: Response = admit(response, HeaderFields.read(scope["headers"]))
    return admitted


class BrowserLeft(Exception):
    """The browser left before it had sent its request, so nothing is to be answered."""


def prepare(answer: Response | Pending, scope: Scope, receive: Receive) -> None:
    """Let a pending answer read the body of its request."""
    if isinstance(answer, Response) or (body := answer.request.head.body) is None:
        return
    body.read = partial(_read_body, receive)
    body.hold = scope.get("extensions", {}).get(HOLD, body.hold)


async def _read_body(receive: Receive, limit: int, hold: Callable[[int], bool]) -> bytes | None:
    """Read a body; None if it has more than *limit* bytes, or memory has no room for it."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BrowserLeft
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not hold(len(body)):
            raise Refused("overloaded", retry_after=1.0)
        if not message.get("more_body", False):
            return bytes(body)


async def write(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Write any response of the gateway."""
    if isinstance(response, StreamResponse):
        await _write_stream(response, scope, receive, send)
    else:
        await send_response(admitted(scope, response), send)


async def _write_stream(
    response: StreamResponse, scope: Scope, receive: Receive, send: Send
) -> None:
    """Write a stream as its events come, until it ends or the browser leaves."""
    extensions, stream = scope.get("extensions", {}), response.stream
    if HOLD in extensions:
        stream.bound(extensions[HOLD])
    if STREAM in extensions:
        extensions[STREAM](stream)
    events = WaitingEvents(stream)
    leaving = asyncio.create_task(_browser_leaves(receive, events))
    try:
        start = {"type": "http.response.start", "status": response.status}
        await send(start | {"headers": response.headers()})
        stream.attach(events)
        while (event := await events.next()) is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if stream.cut and CUT in extensions:
            extensions[CUT]()
        await send({"type": "http.response.body", "body": b""})
    finally:
        leaving.cancel()
        stream.release("browser")


class WaitingEvents:
    """Events that wait until a task has sent those before: the sink of a stream over ASGI."""

    def __init__(self, stream: EventStream) -> None:
        self.paused = False
        self._stream = stream
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._arrived = asyncio.Event()

    def send_event(self, data: bytes) -> None:
        """Add an event."""
        self._events.append(data)
        self._bytes += len(data)
        self.paused = self._bytes >= _UNREAD_BYTES
        self._arrived.set()

    def finish_stream(self) -> None:
        """Add the end."""
        self._ended = True
        self._arrived.set()

    def leave(self) -> None:
        """End, because the browser left."""
        self._stream.release("browser")
        self._events.clear()
        self.finish_stream()

    async def next(self) -> bytes | None:
        """Wait for an event; None at the end. The events before it are sent."""
        while not self._events:
            if self._ended:
                return None
            self._bytes = 0
            if self.paused:
                self.paused = False
                self._stream.resume()
                continue
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


async def _browser_leaves(receive: Receive, events: WaitingEvents) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    events.leave()


async def send_response(response: Response, send: Send) -> None:
    """Write *response* as ASGI messages."""
    await send(
        {"type": "http.response.start", "status": response.status, "headers": response.headers()}
    )
    await send({"type": "http.response.body", "body": response.body})
