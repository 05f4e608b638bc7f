"""Replicas in this process on a real store, and a relay between the two."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from urllib.parse import quote

from support.engines import Engine
from support.world import PATIENCE, Clock, World

from bff.demo.upstream import PretendUpstream
from bff.replicas import keys
from bff.replicas.announcements import STREAMS
from bff.replicas.codec import copy_name
from bff.replicas.sharing import Sharing
from bff.replicas.valkey import StoreUnavailable, if_available


class RealClock(Clock):
    """The real times: no test can move the clock of a store."""

    def __call__(self) -> tuple[float, float]:
        return time.monotonic(), time.time()

    @property
    def wall(self) -> float:
        return time.time()

    @wall.setter
    def wall(self, _: float) -> None:
        pass


class ShiftedClock(RealClock):
    """The real times, shifted: no test can move the store's clock, so it moves a replica's."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds that passed for this replica but not for the store."""
        self.off = 0.0
        """Seconds by which this replica's wall clock is wrong."""

    def __call__(self) -> tuple[float, float]:
        now, wall = super().__call__()
        return now + self.ahead, wall + self.ahead + self.off

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


class WrongClock(RealClock):
    """A wall clock that is wrong by some seconds."""

    def __init__(self, error: float) -> None:
        self._error = error

    def __call__(self) -> tuple[float, float]:
        now, wall = super().__call__()
        return now, wall + self._error

    @property  # type: ignore[misc]
    def wall(self) -> float:  # type: ignore[override]
        return time.time() + self._error


PATIENT = {"BFF_STORE_TIMEOUT": "60"}
"""For tests that do not measure time: a busy machine must not make the store count as slow."""
QUICK = {"BFF_STORE_TIMEOUT": "0.05"}
"""The default, for tests that measure how long requests wait."""


class Replicas:
    """Services in this process, in front of one pretend upstream and one store."""

    def __init__(self, engine: Engine, stack: AsyncExitStack) -> None:
        self.engine = engine
        self._stack = stack
        self._upstream: PretendUpstream | None = None

    @property
    def upstream(self) -> PretendUpstream:
        """The pretend upstream that all replicas share."""
        assert self._upstream is not None
        return self._upstream

    async def add(self, clock: Clock | None = None, /, **changes: str | None) -> World:
        environment = {"BFF_STORE_URL": self.engine.url, **PATIENT, **changes}
        world = World(clock or RealClock(), **environment)
        if self._upstream is not None:
            world.upstream = self._upstream
        self._upstream = world.upstream
        return await self._stack.enter_async_context(world)

    async def several(self, number: int, **changes: str | None) -> list[World]:
        worlds = [await self.add(**changes) for _ in range(number)]
        await heartbeat(*worlds[:-1])  # the last one counted all of them when it started
        for world in worlds:
            await until(partial(_counts, world, number))
        return worlds


def _counts(world: World, number: int) -> bool:
    return world.service.sharing.replicas >= number


async def heartbeat(*worlds: World) -> None:
    """Send a heartbeat of each replica now, instead of waiting for it."""
    for world in worlds:
        with contextlib.suppress(StoreUnavailable):
            sharing = world.service.sharing
            assert isinstance(sharing, Sharing)
            await sharing.store.connection.heartbeat(5.0)


async def purge(world: World, id_: str) -> None:
    """Purge everywhere; repeat while the store is down, as an operator does."""
    for _ in range(100):
        response = await world.ops.delete("/cache/sessions/" + quote(id_, safe=""))
        if response.status_code == 204:
            return
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        await asyncio.sleep(0.05)
    raise AssertionError("the store is down")


async def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "the condition is not met in time"
        await asyncio.sleep(0.01)


async def heard(engine: Engine, *worlds: World) -> None:
    """Wait until these replicas have read every announcement that the store has."""
    with engine.client() as client:
        newest = {name: client.xrevrange(name, count=1) for name in map(keys.stream, STREAMS)}
    for world in worlds:
        sharing = world.service.sharing
        assert isinstance(sharing, Sharing)
        read = sharing.store.listener._positions
        await until(lambda: all(read[name] == one[0][0] for name, one in newest.items() if one))  # noqa: B023


async def written(*worlds: World) -> None:
    """Wait until the store has received all that these replicas sent without waiting for it."""
    for world in worlds:
        await world.settle()
        sharing = world.service.sharing
        assert isinstance(sharing, Sharing)
        # Its answers come in order, so those of earlier commands have come.
        await if_available(sharing.store.connection.execute(("GET", keys.MARKER), timeout=5.0))


def contents(engine: Engine) -> dict[bytes, bytes]:
    """Read every key of a store, of any type."""
    values = {}
    with engine.client() as client:
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            if kind == b"string":
                values[key] = client.get(key)
            elif kind == b"list":
                values[key] = b" ".join(client.lrange(key, 0, -1))
            elif kind == b"zset":
                values[key] = repr(client.zrange(key, 0, -1, withscores=True)).encode()
            elif kind == b"stream":
                values[key] = repr(client.xrange(key)).encode()
            else:
                raise AssertionError(f"{key!r} is a {kind!r}")
    return values


def copy_key(world: World, id_: str) -> str:
    """The key under which this replica stores the copy of a session."""
    sharing = world.service.sharing
    assert isinstance(sharing, Sharing)
    key = sharing.store.key.value
    assert key is not None
    return copy_name(sharing.namespaces["default"].copies_prefix, id_, key)


def events(world: World, name: str) -> list[dict[str, Any]]:
    return [line for line in world.logged() if line["event"] == name]


class Relay:
    """Relays between replicas and their store: slow, cut off, or to another server."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = port
        self._tls = tls
        self.delay = 0.0
        """Seconds by which each answer is delayed."""
        self.opened = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"valkey://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """End every connection; new ones are accepted at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened += 1
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            answers, commands = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(commands)
            await asyncio.gather(
                self._pass(reader, commands), self._pass(answers, writer, delayed=True)
            )
            self._writers.discard(commands)
        writer.close()
        self._writers.discard(writer)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if delayed and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.close()
