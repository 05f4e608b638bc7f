"""Through the door, in one process: what a browser is told, and what upstream was asked."""

import asyncio
import json
import random
from urllib.parse import quote

import pytest
from support.hostile import ask, told
from support.world import (
    ENVIRONMENT_ID,
    FRIENDLY,
    OFF,
    ORIGIN,
    OWN_KEY,
    PATH,
    ROOT_KEY,
    SECRET_KEY,
    World,
    claims,
    read,
    sign,
)

from bff.demo.upstream import can_read, session


async def test_a_browser_gets_the_session_without_what_it_must_not_see(world: World) -> None:
    response = await world.get("chat-1")

    assert response.status_code == 200
    assert response.json() == {
        "id": FRIENDLY["chat-1"],
        "externalId": "chat-1",
        "type": "chat.agent",
        "taskIdentifier": "my-chat",
        "currentRunId": session(1)["currentRunId"],
        "closedAt": None,
        "closedReason": None,
        "expiresAt": None,
        "createdAt": "2026-01-02T03:04:05.678Z",
        "updatedAt": "2026-01-02T03:04:06.789Z",
        "metadata": None,
        "tags": [],
    }


async def test_upstream_sees_one_segment_the_secret_and_nothing_of_the_browser(
    world: World,
) -> None:
    await world.get("a/b: c%?#ü", cookie="a=1", traceparent="00-1", x_custom="sentinel")

    (seen,) = world.upstream.seen
    assert seen.method == "GET"
    assert seen.raw_path == PATH + quote("a/b: c%?#ü", safe="")
    assert seen.query == ""
    assert dict(seen.headers) == {
        "host": "127.0.0.1:1",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": dict(seen.headers)["user-agent"],
        "authorization": f"Bearer {SECRET_KEY}",
    }


@pytest.mark.parametrize("scope_form", ["external", "friendly"])
@pytest.mark.parametrize("asked_form", ["external", "friendly"])
async def test_either_id_of_a_session_grants_both(
    world: World, scope_form: str, asked_form: str
) -> None:
    forms = {"external": "chat-1", "friendly": FRIENDLY["chat-1"]}

    response = await world.get(forms[asked_form], *read(forms[scope_form]))

    assert response.status_code == 200
    assert response.json()["externalId"] == "chat-1"


@pytest.mark.parametrize(
    "scopes",
    [[], ["read:runs"], ["write:sessions:chat-1"], ["admin:sessions"], ["*"], read("chat-2")],
    ids=repr,
)
async def test_an_id_that_no_scope_can_mean_is_refused_without_asking(
    world: World, scopes: list[str]
) -> None:
    response = await world.get("chat-1", token=world.token(*scopes))

    assert response.status_code == 403
    assert response.json() == {
        "error": "Unauthorized",
        "code": "unauthorized",
        "param": "access_token",
        "type": "authorization",
    }
    assert world.calls == 0


async def test_thousands_of_random_scope_sets_decide_as_upstream_does(world: World) -> None:
    """The pretend upstream answers the same token itself; it has a grammar of its own."""
    await world.start(**OFF)
    chooser = random.Random(7)
    documents = list(world.upstream.environments[0].sessions.values())
    ids = [id_ for d in documents for id_ in (d["id"], d["externalId"]) if id_]
    actions, types = ["read", "write", "admin", "*", ""], ["sessions", "all", "runs", ""]
    granted = 0

    def scope() -> object:
        parts = [chooser.choice(actions), chooser.choice(types), chooser.choice([*ids, "", "x"])]
        text = ":".join(parts[: chooser.choice([1, 2, 3, 3, 3])])
        return chooser.choice([text] * 20 + ["admin", "read:sessions", None, 7])

    for _ in range(3000):
        scopes = [scope() for _ in range(chooser.randrange(5))]
        document, asked = chooser.choice(
            [(d, id_) for d in documents for id_ in (d["id"], d["externalId"]) if id_]
        )
        texts = tuple(text for text in scopes if isinstance(text, str))
        expected = can_read(texts, document)
        granted += expected

        response = await ask(world, quote(asked, safe=""), world.token(*scopes))

        assert (response.status == 200) is expected, (asked, scopes)
        assert response.status in (200, 403)
    assert 300 < granted < 2700, "both happen often"


