"""Incidents of event streams: their cost upstream, their ends, and the sessions that they show."""

import os
from typing import Any

import pytest
from support.chats import BOTH, CHAT, append, sent, streams
from support.listening import Listening, change, check, listen, look
from support.world import FRIENDLY, OFF, World, read

STORM = int(os.environ.get("STORM", "500"))
"""Browsers of a reconnect storm; `make storm` takes 10,000."""
MANY = OFF | {"BFF_MAX_LISTENERS": "80000", "BFF_MAX_LISTENERS_PER_CALLER": "20000"}
ANSWERING = CHAT | {"BFF_EXPOSE_ANSWERING": "true"}


@pytest.fixture
async def live(world: World) -> World:
    await world.start(**MANY)
    return world


async def test_96_five_hundred_listeners_cost_one_load_a_ttl(live: World) -> None:
    token = live.token(*read("chat-1"))
    opened = [await listen(live, "chat-1", token=token) for _ in range(500)]
    for _ in range(8):
        await look(live, 0.5)
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    assert live.calls <= 4, "one for each two of six seconds, and the first"
    assert all(one.received.count(b"event: session\n") == 1 for one in opened)


async def test_97_hidden_session_changes_no_byte_of_a_listener(live: World) -> None:
    async def bytes_of_bob(*, busy: bool) -> list[bytes]:
        await live.start(**MANY)
        pages = [
            await listen(live, "chat-2", *read("chat-2")),
            await listen(live, None, *read("chat-2", "chat-none")),
        ]
        await listen(live, FRIENDLY["chat-1"], *read(FRIENDLY["chat-1"]))
        for number in range(4):
            if busy:
                change(live, "chat-1", taskIdentifier=f"task-{number}")
            await look(live, 2.1)
            check(live)
        parts = [part for page in pages for part in page.received.split(b"\n\n")]
        return [part for part in parts if not part.startswith((b":", b"retry"))]

    assert await bytes_of_bob(busy=True) == await bytes_of_bob(busy=False)


async def test_97_listener_without_the_scope_is_refused_alike(live: World) -> None:
    refused = [
        (await listen(live, id_, *read("chat-2"))).response for id_ in ("chat-1", "chat-none")
    ]

    assert {(one.status, one.body) for one in refused} == {(403, refused[0].body)}
    assert live.calls == 0


async def test_98_reconnect_storm_costs_one_load_a_session(live: World) -> None:
    tokens = [live.token(*read(name), act={"sub": name}) for name in ("chat-1", "chat-2")]
    pages: list[Listening] = []
    for number in range(STORM):
        name = ("chat-1", "chat-2")[number % 2]
        peer = f"192.0.2.{number % 200}"
        pages.append(await listen(live, name, token=tokens[number % 2], peer=peer))
        live.clock.advance(1 / STORM)

    assert all(page.response.status == 200 for page in pages)
    assert live.calls == 2, "no more loads than sessions"


async def test_99_known_state_is_not_sent_again_after_a_reconnect(live: World) -> None:
    token = live.token(*read("chat-1", "chat-2"))
    first = await listen(live, None, token=token)
    change(live, "chat-2", taskIdentifier="another")
    await look(live, 2.1)
    last = first.events()[-1].id or ""
    first.leave()
    async with World(live.clock, **MANY) as other:
        other.upstream = live.upstream
        await other.start(**MANY)
        again = await listen(other, None, token=token, last_event_id=last)

    assert again.received.partition(b"\n\n")[2] == b": ok\n\n"


@pytest.mark.parametrize("how", ["expired", "revoked"])
async def test_70_stream_ends_with_its_token(live: World, how: str) -> None:
    token = live.token(*read("chat-1"), jti="j1", exp=int(live.clock.wall) + 30)
    page = await listen(live, "chat-1", token=token)
    page.events()
    live.clock.advance(31 if how == "expired" else 1)
    if how == "revoked":
        await live.ops.post("/revocations", json={"jti": "j1"})
    check(live)
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    assert [(event.event, event.data) for event in page.events()] == [("end", {"reason": how})]
    assert page.finished


async def test_71_unknown_answering_is_absent(live: World) -> None:
    await live.start(**ANSWERING)
    live.answer(500)
    live.upstream.override, failing = None, live.upstream.override
    page = await listen(live, "chat-1")
    live.upstream.override = failing
    for _ in range(4):
        await look(live, 1)

    assert b"answering" not in page.received


async def test_71_message_is_answered_before_the_agent_has_begun(live: World) -> None:
    await live.start(**ANSWERING)
    streams(live, x_session_settled="true")
    page = await listen(live, "chat-1", *BOTH)
    await look(live)
    await append(live)
    for _ in range(4):
        await look(live, 2.1)

    assert page.received.count(b'"answering":false') == 1, "before the message"
    assert page.newest["metadata"] == {"answering": True}


async def test_71_chat_without_a_record_is_not_answered_before_a_message(live: World) -> None:
    """The head of its stream is that of a running turn."""
    await live.start(**ANSWERING)
    streams(live)
    page = await listen(live, "chat-1", *BOTH)
    for _ in range(4):
        await look(live, 1)
    fresh = page.received
    await append(live)
    await look(live, 2.1)

    assert b"answering" not in fresh
    assert page.newest["metadata"] == {"answering": True}


async def test_72_peeks_cost_one_request_a_session_and_ttl(live: World) -> None:
    await live.start(**ANSWERING)
    streams(live)
    for number in range(100):
        await listen(live, "chat-1", peer=f"192.0.2.{number}")
    for _ in range(8):
        await look(live, 0.5)
    peeks = sum(path.endswith("/out") for _, path in sent(live))

    assert 1 <= peeks <= 3, "four seconds, a TTL of two"


async def test_73_token_for_a_new_chat_ends_the_list(live: World) -> None:
    def token(*names: str) -> str:
        claims: dict[str, Any] = {"act": {"sub": "ann"}, "iat": int(live.clock.wall)}
        return live.token(*read(*names), **claims)

    page = await listen(live, None, token=token("chat-1"))
    page.events()
    live.clock.advance(1)
    await live.get("chat-2", token=token("chat-2"))
    again = await listen(live, None, token=token("chat-1", "chat-2"))

    assert [event.data for event in page.events()] == [{"reason": "outdated"}]
    assert len(again.events()[0].data["data"]) == 2
