"""`metadata.answering` in events: what listeners see of it, and what it costs upstream."""

from collections import Counter
from typing import Any

import pytest
from support.chats import BOTH, CHAT, EVENTS, RUNNING, Live, append, sent, streams
from support.listening import Listening, change, check, listen, look, settle
from support.replicas import Replicas, until
from support.world import FRIENDLY, World, read

from bff import metrics
from bff.demo.upstream import Answer, Seen

ANSWERING = CHAT | {"BFF_EXPOSE_ANSWERING": "true"}


@pytest.fixture
async def live(world: World) -> World:
    await world.start(**ANSWERING)
    return world


def peeks(world: World) -> int:
    return sum(path.endswith("/out") for _, path in sent(world))


def agent(world: World, *, idle: bool) -> None:
    """Let upstream answer each peek."""
    if idle:
        streams(world, x_session_settled="true")
    else:
        streams(world, RUNNING)


def told(listening: Listening) -> list[Any]:
    """`metadata` of each document that arrived since the last call."""
    documents = [
        document
        for event in listening.events()
        for document in (event.data["data"] if event.event == "sessions" else [event.data])
    ]
    return [document["metadata"] for document in documents]


async def test_answering_is_absent_until_it_is_known(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, "chat-1")
    first = told(listening)
    await look(live)

    assert first == [None]
    assert told(listening) == [{"answering": False}]
    assert peeks(live) == 1


async def test_message_is_answered_until_its_turn_ends(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, "chat-1", *BOTH)
    await look(live)
    told(listening)
    assert (await append(live)).status_code == 200
    at_once = told(listening)
    await look(live, 2.1)  # the agent has not begun
    waiting = told(listening)
    agent(live, idle=False)
    await look(live, 2.1)
    agent(live, idle=True)
    await look(live, 2.1)

    assert at_once == [{"answering": True}]
    assert waiting == []
    assert told(listening) == [{"answering": False}]


async def test_pings_of_a_stream_prolong_no_turn(live: World) -> None:
    """The agent has died before its first record, and the page waits."""
    agent(live, idle=True)
    listening = await listen(live, "chat-1", *BOTH)
    await look(live)
    assert (await append(live)).status_code == 200
    stream = Live(live)
    await stream.open(live.token(*BOTH))
    for _ in range(7):
        await stream.send(b"event: ping\ndata: {}\n\n")
        await look(live, 10)

    assert stream.received.count(b"event: ping") == 7
    assert listening.newest["metadata"] == {"answering": False}


async def test_peek_reads_from_the_first_record_until_it_has_seen_one(live: World) -> None:
    streams(live)
    await listen(live, "chat-1")
    await look(live)
    agent(live, idle=False)
    for _ in range(2):
        await look(live, 2.1)
    peeked = [seen for seen in live.upstream.seen if seen.raw_path.endswith("/out")]

    assert [seen.header("x-trigger-stream-start") for seen in peeked] == [None, None, "latest"]


async def test_stop_changes_nothing(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, "chat-1", *BOTH)
    await look(live)
    told(listening)
    await append(live, {"kind": "stop"})

    assert told(listening) == []


async def test_poll_does_not_show_it_and_keeps_its_etag(live: World) -> None:
    agent(live, idle=True)
    before = await live.get("chat-1")
    await listen(live, "chat-1")
    await look(live)
    after = await live.get("chat-1", if_none_match=before.headers["etag"])

    assert before.json()["metadata"] is None
    assert after.status_code == 304


async def test_known_answering_is_not_sent_again(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, "chat-1")
    await look(live)
    last = listening.events()[-1].id or ""
    known = await listen(live, "chat-1", last_event_id=last)
    agent(live, idle=False)
    await look(live, 2.1)
    old = await listen(live, "chat-1", last_event_id=last)

    assert told(known) == [{"answering": True}]
    assert told(old) == [{"answering": True}]


async def test_sessions_are_peeked_once_a_ttl_for_all_listeners(live: World) -> None:
    agent(live, idle=False)
    for n in range(50):
        await listen(live, "chat-1", peer=f"192.0.2.{n}")
        await listen(live, None, *read("chat-1"), peer=f"192.0.2.{n}")
    for _ in range(40):
        await look(live, 0.25)

    assert 4 <= peeks(live) <= 6, "ten seconds, a TTL of two"


async def test_nothing_is_peeked_without_listeners_or_when_off(live: World) -> None:
    await live.get("chat-1")
    await look(live, 2.1)
    alone = peeks(live)
    await live.start(**CHAT)
    listening = await listen(live, "chat-1", *BOTH)
    await append(live)
    for _ in range(5):
        await look(live, 1)

    assert (alone, peeks(live)) == (0, 0)
    assert told(listening) == [None]


