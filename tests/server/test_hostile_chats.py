"""Hostile requests for the two routes of a chat, with the fast path and without it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.chats import BOTH, CHAT, ROUTE, message
from support.described import check
from support.differential import Sides, authorization, both_sides, connect_both, feed_both, request
from support.world import OWN_KEY, Clock

from bff.demo.chat_upstream import PretendChats
from bff.sessions.openapi import CHAT_IN, CHAT_OUT

OUT, APPEND = f"{ROUTE}chat-1/out", f"{ROUTE}chat-1/in/append"
NAMED = authorization(*BOTH)
EVERY = authorization("read:sessions", "write:sessions")
BODY = json.dumps(message()).encode()
LENGTH = f"content-length: {len(BODY)}"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(
    *lines: str, target: str = APPEND, body: bytes = BODY, length: bool = True, **options: str
) -> bytes:
    head = [options.pop("token", NAMED), *lines, *([f"content-length: {len(body)}"] * length)]
    return request(*head, target=target, **{"method": "POST"} | options) + body


def get(*lines: str, target: str = OUT, token: str = NAMED, method: str = "GET") -> bytes:
    return request(token, "x-peek-settled: 1", *lines, target=target, method=method)


def chunked(*lines: str, version: str = "1.1") -> bytes:
    return post(*lines, body=CHUNKS, length=False, version=version)


def ids() -> Iterator[tuple[str, str, str]]:
    """Ids that name no session, or another one after a second decoding."""
    malformed = [
        ".", "..", "%2e%2e", "%2E", "", "%00", "chat-1%00", "chat-1%0d%0a", "%ff", "%ED%A0%80",
        "%zz", "%", "a" * 257, "..%2fchat-1", "..%2F..%2Fapi", "chat-1%2F..%2Fchat-2", "chat-1%2F.",
        "..%5cchat-1",
    ]  # fmt: skip
    unreachable = ["chat-1%252F", "a%252fb", "%252e%252e%252fapi"]
    for id_ in malformed:
        yield id_, "400 invalid_session_id", EVERY
    for id_ in unreachable:
        yield id_, "404 not_found", EVERY
    yield "chat-1:channels:x", "403 unauthorized", EVERY
    for id_ in ("chat-2", "chat-1%20", "CHAT-1", "chat-1%2Fout", "%F0%9F%98%80", *unreachable):
        yield id_, "403 unauthorized", NAMED
    for id_ in ("chat-1/", "x/../chat-1", "chat-1/out/..", "/chat-1"):
        yield id_, "410 not_served", EVERY


CASES: list[tuple[bytes, str]] = []
for id_, status, token in ids():
    CASES += [
        (get(target=f"{ROUTE}{id_}/out", token=token), status),
        (post(target=f"{ROUTE}{id_}/in/append", token=token), status),
    ]
for method in ("PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND"):
    CASES += [
        (post(method=method), "405 method_not_allowed"),
        (get(method=method), "405 method_not_allowed"),
    ]
CASES += [
    (get(target=APPEND), "405 method_not_allowed"),
    (post(target=OUT), "405 method_not_allowed"),
]
CASES += [(get(method="HEAD"), "405 "), (get(method="FOO"), "400 bad_request")]
for rest in (
    *("out/append", "in", "in/records", "out/records", "in/append/", "out/", "IN/append"),
    *("in//append", "%69n/append", "in%2Fappend", "channels/x/out", "out/../in/append", "close"),
):
    for method in ("POST", "PUT"):
        CASES.append((post(target=f"{ROUTE}chat-1/{rest}", method=method), "410 not_served"))
    CASES.append((get(target=f"{ROUTE}chat-1/{rest}"), "410 not_served"))
for cursor in (
    *("", "x", "-1", "+1", "1,2", "1.0", "0x1", "1e3", "9" * 17, "1\t2", "\xb2", "1 2", "null"),
    *("../chat-2/out", "1;", "[1]"),
):
    CASES.append((get(f"last-event-id: {cursor}"), "400 bad_request"))
for line in ("last-event-id: 1", "timeout-seconds: 1", "x-peek-settled: 1"):
    CASES.append((get(line, line), "400 bad_request"))
CASES.append((get(body := "content-length: 3") + b"abc", "400 bad_request"))
CASES.append((get("transfer-encoding: chunked") + b"0\r\n\r\n", "400 bad_request"))
for length in ("-1", "+5", "0x10", "1e3", "5 5", "", "9" * 20, "\xb2", f"{len(BODY)}, {len(BODY)}"):
    CASES.append((post(f"content-length: {length}", length=False), "400 bad_request"))
CASES += [
    (post(LENGTH, LENGTH, length=False), "400 bad_request"),
    (post(LENGTH, "content-length: 1", length=False), "400 bad_request"),
    (post("content-length: 4097", length=False), "413 message_too_large"),
    (post(f"content-length: {2**63}", length=False), "413 message_too_large"),
    (post(body=b"x" * 4097), "413 message_too_large"),
    (chunked("transfer-encoding: chunked", LENGTH), "400 bad_request"),
    (chunked("transfer-encoding: chunked", "transfer-encoding: chunked"), "400 bad_request"),
    (chunked("transfer-encoding: chunked", version="1.0"), "400 bad_request"),
    (post("transfer-encoding: chunked", body=b"zz\r\n", length=False), "400 bad_request"),
    (post("connection: upgrade", "upgrade: websocket"), "400 invalid_message"),
    (post(NAMED), "400 bad_request"),
    (post("x-part-id: a", "x-part-id: a"), "400 bad_request"),
]
for coding in ("gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked;x", "deflate"):
    CASES.append((chunked(f"transfer-encoding: {coding}"), "400 bad_request"))
for text in (
    *("", "null", "[]", "1", "not json", '{"kind":"stop"}{"kind":"stop"}'),
    *('{"kind":"stop","kind":"stop"}', '{"kind":"stop","x":NaN}', '{"kind":"stop","x":1e999}'),
    *('{"kind":"stop","x":' + "9" * 400 + "}", '{"kind":"handover"}', '{"kind":["stop"]}'),
    *("[" * 4000, '{"kind":"stop","x":' + "[" * 64 + "]" * 64 + "}", '\ufeff{"kind":"stop"}'),
):
    CASES.append((post(body=text.encode()), "400 invalid_message"))
CASES += [
    (post(body=b'{"kind":"stop\xff"}'), "400 invalid_message"),
    (post(body='{"kind":"stop"}'.encode("utf-16")), "400 invalid_message"),
    (post(body=json.dumps(message(chatId="chat-2")).encode()), "400 foreign_chat"),
    (post(body=json.dumps(message(trigger="close")).encode()), "400 invalid_message"),
    (post(body=json.dumps(message(metadata=[])).encode()), "400 invalid_message"),
    (post(token="cookie: __Host-bff-token=x"), "401 token_missing"),
    (post(token=authorization("read:sessions:chat-1")), "403 unauthorized"),
    (get(token=authorization("write:sessions:chat-1")), "403 unauthorized"),
]
ALLOWED = [
    *(get(target=OUT + rest) for rest in ("", "?x=1", "?", "?lastEventId=x", "#x", "?a/in/append")),
    *(post(target=APPEND + rest) for rest in ("", "?x=1", "?", "?kind=stop", "#/out")),
    *(get(f"last-event-id: {n}") for n in ("0", "00", "9" * 16, " 1 ")),
    *(get(f"timeout-seconds: {n}") for n in ("", "x", "-1", "9" * 30, "1.5")),
    *(chunked(f"transfer-encoding: {coding}") for coding in ("chunked", "CHUNKED", " chunked ")),
    *(post(line) for line in ("expect: 100-continue", "expect: x", "content-encoding: gzip")),
    *(post(f"x-part-id: {id_}") for id_ in ("a" * 65, "../x", "\xe9", "")),
    get(target=f"{ROUTE}chat%2D1/out"), post(target=f"{ROUTE}%63hat-1/in/append"),
]  # fmt: skip


@pytest.fixture
async def sides(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(PretendChats, "_act", lambda *_: None)  # no agent writes meanwhile
    off = {"BFF_MESSAGE_LIMIT": "off", "BFF_STREAM_OPEN_LIMIT": "off"}
    async with both_sides(clock, **CHAT, **off, BFF_MAX_MESSAGE_BYTES="4096") as both:
        for side in both:
            upstream = side.world.upstream
            channel = upstream.chats.channel(upstream.environments[0], "chat-1")
            settled = [["trigger-control", "turn-complete"]]
            channel.write(timestamp=1, headers=settled, body="")
        yield both


def seen(sides: Sides) -> list[list[str]]:
    """The requests to chats that upstream got, on each side; forgets them."""
    requests = []
    for side in sides:
        calls = [s for s in side.world.upstream.seen if s.raw_path.startswith("/realtime/")]
        requests.append([f"{call.method} {call.raw_path}" for call in calls])
        side.world.upstream.seen.clear()
    return requests


async def test_hostile_requests_get_a_code_and_go_nowhere(sides: Sides) -> None:
    document = (await sides[0].world.browser.get("/openapi.json")).json()
    transports = connect_both(sides)
    for data, expected in CASES:
        if transports[0].over:
            transports = connect_both(sides)
        answer = await feed_both(sides, data, transports=transports)
        head, _, body = answer.partition(b"\r\n\r\n")
        code = json.loads(body).get("code") if body else ""

        assert f"{answer[9:12].decode()} {code}" == expected, data
        assert seen(sides) == [[], []], data
        assert b"Bearer ey" not in answer
        if expected[:3] not in ("405", "410"):
            route = (CHAT_IN, "post") if data.startswith(b"POST") else (CHAT_OUT, "get")
            lines = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
            operation = document["paths"][route[0]][route[1]]
            check(document, operation, int(expected[:3]), [(n, v) for n, v in lines], body)


async def test_odd_requests_reach_the_two_paths_alone(sides: Sides) -> None:
    for data in ALLOWED:
        transports = connect_both(sides)
        answer = await feed_both(sides, data, transports=transports)

        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 100 ")), data
        path = f"POST {APPEND}" if data.startswith(b"POST") else f"GET {OUT}"
        assert seen(sides) == [[path], [path]], data
    assert OWN_KEY not in str(sides[1].world.upstream.seen)
