"""The fast path answers as the Starlette app does: the same bytes, counts and log lines.

Every test that feeds both sides compares the two; see `support.differential`.
"""

import gc
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from support.differential import (
    GOOD,
    PREFLIGHT,
    TYPE_WIDE,
    UNUSUAL_LINES,
    authorization,
    both_sides,
    connect_both,
    feed_both,
    request,
    statuses,
)
from support.world import FRIENDLY, OFF, ORIGIN, PATH, SECRET_KEY, Clock, World, environ, read

from bff.cli import main
from bff.config import reader
from bff.demo.upstream import session
from bff.gateway.pending import PendingLoad
from bff.ops import check
from bff.request import RequestHead
from bff.server import header_cache
from bff.server import run as server_run
from bff.server.connection import BoundedProtocol, NewestProtocol
from bff.server.fast_path import FastPathProtocol
from bff.telemetry import ServerLog

pytestmark = pytest.mark.anyio

METHODS = ["GET"] * 8 + ["HEAD", "OPTIONS", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "FOO"]


TARGETS = [
    *[PATH + "chat-1"] * 6,
    *(PATH + FRIENDLY["chat-1"], PATH + "chat-2", PATH + "chat-closed", PATH + "nope"),
    *(PATH + part for part in (".", "..", "%2e", "a%2fb", "%", "%zz", "", "x" * 257, "a?b", "a#b")),
    *("/", "/healthz", "/healthz?x", "/metrics", "/api/v1/runs", "/realtime/x", "//", "/\x7f", "*"),
    *("http://h/api/v1/sessions/chat-1", "/api/v1/sessions", "/API/v1/sessions/chat-1", "/é", "a"),
]


AUTHORIZATIONS = [
    *[[GOOD]] * 6,
    *([TYPE_WIDE], [authorization(*read(FRIENDLY["chat-1"]))], [authorization(*read("chat-2"))]),
    *([authorization(*read("chat-1"), exp=int(Clock().wall) - 1)], [authorization(key="k" * 40)]),
    *([], ["authorization:"], ["authorization: Bearer"], ["authorization: Bearer a.b.c"]),
    *([GOOD, GOOD], [f"authorization: Bearer {SECRET_KEY}"], [GOOD.replace("Bearer", "bearer")]),
    *([GOOD.replace("authorization", "AUTHORIZATION")], [GOOD + "\t"], ["authorization: é"]),
]


OTHERS = [
    *[f"origin: {ORIGIN}"] * 4,
    *("origin: https://evil.example", "origin: null", 'if-none-match: "x"', "if-none-match: *"),
    *("connection: keep-alive", "x-forwarded-for: 198.51.100.7", "x-forwarded-for: ,é, ::1"),
    *("user-agent: Mozilla/5.0", "accept: */*", "X-Trigger-Source: sdk", "cookie: a=b"),
]


BODIES = [
    "",
    "",
    "abc",
    "0\r\n\r\n",
    "3\r\nabc\r\n0\r\n\r\n",
    "3\r\nabc\r\n0\r\nx: y\r\n\r\n",
    "zz\r\n",
]


def made_up(chance: random.Random) -> bytes:
    """One request: mostly valid, sometimes unusual."""
    lines = [*chance.choice(AUTHORIZATIONS), *chance.sample(OTHERS, chance.randrange(4))]
    body = ""
    if chance.random() < 0.15:
        lines.append(chance.choice(UNUSUAL_LINES))
        body = chance.choice(BODIES)
    chance.shuffle(lines)
    version = chance.choice(["1.1"] * 20 + ["1.0", "2.0", "0.9"])
    method, target = chance.choice(METHODS), chance.choice(TARGETS)
    made = request(*lines, method=method, target=target, version=version) + body.encode()
    return made.replace(b"\r\n", b"\n") if chance.random() < 0.01 else made


