"""Heartbeats: what counts as late."""

import asyncio
from typing import Any

from support.virtual_time import VirtualLoop, run

from bff.replicas.heartbeat import HeartbeatLink

PING: list[tuple[Any, ...]] = [("PING",)]


class Clients:
    """A client whose answers come after `seconds`."""

    def __init__(self) -> None:
        self.seconds, self.sent = 0.0, 0

    def connect(self, _: float) -> "Clients":
        return self

    def pipeline(self, **_: bool) -> "Clients":
        return self

    def execute_command(self, *_: Any) -> None:
        self.sent += 1

    async def execute(self, **_: bool) -> list[bytes]:
        await asyncio.sleep(self.seconds)
        return [b"PONG"]

    async def close(self, client: "Clients") -> None:
        pass


def linked() -> tuple[HeartbeatLink, Any]:
    clients: Any = Clients()
    return HeartbeatLink(clients), clients


async def test_heartbeat_returns_the_answers() -> None:
    link, _ = linked()

    assert await link.beat(PING, 1.0) == [b"PONG"]
    await link.close()


async def test_heartbeat_without_an_answer_in_time_is_late() -> None:
    link, clients = linked()
    clients.seconds = 3600.0

    assert await link.beat(PING, 0.01) is None
    assert await link.beat(PING, 0.01) is None
    assert clients.sent == 1, "a silent store gets no second heartbeat"
    await link.close()


def busy(seconds: float, until: float) -> None:
    """Take *seconds* in each iteration of the loop, as a process without spare time does."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.selector.now += seconds
    if loop.time() < until:
        loop.call_soon(busy, seconds, until)


def test_busy_process_does_not_make_a_heartbeat_late() -> None:
    async def history() -> None:
        link, clients = linked()
        clients.seconds = 0.05
        busy(0.01, until=0.15)

        assert await link.beat(PING, 0.02) == [b"PONG"]
        await link.close()

    run(history)


def test_busy_process_finds_a_frozen_store_late() -> None:
    """Until then each request waits for the store, and the loop of heartbeats must not hang."""

    async def history() -> float:
        link, clients = linked()
        clients.seconds = 3600.0
        busy(0.06, until=60.0)

        assert await link.beat(PING, 0.025) is None
        took = asyncio.get_running_loop().time()
        await link.close()
        return took

    assert run(history) < 2.0
