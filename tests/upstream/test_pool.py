"""Connections to upstream: how they are kept, shared and ended; timeouts, certificates."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from support.raw_upstream import certificate, get, http, refusal, server, upstream
from support.wire import Reader
from support.world import Clock

from bff.errors import UpstreamError, UpstreamUnavailable
from bff.upstream import pool as pools
from bff.upstream.connection import Answer, Request
from bff.upstream.pool import Address, Pool, is_untrusted, trusted


async def test_silent_upstream_times_out_at_every_stage() -> None:
    async def before_head(*_: object) -> None:
        await asyncio.sleep(2)

    async def before_body(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await asyncio.sleep(2)

    async def drops(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
        for _ in range(50):
            writer.write(b"x")
            await asyncio.sleep(0.05)

    for stage in (before_head, before_body, drops):
        started = asyncio.get_running_loop().time()
        raised, _ = await refusal(stage)
        assert raised.code == "upstream_timeout"
        assert asyncio.get_running_loop().time() - started < 1


async def test_refused_connection_is_unavailable() -> None:
    async with upstream("http://127.0.0.1:1") as (asked, _):
        with pytest.raises(UpstreamError, match="upstream_unavailable"):
            await get(asked, "/x")


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with server(http("200 OK", b"{}")) as (url, heads), upstream(url) as (asked, _):
        assert await get(asked, "/x") == b"{}"

    assert heads[0].startswith(b"GET /x HTTP/1.1")


OK = http("200 OK", b"{}")
GET = Request(b"GET", b"/", b"host: up\r\n")
POST = Request(b"POST", b"/", b"host: up\r\n", b"{}")


PLAIN, SECURE = False, True


class Origin:
    """An upstream that keeps its connections; `answer` gets a connection's writer and number.

    The numbers count the requests of one connection.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        """The connection of each request."""
        self.opened = 0
        self.writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.answer: Callable[[asyncio.StreamWriter, int], Awaitable[None] | None] = (
            lambda writer, _: writer.write(OK)
        )

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, self.opened = self.opened, self.opened + 1
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    await reader.readexactly(2)
                self.requests.append(connection)
                waited = self.answer(writer, number)
                if waited is not None:
                    await waited
                number += 1
        writer.close()

    async def close(self) -> None:
        """End all connections, and their tasks and transports before the loop ends."""
        for writer in self.writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        ends = (writer.wait_closed() for writer in self.writers)
        await asyncio.gather(*self._tasks, *ends, return_exceptions=True)


@pytest.fixture
def origin() -> Origin:
    return Origin()