async def test_existence_of_what_is_not_named_cannot_be_learned(world: World) -> None:
    scopes = read(FRIENDLY["chat-2"])
    await world.get("chat-1")  # a copy is there now

    responses = [await world.get(id_, *scopes) for id_ in ("chat-1", "no-such-chat", "chat-closed")]
    world.answer(500, {"error": "down"})
    responses += [await world.get("chat-of-bad-weather", *scopes)]

    changing = ("x-request-id", "x-ratelimit-remaining", "ratelimit")
    shown = [
        (r.status_code, r.content, [h for h in r.headers.items() if h[0] not in changing])
        for r in responses
    ]
    assert [response.status_code for response in responses] == [403] * 4
    assert all(one == shown[0] for one in shown)


async def test_probing_costs_upstream_no_more_than_the_bad_token_limit(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_UPSTREAM_BUDGET="off")
    token = world.token(*read(FRIENDLY["chat-1"]))

    statuses = {(await world.get(f"made-up-{n}", token=token)).status_code for n in range(500)}

    assert statuses == {403}
    assert world.calls == 60
    assert (await world.get(FRIENDLY["chat-1"], token=token)).status_code == 200


async def test_an_alias_that_turns_out_right_costs_no_bad_token(world: World) -> None:
    await world.start(BFF_BAD_TOKEN_LIMIT="1/minute", BFF_CACHE_TTL="0")
    token = world.token(*read(FRIENDLY["chat-1"]))

    statuses = [(await world.get("chat-1", token=token)).status_code for _ in range(3)]

    assert statuses == [200, 200, 200]


async def test_a_missing_session_is_404_to_who_may_know(world: World) -> None:
    named = await world.get("nope")
    type_wide = await world.get("nope", "read:sessions")

    assert [named.status_code, type_wide.status_code] == [404, 404]
    assert named.json() == {"error": "Not found", "code": "not_found"}
    assert named.headers["x-should-retry"] == "false"
    assert world.calls == 1, "the 404 is remembered for a second"
    world.clock.advance(1)
    world.upstream.environments[0].add(session(9, "nope"))
    assert (await world.get("nope")).status_code == 200


# -- tokens


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "token_missing"),
        ("", "token_missing"),
        ("Bearer", "token_missing"),
        ("Bearer  ", "token_missing"),
        ("Basic YTpi", "token_invalid"),
        ("Bearer garbage", "token_invalid"),
        ("Bearer a.b.c", "token_invalid"),
        ("Bearer " + "x" * 60_000, "token_invalid"),
        (f"Bearer {SECRET_KEY}", "secret_key_sent"),
        (SECRET_KEY, "secret_key_sent"),
        ("Bearer pk_dev_abc", "token_invalid"),
    ],
)
async def test_what_is_no_token_is_401(world: World, authorization: str | None, code: str) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    response = await world.browser.get(PATH + "chat-1", headers=headers | {"origin": ORIGIN})

    assert response.status_code == 401
    assert response.json()["code"] == code
    assert response.headers["www-authenticate"].startswith('Bearer realm="bff"')
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert world.calls == 0


async def test_a_secret_key_from_a_browser_is_logged_without_the_key(world: World) -> None:
    await world.browser.get(PATH + "chat-1", headers={"authorization": f"Bearer {SECRET_KEY}"})

    assert "secret_key_sent_by_browser" in [line["event"] for line in world.logged()]
    assert SECRET_KEY not in world.log.getvalue()


async def test_lower_case_bearer_is_accepted(world: World) -> None:
    authorization = f"bearer {world.token(*read('chat-1'))}"
    response = await world.browser.get(PATH + "chat-1", headers={"authorization": authorization})

    assert response.status_code == 200


