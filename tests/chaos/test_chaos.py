"""Upstream misbehaves, byte by byte.

Each row of `WEATHER` is one misbehaviour, and the codes that a browser may then get for a session
without a copy. In every case the gateway serves usable copies, keeps nothing bad, makes one call
for one request, and answers 200 to the first request after upstream recovers.
"""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from support.hostile import LANES, WIDE_OPEN, descriptors, metric, resident
from support.rawsockets import (
    Behaviour,
    RawResponse,
    RawUpstream,
    answer_bytes,
    hang,
    request,
    requested_id,
    reset,
    talk,
)
from support.world import PATH, SECRET_KEY, Gateway, World

from bff.demo.upstream import session

PATIENCE = 1.0
"""Seconds that the gateway waits for an answer."""
INVALID, LOST, LATE, FINE = "upstream_invalid", "upstream_unavailable", "upstream_timeout", "fine"


def _good(id_: str) -> bytes:
    return answer_bytes(json.dumps(session(zlib.crc32(id_.encode()), id_)).encode())


def _sends(change: Callable[[bytes], bytes], *, then: Behaviour | None = None) -> Behaviour:
    """Send the good answer, changed; then close the connection, or run *then*."""

    def behave(connection: socket.socket, head: bytes) -> None:
        connection.sendall(change(_good(requested_id(head))))
        if then is None:
            raise OSError("closed")
        then(connection, head)

    return behave


def _drips(head: bytes, drop: bytes, pause: float) -> Behaviour:
    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(pause)

    return behave


def _with(*lines: str) -> Callable[[bytes], bytes]:
    return lambda good: good.replace(b"\r\n", ("\r\n" + "\r\n".join(lines) + "\r\n").encode(), 1)


def _body(change: Callable[[bytes], bytes], *lines: str) -> Callable[[bytes], bytes]:
    return lambda good: answer_bytes(change(good.partition(b"\r\n\r\n")[2]), "200 OK", *lines)


def _goes_on(*_: object) -> None:
    """Keep the connection for the next request."""


_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@cache
def _bomb() -> bytes:
    return gzip.compress(b" " * 50_000_000)


