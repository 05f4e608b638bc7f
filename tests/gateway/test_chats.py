"""The two routes of a chat: who may use them, and what the browser may choose."""

from typing import Any

import pytest
from support.chats import BOTH, CHAT, ROUTE, append, code, message, out, sent, streams
from support.world import FRIENDLY, OWN_KEY, ROOT_KEY, Clock, World, claims, read, sign

from bff.gateway.routes import CHAT_IN, CHAT_OUT, Routes, match_chat


@pytest.fixture
async def chats(world: World) -> World:
    await world.start(**CHAT, BFF_MESSAGE_LIMIT="off", BFF_STREAM_OPEN_LIMIT="off")
    streams(world)
    return world


async def test_routes_are_410_while_chats_are_off(world: World) -> None:
    assert code(await append(world)) == (410, "not_served")
    assert code(await out(world)) == (410, "not_served")
    assert world.calls == 0


async def test_reload_switches_chats_off(chats: World) -> None:
    assert (await append(chats)).status_code == 200

    chats.reload(BFF_CHAT="false")

    assert code(await append(chats)) == (410, "not_served")
    assert code(await out(chats)) == (410, "not_served")


@pytest.mark.parametrize(
    "path",
    [
        "chat-1/in", "chat-1/out/append", "chat-1/in/append/", "chat-1/out/", "chat-1/in/records",
        "chat-1/channels/a/out", "chat-1/x/out", "chat-1/OUT", "chat-1/in/Append", "out", "",
        "chat-1%2Fout", "chat-1/in/append/out", "../api/v1/sessions/chat-1", "chat-1//out",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_no_other_route_reaches_upstream(chats: World, path: str, method: str) -> None:
    headers = {"authorization": f"Bearer {chats.token('admin')}"}

    response = await chats.browser.request(method, ROUTE + path, headers=headers)

    assert response.status_code in (404, 405, 410)
    assert sent(chats) == []


@pytest.mark.parametrize(
    ("method", "route", "allow"),
    [
        ("GET", "in/append", "POST, OPTIONS"), ("PUT", "in/append", "POST, OPTIONS"),
        ("POST", "out", "GET, OPTIONS"), ("PUT", "out", "GET, OPTIONS"),
        ("HEAD", "out", "GET, OPTIONS"), ("DELETE", "out", "GET, OPTIONS"),
    ],
)  # fmt: skip
async def test_other_methods_get_405(chats: World, method: str, route: str, allow: str) -> None:
    response = await chats.browser.request(method, f"{ROUTE}chat-1/{route}")

    assert (response.status_code, response.headers["allow"]) == (405, allow)
    assert sent(chats) == []


def test_match_finds_the_raw_segment() -> None:
    assert match_chat(b"/realtime/v1/sessions/a%2Fb/out") == (CHAT_OUT, b"a%2Fb")
    assert match_chat(b"/realtime/v1/sessions//in/append") == (CHAT_IN, b"")
    assert Routes({}, chat=True)


@pytest.mark.parametrize("id_", ["chat-2", "chat-closed", "never-made", FRIENDLY["chat-2"], "a/b"])
@pytest.mark.parametrize("scopes", [BOTH, ("read:sessions:x", "write:sessions:x"), ("read:runs",)])
async def test_every_id_that_is_not_named_gets_one_answer(
    chats: World, id_: str, scopes: tuple[str, ...]
) -> None:
    token = chats.token(*scopes)

    answers = [await append(chats, id_=id_, token=token), await out(chats, id_=id_, token=token)]

    assert [code(answer) for answer in answers] == [(403, "unauthorized")] * 2
    assert len({answer.content for answer in answers}) == 1
    assert chats.calls == 0


async def test_read_scope_sends_nothing_and_write_scope_reads_nothing(chats: World) -> None:
    reads, writes = chats.token(*read("chat-1")), chats.token("write:sessions:chat-1")

    assert code(await append(chats, token=reads)) == (403, "unauthorized")
    assert code(await out(chats, token=writes)) == (403, "unauthorized")
    assert (await append(chats, token=writes)).status_code == 200
    assert (await out(chats, token=reads)).status_code == 200


async def test_id_with_a_channel_names_no_session(chats: World) -> None:
    id_ = "chat-1:channels:main"
    token = chats.token(f"read:sessions:{id_}", f"write:sessions:{id_}", "read:sessions")

    assert code(await out(chats, id_=id_, token=token)) == (403, "unauthorized")
    assert code(await append(chats, id_=id_, token=token)) == (403, "unauthorized")
    assert chats.calls == 0


async def test_other_id_is_allowed_once_the_pair_is_known(chats: World) -> None:
    token, friendly = chats.token(*BOTH), FRIENDLY["chat-1"]
    assert code(await out(chats, id_=friendly, token=token)) == (403, "unauthorized")

    await chats.get("chat-1")

    assert (await out(chats, id_=friendly, token=token)).status_code == 200
    body = message(chatId="chat-1")
    assert (await append(chats, body, id_=friendly, token=token)).status_code == 200
    assert sent(chats) == [
        ("GET", f"{ROUTE}{friendly}/out"), ("POST", f"{ROUTE}{friendly}/in/append"),
    ]  # fmt: skip


@pytest.mark.parametrize("id_", [".", ".."])
async def test_dots_never_reach_upstream(chats: World, id_: str) -> None:
    token = chats.token("read:sessions", "write:sessions")
    headers = {"authorization": f"Bearer {token}"}
    for text in (id_, id_.replace(".", "%2e")):
        for route in ("in/append", "out"):
            method = "POST" if route != "out" else "GET"
            scope_path = f"{ROUTE}{text}/{route}"
            response = await chats.browser.request(method, scope_path, headers=headers)
            assert response.status_code in (400, 404, 410)
    assert sent(chats) == []


async def test_odd_id_reaches_upstream_as_one_segment(chats: World) -> None:
    id_ = "a/b: c%?#ü"
    token = chats.token(f"read:sessions:{id_}", f"write:sessions:{id_}")

    assert (await append(chats, message(chatId=id_), id_=id_, token=token)).status_code == 200
    assert (await out(chats, id_=id_, token=token)).status_code == 200
    quoted = "a%2Fb%3A%20c%25%3F%23%C3%BC"
    assert sent(chats) == [
        ("POST", f"{ROUTE}{quoted}/in/append"), ("GET", f"{ROUTE}{quoted}/out"),
    ]  # fmt: skip


async def test_cookie_reads_a_stream_and_never_sends_a_message(chats: World) -> None:
    await chats.start(**CHAT, BFF_TOKEN_COOKIE="__Host-t")
    streams(chats)
    cookie = {"cookie": f"__Host-t={chats.token(*BOTH)}", "sec-fetch-site": "same-origin"}

    read_ = await chats.browser.get(f"{ROUTE}chat-1/out", headers=cookie)
    written = await chats.browser.post(f"{ROUTE}chat-1/in/append", headers=cookie, json=message())

    assert read_.status_code == 200
    assert code(written) == (401, "token_missing")


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1,2,3", "1" * 17, " ", "1e3", "٣", "0x1"])
async def test_cursor_without_a_number_is_400(chats: World, cursor: str) -> None:
    headers = {"authorization": f"Bearer {chats.token(*BOTH)}"}
    lines: Any = [*headers.items(), ("last-event-id", cursor.encode("utf-8"))]

    response = await chats.browser.get(f"{ROUTE}chat-1/out", headers=lines)

    assert code(response) == (400, "bad_request")
    assert chats.calls == 0


async def test_repeated_header_that_decides_is_400(chats: World) -> None:
    lines = [("authorization", f"Bearer {chats.token(*BOTH)}")]
    twice = [*lines, ("last-event-id", "1"), ("last-event-id", "2")]

    assert code(await chats.browser.get(f"{ROUTE}chat-1/out", headers=twice)) == (
        400, "bad_request",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "sent_"),
    [
        ({}, "60"), ({"timeout_seconds": "120"}, "120"), ({"timeout_seconds": "0"}, "60"),
        ({"timeout_seconds": "9999"}, "600"), ({"timeout_seconds": "x"}, "60"),
        ({"timeout_seconds": "-5"}, "60"), ({"timeout_seconds": "1"}, "1"),
    ],
)  # fmt: skip
async def test_timeout_is_bounded(chats: World, asked: dict[str, str], sent_: str) -> None:
    await out(chats, **asked)

    assert chats.upstream.seen[-1].header("timeout-seconds") == sent_


async def test_timeout_ends_with_the_token(chats: World) -> None:
    token = chats.token(*BOTH, exp=int(chats.clock.wall) + 10)

    await out(chats, token=token, timeout_seconds="120")

    assert chats.upstream.seen[-1].header("timeout-seconds") == "10"


async def test_upstream_gets_checked_values_and_nothing_of_the_browser(chats: World) -> None:
    await out(
        chats, last_event_id="7", x_peek_settled="1", x_trigger_stream_start="latest",
        cookie="a=b", x_evil="1", accept="text/html", x_trigger_branch="other",
    )  # fmt: skip
    (seen,) = chats.upstream.seen

    assert {name for name, _ in seen.headers} == {
        "host", "accept-encoding", "user-agent", "authorization", "accept", "timeout-seconds",
        "last-event-id", "x-peek-settled",
    }  # fmt: skip
    assert seen.header("accept") == "text/event-stream"
    assert seen.header("last-event-id") == "7"
    assert seen.header("authorization") == f"Bearer {chats_key()}"


def chats_key() -> str:
    from support.world import SECRET_KEY  # noqa: PLC0415

    return SECRET_KEY


async def test_revoked_session_is_refused_by_either_id(chats: World) -> None:
    await chats.get("chat-1")
    token = chats.token(*BOTH)
    chats.clock.advance(5)
    await chats.ops.post("/revocations", json={"session": FRIENDLY["chat-1"]})

    assert code(await append(chats, token=token)) == (403, "unauthorized")
    assert code(await out(chats, token=token)) == (403, "unauthorized")
    assert sent(chats) == []


async def test_unknown_pair_is_loaded_while_a_session_is_revoked(chats: World) -> None:
    token = chats.token(*BOTH)
    chats.clock.advance(5)
    await chats.ops.post("/revocations", json={"session": FRIENDLY["chat-1"]})

    assert code(await out(chats, token=token)) == (403, "unauthorized")
    assert code(await append(chats, token=token)) == (403, "unauthorized")
    assert sent(chats) == []
    assert chats.calls == 1, "one load"


async def test_named_id_needs_no_load_and_no_session(chats: World) -> None:
    token = chats.token("read:sessions:later")

    assert (await out(chats, id_="later", token=token)).status_code == 200
    assert [path for _, path in sent(chats)] == [f"{ROUTE}later/out"]
    assert chats.calls == 1


async def test_preflight_allows_the_routes_and_exposes_their_headers(chats: World) -> None:
    headers = {"origin": "https://app.example.com"}

    preflight = await chats.browser.options(f"{ROUTE}chat-1/in/append", headers=headers)
    stream = await out(chats)

    assert "POST" in preflight.headers["access-control-allow-methods"]
    for name in ("x-part-id", "last-event-id", "timeout-seconds", "x-peek-settled"):
        assert name in preflight.headers["access-control-allow-headers"]
    for name in ("X-Stream-Version", "X-Session-Settled"):
        assert name in stream.headers["access-control-expose-headers"]


@pytest.mark.parametrize("verify", ["upstream", "local,upstream"])
async def test_token_that_only_upstream_verifies_chats(clock: Clock, verify: str) -> None:
    """The session may not exist yet, and a token that only sends may not read it."""
    keys = None if verify == "upstream" else OWN_KEY
    allowed = {"BFF_CHAT_TRIGGER_TOKENS": "true", "BFF_VERIFY": verify, "BFF_SIGNING_KEYS": keys}
    async with World(clock, **CHAT, **allowed) as world:
        streams(world)

        def token(*scopes: str, key: str = ROOT_KEY) -> str:
            return sign(claims(clock.wall, *scopes), key)

        assert (await append(world, token=token(*BOTH))).status_code == 200
        assert (await append(world, token=token("write:sessions:chat-1"))).status_code == 200
        assert (await out(world, token=token("read:sessions:chat-1"))).status_code == 200
        assert (await out(world, id_="new", token=token("read:sessions:new"))).status_code == 200
        world.upstream.seen.clear()
        for refused in (
            await append(world, token=token("read:sessions:chat-1")),
            await out(world, token=token("write:sessions:chat-1")),
            await append(world, token=token(*BOTH, key="forged" * 8)),
            await out(world, token=token(*BOTH, key="forged" * 8)),
        ):
            assert refused.status_code in (401, 403)
        world.answer(403, {"code": "unauthorized", "error": "Unauthorized"})
        for refused in (
            await append(world, token=token(*BOTH, "read:tasks:1")),
            await out(world, token=token(*BOTH, "read:tasks:2")),
        ):
            assert code(refused) == (403, "unauthorized"), "upstream contradicts the scopes"
        assert sent(world) == []
