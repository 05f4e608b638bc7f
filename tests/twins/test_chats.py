"""Observers learn nothing from the routes of chats and of events about sessions they may not see.

The worlds differ in a session that no token of an observer allows: whether it exists, is revoked,
and has a reader.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import pytest
from support.chats import CHAT, ROUTE
from support.differential import FakeTransport, Side, authorization, both_sides, request
from support.world import PATH, read
from twins.loop import VirtualClock, VirtualLoop

from bff.demo.upstream import session

X, NAME, NEVER = str(session(50)["id"]), "ext-x", "never-made"
LIST = PATH.removesuffix("/")
LIVE = "accept: text/event-stream"
STOP = b'{"kind":"stop"}'
LENGTH = f"content-length: {len(STOP)}"
WRITES = ("write:sessions:chat-1",)
OBSERVERS = {
    "of another session": (*read("chat-1"), *WRITES),
    "of channels": (*read("chat-1", f"{NAME}:channels:main", f"{X}:channels:a:out"), *WRITES),
    "without a session": ("read:runs", f"admin:sessions:{NAME}"),
}
SETTINGS = CHAT | {
    "BFF_RATE_LIMIT": "500/minute",
    "BFF_STREAM_OPEN_LIMIT": "500/minute",
    "BFF_EXPOSE_ANSWERING": "true",
}


@dataclass(frozen=True)
class Twin:
    """How a world treats the secret session."""

    exists: bool = True
    used: bool = False
    revoked: bool = False


TWINS = (Twin(exists=False), Twin(), Twin(used=True), Twin(revoked=True))


def asks(id_: str, token: str) -> list[bytes]:
    """Every request that is about one session."""
    return [
        request(token, target=f"{ROUTE}{id_}/out"),
        request(token, "last-event-id: 3", "x-peek-settled: 1", target=f"{ROUTE}{id_}/out"),
        request(token, LENGTH, method="POST", target=f"{ROUTE}{id_}/in/append") + STOP,
        request(token, "content-length: 9999999", method="POST", target=f"{ROUTE}{id_}/in/append"),
        request(token, LIVE, target=PATH + id_),
        request(token, LIVE, "last-event-id: x", target=PATH + id_),
        request(token, target=PATH + id_),
    ]


def asks_of_lists(token: str) -> list[bytes]:
    """Every request whose answer may hold several sessions."""
    filters = ("", f"?filter[externalId]={NAME}", "?filter[status]=CLOSED")
    return [request(token, *live, target=LIST + f) for f in filters for live in ([LIVE], [])]


class _From(FakeTransport):
    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 1) if name == "peername" else super().get_extra_info(name, default)


async def send(side: Side, data: bytes, address: str = "192.0.2.1") -> FakeTransport:
    transport = _From(address)
    make: Any = side.config.http_protocol_class
    transport.protocol = make(config=side.config, server_state=side.state, app_state={})
    transport.protocol.connection_made(transport)
    transport.protocol.data_received(data)
    return transport


async def seen(side: Side, data: bytes) -> tuple[str, int, float]:
    """Return the bytes that a caller gets, the turns of the loop until then, and the seconds."""
    loop = asyncio.get_running_loop()
    began, took = loop.time(), 0
    transport = await send(side, data)
    while not transport.sent:
        took += 1
        await asyncio.sleep(0 if took < 50 else 0.1)
        assert took < 200
    await asyncio.sleep(0.5)  # the events of a stream
    transport.close()
    await asyncio.sleep(0.1)
    answer = re.sub(rb"x-request-id: [0-9a-f-]+", b"*", bytes(transport.sent)).decode()
    return answer, took, round(loop.time() - began, 6)


async def lived(twin: Twin, scopes: tuple[str, ...], *, fast: bool) -> list[Any]:
    """Let an observer ask for all there is; returns what it saw, and its calls upstream."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with both_sides(VirtualClock(loop), **SETTINGS) as sides:
        side = sides[fast]
        world, token = side.world, authorization(*scopes)
        if twin.exists:
            world.upstream.environments[0].add(session(50, NAME))
        if twin.used:
            scopes_of_reader = (*read(X, NAME), f"write:sessions:{NAME}")
            reader = f"authorization: Bearer {world.token(*scopes_of_reader, act={'sub': 'r'})}"
            for id_ in (NAME, X):
                for data in asks(id_, reader):
                    await send(side, data, "198.51.100.1")
            await asyncio.sleep(0.5)
        if twin.revoked:
            await world.ops.post("/revocations", json={"session": NAME})
        world.upstream.seen.clear()
        unnamed = [
            [await seen(side, data) for data in asks(id_, token)] for id_ in (NEVER, X, NAME)
        ]
        ends = [[(a[:13], a.partition("\r\n\r\n")[2]) for a, *_ in one] for one in unnamed]
        assert ends[0] == ends[1] == ends[2], "one answer for every id"
        more = asks_of_lists(token) + asks("chat-1", token)
        others = [(data, *await seen(side, data)) for data in more]
        calls = [call.raw_path for call in world.upstream.seen]
        # The listener of the reader causes loads of its session.
        shown = [call for call in calls if not (X in call or NAME in call)]
        assert twin.used or shown == calls
        return [*unnamed, *others, *shown]


@pytest.mark.parametrize("fast", [False, True], ids=["asgi", "fast path"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_chats_and_events_tell_nothing_of_other_sessions(observer: str, fast: bool) -> None:
    worlds = []
    for twin in TWINS:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            worlds.append(runner.run(lived(twin, OBSERVERS[observer], fast=fast)))
    for twin, other in zip(TWINS, worlds, strict=True):
        for one, two in zip(worlds[0], other, strict=True):
            assert one == two, twin
