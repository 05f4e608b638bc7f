"""A message on its way: the policy, the limits, and the answers of both sides."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import jwt
import pytest
from support.chats import (
    AGENT_KEY,
    BOTH,
    CHAT,
    IDENTITY,
    ROUTE,
    append,
    code,
    inputs,
    message,
    sent,
)  # fmt: skip
from support.replicas import until
from support.world import FRIENDLY, World, read

from bff import metrics
from bff.chat.appends import MAX_APPENDS_PER_CALLER, MAX_STOP_BYTES
from bff.demo.upstream import Answer, Seen, session
from bff.errors import REFUSALS


@pytest.fixture
async def chats(world: World) -> World:
    await world.start(**CHAT)
    return world


def counted(world: World, kind: str, code_: str = "") -> float:
    return world.telemetry.counts[metrics.MESSAGES, kind, code_]


async def test_message_arrives_written_anew(chats: World) -> None:
    response = await append(chats, message(sessionId="forged", metadata={"plan": "free"}))

    assert (response.status_code, response.json()) == (200, {"ok": True, "seq": 0})
    assert response.headers["cache-control"] == "no-store"
    (stored,) = map(json.loads, inputs(chats))
    assert stored == message(metadata={"plan": "free"})
    assert counted(chats, "message") == 1
    assert chats.telemetry.counts[metrics.MESSAGE_FIELDS_DROPPED,] == 1


async def test_stop_is_not_counted_as_a_message(chats: World) -> None:
    await chats.start(**CHAT, BFF_MESSAGE_LIMIT="1/minute")
    await append(chats)

    assert code(await append(chats)) == (429, "rate_limited")
    assert (await append(chats, {"kind": "stop"})).json()["ok"]
    assert json.loads(inputs(chats)[-1]) == {"kind": "stop"}


STOP = {"kind": "stop"}
ONE_REQUEST = CHAT | {"BFF_RATE_LIMIT": "1/minute"}


async def poll(world: World) -> httpx2.Response:
    """Request the session as the caller who sends the messages."""
    return await world.get("chat-1", token=world.token(*BOTH))


async def test_stop_is_not_counted_as_a_request(chats: World) -> None:
    await chats.start(**ONE_REQUEST)

    assert [(await append(chats, STOP)).status_code for _ in range(3)] == [200] * 3
    assert (await poll(chats)).status_code == 200, "the one request of this minute"
    assert code(await poll(chats)) == (429, "rate_limited")


async def test_stop_goes_beyond_the_limit_of_requests(chats: World) -> None:
    await chats.start(**ONE_REQUEST)
    assert [(await poll(chats)).status_code for _ in range(2)] == [200, 429]

    assert (await append(chats, STOP)).status_code == 200
    assert inputs(chats) == [b'{"kind":"stop"}']


@pytest.mark.parametrize("body", [{"kind": "other"}, b"not json", b"{", {"kind": "message"}])
async def test_only_a_stop_passes_the_limit_of_requests(chats: World, body: Any) -> None:
    await chats.start(**ONE_REQUEST)
    await poll(chats)

    for _ in range(3):
        assert code(await append(chats, body)) == (429, "rate_limited")
    small = message("hi")
    assert len(json.dumps(small)) <= MAX_STOP_BYTES
    refused = await append(chats, small)
    assert code(refused) == (429, "rate_limited")
    assert refused.headers["x-ratelimit-limit"] == "1"
    assert inputs(chats) == []


async def test_stop_has_a_limit_of_its_own(chats: World) -> None:
    statuses = [(await append(chats, STOP)).status_code for _ in range(61)]

    assert statuses == [200] * 60 + [429]
    assert (await append(chats)).status_code == 200, "a message is another matter"


async def test_large_stop_is_a_message(chats: World) -> None:
    await chats.start(**ONE_REQUEST)
    await poll(chats)

    large = STOP | {"rest": "x" * MAX_STOP_BYTES}
    assert code(await append(chats, large)) == (429, "rate_limited")


async def test_stop_goes_while_uploads_are_under_way(chats: World) -> None:
    appends, rest = chats.service.gateway.chats.appends, asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" "
        await rest.wait()
        yield json.dumps(message()).encode()

    headers = {"authorization": f"Bearer {chats.token(*BOTH)}"}
    path = f"{ROUTE}chat-1/in/append"
    uploads = [
        asyncio.create_task(chats.browser.post(path, headers=headers, content=slow()))
        for _ in range(MAX_APPENDS_PER_CALLER)
    ]
    await until(lambda: len(appends.messages) == MAX_APPENDS_PER_CALLER)

    assert code(await append(chats, message("hi"))) == (429, "too_many_messages")
    assert (await append(chats, STOP)).status_code == 200
    assert len(appends.stops) == 0
    rest.set()
    assert [(await one).status_code for one in uploads] == [200] * MAX_APPENDS_PER_CALLER
    assert len(appends) == 0


async def test_any_body_is_a_message_where_any_is_sent(chats: World) -> None:
    await chats.start(**ONE_REQUEST, BFF_INPUT="any")
    await poll(chats)

    assert code(await append(chats, STOP)) == (429, "rate_limited")


async def test_message_21_of_a_minute_is_refused_whatever_the_token(chats: World) -> None:
    def token(number: int) -> str:
        return chats.token(*BOTH, f"read:sessions:x{number}", act={"sub": "ann"}, jti=str(number))

    statuses = [(await append(chats, token=token(n))).status_code for n in range(21)]
    refused = await append(chats, token=token(22))

    assert statuses[:20] == [200] * 20
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-ratelimit-limit"] == "20"
    assert len(inputs(chats)) == 20
    chats.clock.advance(61)
    assert (await append(chats)).status_code == 200


async def test_limits_of_a_day_and_of_all_callers_hold(chats: World) -> None:
    await chats.start(**CHAT, BFF_MESSAGE_DAILY_LIMIT="2/day", BFF_MESSAGE_TOTAL_LIMIT="3/day")

    async def send(actor: str) -> int:
        return (await append(chats, token=chats.token(*BOTH, act={"sub": actor}))).status_code

    assert [await send("ann") for _ in range(3)] == [200, 200, 429]
    assert [await send("bob") for _ in range(2)] == [200, 429]


async def test_message_that_is_sent_again_is_charged_once(chats: World) -> None:
    await chats.start(**CHAT, BFF_MESSAGE_LIMIT="1/minute")

    first = await append(chats, x_part_id="part-1")
    again = await append(chats, x_part_id="part-1")
    other = await append(chats, message("another"), x_part_id="part-1")

    assert (first.json(), again.json()) == ({"ok": True, "seq": 0}, {"ok": True})
    assert code(other) == (429, "rate_limited"), "another message by the same part id"


async def test_refused_message_is_not_charged(chats: World) -> None:
    await chats.start(**CHAT, BFF_MESSAGE_LIMIT="1/minute")

    for _ in range(3):
        assert code(await append(chats, b"not json")) == (400, "invalid_message")
    assert (await append(chats)).status_code == 200
    assert counted(chats, "other", "invalid_message") == 3


@pytest.mark.parametrize("part", ["", "a b", "x" * 65, "ü", "a,b", 'a"'])
async def test_odd_part_id_is_replaced(chats: World, part: str) -> None:
    headers = {"authorization": f"Bearer {chats.token(*BOTH)}"}
    lines: Any = [*headers.items(), ("x-part-id", part.encode())]
    await chats.browser.post(f"{ROUTE}chat-1/in/append", headers=lines, json=message())

    sent_ = chats.upstream.seen[-1].header("x-part-id")
    assert sent_ is not None
    assert len(sent_) == 32


async def test_upstream_gets_checked_values_and_nothing_of_the_browser(chats: World) -> None:
    await append(chats, x_part_id="p-1", cookie="a=b", x_evil="1", content_type="text/html")

    (seen,) = chats.upstream.seen
    assert {name for name, _ in seen.headers} == {
        "host", "accept-encoding", "user-agent", "authorization", "accept", "content-type",
        "x-part-id", "content-length",
    }  # fmt: skip
    assert seen.header("content-type") == "application/json"
    assert seen.header("x-part-id") == "p-1"


# -- who speaks


async def test_agent_learns_who_speaks(chats: World) -> None:
    await chats.start(
        **CHAT, **IDENTITY, BFF_TRUSTED_PROXIES="127.0.0.0/8", BFF_IDENTITY_HEADERS="x-email",
    )  # fmt: skip
    token = chats.token(*BOTH, act={"sub": "ann"})
    forged = message(metadata={"__bff": "forged", "plan": "free"})

    await append(
        chats, forged, token=token, x_part_id="p-1", x_email="ann@example.com",
        x_forwarded_for="192.0.2.7",
    )  # fmt: skip

    metadata = json.loads(inputs(chats)[0])["payload"]["metadata"]
    assert metadata["plan"] == "free"
    options: Any = {"verify_exp": False, "verify_iat": False}
    read_ = jwt.decode(metadata["__bff"], AGENT_KEY, algorithms=["HS256"], options=options)
    assert (read_["act"], read_["session"], read_["part"]) == ({"sub": "ann"}, "chat-1", "p-1")
    assert (read_["address"], read_["headers"]) == ("192.0.2.7", {"x-email": "ann@example.com"})
    assert read_["exp"] == int(chats.clock.wall) + 300


async def test_headers_of_an_untrusted_peer_are_not_signed(chats: World) -> None:
    await chats.start(
        **CHAT, **IDENTITY, BFF_TRUSTED_PROXIES="10.0.0.0/8", BFF_IDENTITY_HEADERS="x-email"
    )
    await append(chats, x_email="forged@example.com")

    token = json.loads(inputs(chats)[0])["payload"]["metadata"]["__bff"]
    options: Any = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, AGENT_KEY, algorithms=["HS256"], options=options)["headers"] == {}


# -- whose chat


async def test_foreign_chat_id_is_400_and_nothing_is_sent(chats: World) -> None:
    await chats.get("chat-1")

    assert code(await append(chats, message(chatId="chat-2"))) == (400, "foreign_chat")
    assert sent(chats) == []
    assert counted(chats, "message", "foreign_chat") == 1


async def test_other_form_of_the_id_is_looked_up(chats: World) -> None:
    response = await append(chats, message(chatId=FRIENDLY["chat-1"]))
    foreign = await append(chats, message(chatId=FRIENDLY["chat-2"]))

    assert response.status_code == 200
    assert json.loads(inputs(chats)[0])["payload"]["chatId"] == "chat-1"
    assert code(foreign) == (400, "foreign_chat")
    assert [seen.raw_path for seen in chats.upstream.seen] == [
        "/api/v1/sessions/chat-1", f"{ROUTE}chat-1/in/append",
    ]  # fmt: skip


async def test_any_input_is_sent_as_it_comes(chats: World) -> None:
    await chats.start(**CHAT, BFF_INPUT="any")

    assert (await append(chats, b'not json {"')).status_code == 200
    assert inputs(chats) == [b'not json {"']


# -- sizes


@pytest.mark.parametrize("length", ["1001", "99999999999999999999"])
async def test_large_message_is_413_and_not_read(chats: World, length: str) -> None:
    await chats.start(**CHAT, BFF_MAX_MESSAGE_BYTES="1000")
    headers = {"authorization": f"Bearer {chats.token(*BOTH)}", "content-length": length}

    response = await chats.browser.post(
        f"{ROUTE}chat-1/in/append", headers=headers, content=_never()
    )

    assert code(response) == (413, "message_too_large")
    assert response.headers["connection"] == "close"
    assert sent(chats) == []


async def _never():
    raise AssertionError("the body is read")
    yield b""


async def test_large_message_without_a_length_is_413(chats: World) -> None:
    await chats.start(**CHAT, BFF_MAX_MESSAGE_BYTES="1000")
    headers = {"authorization": f"Bearer {chats.token(*BOTH)}"}
    read_ = 0

    async def parts():
        nonlocal read_
        for _ in range(100):
            read_ += 100
            yield b"x" * 100

    response = await chats.browser.post(
        f"{ROUTE}chat-1/in/append", headers=headers, content=parts()
    )

    assert code(response) == (413, "message_too_large")
    assert read_ <= 1200
    assert sent(chats) == []


async def test_nothing_is_counted_as_under_way_at_the_end(chats: World) -> None:
    for body in (message(), b"x", message(chatId="chat-2"), {"kind": "stop"}):
        await append(chats, body)
    chats.upstream.override = _broken
    await append(chats)

    assert len(chats.service.gateway.chats.appends) == 0
    assert MAX_APPENDS_PER_CALLER < 5


async def _broken(_: Seen) -> Answer:
    return Answer(500, {"error": "Internal"})


# -- upstream's answers


def closed(status: int) -> Answer:
    body = {"ok": False, "error": "Cannot append to a closed session"}
    if status == 409:
        body |= {"code": "session_closed", "closedReason": "spam", "secret": "x"}
    return Answer(status, body)


async def answered(world: World, answer: Answer) -> httpx2.Response:
    async def override(_: Seen) -> Answer:
        return answer

    world.upstream.override = override
    return await append(world)


@pytest.mark.parametrize("status", [400, 409])
async def test_closed_session_keeps_its_status(chats: World, status: int) -> None:
    response = await answered(chats, closed(status))

    told = {"ok": False, "error": REFUSALS["session_closed"].text, "code": "session_closed"}
    if status == 409:
        told["closedReason"] = "spam"
    assert (response.status_code, response.json()) == (status, told)
    assert counted(chats, "message", "session_closed") == 1


async def test_reason_of_a_closed_session_is_shown_by_the_policy(chats: World) -> None:
    await chats.start(**CHAT, BFF_EXPOSE_FIELDS="id,externalId,type,taskIdentifier,createdAt,"
                      "updatedAt,closedAt,expiresAt")  # fmt: skip

    assert "closedReason" not in (await answered(chats, closed(409))).json()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(200, {"ok": True, "seq": 5, "pendingVersion": True, "x": 1}), (200, "")),
        (Answer(413, {"error": "Request body too large"}), (413, "message_too_large")),
        (Answer(400, {"ok": False, "error": "secret"}), (400, "invalid_message")),
        (Answer(404, {"error": "Resource not found"}), (404, "not_found")),
        (Answer(404, b"<html>"), (502, "message_unconfirmed")),
        (Answer(401, {"error": "Invalid API key"}), (502, "upstream_rejected_credentials")),
        (Answer(403, {"error": "Unauthorized", "code": "unauthorized"}), None),
        (Answer(500, b"<html>"), (502, "message_unconfirmed")),
        (Answer(502, {"error": "x"}), (502, "message_unconfirmed")),
        (Answer(200, b"<html>"), (502, "message_unconfirmed")),
        (Answer(200, {"ok": False}), (502, "message_unconfirmed")),
        (Answer(200, [1]), (502, "message_unconfirmed")),
        (Answer(302, b"", {"location": "http://other"}), (502, "message_unconfirmed")),
        (Answer(429, {"error": "slow down"}, {"retry-after": "7"}), (503, "over_budget")),
    ],
)
async def test_each_answer_of_upstream_is_written_anew(
    chats: World, answer: Answer, told: tuple[int, str] | None
) -> None:
    response = await answered(chats, answer)

    status, code_ = code(response)
    assert (status, code_) == (told or (502, "upstream_invalid")) or (
        told is None and status == 502
    )
    assert "secret" not in response.text
    assert response.headers["cache-control"] == "no-store"
    assert len(sent(chats)) == 1, "a message is sent once"


async def test_429_of_upstream_pauses_messages(chats: World) -> None:
    answer = Answer(429, {"error": "slow down"}, {"retry-after": "7"})
    assert code(await answered(chats, answer)) == (503, "over_budget")

    chats.upstream.override = None
    paused = await append(chats)
    chats.clock.advance(8)

    assert code(paused) == (503, "over_budget")
    assert len(sent(chats)) == 1
    assert (await append(chats)).status_code == 200


async def test_accepted_message_has_one_audit_line(chats: World) -> None:
    await append(chats, token=chats.token(*BOTH, act={"sub": "ann"}), x_part_id="secret-part")
    await append(chats, b"x")

    (line,) = [line for line in chats.logged() if line["event"] == "message_accepted"]
    assert (line["subject"], line["kind"], line["seq"]) == ("ann", "message", 0)
    assert len(line["session"]) == 16
    text = json.dumps(line)
    assert not any(word in text for word in ("chat-1", "secret-part", "hello"))


async def test_token_that_expires_during_the_upload_sends_nothing(chats: World) -> None:
    token = chats.token(*BOTH, exp=int(chats.clock.wall) + 5)
    headers = {"authorization": f"Bearer {token}"}

    async def parts():
        yield json.dumps(message()).encode()
        chats.clock.advance(10)

    response = await chats.browser.post(
        f"{ROUTE}chat-1/in/append", headers=headers, content=parts()
    )

    assert code(response) == (401, "token_expired")
    assert sent(chats) == []


async def test_reader_without_write_scope_is_refused_before_the_body(chats: World) -> None:
    headers = {"authorization": f"Bearer {chats.token(*read('chat-1'))}"}

    response = await chats.browser.post(
        f"{ROUTE}chat-1/in/append", headers=headers, content=_never()
    )

    assert code(response) == (403, "unauthorized")


async def test_closed_session_of_the_pretend_upstream_is_refused(chats: World) -> None:
    chats.upstream.environments[0].add(session(1, "chat-1", closedAt="2026-02-01T00:00:00.500Z"))

    assert code(await append(chats)) == (400, "session_closed")
