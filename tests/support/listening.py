"""Listeners in this process: a test opens one as a page does, and reads its events."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from support.world import ORIGIN, PATH, World

from bff.request import RequestHead
from bff.response import Response, StreamResponse

EVENTS = "text/event-stream"
LIST = PATH.removesuffix("/")


@dataclass
class Event:
    """One event, or a comment."""

    event: str = ""
    data: Any = None
    id: str | None = None
    comment: str | None = None


def parse(text: str) -> list[Event]:
    """Parse events as a browser does; each block that `retry` alone makes is left out."""
    parsed = []
    for block in text.split("\n\n"):
        one = Event()
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if name == "data":
                one.data = json.loads(value)
            elif line.startswith(":"):
                one.comment = line[2:]
            elif name in ("event", "id"):
                setattr(one, name, value)
        if one != Event():
            parsed.append(one)
    return parsed


@dataclass
class Listening:
    """The browser's side of a listener."""

    world: World
    response: Response
    paused: bool = False
    """The browser does not read; a test sets it."""
    finished: bool = False
    received: bytes = b""
    _taken: int = field(default=0)

    # -- the sink

    def send_event(self, data: bytes) -> None:
        self.received += data

    def finish_stream(self) -> None:
        self.finished = True

    # -- what the test does

    def events(self) -> list[Event]:
        """Take the events that arrived since the last call; no comments."""
        return [one for one in self._new() if one.comment is None]

    def comments(self) -> list[str]:
        """Take the comments that arrived since the last call."""
        return [one.comment for one in self._new() if one.comment is not None]

    @property
    def newest(self) -> dict[str, Any]:
        """The newest document of a listener to one session."""
        last = [
            one for one in parse(self.received.decode()) if one.event in ("sessions", "session")
        ]
        shown: dict[str, Any] = last[-1].data
        return shown["data"][0] if last[-1].event == "sessions" else shown

    def _new(self) -> list[Event]:
        text = self.received.decode()
        new, self._taken = text[self._taken :], len(text)
        return parse(new)

    def leave(self) -> None:
        """Let the browser leave."""
        assert isinstance(self.response, StreamResponse)
        self.response.stream.release("browser")

    def read(self) -> None:
        """Let the browser read what it left."""
        assert isinstance(self.response, StreamResponse)
        self.paused = False
        self.response.stream.resume()


async def listen(
    world: World,
    id_: str | None = None,
    *scopes: object,
    token: str | None = None,
    query: str = "",
    peer: str = "192.0.2.1",
    accept: str = EVENTS,
    path: str | None = None,
    **headers: str,
) -> Listening:
    """Listen to a session, or to the list of the token's sessions without *id_*."""
    gateway = world.service.gateway
    token = token or world.token(*(scopes or [f"read:sessions:{id_}"]))
    sent = {"authorization": f"Bearer {token}", "accept": accept, "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [(name.encode(), value.encode()) for name, value in sent.items()]
    path = path or (LIST if id_ is None else PATH + id_)
    head = RequestHead.read("GET", path.encode(), query.encode(), lines, peer)
    response = await gateway.finish(gateway.decide(head, *world.clock()))
    listening = Listening(world, response)
    if isinstance(response, StreamResponse):
        response.stream.attach(listening)
    return listening


async def look(world: World, seconds: float = 0.0) -> None:
    """Let time pass, ask for the loads that listeners need, and let them end."""
    world.clock.advance(seconds)
    for _ in world.service.gateway.stream_checks.look():
        pass
    await settle(world)


async def settle(world: World) -> None:
    """Let loads and changes end."""
    await world.settle()
    for _ in range(5):
        await asyncio.sleep(0)


def check(world: World) -> None:
    """Let the gateway check all streams once, and send heartbeats."""
    for _ in world.service.gateway.stream_checks.check():
        pass


def change(world: World, id_: str, **changes: Any) -> None:
    """Change a session upstream."""
    document = world.upstream.environments[0].find(id_)
    assert document is not None
    document.update(changes)