async def test_two_authorization_headers_are_400(world: World) -> None:
    authorization = f"Bearer {world.token(*read('chat-1'))}"
    response = await world.browser.get(
        PATH + "chat-1", headers=[("authorization", authorization)] * 2
    )

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_a_token_ends_while_it_is_remembered(world: World) -> None:
    token = world.token(*read("chat-1"))
    assert (await world.get("chat-1", token=token)).status_code == 200

    world.clock.advance(900)
    response = await world.get("chat-1", token=token)

    assert (response.status_code, response.json()["code"]) == (401, "token_expired")


async def test_keys_rotate(world: World) -> None:
    other = "another-signing-key-0123456789abcdef"
    await world.start(BFF_SIGNING_KEYS=f"{other},{OWN_KEY}")
    tokens = [sign(claims(world.clock.wall, *read("chat-1")), key) for key in (OWN_KEY, other)]
    assert [(await world.get("chat-1", token=t)).status_code for t in tokens] == [200, 200]

    await world.start(BFF_SIGNING_KEYS=other)

    assert [(await world.get("chat-1", token=t)).status_code for t in tokens] == [401, 200]


async def test_a_branch_that_shares_its_parents_key_reads_only_itself(
    world: World, tmp_path
) -> None:
    config = tmp_path / "bff.toml"
    config.write_text(
        f"""
        [[environments]]
        name = "one"
        TRIGGER_SECRET_KEY = "{SECRET_KEY}"
        BFF_SIGNING_KEYS = "{ROOT_KEY}"
        BFF_ENVIRONMENT_ID = "{ENVIRONMENT_ID}"
        [[environments]]
        name = "two"
        TRIGGER_SECRET_KEY = "{SECRET_KEY}"
        BFF_SIGNING_KEYS = ["{ROOT_KEY}"]
        BFF_ENVIRONMENT_ID = "env_branch"
        BFF_BRANCH = "feat/two"
        """
    )
    await world.start(
        TRIGGER_SECRET_KEY=None,
        BFF_SIGNING_KEYS=None,
        BFF_ENVIRONMENT_ID=None,
        BFF_CONFIG=str(config),
    )
    now = world.clock.wall
    one, two, neither = (
        sign(claims(now, *read("chat-1"), sub=sub), ROOT_KEY)
        for sub in (ENVIRONMENT_ID, "env_branch", "env_other")
    )

    assert (await world.get("chat-1", token=one)).status_code == 200
    # The pretend upstream knows no such branch, so what comes back is its 401, told as our trouble.
    assert (await world.get("chat-1", token=two)).json()["code"] == "upstream_rejected_credentials"
    assert (await world.get("chat-1", token=neither)).json()["code"] == "token_invalid"
    assert [seen.header("x-trigger-branch") for seen in world.upstream.seen] == [None, "feat/two"]


# -- ids


@pytest.mark.parametrize(
    "segment",
    [
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%",
        "%zz",
        "%ff",
        "%c0%af",
        "%00",
        "%0a",
        "%0d%0a",
        "",
        "x" * 257,
    ],
)
async def test_what_is_no_session_id_is_400_and_not_asked(world: World, segment: str) -> None:
    headers = {"authorization": f"Bearer {world.token('read:sessions')}", "origin": ORIGIN}
    app = world.service.browser_app
    messages = await _asgi(app, PATH.encode() + segment.encode(), headers)

    assert messages[0]["status"] == 400
    assert json.loads(messages[1]["body"])["code"] == "invalid_session_id"
    assert world.calls == 0