@contextlib.asynccontextmanager
async def pool(origin: Origin, clock: Clock | None = None) -> AsyncIterator[Pool]:
    async with await asyncio.start_server(origin.handle, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        made = Pool("127.0.0.1", port, context=None, connect_timeout=2, clock=clock or Clock())
        yield made
        made.close()
        await origin.close()


async def ended(condition: Callable[[], object]) -> None:
    """Wait until the loop has seen what the other side did."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_connection_is_used_again(origin: Origin) -> None:
    async with pool(origin) as made:
        for _ in range(5):
            assert (await made.send(GET)).body == b"{}"
    assert origin.requests == [0] * 5


async def test_connection_used_last_is_taken_first(origin: Origin) -> None:
    async with pool(origin) as made:
        await asyncio.gather(*(made.send(GET) for _ in range(3)))
        last = list(made._idle)[-1]
        for _ in range(5):
            await made.send(GET)
            assert list(made._idle)[-1] is last
    assert origin.opened == 3


async def test_idle_connection_ends_in_time(origin: Origin, clock: Clock) -> None:
    async with pool(origin, clock) as made:
        await made.send(GET)
        clock.advance(pools.IDLE_SECONDS)
        await made.send(GET)
        assert origin.requests == [0, 1]
        clock.advance(pools.IDLE_SECONDS)
        made._sweep()
        assert made._used == 0


async def test_connection_ends_at_an_age_under_steady_load(origin: Origin, clock: Clock) -> None:
    async with pool(origin, clock) as made:
        for _ in range(120):
            await made.send(GET)
            clock.advance(1)
        assert origin.requests == sorted(origin.requests)
        assert 3 <= origin.opened <= 5
        lives = [origin.requests.count(number) for number in range(origin.opened - 1)]
        assert max(lives) <= pools.MAX_AGE_SECONDS < 60 - 5, "within a minute, with one answer more"
        assert len(set(lives)) > 1, "connections opened together end apart"


async def test_connections_are_bounded_and_requests_wait_in_order(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MAX_CONNECTIONS", 3)
    order: list[int] = []
    async with pool(origin) as made:

        async def ask(number: int) -> None:
            await made.send(GET)
            order.append(number)

        await asyncio.gather(*(ask(number) for number in range(30)))
        assert not made._waiting
        assert made._used == 3
    assert origin.opened == 3
    assert len(origin.requests) == 30
    assert max(abs(place - number) for place, number in enumerate(order)) < 6, order


async def test_waiting_requests_are_bounded(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(pools, "MAX_WAITING", 2)
    async with pool(origin) as made:
        results = await asyncio.gather(*(made.send(GET) for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in results] == [Answer] * 3 + [UpstreamUnavailable] * 2


async def test_leaving_request_gives_its_turn_on(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it leaves: while it waits, just as its turn comes, or during its answer."""
    monkeypatch.setattr(pools, "MAX_CONNECTIONS", 2)
    for steps in range(40):
        async with pool(origin) as made:
            tasks = [asyncio.ensure_future(made.send(GET)) for _ in range(8)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, Answer) for one in results[::2]), results
            assert not made._waiting
            assert made._used == len(made._idle) <= 2
            assert (await made.send(GET)).body == b"{}"


async def test_cancelled_request_leaves_no_answer_to_the_next(origin: Origin) -> None:
    async def late(writer: asyncio.StreamWriter, _: int) -> None:
        if len(origin.requests) == 1:
            await asyncio.sleep(0.02)
            writer.write(http("200 OK", b"late"))
        else:
            writer.write(OK)

    origin.answer = late
    async with pool(origin) as made:
        first = asyncio.ensure_future(made.send(GET))
        await ended(lambda: origin.requests)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await made.send(GET)).body == b"{}"
    assert origin.requests == [0, 1]


