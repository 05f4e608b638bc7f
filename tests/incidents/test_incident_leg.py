"""The leg to upstream: whose answers count, and how its connections and times are read."""

import asyncio
import socket

import pytest
from support.raw_upstream import get, http, server, upstream
from support.world import OFF, ROOT_KEY, SECRET_KEY, Clock, World, claims, read, sign
from upstream.test_api import DATE
from upstream.test_identity import HTML, PAGE
from upstream.test_pool import GET, OK, Origin, pool

from bff.errors import UpstreamError
from bff.upstream.pool import Pool


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.mark.parametrize("status", [200, 401, 403, 404])
async def test_41_page_of_a_cdn_counts_against_no_token(clock: Clock, status: int) -> None:
    """The browser gets 502 each time, learns nothing of its token, and is never limited."""
    settings = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}
    limits = OFF | {"BFF_BAD_TOKEN_LIMIT": "3/minute"}
    async with World(clock, **settings, **limits) as world:
        token = sign(claims(clock.wall, *read("chat-1")), ROOT_KEY)
        assert (await world.get("chat-1", token=token)).status_code == 200
        clock.advance(70)  # the token has to be verified again
        world.answer(status, PAGE, content_type=HTML)
        for _ in range(10):
            response = await world.get("chat-1", token=token)
            assert (response.status_code, response.json()["code"]) == (502, "upstream_invalid")
            clock.advance(5)
        world.answer(0)
        assert (await world.get("chat-1", token=token)).status_code == 200


@pytest.mark.parametrize("status", [200, 401, 403, 404])
async def test_41_page_of_a_cdn_raises_no_alarm_about_the_key(clock: Clock, status: int) -> None:
    async with World(clock, TRIGGER_SECRET_KEY=f"{SECRET_KEY},tr_dev_sk_NEXT", **OFF) as world:
        world.answer(status, PAGE, content_type=HTML)
        response = await world.get("chat-1")
        assert (response.status_code, response.json()["code"]) == (502, "upstream_invalid")
        assert world.calls == 1, "no next key"
        events = [line["event"] for line in world.logged()]
        assert "upstream_failing" in events
        assert "upstream_rejects_our_key" not in events


@pytest.mark.parametrize("how", ["closed", "reset", "half-closed"])
async def test_42_connection_that_upstream_just_closed_costs_no_error(
    origin: Origin, how: str
) -> None:
    """Upstream closes it when the next request arrives, or before."""

    def behave(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 0:
            writer.write(OK)
        elif how == "reset":
            writer.transport.abort()
        elif how == "closed":
            writer.close()
        else:
            writer.write_eof()

    origin.answer = behave
    async with pool(origin) as made:
        for _ in range(4):
            assert (await made.send(GET)).body == b"{}"
        assert made._used == len(made._idle) == 1
    assert origin.requests == [0, 0, 1, 1, 2, 2, 3]


async def test_43_answer_of_the_resolver_is_followed(
    origin: Origin, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name leads to another server while requests come every second."""
    other = Origin()
    loop = asyncio.get_running_loop()
    async with (
        await asyncio.start_server(origin.handle, "127.0.0.1", 0) as first,
        await asyncio.start_server(other.handle, "127.0.0.1", 0) as second,
    ):
        ports = [one.sockets[0].getsockname()[1] for one in (first, second)]
        current = 0

        async def resolve(host: str, port: int, **_: object) -> list[object]:
            assert (host, port) == ("api.example", 80)
            address = ("127.0.0.1", ports[current])
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        made = Pool("api.example", 80, context=None, connect_timeout=2, clock=clock)
        await made.send(GET)
        current = 1
        for _ in range(55):
            clock.advance(1)
            await made.send(GET)
        assert other.requests
        assert made._used == 1
        made.close()
        for writer in (*origin.writers, *other.writers):
            writer.close()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            (DATE, b"retry-after: Mon, 23 Nov 2026 17:33:48 GMT"),
            7,
        ),
        (
            (DATE, b"retry-after: Mon, 23 Nov 2026 17:33:40 GMT"),
            0,
        ),
        (
            (DATE, b"retry-after: Tue, 24 Nov 2026 19:33:40 GMT"),
            60,
        ),
        ((b"retry-after: Mon, 23 Nov 2026 19:33:51 GMT",), 10),
        ((b"retry-after: Monday, 23-Nov-26 19:33:51 GMT",), 10),
        ((b"retry-after: Mon, 99 Nov 2026 19:33:51 GMT",), None),
        ((b"retry-after: tomorrow",), None),
        ((b"retry-after: ",), None),
    ],
)
async def test_47_retry_after_may_be_a_date(
    lines: tuple[bytes, ...], expected: float | None
) -> None:
    """It is compared with upstream's own clock, which may differ from this machine's."""
    wall = 1795462421.0  # Mon, 23 Nov 2026 19:33:41
    async with (
        server(http("429 Slow", b"{}", *lines)) as (url, _),
        upstream(url, clock=lambda: (0.0, wall)) as (asked, _),
    ):
        with pytest.raises(UpstreamError, match="over_budget") as raised:
            await get(asked, "/x")
    assert raised.value.retry_after == expected