async def _asgi(app, raw_path: bytes, headers: dict[str, str], method: str = "GET"):
    """One request with exactly this path; HTTP clients tidy theirs up."""
    messages = []

    async def send(message):
        messages.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": "/whatever",
        "raw_path": raw_path,
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, None, send)
    return messages


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/sessions/chat-1/close", 410, "not_served"),
        ("/api/v1/sessions/chat-1/", 410, "not_served"),
        ("/api/v1//sessions/chat-1", 410, "not_served"),
        ("/api/v1/%53essions/chat-1", 410, "not_served"),
        ("/api/v1/runs/run_1", 410, "not_served"),
        ("/realtime/v1/sessions/chat-1/out", 410, "not_served"),
        ("/API/v1/sessions/chat-1", 404, "not_found"),
        ("/metrics", 404, "not_found"),
        ("/cache/sessions/chat-1", 404, "not_found"),
        ("/readyz", 404, "not_found"),
        ("/%0a", 404, "not_found"),
    ],
)
async def test_other_routes_are_refused_with_cors_headers(
    world: World, path: str, status: int, code: str
) -> None:
    headers = {"authorization": f"Bearer {world.token('read:sessions')}", "origin": ORIGIN}
    messages = await _asgi(world.service.browser_app, path.encode(), headers)

    assert messages[0]["status"] == status
    assert json.loads(messages[1]["body"])["code"] == code
    names = dict(messages[0]["headers"])
    assert names[b"access-control-allow-origin"] == ORIGIN.encode()
    assert names[b"x-should-retry"] == b"false"
    assert world.calls == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_other_methods_are_405(world: World, method: str) -> None:
    response = await world.get("chat-1", method=method)

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


# -- the shared copy


async def test_one_load_serves_everyone_entitled(world: World) -> None:
    first = await world.get("chat-1")
    world.clock.advance(1.5)
    again = await world.get(FRIENDLY["chat-1"])

    assert world.calls == 1
    assert first.headers["cache-status"] == "bff; fwd=miss; stored"
    assert (again.headers["cache-status"], again.headers["age"]) == ("bff; hit", "1")
    assert again.content == first.content
    assert again.headers["etag"] == first.headers["etag"]


