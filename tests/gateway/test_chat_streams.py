"""The stream of a chat: from the request to the head of the answer."""

import asyncio
import json

import pytest
from support.chats import BOTH, CHAT, EVENTS, ROUTE, Live, batch, code, out, sent, streams
from support.world import ORIGIN, World

from bff import metrics
from bff.chat.records import UNREADABLE
from bff.demo.upstream import Answer, Seen
from bff.errors import UpstreamUnavailable
from bff.gateway.chats import OVERDUE_SECONDS


@pytest.fixture
async def chats(world: World) -> World:
    await world.start(**CHAT)
    streams(world)
    return world


async def test_stream_has_the_heads_that_browsers_and_proxies_need(chats: World) -> None:
    streams(chats, batch({"type": "start"}), x_session_settled="true", set_cookie="a=b")

    response = await out(chats)

    assert response.status_code == 200
    heads = {name: response.headers[name] for name in (
        "content-type", "cache-control", "x-accel-buffering", "x-stream-version",
        "x-session-settled", "connection", "access-control-allow-origin", "vary",
        "x-content-type-options",
    )}  # fmt: skip
    assert heads == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-stream-version": "v2",
        "x-session-settled": "true",
        "connection": "close",
        "access-control-allow-origin": ORIGIN,
        "vary": "Authorization, Origin, Accept",
        "x-content-type-options": "nosniff",
    }
    assert "set-cookie" not in response.headers
    assert "content-length" not in response.headers


async def test_stream_passes_events_that_browsers_may_see(chats: World) -> None:
    record = {
        "seq_num": 1, "headers": [["trigger-control", "turn-complete"],
                                  ["public-access-token", "sentinel"]],
    }  # fmt: skip
    end = b"event: batch\ndata: %b\n\n" % json.dumps({"records": [record]}).encode()
    streams(chats, batch({"type": "text-delta"}) + end + b"data: [DONE]\n\n")

    text = (await out(chats)).text

    assert "text-delta" in text
    assert "turn-complete" in text
    assert text.endswith("data: [DONE]\n\n")
    assert "sentinel" not in text
    dropped = metrics.STREAM_HEADERS_DROPPED, "public-access-token"
    assert chats.telemetry.counts[dropped] == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(404, {"error": "Not found"}, {"x-should-retry": "false"}), (404, "not_found")),
        (Answer(404, b"<html>"), (502, "upstream_invalid")),
        (Answer(401, {"error": "Invalid API key"}), (502, "upstream_rejected_credentials")),
        (Answer(401, b"<html>"), (502, "upstream_invalid")),
        (Answer(403, b"<html>"), (502, "upstream_invalid")),
        (Answer(410, {"error": "secret"}), (502, "upstream_invalid")),
        (Answer(204, b""), (502, "upstream_invalid")),
        (Answer(500, {"error": "secret"}), (502, "upstream_unavailable")),
        (Answer(429, {"error": "x"}, {"retry-after": "3"}), (503, "over_budget")),
        (Answer(200, {"records": []}), (502, "upstream_invalid")),
        (Answer(200, b"x", {"content-type": "text/html"}), (502, "upstream_invalid")),
        (Answer(200, b"x", {"content-type": "text/event-stream"}), (502, "stream_version")),
        (Answer(200, b"x", EVENTS | {"x-stream-version": "v1"}), (502, "stream_version")),
        (Answer(200, b"x", EVENTS | {"x-stream-version": "v3"}), (502, "stream_version")),
    ],
)
async def test_other_answer_of_upstream_opens_nothing(
    chats: World, answer: Answer, told: tuple[int, str]
) -> None:
    async def override(_: Seen) -> Answer:
        return answer

    chats.upstream.override = override
    response = await out(chats)

    assert code(response) == told
    assert "secret" not in response.text
    assert len(chats.service.gateway.streams) == 0


