"""Replicas on a real store, in this process; and what stands between them and the store."""

import asyncio
import contextlib
import ssl
import time
from contextlib import AsyncExitStack
from urllib.parse import quote

from support.engines import Engine
from support.world import Clock, World

from bff.replicas.valkey import StoreUnavailable


class RealClock(Clock):
    """The true times: a store keeps its own, which no test can move."""

    def __call__(self) -> tuple[float, float]:
        return time.monotonic(), time.time()

    @property
    def wall(self) -> float:
        return time.time()

    @wall.setter
    def wall(self, _: float) -> None:
        pass


PATIENT = {"BFF_STORE_TIMEOUT": "20"}
"""For tests of what is counted: a busy machine is no slow store."""


class Replicas:
    """Several services in this process, in front of one pretend upstream and one store."""

    def __init__(self, engine: Engine, stack: AsyncExitStack) -> None:
        self.engine = engine
        self._stack = stack
        self.upstream = None

    async def add(self, clock: Clock | None = None, **changes: str | None) -> World:
        told = {"BFF_STORE_URL": self.engine.url, **PATIENT, **changes}
        world = World(clock or RealClock(), **told)
        if self.upstream is not None:
            world.upstream = self.upstream
        self.upstream = world.upstream
        return await self._stack.enter_async_context(world)

    async def several(self, number: int, **changes: str | None) -> list[World]:
        worlds = [await self.add(**changes) for _ in range(number)]
        await beat(*worlds[:-1])  # the last has seen all of them as it came
        for world in worlds:
            await until(lambda world=world: world.service.sharing.replicas >= number)
        return worlds


async def beat(*worlds: World) -> None:
    """Let each look for the store now, where waiting for its next heartbeat is not the point."""
    for world in worlds:
        with contextlib.suppress(StoreUnavailable):
            await world.service.sharing.store.connection.heartbeat(5.0)


async def purge(world: World, id_: str) -> None:
    """Purge everywhere; as an operator does, again while the store is away."""
    for _ in range(100):
        response = await world.ops.delete("/cache/sessions/" + quote(id_, safe=""))
        if response.status_code == 204:
            return
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        await asyncio.sleep(0.05)
    raise AssertionError("the store is away")


async def until(condition, seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def everything(engine: Engine) -> dict[bytes, bytes]:
    """Every key of a store, whatever its type."""
    found = {}
    with engine.client() as client:
        for key in client.scan_iter(count=1000):
            kind = client.type(key)
            if kind == b"string":
                found[key] = client.get(key)
            elif kind == b"list":
                found[key] = b" ".join(client.lrange(key, 0, -1))
            elif kind == b"zset":
                found[key] = repr(client.zrange(key, 0, -1, withscores=True)).encode()
            elif kind == b"stream":
                found[key] = repr(client.xrange(key)).encode()
            else:
                raise AssertionError(f"{key!r} is a {kind!r}")
    return found


def events(world: World, name: str) -> list[dict]:
    return [line for line in world.logged() if line["event"] == name]


class Relay:
    """Stands between replicas and their store: slows it down, cuts it off, leads elsewhere."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = port
        self._tls = tls
        self.delay = 0.0
        """Seconds that each answer takes longer."""
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
        """End every connection there is; new ones may come at once."""
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
            there, on = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(on)
            await asyncio.gather(self._pass(reader, on), self._pass(there, writer, answers=True))
            self._writers.discard(on)
        writer.close()
        self._writers.discard(writer)

    async def _pass(self, reader, writer, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answers and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.close()