async def test_request_is_sent_again_once_and_on_a_new_connection(origin: Origin) -> None:
    def behave(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 0 and len(origin.requests) <= 2:
            writer.write(OK)
        else:
            writer.close()

    origin.answer = behave
    async with pool(origin) as made:
        await asyncio.gather(made.send(GET), made.send(GET))
        with pytest.raises(UpstreamError, match="upstream_invalid"):
            await made.send(GET)
        assert made._used == 1
    assert origin.requests == [0, 1, 1, 2], "not on the other kept connection"


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{"])
async def test_request_with_a_begun_answer_is_not_sent_again(origin: Origin, begun: bytes) -> None:
    def behave(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(begun if number else OK)
        if number:
            writer.close()

    origin.answer = behave
    async with pool(origin) as made:
        await made.send(GET)
        with pytest.raises(UpstreamError, match="upstream_invalid"):
            await made.send(GET)
    assert origin.requests == [0, 0]


async def test_post_is_never_sent_again(origin: Origin) -> None:
    origin.answer = lambda writer, number: writer.close() if number else writer.write(OK)
    async with pool(origin) as made:
        await made.send(POST)
        with pytest.raises(UpstreamError, match="upstream_invalid"):
            await made.send(POST)
        assert made._used == 0
    assert origin.requests == [0, 0]


async def test_idle_connection_that_ends_is_forgotten(origin: Origin) -> None:
    async with pool(origin) as made:
        await made.send(GET)
        origin.writers[0].close()
        await ended(lambda: not made._idle)
        assert made._used == 0


async def test_unasked_bytes_end_an_idle_connection(origin: Origin) -> None:
    async with pool(origin) as made:
        await made.send(GET)
        origin.writers[0].write(http("200 OK", b"not asked for"))
        await ended(lambda: not made._idle)
        assert (await made.send(GET)).body == b"{}"
    assert origin.requests == [0, 1]


async def test_restart_with_all_connections_open_costs_no_error(origin: Origin) -> None:
    async with pool(origin) as made:
        await asyncio.gather(*(made.send(GET) for _ in range(100)))
        assert origin.opened == 100
        for writer in origin.writers:
            writer.transport.abort()
        answers = await asyncio.gather(*(made.send(GET) for _ in range(300)))
        assert {answer.status for answer in answers} == {200}
        assert made._used == len(made._idle) <= 100


async def test_dead_address_family_costs_a_quarter_of_a_second(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address answers nothing, as behind a firewall that drops."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                filler.connect(full.getsockname())
        async with await asyncio.start_server(origin.handle, "127.0.0.1", 0) as listening:
            addresses = [full.getsockname(), listening.sockets[0].getsockname()]

            async def resolve(*_: object, **__: object) -> list[object]:
                kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
                return [(*kind, address) for address in addresses]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
            made = Pool("api.example", 80, context=None, connect_timeout=30, clock=Clock())
            began = time.monotonic()
            assert (await made.send(GET)).body == b"{}"
            assert 0.2 < time.monotonic() - began < 10
            made.close()
            origin.writers[0].close()
        for filler in fillers:
            filler.close()


async def test_stream_has_a_connection_of_its_own(origin: Origin) -> None:
    def behave(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")

    async with pool(origin) as made:
        await made.send(GET)
        origin.answer = behave
        stream, reader = await made.stream(GET), Reader()
        stream.attach(reader)
        while not reader.received:
            await asyncio.sleep(0.01)
        assert (stream.status, reader.received) == (200, b"{}")
        assert made._used == len(made._idle) == 1
        stream.abort()
        async with asyncio.timeout(5):
            await origin.writers[1].wait_closed()
    assert origin.requests == [0, 1]


async def test_stream_holds_back_a_fast_upstream(origin: Origin) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter, _: int) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await writer.drain()
                sent += 0x10000

    origin.answer = flood
    async with pool(origin) as made:
        stream = await made.stream(GET)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 16 * 1024 * 1024, "what the kernel's buffers hold, and no more"
        reader = Reader()
        stream.attach(reader)
        while sum(reader.sizes) < 32 * 1024 * 1024:
            await asyncio.sleep(0.01)
        stream.abort()


@pytest.mark.parametrize("by", ["setting", "SSL_CERT_FILE", "nothing", "another"])
async def test_certificates_are_verified(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """By the system's authorities, those of a setting, or those of the standard variable."""
    context = certificate(tmp_path, "own")
    certificate(tmp_path, "another")
    own, another = str(tmp_path / "own.pem"), str(tmp_path / "another.pem")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if by == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", own)
    client = trusted({"setting": own, "another": another}.get(by))
    async with await asyncio.start_server(origin.handle, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        made = Pool("127.0.0.1", port, context=client, connect_timeout=5, clock=Clock())
        if by in ("setting", "SSL_CERT_FILE"):
            for _ in range(3):
                assert (await made.send(GET)).body == b"{}"
            assert origin.requests == [0, 0, 0]
        else:
            with pytest.raises(UpstreamError, match="upstream_unavailable") as raised:
                await made.send(GET)
            assert is_untrusted(raised.value)
            assert "certificate is not valid" in str(pools.cause(raised.value))
            assert origin.requests == [], "the secret was never sent"
        assert made._used == len(made._idle)
        made.close()
        for writer in origin.writers:
            writer.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.example", Address(PLAIN, "a.example", 80, b"", b"a.example")),
        ("https://a.example/x", Address(SECURE, "a.example", 443, b"/x", b"a.example")),
        ("https://[::1]:8/?q=1", Address(SECURE, "::1", 8, b"/?q=1", b"[::1]:8")),
        ("http://\u00fc.example", Address(PLAIN, "xn--tda.example", 80, b"", b"xn--tda.example")),
    ],
)
def test_url_is_parsed_once(url: str, expected: Address) -> None:
    assert Address.read(url) == expected