async def test_session_whose_listener_left_is_not_peeked(live: World) -> None:
    await live.start(**ANSWERING, BFF_ANSWERING_BUDGET="1/minute")
    agent(live, idle=True)
    stays = await listen(live, "chat-1")
    leaves = await listen(live, "chat-2")
    await look(live)
    leaves.leave()
    for _ in range(3):
        await look(live, 61)

    assert b"answering" in stays.received
    assert {path.split("/")[-2] for _, path in sent(live)} == {FRIENDLY["chat-1"]}


async def test_peeks_have_a_budget_and_take_turns(live: World) -> None:
    await live.start(**ANSWERING, BFF_ANSWERING_BUDGET="1/second", BFF_CACHE_TTL="0.5")
    agent(live, idle=False)
    listening = await listen(live, None, *read("chat-1", "chat-2"))
    told(listening)
    for _ in range(24):
        await look(live, 0.25)
    of_each = Counter(path.split("/")[-2] for _, path in sent(live))

    assert 5 <= sum(of_each.values()) <= 7, "six seconds"
    assert max(of_each.values()) - min(of_each.values()) <= 1, "they take turns"
    assert told(listening) == [{"answering": True}] * 2


@pytest.mark.parametrize("status", [404, 429, 500, 403])
async def test_failed_peek_leaves_it_unknown(live: World, status: int) -> None:
    async def fail(seen: Seen) -> Answer | None:
        return Answer(status, b"{}") if seen.raw_path.endswith("/out") else None

    live.upstream.override = fail
    listening = await listen(live, "chat-1")
    for _ in range(5):
        await look(live, 1)

    assert told(listening) == [None]
    assert 2 <= peeks(live) <= 3
    counts = live.telemetry.counts
    assert sum(n for key, n in counts.items() if key[0] == metrics.PEEKS) == peeks(live)


async def test_answering_becomes_absent_while_upstream_fails(live: World) -> None:
    agent(live, idle=False)
    listening = await listen(live, "chat-1")
    await look(live)
    told(listening)
    live.answer(500)
    for _ in range(62):
        await look(live, 1)
        check(live)

    assert told(listening) == [None]


async def test_other_callers_sessions_cause_no_byte(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, "chat-2", *read("chat-2"))
    await listen(live, "chat-1", *BOTH)
    await look(live)
    told(listening)
    before = listening.received
    await append(live)
    await look(live, 1)

    assert listening.received == before


async def test_switching_it_ends_the_streams(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()
    live.reload(BFF_EXPOSE_ANSWERING="false")
    check(live)

    assert [event.data for event in listening.events()] == [{"reason": "policy"}]


async def test_answering_and_a_filter_work_together(live: World) -> None:
    agent(live, idle=True)
    token = live.token(*read("chat-1"))
    listening = await listen(live, None, token=token, query="filter%5Bstatus%5D=ACTIVE")
    await look(live)
    change(live, "chat-1", closedAt="2026-02-01T00:00:00.500Z")
    await look(live, 2.1)

    assert [event.event for event in listening.events()] == ["sessions", "session", "gone"]


@pytest.mark.parametrize(
    "answer", [Answer(504, {}), Answer(200, "lost"), Answer(200, {"ok": True})], ids=str
)
async def test_message_without_a_number_leaves_it_unknown(live: World, answer: Answer) -> None:
    """Its answer was lost, or upstream has stored it before."""

    async def override(seen: Seen) -> Answer | None:
        if seen.raw_path.endswith("/out"):
            return Answer(200, b"", EVENTS | {"x-session-settled": "true"})
        return answer if seen.raw_path.endswith("/append") else None

    live.upstream.override = override
    listening = await listen(live, "chat-1", *BOTH)
    await look(live)
    before = told(listening)
    await append(live)
    at_once = told(listening)
    await append(live, {"kind": "stop"})
    for _ in range(5):
        await look(live, 2.1)
    meanwhile = told(listening)
    for _ in range(25):
        await look(live, 2.1)

    assert (before[-1], at_once, meanwhile) == ({"answering": False}, [None], [])
    assert told(listening) == [{"answering": False}], "after a minute in which no turn began"


async def test_replica_that_lacks_the_pair_tells_of_either_id(live: World) -> None:
    agent(live, idle=True)
    listening = await listen(live, FRIENDLY["chat-1"])
    await look(live)
    told(listening)
    turn = ["chat-1"], 7, False
    live.service.gateway.news.receive("default", "turn", *turn)
    await settle(live)

    assert told(listening) == [{"answering": True}]


async def test_replicas_share_peeks_and_messages(replicas: Replicas) -> None:
    one, two = [await replicas.add(**ANSWERING) for _ in range(2)]
    agent(one, idle=True)
    pages = [await listen(world, "chat-1", *BOTH) for world in (one, two)]
    for _ in range(4):
        for world in (one, two):
            await look(world, 0.5)
            await until(lambda: all(b'"answering":false' in page.received for page in pages))
    count = peeks(one)
    await append(one)
    await until(lambda: all(b'"answering":true' in page.received for page in pages))
    await settle(one)

    assert count <= 3, "four seconds, a TTL of two"