async def test_five_hundred_at_once_are_one_call(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off")
    entitled = world.token(*read("chat-1"))
    alias = world.token(*read(FRIENDLY["chat-2"]))
    other = world.token(*read("chat-2"))

    tokens = [entitled, alias, entitled, other] * 125
    responses = await asyncio.gather(*(world.get("chat-1", token=token) for token in tokens))

    assert [response.status_code for response in responses] == [200, 403, 200, 403] * 125
    assert world.calls == 1


async def test_a_load_outlives_the_browser_that_started_it(world: World) -> None:
    gate = asyncio.Event()

    async def slow(_):
        await gate.wait()

    world.upstream.override = slow
    leaver = asyncio.create_task(world.get("chat-1"))
    await asyncio.sleep(0.01)
    stayer = asyncio.create_task(world.get("chat-1"))
    await asyncio.sleep(0.01)
    leaver.cancel()
    await asyncio.sleep(0.01)
    gate.set()

    assert (await stayer).status_code == 200
    assert leaver.cancelled()
    assert world.calls == 1
    assert len(world.service.gateway.cache.loads) == 0


async def test_stale_is_answered_and_refreshed_behind(world: World) -> None:
    first = await world.get("chat-1")
    document = world.upstream.environments[0].find("chat-1")
    document["currentRunId"] = "run_next"
    world.clock.advance(3)

    stale = await world.get("chat-1")
    await world.settle()
    fresh = await world.get("chat-1")

    assert stale.headers["cache-status"] == "bff; hit; detail=stale"
    assert stale.headers["age"] == "3"
    assert stale.content == first.content
    assert stale.headers["etag"] == first.headers["etag"]
    assert fresh.json()["currentRunId"] == "run_next"
    assert fresh.headers["cache-status"] == "bff; hit"
    assert world.calls == 2


async def test_stale_beyond_that_waits_for_a_load(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(8)

    response = await world.get("chat-1")

    assert response.headers["cache-status"] == "bff; fwd=stale; stored"
    assert response.headers["age"] == "0"


async def test_a_closed_session_is_fresh_for_longer(world: World) -> None:
    await world.get("chat-closed")
    world.clock.advance(29)

    assert (await world.get("chat-closed")).headers["cache-status"] == "bff; hit"
    assert world.calls == 1


async def test_while_upstream_fails_copies_are_served_within_their_bound(world: World) -> None:
    first = await world.get("chat-1")
    world.answer(500, {"error": "down"})

    world.clock.advance(61)
    stale = await world.get("chat-1")
    world.clock.advance(1)
    too_old = await world.get("chat-1")
    world.answer(0)
    recovered = await world.get("chat-1")

    assert (stale.status_code, stale.content) == (200, first.content)
    assert stale.headers["age"] == "61"
    assert stale.headers["cache-status"] == "bff; hit; detail=stale-if-error"
    assert (too_old.status_code, too_old.json()["code"]) == (502, "upstream_unavailable")
    assert recovered.status_code == 200


async def test_a_failing_upstream_is_not_asked_for_every_poll(world: World) -> None:
    await world.get("chat-1")
    world.answer(500, {"error": "down"})
    world.clock.advance(20)

    for _ in range(50):
        assert (await world.get("chat-1")).status_code == 200

    assert world.calls == 2
    world.clock.advance(1)
    world.answer(0)
    assert (await world.get("chat-1")).headers["age"] == "0"


async def test_a_session_that_is_gone_is_gone(world: World) -> None:
    await world.get("chat-1")
    del world.upstream.environments[0].sessions[FRIENDLY["chat-1"]]
    world.clock.advance(10)

    assert (await world.get("chat-1")).status_code == 404


async def test_if_none_match_is_looked_at_last(world: World) -> None:
    etag = (await world.get("chat-1")).headers["etag"]

    same = await world.get("chat-1", if_none_match=f'"other", W/{etag}')
    star = await world.get("chat-1", if_none_match="*")
    other = await world.get("chat-1", if_none_match='"other"')
    late = await world.get("chat-1", if_none_match='"other",' * 40 + etag)
    unnamed = await world.get("chat-1", *read("chat-2"), if_none_match=etag)

    assert [r.status_code for r in (same, star, other, unnamed)] == [304, 304, 200, 403]
    assert late.status_code == 200, "a list without end is not read to its end"
    assert same.content == b""
    assert same.headers["etag"] == etag
    assert same.headers["cache-control"] == "private, no-cache"
    assert "content-type" not in same.headers


async def test_head_is_get_without_a_body_and_counts(world: World) -> None:
    full = await world.get("chat-1")
    head = await world.get("chat-1", method="HEAD")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(full.content))
    assert int(head.headers["x-ratelimit-remaining"]) == 298


# -- limits


async def test_the_sixty_first_request_is_429_and_a_new_token_does_not_help(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="60/minute")
    token = world.token(*read("chat-1"))

    responses = [await world.get("chat-1", token=token) for _ in range(61)]
    world.clock.advance(1)
    reminted = await world.get("chat-1", token=world.token(*read("chat-1"), jti="new"))

    assert [r.status_code for r in responses] == [200] * 60 + [429]
    assert [int(r.headers["x-ratelimit-remaining"]) for r in responses] == [*range(59, -1, -1), 0]
    refused = responses[-1]
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert refused.headers["retry-after"] == "60"
    assert int(refused.headers["x-ratelimit-reset"]) == (world.clock.wall - 1 + 60) * 1000
    assert refused.headers["ratelimit-policy"] == '"caller";q=60;w=60'
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert "x-should-retry" not in refused.headers
    assert refused.json() | {"error": "", "detail": ""} == {
        "error": "",
        "detail": "",
        "code": "rate_limited",
        "title": "Rate Limit Exceeded",
        "status": 429,
        "type": "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/429",
        "reset": (world.clock.wall - 1 + 60) * 1000,
        "limit": 60,
        "remaining": 0,
        "secondsUntilReset": 60.0,
    }
    assert reminted.status_code == 429
    world.clock.advance(59)
    assert (await world.get("chat-1", token=token)).status_code == 200


async def test_callers_are_told_apart_by_actor_scopes_and_address(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/minute", BFF_TRUSTED_PROXIES="127.0.0.0/8")

    async def status(scopes: list[str], actor: str | None, address: str) -> int:
        token = world.token(*scopes, act={"sub": actor} if actor else None)
        response = await world.get("chat-1", token=token, x_forwarded_for=address)
        return response.status_code

    mine, more = read("chat-1"), read("chat-1", "chat-2")
    assert await status(mine, "ann", "192.0.2.1") == 200
    assert await status(mine, "ann", "192.0.2.2") == 429, "an actor is one caller anywhere"
    assert await status(mine, "bob", "192.0.2.1") == 200
    assert await status(more, "ann", "192.0.2.1") == 200
    assert await status(mine, None, "192.0.2.1") == 200
    assert await status(mine, None, "192.0.2.1") == 429
    assert await status(mine, None, "192.0.2.2") == 200, "without an actor the address tells"


async def test_bad_tokens_meet_a_tighter_limit_and_harm_no_good_one(world: World) -> None:
    headers = {"authorization": "Bearer bad", "origin": ORIGIN}

    responses = [await world.browser.get(PATH + "chat-1", headers=headers) for _ in range(61)]

    assert [r.status_code for r in responses] == [401] * 60 + [429]
    assert responses[-1].headers["ratelimit-policy"] == '"bad-token";q=60;w=60'
    assert (await world.get("chat-1")).status_code == 200


async def test_addresses_are_limited_before_tokens_are_looked_at(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute")

    responses = [await world.browser.get(PATH + "chat-1") for _ in range(3)]
    good = await world.get("chat-1")

    assert [r.status_code for r in responses] == [401, 401, 429]
    assert good.status_code == 429
    assert world.calls == 0


async def test_hours_reset_within_a_minute_to_whoever_asks(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/hour")
    await world.get("chat-1")

    refused = await world.get("chat-1")

    assert int(refused.headers["x-ratelimit-reset"]) <= (world.clock.wall + 60) * 1000
    assert int(refused.headers["retry-after"]) <= 60


async def test_off_means_no_limit_and_no_headers(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off", BFF_BAD_TOKEN_LIMIT="off")

    response = await world.get("chat-1")

    assert response.status_code == 200
    assert not [name for name in response.headers if "ratelimit" in name]


# -- CORS


async def test_a_preflight_is_answered_first(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="1/minute")
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "x-own"}

    responses = [
        await world.browser.options(path, headers={"origin": ORIGIN, **asked})
        for path in (PATH + "chat-1", PATH + "chat-1", "/realtime/v1/x", PATH + "..%2f")
    ]

    assert [r.status_code for r in responses] == [204] * 4
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "GET" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].split(", ")
        assert "authorization" in allowed
        assert "*" in allowed
        assert response.headers["vary"] == "Authorization, Origin"
    assert world.calls == 0


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        ORIGIN + ".evil",
        ORIGIN + ":8443",
        ORIGIN.replace("https", "http"),
        ORIGIN.upper(),
        "",
    ],
)
async def test_another_origin_gets_no_cors_headers(world: World, origin: str) -> None:
    response = await world.get("chat-1", origin=origin)
    preflight = await world.browser.options(PATH + "chat-1", headers={"origin": origin})

    for headers in (response.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "Authorization, Origin"


async def test_any_origin_only_when_written_and_never_with_credentials(world: World) -> None:
    await world.start(BFF_ALLOWED_ORIGINS="*")

    response = await world.get("chat-1", origin="https://anywhere.example")

    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


async def test_every_answer_carries_what_every_answer_carries(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="3/minute")
    token = world.token(*read("chat-1", "nope"))
    etag = (await world.get("chat-1", token=token)).headers["etag"]
    responses = [
        await world.get("chat-1", token=token, if_none_match=etag),
        await world.get("nope", token=token),
        await world.get("chat-1", token=token),
        await world.get("chat-2", token=token),
        await world.get("chat-1", token="bad"),
        await world.browser.get("/", headers={"origin": ORIGIN}),
        await world.browser.get("/healthz", headers={"origin": ORIGIN}),
        await world.browser.post("/healthz", headers={"origin": ORIGIN}),
        await world.browser.get("/api/v2", headers={"origin": ORIGIN}),
    ]
    statuses = [r.status_code for r in responses]
    assert statuses == [304, 404, 429, 403, 401, 200, 200, 405, 410]

    ids = set()
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["vary"] == "Authorization, Origin"
        assert response.headers["x-content-type-options"] == "nosniff"
        kept = "private, no-cache" if response.status_code == 304 else "no-store"
        assert response.headers["cache-control"] == kept
        ids.add(response.headers["x-request-id"])
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        safelisted = {"content-type", "content-length"}
        unexposed = set(response.headers) - set(exposed) - safelisted
        assert not [name for name in unexposed if not name.startswith("access-control")]
    assert len(ids) == len(responses)


# -- upstream's troubles


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (401, {"error": "Invalid API key"}, 502, "upstream_rejected_credentials"),
        (403, {"error": "Unauthorized"}, 502, "upstream_rejected_credentials"),
        (404, b"<html>", 502, "upstream_invalid"),
        (404, [], 502, "upstream_invalid"),
        (500, b"oops", 502, "upstream_unavailable"),
        (503, {}, 502, "upstream_unavailable"),
        (204, b"", 502, "upstream_invalid"),
        (206, {}, 502, "upstream_invalid"),
        (302, b"", 502, "upstream_invalid"),
        (400, {"error": "bad"}, 502, "upstream_invalid"),
        (200, b"<html>", 502, "upstream_invalid"),
        (200, b"", 502, "upstream_invalid"),
        (200, b"[" * 100_000, 502, "upstream_invalid"),
        (200, b" " * (1024 * 1024 + 1), 502, "upstream_invalid"),
    ],
)
async def test_upstreams_trouble_is_told_as_ours(
    world: World, status: int, body: object, expected: int, code: str
) -> None:
    world.answer(status, body, location="http://elsewhere.example/")

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (expected, code)
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert world.calls == 1
    world.answer(0)
    assert (await world.get("chat-1")).status_code == 200, "nothing of it is kept"


