"""The parts that tests of chats share: settings, requests, and streams as upstream sends them."""

import asyncio
import json
from typing import Any, cast
from urllib.parse import quote

import httpx2
from support.world import OFF, ORIGIN, World

from bff.demo.upstream import Answer, Seen
from bff.errors import UpstreamUnavailable
from bff.request import RequestHead
from bff.response import Response, StreamResponse
from bff.server.asgi import WaitingEvents
from bff.upstream.connection import Stream

AGENT_KEY = "agent-key-sentinel-0123456789abcdef"
ROUTE = "/realtime/v1/sessions/"
CHAT = OFF | {"BFF_CHAT": "true"}
"""Settings with chats, without the limits of other requests."""
IDENTITY = {"BFF_IDENTITY_FIELD": "__bff", "BFF_IDENTITY_KEY": AGENT_KEY}
BOTH = ("read:sessions:chat-1", "write:sessions:chat-1")
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "x-stream-version": "v2"}

RUNNING = b'event: batch\nid: 0\ndata: {"records":[{"seq_num":0,"body":"{}"}]}\n\n'
"""The begin of a stream whose turn is under way."""


def message(text: str = "hello", **changes: Any) -> dict[str, Any]:
    """A message of the official transport; *changes* of its payload."""
    said = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    payload = {"message": said, "chatId": "chat-1", "trigger": "submit-message"}
    return {"kind": "message", "payload": payload | changes}


def batch(*bodies: Any, first: int = 0) -> bytes:
    """An event with one data record for each body."""
    records = [
        {"seq_num": first + n, "timestamp": 1, "headers": [], "body": json.dumps({"data": body})}
        for n, body in enumerate(bodies)
    ]
    return b"event: batch\nid: 1,1,1\ndata: %b\n\n" % json.dumps({"records": records}).encode()


async def append(
    world: World,
    body: Any = None,
    *,
    id_: str = "chat-1",
    token: str | None = None,
    **headers: str,
) -> httpx2.Response:
    """Send a message as a page does."""
    sent = {"authorization": f"Bearer {token or world.token(*BOTH)}", "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body or message()).encode()
    path = f"{ROUTE}{quote(id_, safe='')}/in/append"
    return await world.browser.post(path, headers=sent, content=content)


async def out(
    world: World, *, id_: str = "chat-1", token: str | None = None, **headers: str
) -> httpx2.Response:
    """Read a stream to its end."""
    sent = {"authorization": f"Bearer {token or world.token(*BOTH)}", "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"{ROUTE}{quote(id_, safe='')}/out"
    return await world.browser.get(path, headers=sent | {"accept": "text/event-stream"})


def streams(world: World, body: bytes = b"", **headers: str) -> None:
    """Let upstream answer each stream with *body*, and everything else as usual."""

    async def override(seen: Seen) -> Answer | None:
        if not seen.raw_path.endswith("/out"):
            return None
        return Answer(200, body, EVENTS | {n.replace("_", "-"): v for n, v in headers.items()})

    world.upstream.override = override


def inputs(world: World, id_: str = "chat-1") -> list[bytes]:
    """The bodies that upstream stored for a session."""
    return world.upstream.chats.channel(world.upstream.environments[0], id_).inputs


def sent(world: World) -> list[tuple[str, str]]:
    """Method and path of each request to a chat route upstream."""
    return [(s.method, s.raw_path) for s in world.upstream.seen if s.raw_path.startswith(ROUTE)]


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code", "")


class Live:
    """A stream whose parts the test sends, read as a page reads it.

    It replaces upstream's side of the next stream that the gateway opens.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.closed = False
        """The gateway closed upstream's side."""
        self.paused = False
        """The gateway reads nothing of upstream's side."""
        self.opens = 0
        """Streams that the gateway opened upstream."""
        self.upstream = Stream(200, EVENTS, cast("Any", self))
        self.received = b""

    async def open(self, token: str, **headers: str) -> Response:
        """Open the stream; reads it in a task if it is one."""
        gateway, clock = self._world.service.gateway, self._world.clock
        before = self.take_over()
        lines = [(b"authorization", f"Bearer {token}".encode())]
        lines += [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        head = RequestHead.read("GET", f"{ROUTE}chat-1/out".encode(), b"", lines, "192.0.2.1")
        response = await gateway.finish(gateway.decide(head, *clock()))
        self._world.service.network.api.stream = before  # type: ignore[method-assign]
        if isinstance(response, StreamResponse):
            self.reading = asyncio.create_task(self._read(response))
            await asyncio.sleep(0)
        return response

    def take_over(self) -> Any:
        """Be upstream's side of all streams from now on; return what opened them before."""
        api: Any = self._world.service.network.api
        before, api.stream = api.stream, self._stream
        return before

    async def _stream(self, *_: object) -> Stream:
        self.opens += 1
        return self.upstream

    async def _read(self, response: StreamResponse) -> None:
        events = WaitingEvents(response.stream)
        response.stream.attach(events)
        try:
            while (event := await events.next()) is not None:
                self.received += event
        finally:
            response.stream.release("browser")

    async def send(self, data: bytes) -> None:
        """Let upstream send *data*."""
        self.upstream.feed(data)
        for _ in range(3):
            await asyncio.sleep(0)

    async def ended(self) -> bool:
        """Let the gateway check its streams once; tell whether this one has ended."""
        for _ in self._world.service.gateway.stream_checks.check():
            pass
        for _ in range(5):
            await asyncio.sleep(0)
        return self.reading.done()

    # -- the connection of `Stream`

    def abort(self) -> None:
        self.closed = True
        self.upstream.end(UpstreamUnavailable())

    def resume_reading(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True