@pytest.mark.parametrize("seed", range(4))
async def test_answers_are_equal_for_thousands_of_single_requests(clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    async with both_sides(clock, BFF_TRUSTED_PROXIES="192.0.2.0/24") as sides:
        transports = connect_both(sides)
        seen: set[int] = set()
        for _ in range(1000):
            if transports[0].over or chance.random() < 0.05:
                transports = connect_both(sides)
            answer = await feed_both(sides, made_up(chance), transports=transports)
            seen |= set(statuses(answer))
            clock.advance(chance.choice([*[0] * 8, 0.25, 0.5, 3]))
        assert sides[0].records() == sides[1].records()
        assert {200, 204, 304, 400, 401, 403, 404, 405} <= seen


async def test_answers_are_equal_for_pipelines_however_they_are_split(clock: Clock) -> None:
    chance = random.Random(5)
    # No refresh in the background: with uvicorn one could end within a pipeline.
    changes = {"BFF_CACHE_STALE_WHILE_REVALIDATE": "0"} | OFF
    async with both_sides(clock, **changes) as sides:
        ends = set()
        for _ in range(2000):
            data = b"".join(made_up(chance) for _ in range(chance.randrange(2, 7)))
            cuts = sorted(chance.sample(range(len(data)), chance.choice([0, 0, 1, 3])))
            reads = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            answer = await feed_both(sides, *reads)
            ends |= set(re.findall(rb"HTTP/1.1 (\d+)(?=.*\nconnection: close)", answer, re.DOTALL))
            clock.advance(chance.choice([0, 0, 1]))
        assert {b"200", b"204", b"400"} <= ends
        assert sides[0].records() == sides[1].records()


async def test_counts_are_equal_for_pipelines(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        pipeline = [request(GOOD), request(TYPE_WIDE, target=PATH + "chat-2"), request()] * 5
        answer = await feed_both(sides, b"".join(pipeline))
        assert statuses(answer) == [200, 200, 401] * 5
        assert sides[0].records() == sides[1].records()


@pytest.mark.parametrize(
    "data",
    [
        request(GOOD),
        request(GOOD, "if-none-match: *") + PREFLIGHT,
        request(GOOD, "connection: close") + request(GOOD),
        request(GOOD, "content-length: 3") + b"abc" + request(GOOD),
        request(GOOD, "transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n" + request(GOOD),
        request(GOOD) + b"\r\n\r\nNOT HTTP\r\n\r\n",
    ],
    ids=["one", "two", "close", "length", "chunked", "malformed"],
)
async def test_answers_are_equal_when_reads_split_at_any_byte(clock: Clock, data: bytes) -> None:
    async with both_sides(clock) as sides:
        await feed_both(sides, request(GOOD))  # loads the copy
        for cut in range(1, len(data)):
            await feed_both(sides, data[:cut], data[cut:])
            clock.advance(0.1)
        assert sides[0].records() == sides[1].records()


async def test_repeated_bytes_are_answered_as_if_parsed(clock: Clock) -> None:
    """The copy is fresh, stale or loaded again; the caller is limited; the token expires."""
    async with both_sides(clock, BFF_RATE_LIMIT="5/minute") as sides:
        transports = connect_both(sides)
        parsed = _count_parsing(transports[1].protocol)
        for n in range(160):
            await feed_both(sides, request(GOOD), transports=transports)
            clock.advance([0.5, 4, 0.1, 20][n % 4])
        assert sides[0].records() == sides[1].records()
        codes = {k[2:4] for k in sides[1].records()[0] if k[0] == "bff_requests"}
        assert codes == {(200, ""), (429, "rate_limited"), (401, "token_expired")}
        assert 0 < parsed() < 160, "repeated bytes are parsed for loads only"


def _count_parsing(protocol: Any) -> Callable[[], int]:
    count = 0
    begin = protocol.on_message_begin

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(protocol.inner, name)

        def feed_data(self, data: bytes) -> None:
            nonlocal count
            count += 1
            protocol.inner.feed_data(data)

    protocol.inner, protocol.parser = protocol.parser, Counting()
    assert begin == protocol.on_message_begin
    return lambda: count


# First lines to put before kept header lines; "*" is the path of a session.
REQUEST_LINES = [
    *(f"{method} {PATH}{id_} HTTP/1.1" for method in ("GET", "HEAD", "OPTIONS")
      for id_ in ("chat-1", "chat-2", "nope", "chat:1~_-")),
    *(f"GET {PATH}{id_} HTTP/1.1" for id_ in
      ("", ".", "..", "%2e", "chat-1?x", "chat-1#x", "chat-1/", "a" * 256, "a" * 257, "\xe9")),
    "GET  * HTTP/1.1", "GET * HTTP/1.1 ", "GET\t* HTTP/1.1", " GET * HTTP/1.1", "get * HTTP/1.1",
    "GET * HTTP/1.0", "GET * HTTP/1.1x", "GET * http/1.1", "GET * HTTP/1.1\r", "GET *", "",
    "\r\nGET * HTTP/1.1", "\nGET * HTTP/1.1", "POST * HTTP/1.1", "CONNECT * HTTP/1.1",
    "GET http://x* HTTP/1.1", "GET * HTTP/1.1\r\nx: y", "GET * HTTP/1.1\r\n y", "GET * HTTP/1.1\n",
]  # fmt: skip


async def test_kept_header_lines_are_read_as_if_parsed(clock: Clock) -> None:
    """Any line may be before them, on any connection."""
    chance = random.Random(3)
    lines = [
        request(*some).partition(b"\r\n")[2]
        for some in ([GOOD], [TYPE_WIDE, f"origin: {ORIGIN}"], [GOOD, "if-none-match: *"], [])
    ]
    odd = [
        b"\r\n",
        lines[0].replace(b"host: x\r\n", b""),
        lines[0] + lines[0],
        *(request(GOOD, one).partition(b"\r\n")[2] for one in UNUSUAL_LINES),
    ]
    async with both_sides(clock, **OFF) as sides:
        transports = connect_both(sides)
        parsed, sent, saved = _count_parsing(transports[1].protocol), 0, 0
        for _ in range(1500):
            if transports[0].over or chance.random() < 0.05:
                saved += sent - parsed()
                transports = connect_both(sides)
                parsed, sent = _count_parsing(transports[1].protocol), 0
            block = chance.choice(odd) if chance.random() < 0.2 else chance.choice(lines)
            first = chance.choice(REQUEST_LINES[: chance.choice([12, 12, 12, 99])])
            first = first.replace("*", PATH + "chat-1")
            sent += 1
            await feed_both(sides, first.encode("latin-1") + b"\r\n" + block, transports=transports)
            clock.advance(chance.choice([0, 0, 0.25]))
        assert sides[0].records() == sides[1].records()
        assert saved > 300


async def test_header_cache_is_bounded_and_keeps_no_refused_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_cache, "_MAX_HEADER_BYTES", 5_000)
    async with both_sides(clock, **OFF) as sides:
        transports = connect_both(sides)
        parsed = _count_parsing(transports[1].protocol)

        async def parses(*lines: str, method: str = "OPTIONS", target: str = "chat-1") -> int:
            before, data = parsed(), request(*lines, method=method, target=PATH + target)
            await feed_both(sides, data, transports=transports)
            return parsed() - before

        await parses()
        assert await parses("x: 0", target="a") == 1
        assert await parses("x: 0", target="b") == 0
        for n in range(1, 50):
            await parses(f"x: {n}", target="a")
        assert await parses("x: 49", target="b") == 0
        assert await parses("x: 0", target="b") == 1, "the oldest is dropped first"
        bad = authorization(key="k" * 40)
        assert await parses(bad, method="GET", target="a") == 1
        assert await parses(bad, method="GET", target="b") == 1
        assert await parses() == 1
        assert await parses(TYPE_WIDE, method="GET", target="nope") == 1
        assert await parses(TYPE_WIDE, method="HEAD", target="nope") == 1, (
            "lines of a request that loads may be kept"
        )


async def test_lines_of_a_request_for_the_application_are_not_kept(clock: Clock) -> None:
    """A load has to be waited for, and the read goes on after the request: the app answers it."""
    async with both_sides(clock, **OFF) as sides:
        transports = connect_both(sides)
        parsed = _count_parsing(transports[1].protocol)
        await feed_both(sides, PREFLIGHT, transports=transports)
        for number, target in enumerate(("nope", "nowhere"), start=2):
            data = request(TYPE_WIDE, target=PATH + target) + b"\r\n"
            assert statuses(await feed_both(sides, data, transports=transports)) == [404]
            assert parsed() == number


async def test_repeated_bytes_within_a_body_start_no_request(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        data = request(GOOD)
        await feed_both(sides, data, data, transports=transports)
        head = request(GOOD, f"content-length: {len(data)}", method="POST")
        answer = await feed_both(sides, head, data, data, transports=transports)
        assert statuses(answer) == [405, 200], "the second of the three reads is a body"


async def test_kept_header_lines_within_a_body_start_no_request(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        await feed_both(sides, PREFLIGHT, PREFLIGHT, transports=transports)
        other = request(method="OPTIONS", target=PATH + "chat-2")
        head = request(f"content-length: {len(other)}", method="POST")
        answer = await feed_both(sides, head, other, other, transports=transports)
        assert statuses(answer) == [405, 204], "the second of the three reads is a body"


async def test_two_requests_in_one_read_stay_two_when_repeated(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        data = PREFLIGHT + request(TYPE_WIDE)
        for _ in range(3):
            answer = await feed_both(sides, data, transports=transports)
            assert statuses(answer) == [204, 200]


async def test_read_that_ends_one_request_is_not_kept_as_a_request(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        read = PREFLIGHT[20:] + PREFLIGHT
        await feed_both(sides, PREFLIGHT[:20], read, transports=transports)
        answer = await feed_both(sides, read, transports=transports)
        assert answer.startswith(b"HTTP/1.1 400")


async def test_answers_have_the_current_headers_of_the_server(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        transports = connect_both(sides)
        for date in (b"one", b"two"):
            for side in sides:
                side.state.default_headers = [(b"date", date), (b"server", b"x")]
            answer = await feed_both(sides, PREFLIGHT, transports=transports)
            assert b"date: %b\r\nserver: x\r\n" % date in answer


async def test_repeated_request_does_not_take_the_load_of_another(clock: Clock) -> None:
    async with both_sides(clock, BFF_CACHE_TTL="0", BFF_CACHE_STALE_WHILE_REVALIDATE="0") as sides:
        transports = connect_both(sides)
        one, other = request(GOOD), request(TYPE_WIDE, target=PATH + "chat-2")
        for data in (one, one, other, one, other, other, one + other, other, one):
            clock.advance(1)
            answer = await feed_both(sides, data, transports=transports)
            ids = re.findall(rb'"externalId":"([^"]+)"', answer)
            assert ids == [t for t in (b"chat-1", b"chat-2") if PATH.encode() + t in data]
        assert sides[0].records() == sides[1].records()


async def test_unsent_answers_to_one_read_are_bounded(clock: Clock) -> None:
    async with both_sides(clock, BFF_EXPOSE_METADATA="pad", **OFF) as sides:
        for side in sides:
            environment = side.world.upstream.environments[0]
            environment.add(session(1, "chat-1") | {"metadata": {"pad": "x" * 10_000}})
        await feed_both(sides, request(GOOD))
        transport = sides[1].connect()
        transport.protocol.data_received(request(GOOD) * 30)
        assert 60_000 < len(transport.sent) < 66_000 + 11_000, (
            "the next request waits until these answers are written"
        )
        assert not transport.reading
        await sides[1].settle()
        assert transport.sent.count(b"HTTP/1.1 200") == 30


async def test_counts_say_which_way_served_each_answer(clock: Clock) -> None:
    """ASGI serves what waits in a pipeline; an invalid request counts as neither."""
    async with both_sides(clock) as sides:
        for data in (*[request(GOOD)] * 3, request(target="/healthz"), b"NOT HTTP\r\n\r\n"):
            await feed_both(sides, data)
        transports = connect_both(sides)
        await feed_both(sides, request(target="/healthz"), transports=transports)
        clock.advance(60)
        for _ in range(3):
            await feed_both(sides, request(GOOD), transports=transports)
        clock.advance(60)
        await feed_both(sides, request(GOOD) * 2, transports=transports)
        answers = [
            {k[1:5]: n for k, n in side.world.telemetry.counts.items() if k[0] == "bff_requests"}
            for side in sides
        ]
    refused = {("other", 400, "bad_request", "none"): 1}
    assert answers == [
        {("session", 200, "", "asgi"): 8, ("page", 200, "", "asgi"): 2} | refused,
        {
            ("session", 200, "", "asgi"): 2,
            ("session", 200, "", "fast"): 6,
            ("page", 200, "", "fast"): 2,
        }
        | refused,
    ]


@hypothesis(max_examples=60, deadline=None)
@given(
    origin=st.binary(max_size=40),
    inm=st.binary(max_size=40),
    path=st.binary(max_size=40),
    forwarded=st.binary(max_size=40),
)
async def test_no_byte_of_a_browser_can_split_an_answer(
    origin: bytes, inm: bytes, path: bytes, forwarded: bytes
) -> None:
    """The fast path writes the head of a response unchecked, unlike uvicorn."""
    clock = Clock()
    async with World(clock, BFF_ALLOWED_ORIGINS="*", BFF_TRUSTED_PROXIES="192.0.2.1") as world:
        await world.get("chat-1")
        headers = [
            (b"authorization", GOOD.partition(": ")[2].encode()),
            (b"origin", origin),
            (b"if-none-match", inm),
            (b"x-forwarded-for", forwarded),
        ]
        for raw_path in (PATH.encode() + b"chat-1", b"/" + path, PATH.encode() + path):
            head = RequestHead.read("GET", raw_path, b"", headers, "192.0.2.1")
            response = world.service.gateway.decide(head, *clock())
            if isinstance(response, PendingLoad):
                response = await world.service.gateway.finish(response)
            assert response.head.endswith(b"\r\n")
            for line in response.head[:-2].split(b"\r\n"):
                assert re.fullmatch(rb"[a-z-]+: [\x20-\x7e]*", line)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"BFF_FAST_PATH": "false"}, "BFF_FAST_PATH"),
        ({"BFF_TRACING": "true"}, "BFF_TRACING"),
    ],
)
def test_check_notes_why_the_fast_path_is_off(changes: dict[str, str], reason: str | None) -> None:
    notes = [note for note in check.notes(reader.load(environ(**changes))) if "fast path" in note]
    assert [f"the fast path is off ({reason}" in note for note in notes] == [True] * bool(reason)


@pytest.mark.parametrize(
    ("setting", "expected"), [("true", FastPathProtocol), ("false", BoundedProtocol)]
)
def test_setting_turns_the_fast_path_off(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: type
) -> None:
    protocols: list[Any] = []

    async def run(browsers: Any, ops: Any, **_: Any) -> None:
        protocols.extend(config.http for config, sock in (*browsers, ops) if not sock.close())
        assert gc.get_freeze_count() > 10_000, "imported objects are no work for the collector"
        gc.unfreeze()

    monkeypatch.setattr(server_run, "run", run)
    monkeypatch.setattr(ServerLog, "install", lambda _: None)
    env = environ(BFF_FAST_PATH=setting, BFF_PORT="0", BFF_OPS_PORT="0")
    result = CliRunner().invoke(main, ["serve"], env=env, catch_exceptions=False)
    assert result.exit_code == 0
    browser, ops = protocols
    assert browser.func is expected
    assert ops.func is NewestProtocol


async def test_request_that_arrives_during_a_wait_is_answered_after_it(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        answers = []
        for side in sides:
            transport = side.connect()
            transport.protocol.data_received(request(GOOD))
            for data in (request(target="/healthz")[:9], request(target="/healthz")[9:]):
                transport.protocol.data_received(data)
            await side.settle()
            answers.append(transport.sent.count(b"HTTP/1.1 200"))
            assert transport.sent.index(b"session_") < transport.sent.index(b'"status": "ok"')
    assert answers == [2, 2]


async def test_load_of_a_browser_that_left_takes_no_turn(clock: Clock) -> None:
    async with both_sides(clock, BFF_UPSTREAM_BUDGET="1/second") as sides:
        side = sides[1]
        queue = side.world.service.gateway.loader.queue("default")
        for target, waits in (("chat-1", 0), ("chat-2", 1)):
            transport = side.connect()
            transport.protocol.data_received(request(TYPE_WIDE, target=PATH + target))
            assert len(queue) == waits

        transport.protocol.connection_lost(None)

        assert len(queue) == 0
        await side.settle()
        assert not transport.late_writes


async def test_miss_leaves_nothing_to_the_garbage_collector(clock: Clock) -> None:
    """References in a circle would make the collector pause all requests, for longer with each."""
    async with both_sides(clock, **OFF) as sides:
        side = sides[1]
        for number in range(100, 120):
            side.world.upstream.environments[0].add(session(number, f"many-{number}"))
        transport = side.connect()
        for number in range(100, 110):
            await side.feed(transport, request(TYPE_WIDE, target=f"{PATH}many-{number}"))
        gc.collect()
        gc.disable()
        try:
            for number in range(110, 120):
                await side.feed(transport, request(TYPE_WIDE, target=f"{PATH}many-{number}"))
            assert gc.collect() == 0
        finally:
            gc.enable()
