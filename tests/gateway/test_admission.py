"""Admission: addresses, tokens in headers and in the cookie, limits of callers."""

import pytest
from support.world import (
    ENVIRONMENT_ID,
    ORIGIN,
    OWN_KEY,
    PATH,
    ROOT_KEY,
    SECRET_KEY,
    Gateway,
    World,
    claims,
    read,
    running_upstream,
    sign,
)

NAME = "__Host-bff-token"
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def cookies(world: World) -> World:
    await world.start(BFF_TOKEN_COOKIE=NAME)
    return world


async def ask_with(world: World, headers: object, method: str = "GET") -> tuple[int, str]:
    response = await world.browser.request(method, PATH + "chat-1", headers=headers)  # type: ignore[arg-type]
    assert "access-control-allow-credentials" not in response.headers
    assert "set-cookie" not in response.headers
    code = response.json().get("code", "") if response.content else ""
    return response.status_code, code


async def test_a_page_of_this_origin_needs_no_header(cookies: World) -> None:
    cookie = {"cookie": f"theme=dark; {NAME}={cookies.token(*read('chat-1'))}; a=b"}

    assert await ask_with(cookies, cookie | SAME) == (200, "")
    assert await ask_with(cookies, cookie | SAME, "HEAD") == (200, "")
    response = await cookies.browser.get(PATH + "chat-1", headers=cookie | SAME)
    assert response.headers["vary"] == "Authorization, Origin, Cookie, Sec-Fetch-Site, Accept"
    assert response.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "Same-Origin"},
        {"sec-fetch-site": "same-origin, cross-site"},
        {"sec-fetch-site": ""},
        {"sec_fetch_site": "same-origin"},
        SAME | {"origin": "https://evil.example"},
        SAME | {"origin": "null"},
        SAME | {"origin": ORIGIN},
        {"sec-fetch-site": "cross-site", "origin": ORIGIN},
    ],
    ids=repr,
)
async def test_a_foreign_page_can_do_nothing_with_it(
    cookies: World, headers: dict[str, str]
) -> None:
    cookie = {"cookie": f"{NAME}={cookies.token(*read('chat-1'))}"}

    assert await ask_with(cookies, cookie | headers) == (401, "token_missing")
    assert cookies.calls == 0
    assert (await ask_with(cookies, cookie | headers | SAME, "POST"))[0] == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_reading_is_all_it_is_for(cookies: World, method: str) -> None:
    cookie = {"cookie": f"{NAME}={cookies.token(*read('chat-1'))}"}

    assert await ask_with(cookies, cookie | SAME, method) == (405, "method_not_allowed")
    assert cookies.calls == 0


async def test_a_header_wins_a_bad_one_too(cookies: World) -> None:
    good, other = cookies.token(*read("chat-1")), cookies.token(*read("chat-2"))
    cookie = {"cookie": f"{NAME}={good}"} | SAME

    assert await ask_with(cookies, cookie | {"authorization": f"Bearer {other}"}) == (
        403,
        "unauthorized",
    )
    assert await ask_with(cookies, cookie | {"authorization": "Bearer bad"}) == (
        401,
        "token_invalid",
    )
    assert await ask_with(cookies, cookie | {"authorization": ""}) == (401, "token_missing")


async def test_empty_or_repeated_cookie_is_refused(cookies: World) -> None:
    good = cookies.token(*read("chat-1"))

    assert await ask_with(cookies, SAME | {"cookie": f"{NAME}=bad"}) == (401, "token_invalid")
    assert await ask_with(cookies, SAME | {"cookie": f"{NAME}="}) == (401, "token_missing")
    assert await ask_with(cookies, SAME | {"cookie": f"{NAME.lower()}={good}"}) == (
        401,
        "token_missing",
    )
    assert await ask_with(cookies, SAME | {"cookie": f"x{NAME}={good}"}) == (401, "token_missing")
    two = SAME | {"cookie": f"{NAME}={good}; {NAME}={good}"}
    assert await ask_with(cookies, two) == (400, "bad_request")
    split = [("sec-fetch-site", "same-origin"), ("cookie", "a=b"), ("cookie", f"{NAME}={good}")]
    assert await ask_with(cookies, split) == (200, "")
    assert await ask_with(cookies, SAME | {"cookie": f"{NAME}=tr_dev_key"}) == (
        401,
        "secret_key_sent",
    )
    many = SAME | {"cookie": f"{NAME}={good}" + "; a=b" * 180}
    assert await ask_with(cookies, many) == (200, "")
    assert await ask_with(cookies, SAME | {"cookie": ";" * 300}) == (400, "bad_request"), "a flood"