WEATHER: dict[str, tuple[Behaviour, set[str]]] = {
    "closes without an answer": (_sends(lambda _: b""), {INVALID, LOST}),
    "resets": (lambda connection, _: reset(connection), {LOST, INVALID}),
    "never answers": (hang, {LATE}),
    "a status line and silence": (_sends(lambda _: b"HTTP/1.1 200 OK\r\n", then=hang), {LATE}),
    "a head and silence": (_sends(lambda good: good.partition(b"{")[0], then=hang), {LATE}),
    "half a body and silence": (_sends(lambda good: good[:-200], then=hang), {LATE}),
    "a byte at a time": (_drips(_OK + b"Content-Length: 9999\r\n\r\n", b" ", 0.05), {LATE}),
    "an endless header": (_drips(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 65536, 0), {INVALID, LATE}),
    "endless headers": (_drips(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 9000, 0), {INVALID, LATE}),
    "endless chunks": (
        _drips(_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 9000, 0),
        {INVALID, LATE},
    ),
    "an endless body": (_drips(_OK + b"\r\n", b" " * 65536, 0), {INVALID}),
    "1xx and then an answer": (
        _sends(lambda good: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + good),
        {FINE},
    ),
    "an endless flood of 1xx": (
        _drips(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000, 0),
        {INVALID, LATE},
    ),
    "shorter than its length": (_sends(lambda good: good[:-7]), {INVALID, LOST}),
    "no length but the end": (
        # Such an answer looks complete where it was cut, so the gateway refuses it.
        _sends(lambda good: _OK + b"\r\n" + good.partition(b"\r\n\r\n")[2]),
        {INVALID},
    ),
    "a negative length": (
        _sends(lambda good: good.replace(b"Length: ", b"Length: -")),
        {INVALID},
    ),
    "two lengths": (_sends(_with("Content-Length: 3")), {INVALID}),
    "length and chunks": (_sends(_with("Transfer-Encoding: chunked")), {INVALID}),
    "gzip, declared": (_sends(_body(gzip.compress, "Content-Encoding: gzip")), {INVALID}),
    "gzip, not declared": (_sends(_body(gzip.compress)), {INVALID}),
    "a gzip bomb": (_sends(_body(lambda _: _bomb(), "Content-Encoding: gzip")), {INVALID}),
    "brotli": (_sends(_with("Content-Encoding: br")), {INVALID}),
    "a byte order mark": (_sends(_body(lambda body: b"\xef\xbb\xbf" + body)), {INVALID, FINE}),
    "UTF-16": (_sends(_body(lambda body: body.decode().encode("utf-16"))), {INVALID, FINE}),
    "no HTTP": (_sends(lambda _: b"\x16\x03\x01\x02\x00" * 100), {INVALID}),
    "HTTP/0.9": (_sends(lambda good: good.partition(b"\r\n\r\n")[2]), {INVALID}),
    "NUL in a header": (_sends(_with("x: a\0b")), {INVALID, FINE}),
    "cookies": (_sends(_with("Set-Cookie: a=1; Path=/", "Clear-Site-Data: *")), {FINE}),
    "clocks that are wrong": (
        _sends(_with("Date: Thu, 01 Jan 1970 00:00:00 GMT", "Age: 99999999", "Expires: 0")),
        {FINE},
    ),
    "100 and silence": (_sends(lambda _: b"HTTP/1.1 100 Continue\r\n\r\n", then=hang), {LATE}),
    "a slow status line": (_drips(b"HTTP/1.1 ", b"2", 0.05), {INVALID, LATE}),
    "a header a byte at a time": (_drips(b"HTTP/1.1 200 OK\r\nx-slow: ", b"y", 0.05), {LATE}),
    "a chunk a byte at a time": (
        _drips(_OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n", b" ", 0.05),
        {LATE},
    ),
    "a chunk that is longer than its size": (
        _sends(lambda _: _OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}}\r\n0\r\n\r\n"),
        {INVALID},
    ),
    "deflate, declared": (_sends(_body(zlib.compress, "Content-Encoding: deflate")), {INVALID}),
    "an error and a 200 behind it": (
        _sends(lambda good: answer_bytes(b"{}", "500 Oops") + good),
        {LOST},
    ),
    "101": (
        _sends(lambda _: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
        {INVALID, LOST},
    ),
    "dates of other centuries": (
        _sends(_with("Date: Fri, 31 Dec 9999 23:59:59 GMT", "Retry-After: -99999999999999999999")),
        {FINE},
    ),
    "a redirect to itself": (
        lambda connection, head: connection.sendall(
            answer_bytes(b"", "302 Found", f"Location: {PATH}{requested_id(head)}")
        ),
        {INVALID},
    ),
    "another session": (
        lambda connection, _: connection.sendall(_good("of-someone-else")),
        {INVALID},
    ),
    "500 in HTML": (
        lambda connection, _: connection.sendall(answer_bytes(b"<h1>no</h1>", "500 Oops")),
        {LOST},
    ),
    "404 in HTML": (
        lambda connection, _: connection.sendall(answer_bytes(b"<h1>no</h1>", "404 Nope")),
        {INVALID},
    ),
    "status 999": (_sends(lambda good: good.replace(b"200 OK", b"999 Odd")), {INVALID, LOST}),
    "status 000": (_sends(lambda good: good.replace(b"200 OK", b"000 Odd")), {INVALID, LOST}),
    "two answers at once": (
        _sends(lambda good: good + _good("smuggled-behind"), then=_goes_on),
        {FINE},
    ),
}


@pytest.fixture(scope="module", params=LANES)
def stormy(request: pytest.FixtureRequest) -> Iterator[tuple[RawUpstream, Gateway]]:
    _bomb()  # it takes longer than an answer may
    with (
        RawUpstream(lambda *_: None) as up,
        Gateway(
            up.port,
            BFF_UPSTREAM_TIMEOUT=str(PATIENCE),
            BFF_UPSTREAM_CONNECT_TIMEOUT="0.3",
            BFF_CACHE_TTL="0",
            BFF_CACHE_STALE_WHILE_REVALIDATE="0",
            **WIDE_OPEN,
            **LANES[request.param],
        ) as gateway,
    ):
        yield up, gateway


def _ask(gateway: Gateway, id_: str) -> RawResponse:
    data = request(PATH + id_, token=gateway.token("read:sessions"))
    (response,) = talk(gateway.port, data).responses
    return response


def _ask_in_fair_weather(gateway: Gateway, id_: str) -> RawResponse:
    """Return the first answer that is not a timeout: a busy machine may exceed `PATIENCE`."""
    for _ in range(10):
        response = _ask(gateway, id_)
        if response.status != 504:
            break
    return response


@pytest.mark.parametrize("kind", WEATHER)
def test_gateway_survives_bad_upstream_answers(
    stormy: tuple[RawUpstream, Gateway], kind: str
) -> None:
    up, gateway = stormy
    behave, expected = WEATHER[kind]
    name = kind.replace(" ", "-").replace(",", "").replace("/", "")

    def fair(connection: socket.socket, head: bytes) -> None:
        connection.sendall(_good(requested_id(head)))

    up.behave = fair
    kept = _ask_in_fair_weather(gateway, f"kept-{name}")
    assert kept.status == 200
    memory = resident(gateway.process.pid)

    up.behave = behave
    with ThreadPoolExecutor(1) as pool:
        # If upstream stays silent, both requests wait at once; otherwise one after the other.
        waits = pool.submit(_ask, gateway, f"kept-{name}") if expected == {LATE} else None
        began = time.monotonic()
        cold = _ask(gateway, f"cold-{name}")
        seconds = time.monotonic() - began
        calls = [requested_id(head) for head in up.seen].count(f"cold-{name}")
        meanwhile = waits.result() if waits else _ask(gateway, f"kept-{name}")

    if cold.status == 200:
        assert FINE in expected
        assert json.loads(cold.body)["externalId"] == f"cold-{name}"
        assert "set-cookie" not in cold.headers
    else:
        code = json.loads(cold.body)["code"]
        assert code in expected
        assert cold.status == (504 if code == LATE else 502)
        assert cold.headers["x-should-retry"] == "false"
        assert SECRET_KEY.encode() not in cold.body
    assert seconds < PATIENCE + 4
    # A GET that got no byte back on a kept connection is sent once more, on a new one.
    silent = kind in ("closes without an answer", "resets")
    assert calls == (2 if silent else 1), "one request, one call"
    assert (meanwhile.status, meanwhile.body) == (200, kept.body)
    assert resident(gateway.process.pid) - memory < 24 * 1024 * 1024

    up.behave = fair
    recovered = [_ask_in_fair_weather(gateway, id_) for id_ in (f"cold-{name}", f"fair-{name}")]
    # Bytes left on a connection may fail one more request, but must not appear in an answer.
    if kind == "two answers at once" and 502 in [response.status for response in recovered]:
        recovered = [_ask_in_fair_weather(gateway, id_) for id_ in (f"cold-{name}", f"fair-{name}")]
    assert [response.status for response in recovered] == [200, 200]
    names = [json.loads(response.body)["externalId"] for response in recovered]
    assert names == [f"cold-{name}", f"fair-{name}"]


def test_gateway_survives_a_reset_at_every_byte(stormy: tuple[RawUpstream, Gateway]) -> None:
    up, gateway = stormy
    length = len(_good("cold-0000"))
    files = descriptors(gateway.process.pid)
    for position in range(0, length + 1, 13):

        def behave(connection: socket.socket, head: bytes, position: int = position) -> None:
            connection.sendall(_good(requested_id(head))[:position])
            time.sleep(0.002)
            reset(connection)

        up.behave = behave
        cold = _ask(gateway, f"cold-{position:04}")
        assert cold.status == 502 or position == length
        assert position == length or json.loads(cold.body)["code"] in (LOST, INVALID)
    up.behave = lambda connection, head: connection.sendall(_good(requested_id(head)))
    assert _ask(gateway, "cold-0000").status == 200
    assert descriptors(gateway.process.pid) <= files + 3
    assert metric(gateway, "bff_loads_in_flight") == 0


def test_first_request_succeeds_after_upstream_returns(lane_settings: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Gateway(port, **WIDE_OPEN, **lane_settings) as gateway:
        for _ in range(3):
            assert json.loads(_ask(gateway, "cold").body)["code"] == LOST
        with RawUpstream(lambda c, head: c.sendall(_good(requested_id(head))), port) as up:
            assert _ask(gateway, "cold").status == 200, "the first request succeeds"
            assert len(up.seen) == 1


_FAR = str(10**15 - 1)
_RESETS = {
    "past": "1",
    "zero": "0",
    "negative": "-5",
    "far": _FAR,
    "beyond all numbers": "9" * 4000,
    "fraction": "1e99",
    "words": "soon",
    "empty": "",
    "other digits": "\u0661\u0662".encode().decode("latin-1"),
}


@pytest.mark.parametrize("reset", _RESETS.values(), ids=_RESETS)
@pytest.mark.parametrize("retry_after", [None, "0", "-1", "99999999", "Fri, 31 Dec 9999 23:59:59"])
async def test_429_with_an_absurd_reset_ends_within_a_minute(
    world: World, reset: str, retry_after: str | None
) -> None:
    """Browsers get 503 with a near Retry-After, and loads resume within a minute."""
    kept = await world.get("chat-1")
    world.clock.advance(10)
    lines = {"x_ratelimit_limit": "750", "x_ratelimit_remaining": "0", "x_ratelimit_reset": reset}
    lines |= {} if retry_after is None else {"retry_after": retry_after}
    world.answer(429, {"error": "limited"}, **lines)
    calls = world.calls

    refused = [await world.get("chat-2") for _ in range(5)]
    meanwhile = await world.get("chat-1")

    assert {(response.status_code, response.json()["code"]) for response in refused} == {
        (503, "over_budget")
    }
    assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
    assert world.calls == calls + 1
    assert (meanwhile.status_code, meanwhile.content) == (200, kept.content)
    world.answer(0)
    world.clock.advance(1 if retry_after in (None, "0", "-1") and reset != _FAR else 60)
    assert (await world.get("chat-2")).status_code == 200


@pytest.fixture(params=LANES)
def lane_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    return LANES[request.param]


def test_flapping_upstream_spends_at_most_the_budget(lane_settings: dict[str, str]) -> None:
    turn = iter(range(10**9))

    def flap(connection: socket.socket, head: bytes) -> None:
        if next(turn) % 2:
            raise OSError("closed")
        connection.sendall(_good(requested_id(head)))

    changes = WIDE_OPEN | {"BFF_UPSTREAM_BUDGET": "10/second", "BFF_CACHE_TTL": "0"}
    with RawUpstream(flap) as up, Gateway(up.port, **changes, **lane_settings) as gateway:
        began, number, statuses = time.monotonic(), 0, set()
        while number <= 12 or time.monotonic() - began < 1.2:
            number += 1
            statuses.add(_ask(gateway, f"flap-{number}").status)
        seconds = time.monotonic() - began
        assert statuses <= {200, 502, 503}
        # A GET that gets no byte back is sent once more, and spent once.
        assert len(up.seen) <= 2 * 10 * (seconds + 1)
