"""A connection of our own: answers in order, logins, and servers that go or send anything."""

import asyncio
from typing import Any

from support.engines import Engine
from support.faulty_store import REFUSALS, FaultyStore
from support.replicas import Relay, until
from support.world import PATIENCE

from bff.replicas.link import DirectLink
from bff.replicas.valkey import ClientFactory, StoreAddress


def link(port: int, **changes: Any) -> DirectLink:
    parts: dict[str, Any] = {
        "username": None, "password": None, "database": 0, "tls": False, "cluster": False,
    }  # fmt: skip
    return DirectLink(ClientFactory(StoreAddress("127.0.0.1", port, **parts | changes)))


async def answers(one: DirectLink, *commands: tuple[Any, ...]) -> list[Any]:
    futures = [asyncio.get_running_loop().create_future() for _ in commands]
    one.submit(
        [(command, future.set_result) for command, future in zip(commands, futures, strict=True)]
    )
    return list(await asyncio.wait_for(asyncio.gather(*futures), PATIENCE))


async def test_answers_come_in_the_order_of_the_commands(engine: Engine) -> None:
    one = link(engine.port)

    assert await answers(one, *(("ECHO", str(n)) for n in range(1000))) == [
        str(n).encode() for n in range(1000)
    ]
    await one.close()


async def test_link_logs_in_and_selects_its_database(own_engine: Engine) -> None:
    own_engine.execute("ACL", "SETUSER", "gateway", "on", ">s3ntinel", "~*", "+@all")
    one = link(own_engine.port, username="gateway", password="s3ntinel", database=3)

    await answers(one, ("SET", "here", 1))

    with own_engine.client(db=3) as client:
        assert client.get("here") == b"1"
    await one.close()
    wrong = link(own_engine.port, username="gateway", password="wrong")
    (error,) = await answers(wrong, ("PING",))
    assert type(error).__name__ in ("AuthenticationError", "ResponseError")
    await wrong.close()


async def test_link_reconnects_after_its_connection_ended(engine: Engine) -> None:
    async with Relay(engine.port) as relay:
        one = link(relay.port)
        assert await answers(one, ("PING",)) == [b"PONG"]
        relay.delay = 5.0
        waiting = asyncio.create_task(answers(one, ("PING",)))
        await asyncio.sleep(0.05)
        relay.cut()
        (error,) = await waiting
        assert isinstance(error, Exception)
        relay.delay = 0.0

        assert await answers(one, ("PING",)) == [b"PONG"]

        assert relay.opened == 2
        await one.close()


async def test_replaced_connection_brings_the_answers_that_are_due(engine: Engine) -> None:
    """The error of one caller's command must not end the commands of others."""
    async with FaultyStore(engine.port) as store:
        one = link(int(store.url.rpartition(":")[2]))
        store.refuse["SET"], store.late["PTTL"] = REFUSALS["forbidden"], 0.2
        refused = asyncio.create_task(answers(one, ("SET", "key", 1)))
        late = asyncio.create_task(answers(one, ("PTTL", "key"), ("PTTL", "key")))
        (error,) = await refused
        assert isinstance(error, Exception)

        one.must_reconnect = True
        assert await answers(one, ("GET", "key")) == [None]

        assert not late.done()
        assert await late == [-2, -2]
        assert store.opened == 2
        await until(lambda: len(store) == 1)
        await one.close()


async def test_link_ends_a_silent_connection(own_engine: Engine) -> None:
    one = link(own_engine.port)
    await answers(one, ("PING",))
    own_engine.freeze()

    (error,) = await answers(one, ("PING",))

    own_engine.thaw()
    assert isinstance(error, TimeoutError)
    assert await answers(one, ("PING",)) == [b"PONG"]
    await one.close()


async def test_answer_without_a_command_ends_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"+PONG\r\n+MORE\r\n")
        await reader.read(100)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        one = link(server.sockets[0].getsockname()[1])

        assert await answers(one, ("PING",)) == [b"PONG"]

        assert one._wire is not None
        assert not one._wire.open
        await one.close()