async def test_it_is_described(cookies: World) -> None:
    described = (await cookies.browser.get("/openapi.json")).json()
    assert described["security"] == [{"token": []}, {"cookie": []}]
    assert described["components"]["securitySchemes"]["cookie"]["name"] == NAME

    await cookies.start()
    described = (await cookies.browser.get("/openapi.json")).json()
    assert described["security"] == [{"token": []}]
    assert [*described["components"]["securitySchemes"]] == ["token"]


async def test_bad_cookies_are_bad_tokens(cookies: World) -> None:
    await cookies.start(BFF_TOKEN_COOKIE=NAME, BFF_BAD_TOKEN_LIMIT="2/minute")

    answers = [await ask_with(cookies, SAME | {"cookie": f"{NAME}=bad"}) for _ in range(3)]

    assert [status for status, _ in answers] == [401, 401, 429]


async def test_without_the_setting_no_cookie_is_looked_at(world: World) -> None:
    cookie = {"cookie": f"{NAME}={world.token(*read('chat-1'))}"}

    assert await ask_with(world, cookie | SAME) == (401, "token_missing")
    response = await world.browser.get(PATH + "chat-1", headers=SAME)
    assert response.headers["vary"] == "Authorization, Origin, Accept"


async def test_a_preflight_never_allows_credentials(cookies: World) -> None:
    await cookies.start(BFF_TOKEN_COOKIE=NAME, BFF_ALLOWED_ORIGINS="*")
    response = await cookies.browser.options(PATH + "chat-1", headers={"origin": ORIGIN})

    assert "access-control-allow-credentials" not in response.headers


