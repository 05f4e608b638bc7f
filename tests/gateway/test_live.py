"""Live session state: what a listener gets, what it costs upstream, and what ends it."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from support.listening import LIST, change, check, listen, look, parse, settle
from support.polls import polled_world
from support.virtual_time import run
from support.world import FRIENDLY, NEW_KEY, OFF, ORIGIN, OWN_KEY, World, read

from bff import metrics
from bff.demo.upstream import Answer, Seen, session
from bff.response import Response, StreamResponse


@pytest.fixture
async def live(world: World) -> World:
    await world.start(**OFF)
    return world


def code(response: Response) -> tuple[int, str]:
    return response.status, json.loads(response.body)["code"]


def fail(world: World, id_: str) -> None:
    """Let upstream fail for one session."""

    async def override(seen: Seen) -> Answer | None:
        return Answer(200, {"id": 1}) if seen.raw_path.endswith((id_, FRIENDLY[id_])) else None

    world.upstream.override = override


# -- what a listener gets


async def test_first_event_has_the_document_of_a_poll(live: World) -> None:
    polled = await live.get("chat-1")
    listening = await listen(live, "chat-1")

    (event,) = listening.events()
    assert (event.event, event.data) == ("sessions", {"data": [polled.json()]})
    assert polled.content in listening.received
    assert live.calls == 1


async def test_stream_has_the_heads_that_browsers_and_proxies_need(live: World) -> None:
    listening = await listen(live, "chat-1")

    headers = dict(listening.response.headers())
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store, no-transform"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"connection"] == b"close"
    assert headers[b"vary"] == b"Authorization, Origin, Accept"
    assert headers[b"access-control-allow-origin"] == ORIGIN.encode()
    assert b"etag" not in headers
    assert listening.received.startswith(b"retry: ")


async def test_changed_session_is_shown_as_a_poll_shows_it(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()

    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    (event,) = listening.events()
    polled = await live.get("chat-1")
    assert (event.event, event.data) == ("session", polled.json())
    assert polled.json()["taskIdentifier"] == "another"
    assert live.calls == 2


async def test_unchanged_session_causes_no_event(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()

    await look(live, 2.1)
    await look(live, 2.1)

    assert live.calls == 3
    assert listening.events() == []


async def test_load_of_a_poll_reaches_listeners_at_once(live: World) -> None:
    listening = await listen(live, FRIENDLY["chat-1"])
    listening.events()
    change(live, "chat-1", taskIdentifier="another")
    live.clock.advance(8)  # beyond the time in which a poll gets the stale copy

    await live.get("chat-1")
    await settle(live)

    assert [event.event for event in listening.events()] == ["session"]


async def test_session_that_disappears_is_gone_and_may_come_back(live: World) -> None:
    listening = await listen(live, "chat-1", *read("chat-1", "chat-2"))
    listening.events()
    sessions = live.upstream.environments[0].sessions
    removed = sessions.pop(FRIENDLY["chat-1"])
    await look(live, 2.1)
    await look(live, 2.1)

    gone = listening.events()
    sessions[FRIENDLY["chat-1"]] = removed
    await look(live, 2.1)

    assert [(event.event, event.data) for event in gone] == [("gone", {"id": "chat-1"})]
    assert [event.event for event in listening.events()] == ["session"]


async def test_list_shows_all_sessions_of_the_token(live: World) -> None:
    names = [f"chat-many-{n}" for n in range(30)]
    for number, name in enumerate(names):
        live.upstream.environments[0].add(session(100 + number, name))
    listening = await listen(live, None, *read(*names, "chat-none"))

    (event,) = listening.events()
    assert event.event == "sessions"
    assert [one["externalId"] for one in event.data["data"]] == names
    assert set(event.data) == {"data"}


async def test_list_shows_each_change_and_nothing_else(live: World) -> None:
    listening = await listen(live, None, *read("chat-1", "chat-2"))
    listening.events()

    change(live, "chat-2", taskIdentifier="another")
    await look(live, 2.1)

    (event,) = listening.events()
    assert (event.event, event.data["externalId"]) == ("session", "chat-2")


async def test_session_named_by_both_ids_is_shown_once(live: World) -> None:
    listening = await listen(live, None, *read("chat-1", FRIENDLY["chat-1"]))
    (first,) = listening.events()

    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    assert len(first.data["data"]) == 1
    assert [event.event for event in listening.events()] == ["session"]


async def test_filter_shows_sessions_that_match_now(live: World) -> None:
    token = live.token(*read("chat-1", "chat-2"))
    listening = await listen(live, None, token=token, query="filter%5Bstatus%5D=ACTIVE")
    (first,) = listening.events()

    change(live, "chat-1", closedAt="2026-02-01T00:00:00.500Z")
    await look(live, 2.1)
    closed = listening.events()
    change(live, "chat-1", closedAt=None)
    await look(live, 31)

    assert len(first.data["data"]) == 2
    assert [(event.event, event.data) for event in closed] == [("gone", {"id": "chat-1"})]
    assert [event.event for event in listening.events()] == ["session"]


async def test_late_session_is_reported_and_follows(live: World) -> None:
    await live.start(**OFF | {"BFF_UPSTREAM_BUDGET": "1/second"})
    await live.get("chat-1")
    token = live.token(*read("chat-1", "chat-2", "chat-closed"))
    listening = asyncio.create_task(listen(live, None, token=token))
    await asyncio.sleep(0)
    live.clock.advance(0.1)
    opened = await listening
    (first,) = opened.events()
    for _ in range(5):
        await look(live, 1.1)

    late = [one["id"] for one in first.data["unavailable"]]
    shown = {event.data["externalId"] for event in opened.events() if event.event == "session"}
    assert late
    assert set(late) <= shown


async def test_unavailable_session_follows_although_others_know_it(live: World) -> None:
    """Another listener was shown the very same document, so for that one nothing changes."""
    token = live.token(*read("chat-1", "chat-2"))
    knows = await listen(live, None, token=token)
    await look(live)

    async def fail_for_one(seen: Seen) -> Answer | None:
        return Answer(503, b"") if seen.raw_path.endswith("chat-2") else None

    live.upstream.override = fail_for_one
    await look(live, 400)  # beyond the time for which its copy may be shown
    listening = await listen(live, None, token=token)
    (first,) = listening.events()
    live.upstream.override = None
    for _ in range(3):
        await look(live, 31)  # beyond the time in which nothing is loaded again

    assert [one["id"] for one in first.data["unavailable"]] == ["chat-2"]
    assert [event.data["externalId"] for event in listening.events()] == ["chat-2"]
    assert [event.event for event in knows.events()] == ["sessions"]


@pytest.mark.parametrize(("status", "events"), [("ACTIVE", ["gone"]), ("EXPIRED", ["session"])])
async def test_filter_follows_a_session_that_expires(
    live: World, status: str, events: list[str]
) -> None:
    """No document changes at that time."""
    expires = datetime.fromtimestamp(live.clock.wall + 60, UTC)
    change(live, "chat-1", expiresAt=expires.isoformat().replace("+00:00", "Z"))
    token, query = live.token(*read("chat-1", "chat-2")), f"filter%5Bstatus%5D={status}"
    listening = await listen(live, None, token=token, query=query)
    await look(live, 30)
    before = listening.events()
    await look(live, 31)
    sent = {"authorization": f"Bearer {token}"}
    page = (await live.browser.get(f"{LIST}?{query}", headers=sent)).json()["data"]

    assert [event.event for event in before] == ["sessions"]
    assert [event.event for event in listening.events()] == events
    assert [one["externalId"] for one in page] == ["chat-2" if events == ["gone"] else "chat-1"]


async def test_session_by_its_other_id_has_events(live: World) -> None:
    listening = await listen(live, FRIENDLY["chat-1"], *read("chat-1"))
    (first,) = listening.events()

    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    assert first.data["data"][0]["externalId"] == "chat-1"
    assert [event.event for event in listening.events()] == ["session"]


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream;q=0.5", True),
        ("text/event-stream, application/json;q=0.9", True),
        ("text/event-stream, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/*", False),
        ("text/html, */*", False),
    ],
)
async def test_accept_chooses_between_events_and_json(
    live: World, accept: str, *, events: bool
) -> None:
    response = (await listen(live, "chat-1", accept=accept)).response

    assert isinstance(response, StreamResponse) is events
    assert response.status == 200


async def test_head_is_that_of_a_poll(live: World) -> None:
    response = await live.get("chat-1", method="HEAD", accept="text/event-stream")

    assert response.headers["content-type"] == "application/json; charset=utf-8"


async def test_refusals_are_those_of_a_poll(live: World) -> None:
    unnamed = await listen(live, "chat-1", *read("chat-2"))
    missing = await listen(live, "chat-none")
    expired = await listen(live, "chat-1", token=live.token(*read("chat-1"), exp=1))
    live.answer(500)
    failing = await listen(live, "chat-2")

    assert code(unnamed.response) == (403, "unauthorized")
    assert code(missing.response) == (404, "not_found")
    assert code(expired.response) == (401, "token_expired")
    assert code(failing.response) == (502, "upstream_unavailable")
    assert len(live.service.gateway.listeners) == 0


@pytest.mark.parametrize("query", ["page%5Bsize%5D=5", "page%5Bafter%5D=x", "filter%5Bno%5D=1"])
async def test_list_refuses_queries_without_a_meaning(live: World, query: str) -> None:
    listening = await listen(live, None, *read("chat-1"), query=query)

    assert code(listening.response) == (400, "bad_request")


async def test_list_refuses_more_sessions_than_a_listener_may_follow(live: World) -> None:
    many = await listen(live, None, *read(*(f"c{n}" for n in range(501))))
    every = await listen(live, None, "read:sessions")

    assert code(many.response) == (400, "bad_request")
    assert code(every.response) == (403, "unauthorized")


async def test_if_none_match_is_ignored(live: World) -> None:
    etag = (await live.get("chat-1")).headers["etag"]
    listening = await listen(live, "chat-1", if_none_match=etag)

    assert [event.event for event in listening.events()] == ["sessions"]


# -- what is known is not sent again


async def test_known_state_is_not_sent_again_by_another_replica(live: World) -> None:
    token = live.token(*read("chat-1", "chat-2"))
    first = (await listen(live, None, token=token)).events()[-1].id
    change(live, "chat-2", taskIdentifier="another")
    listening = await listen(live, None, token=token, last_event_id=first or "")
    listening.events()
    await look(live, 2.1)
    last = listening.events()[-1].id or ""

    async with World(live.clock, **OFF) as other:
        other.upstream = live.upstream
        await other.start(**OFF)
        known = await listen(other, None, token=token, last_event_id=last)
        old = await listen(other, None, token=token, last_event_id=first or "")

        assert known.events() == []
        assert known.received.endswith(b"\n\n: ok\n\n")
        assert [event.event for event in old.events()] == ["sessions"]
        change(other, "chat-1", taskIdentifier="third")
        await look(other, 2.1)
        assert [event.event for event in known.events()] == ["session"]


@pytest.mark.parametrize("garbage", ["", "0", "x" * 4000, "ü", '"tag"', "7,8,9"])
async def test_unknown_last_event_id_gets_everything(live: World, garbage: str) -> None:
    listening = await listen(live, "chat-1", last_event_id=garbage)

    assert [event.event for event in listening.events()] == ["sessions"]


# -- what it costs upstream


async def test_listeners_of_one_session_cost_one_load_a_ttl(live: World) -> None:
    listeners = [await listen(live, "chat-1", peer=f"192.0.2.{n}") for n in range(200)]
    for _ in range(20):
        await look(live, 0.5)
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    assert live.calls <= 7, "one for each two of 12 seconds, and the first"
    for listening in listeners:
        assert [event.event for event in listening.events()] == ["sessions", "session"]


async def test_session_without_listeners_is_not_loaded(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.leave()
    for _ in range(3):
        await look(live, 2.1)

    assert live.calls == 1
    assert live.service.gateway.listeners.watched == 0


async def test_missing_sessions_are_loaded_no_more_often(live: World) -> None:
    await listen(live, None, *read("chat-1", "chat-none"))
    before = live.calls
    for _ in range(40):
        await look(live, 0.25)

    assert live.calls - before <= 12, "two sessions, ten seconds, a TTL of two seconds"


async def test_reconnects_cost_no_load(live: World) -> None:
    for n in range(300):
        (await listen(live, "chat-1", peer=f"192.0.2.{n % 200}")).leave()

    assert live.calls == 1


def test_many_sessions_cost_the_budget_and_no_more() -> None:
    async def history() -> None:
        async with polled_world(BFF_UPSTREAM_BUDGET="10/second") as it:
            loop, listeners = asyncio.get_running_loop(), []
            for name in it.add(*(f"c{n}" for n in range(60))):
                token = it.token(f"person-{name}", [name])
                listeners.append(await listen(it.world, name, token=token))
                await asyncio.sleep(0.1)
            await asyncio.sleep(30)
            settled = loop.time()
            oldest = 0.0
            for _ in range(40):
                await asyncio.sleep(0.5)
                for one in listeners:
                    run_id = one.newest["currentRunId"].removeprefix("run_")
                    oldest = max(oldest, loop.time() - float(run_id))
            spent = sum(at >= settled for at, _ in it.reads)

            assert 180 <= spent <= 201, "20 seconds of 10 loads"
            assert oldest <= 6.5, "60 sessions at 10 a second, and half a second"

    run(history)


def test_one_list_costs_one_load_of_each_session_a_ttl() -> None:
    async def history() -> None:
        async with polled_world() as it:
            names = it.add(*(f"c{n}" for n in range(5)))
            listeners = [await listen(it.world, token=it.token(f"p{n}", names)) for n in range(20)]
            await asyncio.sleep(20)

            loads = [id_ for _, id_ in it.reads if id_ in names]
            assert 45 <= len(loads) <= 55, "5 sessions, 20 seconds, a TTL of 2 seconds"
            assert len({one.received.count(b"event: session\n") for one in listeners}) == 1

    run(history)


# -- what ends it


async def test_expired_token_ends_the_stream(live: World) -> None:
    token = live.token(*read("chat-1"), exp=int(live.clock.wall) + 5)
    listening = await listen(live, "chat-1", token=token)
    listening.events()

    live.clock.advance(5)
    check(live)

    assert [(e.event, e.data, e.id) for e in listening.events()] == [
        ("end", {"reason": "expired"}, None)
    ]
    assert listening.finished
    assert live.telemetry.counts[metrics.LISTENER_ENDS, "expired"] == 1


async def test_change_after_expiry_is_not_shown(live: World) -> None:
    token = live.token(*read("chat-1"), exp=int(live.clock.wall) + 2)
    listening = await listen(live, "chat-1", token=token)
    listening.events()
    change(live, "chat-1", taskIdentifier="another")

    await look(live, 2.1)

    assert [event.event for event in listening.events()] == ["end"]


@pytest.mark.parametrize("revoked", [{"jti": "j1"}, {"session": "chat-1"}, {"subject": "ann"}])
async def test_revocation_ends_the_stream(live: World, revoked: dict[str, str]) -> None:
    token = live.token(*read("chat-1"), jti="j1", act={"sub": "ann"})
    listening = await listen(live, None, token=token)
    other = await listen(live, "chat-2")
    for one in (listening, other):
        one.events()

    live.clock.advance(1)
    await live.ops.post("/revocations", json=revoked)
    check(live)

    assert [e.data for e in listening.events()] == [{"reason": "revoked"}]
    assert other.events() == []


async def test_session_revoked_by_its_other_id_ends_the_stream(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()
    change(live, "chat-1", taskIdentifier="another")
    live.clock.advance(1)
    await live.ops.post("/revocations", json={"session": FRIENDLY["chat-1"]})

    await look(live, 2.1)
    check(live)

    assert [e.data for e in listening.events()] == [{"reason": "revoked"}]


async def test_revoked_session_of_a_list_causes_no_byte(live: World) -> None:
    token = live.token(*read("chat-1", "chat-2"))
    live.clock.advance(1)
    await live.ops.post("/revocations", json={"session": "chat-2"})
    listening = await listen(live, None, token=token)
    (first,) = listening.events()
    await live.get("chat-2", token=live.token(*read("chat-2"), iat=int(live.clock.wall) + 1))
    change(live, "chat-2", taskIdentifier="another")
    for _ in range(4):
        await look(live, 2.1)
        check(live)
    other = await listen(live, "chat-2", token=live.token(*read("chat-2")))
    fail(live, "chat-2")
    for _ in range(20):
        await look(live, 2)
        check(live)
    live.upstream.override = None
    del live.upstream.environments[0].sessions[FRIENDLY["chat-2"]]
    for _ in range(4):
        await look(live, 8)
        check(live)

    assert [one["externalId"] for one in first.data["data"]] == ["chat-1"]
    assert {one.comment for one in parse(listening.received.decode())[1:]} == {"ok"}
    assert {one.comment for one in parse(other.received.decode())[1:]} >= {"copies are old"}
    assert other.events()[-1].event == "gone"


async def test_unverified_session_of_a_list_causes_no_byte(live: World) -> None:
    await live.start(**OFF | {"BFF_VERIFY": "upstream", "BFF_SIGNING_KEYS": None})
    environment = live.upstream.environments[0]
    fail(live, "chat-2")
    listening = await listen(
        live, None, token=live.signed_with(environment.root_key, "chat-1", "chat-2")
    )
    (first,) = listening.events()
    live.upstream.override = None
    other = await listen(live, "chat-2", token=live.signed_with(environment.root_key, "chat-2"))
    del environment.sessions[FRIENDLY["chat-2"]]
    for _ in range(4):
        await look(live, 8)
        check(live)

    assert [one["id"] for one in first.data["unavailable"]] == ["chat-2"]
    assert listening.events() == []
    assert other.events()[-1].event == "gone"


async def test_token_for_a_new_session_ends_the_lists_of_its_person(live: World) -> None:
    def token(who: str, *names: str) -> str:
        return live.token(*read(*names), act={"sub": who}, iat=int(live.clock.wall))

    anns = await listen(live, None, token=token("ann", "chat-1"))
    single = await listen(live, "chat-1", token=token("ann", "chat-1"))
    bens = await listen(live, None, token=token("ben", "chat-1"))
    await live.get("chat-1", token=token("ann", "chat-1"))
    for one in (anns, single, bens):
        one.events()
    live.clock.advance(5)
    fresh = token("ann", "chat-2")
    await live.get("chat-2", token=fresh[:-2] + "AA")
    forged = anns.events()
    await live.get("chat-2", token=fresh)

    assert forged == []
    assert [event.data for event in anns.events()] == [{"reason": "outdated"}]
    assert (single.events(), bens.events()) == ([], [])
    again = await listen(live, None, token=token("ann", "chat-1", "chat-2"))
    assert len(again.events()[0].data["data"]) == 2
    await live.get("chat-2", token=fresh)
    assert again.events() == []


async def test_removed_key_ends_the_stream(live: World) -> None:
    await live.start(**OFF | {"BFF_SIGNING_KEYS": f"{NEW_KEY},{OWN_KEY}"})
    listening = await listen(live, "chat-1")
    other = await listen(live, "chat-1", token=live.signed_with(NEW_KEY, "chat-1"))
    for one in (listening, other):
        one.events()

    live.reload(BFF_SIGNING_KEYS=NEW_KEY)
    check(live)

    assert [e.data for e in listening.events()] == [{"reason": "key"}]
    assert other.events() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"BFF_LIVE": "false"},
        {"BFF_EXPOSE_TAGS": "public:*"},
        {"BFF_BRANCH": "another"},
    ],
)
async def test_other_settings_end_the_stream(live: World, changed: dict[str, str]) -> None:
    listening = await listen(live, "chat-1")
    listening.events()

    live.reload(**changed)
    check(live)

    assert [e.data for e in listening.events()] == [{"reason": "policy"}]
    assert len(live.service.gateway.listeners) == 0


async def test_settings_that_show_the_same_keep_the_stream(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()

    live.reload(BFF_CACHE_TTL="3")
    check(live)
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 3.1)

    assert [event.event for event in listening.events()] == ["session"]


async def test_switch_off_gives_json(live: World) -> None:
    await live.start(**OFF, BFF_LIVE="false")
    response = await live.get("chat-1", accept="text/event-stream")

    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["vary"] == "Authorization, Origin"


async def test_drain_ends_all_and_opens_others(live: World) -> None:
    listeners = [await listen(live, "chat-1") for _ in range(5)]

    await live.service.gateway.listeners.drain(0.0)
    late = await listen(live, "chat-1")

    assert all(one.events()[-1].data == {"reason": "shutdown"} for one in listeners)
    assert [event.event for event in late.events()] == ["sessions"]


async def test_purged_session_is_loaded_for_its_listeners(live: World) -> None:
    listening = await listen(live, "chat-closed")
    listening.events()
    change(live, "chat-closed", taskIdentifier="another")

    await live.ops.delete("/cache/sessions/chat-closed")
    await look(live, 8)

    assert [event.event for event in listening.events()] == ["session"]


async def test_token_that_upstream_verifies_is_verified_again(live: World) -> None:
    await live.start(**OFF | {"BFF_VERIFY": "upstream", "BFF_SIGNING_KEYS": None})
    token = live.signed_with(live.upstream.environments[0].root_key, "chat-1")
    listening = await listen(live, None, token=token)
    listening.events()
    live.clock.advance(61)
    check(live)

    assert [e.data for e in listening.events()] == [{"reason": "unverified"}]


# -- limits


async def test_caller_has_a_bounded_number_of_streams(live: World) -> None:
    await live.start(**OFF, BFF_MAX_LISTENERS_PER_CALLER="2")
    ann = live.token(*read("chat-1"), act={"sub": "ann"})
    ben = live.token(*read("chat-1"), act={"sub": "ben"})
    opened = [await listen(live, "chat-1", token=ann) for _ in range(2)]
    refused = await listen(live, "chat-1", token=ann)
    other = await listen(live, "chat-1", token=ben)
    opened[0].leave()
    again = await listen(live, "chat-1", token=ann)

    assert code(refused.response) == (429, "too_many_streams")
    assert (other.response.status, again.response.status) == (200, 200)


async def test_all_and_each_address_are_bounded(live: World) -> None:
    await live.start(**OFF, BFF_MAX_LISTENERS="8", BFF_MAX_LISTENERS_PER_CALLER="100")
    statuses = [(await listen(live, "chat-1", peer="192.0.2.1")).response.status for _ in range(3)]
    for n in range(2, 5):
        statuses += [
            (await listen(live, "chat-1", peer=f"192.0.2.{n}")).response.status for _ in range(2)
        ]
    refused = await listen(live, "chat-1", peer="192.0.2.9")

    assert statuses == [200, 200, 429] + [200] * 6
    assert code(refused.response) == (503, "overloaded")


async def test_followed_sessions_are_bounded_together(live: World) -> None:
    await live.start(**OFF, BFF_MAX_LISTENERS="4")
    names = read(*(f"c{n}" for n in range(150)))
    first = await listen(live, None, *names)
    refused = await listen(live, None, *names, peer="192.0.2.2")

    assert first.response.status == 200
    assert code(refused.response) == (503, "overloaded")


async def test_opening_counts_as_a_request(live: World) -> None:
    await live.start(**OFF | {"BFF_RATE_LIMIT": "3/minute"})
    statuses = [(await listen(live, "chat-1")).response.status for _ in range(4)]

    assert statuses == [200, 200, 200, 429]


# -- slow readers, silence, trouble


async def test_slow_reader_gets_the_newest_state_alone(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()
    listening.paused = True
    for n in range(5):
        change(live, "chat-1", taskIdentifier=f"task-{n}")
        await look(live, 2.1)
    while_paused = listening.events()
    listening.read()

    assert while_paused == []
    assert [event.data["taskIdentifier"] for event in listening.events()] == ["task-4"]


async def test_quiet_stream_has_a_comment_every_15_seconds(live: World) -> None:
    listeners = [await listen(live, "chat-1") for _ in range(5)]
    for one in listeners:
        one.comments()
    for _ in range(60):
        live.clock.advance(0.5)
        check(live)

    assert [one.comments() for one in listeners] == [["ok", "ok"]] * 5


async def test_comment_says_that_copies_are_old_while_upstream_fails(live: World) -> None:
    listening = await listen(live, "chat-1")
    listening.events()
    live.answer(503)
    for _ in range(80):
        await look(live, 0.5)
        check(live)
    old = listening.received.decode()
    live.answer(0)
    for _ in range(40):
        await look(live, 0.5)
        check(live)

    assert "event: session\n" not in old
    assert old.endswith(": copies are old\n\n")
    assert listening.received.endswith(b": ok\n\n")


async def test_event_is_counted(live: World) -> None:
    await listen(live, "chat-1")
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)

    counts = live.telemetry.counts
    assert counts[metrics.LISTENER_EVENTS, "sessions"] == 1
    assert counts[metrics.LISTENER_EVENTS, "session"] == 1
    text = (await live.ops.get("/metrics")).text
    assert "bff_listeners 1.0" in text
    assert "bff_followed_sessions 1.0" in text


async def test_stream_without_the_fast_path_has_the_same_events(live: World) -> None:
    token = live.token(*read("chat-1"), exp=int(live.clock.wall) + 5)
    reading = asyncio.create_task(
        live.browser.get(
            LIST, headers={"authorization": f"Bearer {token}", "accept": "text/event-stream"}
        )
    )
    while not len(live.service.gateway.listeners):
        await asyncio.sleep(0)
    change(live, "chat-1", taskIdentifier="another")
    await look(live, 2.1)
    live.clock.advance(3)
    check(live)
    text = (await reading).text

    assert [text.count(f"event: {name}\n") for name in ("sessions", "session", "end")] == [1] * 3