async def test_a_slow_upstream_is_504_in_time(world: World) -> None:
    await world.start(BFF_UPSTREAM_TIMEOUT="0.05")

    async def sleepy(_):
        await asyncio.sleep(10)

    world.upstream.override = sleepy

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (504, "upstream_timeout")


async def test_whoever_has_a_usable_copy_waits_a_second_at_most(world: World) -> None:
    first = await world.get("chat-1")
    world.clock.advance(20)

    async def sleepy(_):
        await asyncio.sleep(2)

    world.upstream.override = sleepy
    started = asyncio.get_running_loop().time()
    stale = await world.get("chat-1")
    waited = asyncio.get_running_loop().time() - started
    await asyncio.sleep(2.2 - waited)
    late = await world.get("chat-1")

    assert (stale.status_code, stale.content) == (200, first.content)
    assert 0.9 < waited < 1.8
    assert (late.headers["cache-status"], world.calls) == ("bff; hit", 2), "the load went on"


async def test_upstreams_429_is_honoured(world: World) -> None:
    await world.get("chat-1")
    world.clock.advance(3)
    reset = str(int((world.clock.wall + 7) * 1000))
    world.answer(
        429,
        {"error": "limited"},
        x_ratelimit_limit="750",
        x_ratelimit_remaining="-1",
        x_ratelimit_reset=reset,
    )

    refused = await world.get("chat-2")
    stale = await world.get("chat-1")
    world.clock.advance(6.9)
    still = await world.get("chat-2")

    assert (refused.status_code, refused.json()["code"]) == (503, "over_budget")
    assert 1 <= int(refused.headers["retry-after"]) <= 7
    assert stale.status_code == 200
    assert still.status_code == 503
    assert world.calls == 2, "no second call before the reset"
    world.answer(0)
    world.clock.advance(0.2)
    assert (await world.get("chat-2")).status_code == 200