def test_on_the_wire(upstream: running_upstream) -> None:
    with Gateway(upstream.port, BFF_TOKEN_COOKIE=NAME) as gateway:
        lines = f"GET {PATH}chat-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {NAME}="
        asked = lines + gateway.token(*read("chat-1"))
        same = gateway.raw(f"{asked}\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode())
        foreign = gateway.raw(f"{asked}\r\nSec-Fetch-Site: cross-site\r\n\r\n".encode())
        twice = gateway.raw(
            f"{asked}\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n\r\n".encode()
        )
        other = gateway.raw(
            f"{asked}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode()
        )

    assert same.startswith(b"HTTP/1.1 200 ")
    assert foreign.startswith(b"HTTP/1.1 401 ")
    assert not twice.startswith(b"HTTP/1.1 200 ")
    assert not other.startswith(b"HTTP/1.1 200 ")


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
async def test_request_without_valid_token_gets_401(
    world: World, authorization: str | None, code: str
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    response = await world.browser.get(PATH + "chat-1", headers=headers | {"origin": ORIGIN})

    assert response.status_code == 401
    assert response.json()["code"] == code
    assert response.headers["www-authenticate"].startswith('Bearer realm="bff"')
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert world.calls == 0


async def test_secret_key_of_browser_is_logged_without_the_key(world: World) -> None:
    await world.browser.get(PATH + "chat-1", headers={"authorization": f"Bearer {SECRET_KEY}"})

    assert "secret_key_sent_by_browser" in [line["event"] for line in world.logged()]
    assert SECRET_KEY not in world.log.getvalue()


async def test_bearer_scheme_may_be_in_lower_case(world: World) -> None:
    authorization = f"bearer {world.token(*read('chat-1'))}"
    response = await world.browser.get(PATH + "chat-1", headers={"authorization": authorization})

    assert response.status_code == 200


async def test_two_authorization_headers_get_400(world: World) -> None:
    authorization = f"Bearer {world.token(*read('chat-1'))}"
    response = await world.browser.get(
        PATH + "chat-1", headers=[("authorization", authorization)] * 2
    )

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_remembered_token_is_refused_after_its_exp(world: World) -> None:
    token = world.token(*read("chat-1"))
    assert (await world.get("chat-1", token=token)).status_code == 200

    world.clock.advance(900)
    response = await world.get("chat-1", token=token)

    assert (response.status_code, response.json()["code"]) == (401, "token_expired")


async def test_signing_keys_rotate(world: World) -> None:
    other = "another-signing-key-0123456789abcdef"
    await world.start(BFF_SIGNING_KEYS=f"{other},{OWN_KEY}")
    tokens = [sign(claims(world.clock.wall, *read("chat-1")), key) for key in (OWN_KEY, other)]
    assert [(await world.get("chat-1", token=t)).status_code for t in tokens] == [200, 200]

    await world.start(BFF_SIGNING_KEYS=other)

    assert [(await world.get("chat-1", token=t)).status_code for t in tokens] == [401, 200]


async def test_branch_token_reads_only_its_own_branch(world: World, tmp_path) -> None:
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
    # The pretend upstream does not know the branch: its 401 becomes a 502 of the gateway.
    assert (await world.get("chat-1", token=two)).json()["code"] == "upstream_rejected_credentials"
    assert (await world.get("chat-1", token=neither)).json()["code"] == "token_invalid"
    assert [seen.header("x-trigger-branch") for seen in world.upstream.seen] == [None, "feat/two"]


async def test_new_token_does_not_reset_the_caller_limit(world: World) -> None:
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


async def test_callers_differ_by_person_or_scopes_and_address(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/minute", BFF_TRUSTED_PROXIES="127.0.0.0/8")

    async def status(scopes: list[str], actor: str | None, address: str) -> int:
        token = world.token(*scopes, act={"sub": actor} if actor else None)
        response = await world.get("chat-1", token=token, x_forwarded_for=address)
        return response.status_code

    mine, more = read("chat-1"), read("chat-1", "chat-2")
    assert await status(mine, "ann", "192.0.2.1") == 200
    assert await status(mine, "ann", "192.0.2.2") == 429, "an actor is one caller anywhere"
    assert await status(mine, "bob", "192.0.2.1") == 200
    assert await status(more, "ann", "192.0.2.1") == 429, "whatever the scopes of the token"
    assert await status(mine, None, "192.0.2.1") == 200
    assert await status(mine, None, "192.0.2.1") == 429
    assert await status(more, None, "192.0.2.1") == 200, "without an actor the scopes tell"
    assert await status(mine, None, "192.0.2.2") == 200, "without an actor the address tells"


async def test_bad_tokens_have_a_tighter_limit_of_their_own(world: World) -> None:
    headers = {"authorization": "Bearer bad", "origin": ORIGIN}
    known = world.token(*read("chat-1"))
    await world.get("chat-1", token=known)

    responses = [await world.browser.get(PATH + "chat-1", headers=headers) for _ in range(61)]

    assert [r.status_code for r in responses] == [401] * 60 + [429]
    assert responses[-1].headers["ratelimit-policy"] == '"bad-token";q=60;w=60'
    assert (await world.get("chat-1", token=known)).status_code == 200, "it was verified before"
    new = world.token(*read("chat-1"), jti="new")
    assert (await world.get("chat-1", token=new)).status_code == 429, "it is not even read"
    world.clock.advance(60)
    assert (await world.get("chat-1", token=new)).status_code == 200


async def test_address_is_limited_before_the_token_is_read(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute")

    responses = [await world.browser.get(PATH + "chat-1") for _ in range(3)]
    good = await world.get("chat-1")

    assert [r.status_code for r in responses] == [401, 401, 429]
    assert good.status_code == 429
    assert world.calls == 0


async def test_hourly_limit_shows_a_reset_within_a_minute(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/hour")
    await world.get("chat-1")

    refused = await world.get("chat-1")

    assert int(refused.headers["x-ratelimit-reset"]) <= (world.clock.wall + 60) * 1000
    assert int(refused.headers["retry-after"]) <= 60


async def test_limit_that_is_off_sends_no_headers(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off", BFF_BAD_TOKEN_LIMIT="off")

    response = await world.get("chat-1")

    assert response.status_code == 200
    assert not [name for name in response.headers if "ratelimit" in name]