async def test_unreadable_stream_ends_and_is_not_resumed(chats: World) -> None:
    streams(chats, batch({"type": "start"}, first=7) + b"event: batch\ndata: no\n\n")

    assert (await out(chats)).content.endswith(UNREADABLE)
    assert code(await out(chats, last_event_id="7")) == (410, "stream_unreadable")
    assert (await out(chats, last_event_id="6")).status_code == 200
    chats.clock.advance(61)
    assert (await out(chats, last_event_id="7")).status_code == 200
    assert chats.telemetry.counts[metrics.STREAM_ENDS, "unreadable"] == 3


async def test_unreadable_first_record_is_not_opened_again(chats: World) -> None:
    streams(chats, b"event: batch\ndata: no\n\n")

    await out(chats)

    assert code(await out(chats)) == (410, "stream_unreadable")
    assert (await out(chats, x_trigger_stream_start="latest")).status_code == 200


async def test_opens_are_limited_apart_from_requests(chats: World) -> None:
    await chats.start(**CHAT, BFF_STREAM_OPEN_LIMIT="2/minute")
    streams(chats)

    statuses = [(await out(chats)).status_code for _ in range(3)]
    refused = await out(chats)

    assert statuses == [200, 200, 429]
    assert code(refused) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 0
    assert (await chats.get("chat-1", *BOTH)).status_code == 200


async def test_stream_whose_upstream_vanished_ends(chats: World) -> None:
    """Its connection was lost without a sign, so nothing arrives, not even the end."""
    live = Live(chats)
    await live.open(chats.token(*BOTH), timeout_seconds="5")
    chats.clock.advance(5 + OVERDUE_SECONDS - 1)
    early = await live.ended()
    chats.clock.advance(1)

    assert not early
    assert await live.ended()
    assert live.closed
    assert chats.telemetry.counts[metrics.STREAM_ENDS, "upstream"] == 1


async def test_stream_ends_are_counted(chats: World) -> None:
    await out(chats)

    assert chats.telemetry.counts[metrics.STREAM_ENDS, "upstream"] == 1
    assert len(chats.service.gateway.streams) == 0


async def test_token_revoked_while_upstream_answers_gets_401(chats: World) -> None:
    async def override(_: Seen) -> Answer:
        await chats.ops.post("/revocations", json={"jti": "j1"})
        return Answer(200, batch({"type": "start"}), EVENTS)

    chats.upstream.override = override
    response = await out(chats, token=chats.token(*BOTH, jti="j1"))

    assert code(response) == (401, "token_revoked")
    assert len(chats.service.gateway.streams) == 0


async def test_settings_changed_while_upstream_answers_decide(chats: World) -> None:
    async def override(_: Seen) -> Answer:
        chats.reload(BFF_CHAT="false")
        return Answer(200, batch({"type": "start"}), EVENTS)

    chats.upstream.override = override

    assert code(await out(chats)) == (410, "not_served")
    assert len(chats.service.gateway.streams) == 0


async def test_opens_spend_nothing_of_the_budget(chats: World) -> None:
    await chats.start(**CHAT | {"BFF_UPSTREAM_BUDGET": "1/second"})
    streams(chats)

    assert [(await out(chats)).status_code for _ in range(5)] == [200] * 5
    assert [path for _, path in sent(chats)] == [f"{ROUTE}chat-1/out"] * 5


async def test_opens_and_cuts_leave_no_task_and_no_count(chats: World) -> None:
    """Browsers leave, upstream ends or cuts; `make streams` does it on sockets."""
    await chats.start(**CHAT, BFF_STREAM_OPEN_LIMIT="off")
    streams, counts = chats.service.gateway.streams, chats.telemetry.counts
    token, tasks = chats.token(*BOTH), len(asyncio.all_tasks())
    for number in range(300):
        live = Live(chats)
        await live.open(token)
        await live.send(batch({"type": "start"})[: 40 if number % 2 else None])
        if number % 3 == 0:
            live.reading.cancel()
        else:
            live.upstream.end(None if number % 3 == 1 else UpstreamUnavailable())
        await asyncio.wait([live.reading])
        assert live.closed

    assert len(streams) == 0
    assert not streams._by_caller
    assert len(asyncio.all_tasks()) == tasks
    ends = {key[1]: n for key, n in counts.items() if key[0] == metrics.STREAM_ENDS}
    assert ends == {"browser": 100, "upstream": 200}