async def test_beyond_the_budget_cold_sessions_are_told_to_return(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="1/second")
    first = await world.get("chat-1")

    refused = await world.get("chat-2")
    world.clock.advance(1)
    later = await world.get("chat-2")

    assert first.status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (503, "over_budget")
    assert refused.headers["retry-after"] == "1"
    assert later.status_code == 200


async def test_half_of_upstreams_bucket_is_left_to_the_customer(world: World) -> None:
    bucket = world.upstream.environments[0].bucket
    bucket.limit, bucket.remaining, bucket.refill = 20, 20, 0
    await world.start(BFF_UPSTREAM_BUDGET="off", BFF_CACHE_NEGATIVE_TTL="0")

    for n in range(30):
        await world.get(f"missing-{n}")

    assert world.calls == 10
    assert bucket.remaining == 10


async def test_hot_sessions_cost_the_budget_and_no_more(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="2/second", BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off")
    environment = world.upstream.environments[0]
    names = [f"hot-{n}" for n in range(40)]
    for number, name in enumerate(names, start=100):
        environment.add(session(number, name))
    token = world.token("read:sessions")
    for _ in range(25):  # each gets its first copy
        world.clock.advance(1)
        for name in names:
            await ask(world, name, token)
    started, before = world.clock.now, world.calls

    for _ in range(60):
        world.clock.advance(1)
        responses = [await ask(world, name, token) for name in names]
        await world.settle()
        assert {response.status for response in responses} == {200}
        assert max(int(told(response)["age"]) for response in responses) <= 1.5 * 40 / 2

    assert world.calls - before <= 2 * (world.clock.now - started)


# -- nothing unnamed leaves


async def test_no_value_outside_the_policy_leaves(world: World) -> None:
    await world.start(BFF_EXPOSE_METADATA="plan,internal.*", BFF_EXPOSE_TAGS="public:*")
    document = world.upstream.environments[0].find("chat-1")
    document["newUpstream"] = {"secret": "sentinel-new"}
    document["metadata"]["more"] = "sentinel-metadata"

    response = await world.get("chat-1")
    again = await world.get("chat-1")

    everything = response.text + str(response.headers) + again.text + world.log.getvalue()
    everything += (await world.ops.get("/metrics")).text
    for hidden in ("sentinel", "first message", "backend", "user_123", "tenant_acme", "org:acme"):
        assert hidden not in everything
    assert response.json()["metadata"] == {"plan": "enterprise", "internal": {"costCents": 17}}
    assert response.json()["tags"] == ["public:beta"]
    assert [line["field"] for line in world.logged() if line["event"] == "field_dropped"] == [
        "newUpstream"
    ]


async def test_a_policy_of_its_own_for_a_session_type(world: World, tmp_path) -> None:
    config = tmp_path / "bff.toml"
    config.write_text('[policies."chat.support"]\nBFF_EXPOSE_METADATA = ["plan"]\n')
    world.upstream.environments[0].add(session(9, "support", type="chat.support"))
    await world.start(BFF_CONFIG=str(config))

    assert (await world.get("support")).json()["metadata"] == {"plan": "enterprise"}
    assert (await world.get("chat-1")).json()["metadata"] is None


async def test_what_nobody_foresaw_is_a_readable_500_without_its_text(world: World) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("sentinel-in-an-exception")

    world.service.gateway.admission.charge_caller = broken

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "sentinel" not in response.text + world.log.getvalue()
    assert "request_failed" in [line["event"] for line in world.logged()]


# -- readiness


async def test_ready_asks_upstream_once_and_says_why(world: World) -> None:
    first = await world.ops.get("/readyz")
    again = await world.ops.get("/readyz")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["environments"]["default"]["ready"] is True
    assert [seen.raw_path for seen in world.upstream.seen] == [PATH + "session_readiness_probe"]


async def test_a_rejected_key_is_not_ready(world: World) -> None:
    world.answer(401, {"error": "Invalid API key"})

    response = await world.ops.get("/readyz")

    assert response.status_code == 503
    assert response.json()["code"] == "not_ready"
    assert "TRIGGER_SECRET_KEY" in response.json()["environments"]["default"]["reason"]
    events = [line["event"] for line in world.logged() if line["level"] == "error"]
    assert events == ["upstream_rejects_our_key"]
    world.answer(0)
    world.clock.advance(2)
    assert (await world.ops.get("/readyz")).status_code == 200


async def test_a_lost_upstream_is_tolerated_while_copies_can_be_served(world: World) -> None:
    await world.get("chat-1")
    world.answer(500, {})
    world.clock.advance(10)
    await world.get("chat-1")

    ready = await world.ops.get("/readyz")
    world.clock.advance(60)
    lost = await world.ops.get("/readyz")

    assert ready.status_code == 200
    assert "copies" in ready.json()["environments"]["default"]["reason"]
    assert lost.status_code == 503
