"""The token in a cookie: for pages of the gateway's own origin, and of no use to any other."""

import pytest
from support.world import ORIGIN, PATH, Gateway, World, read, running_upstream

NAME = "__Host-bff-token"
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def cookies(world: World) -> World:
    await world.start(BFF_TOKEN_COOKIE=NAME)
    return world


async def ask(world: World, headers: object, method: str = "GET") -> tuple[int, str]:
    response = await world.browser.request(method, PATH + "chat-1", headers=headers)  # type: ignore[arg-type]
    assert "access-control-allow-credentials" not in response.headers
    assert "set-cookie" not in response.headers
    code = response.json().get("code", "") if response.content else ""
    return response.status_code, code


async def test_a_page_of_this_origin_needs_no_header(cookies: World) -> None:
    cookie = {"cookie": f"theme=dark; {NAME}={cookies.token(*read('chat-1'))}; a=b"}

    assert await ask(cookies, cookie | SAME) == (200, "")
    assert await ask(cookies, cookie | SAME, "HEAD") == (200, "")
    response = await cookies.browser.get(PATH + "chat-1", headers=cookie | SAME)
    assert response.headers["vary"] == "Authorization, Origin, Cookie, Sec-Fetch-Site"
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

    assert await ask(cookies, cookie | headers) == (401, "token_missing")
    assert cookies.calls == 0
    assert (await ask(cookies, cookie | headers | SAME, "POST"))[0] == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_reading_is_all_it_is_for(cookies: World, method: str) -> None:
    cookie = {"cookie": f"{NAME}={cookies.token(*read('chat-1'))}"}

    assert await ask(cookies, cookie | SAME, method) == (405, "method_not_allowed")
    assert cookies.calls == 0


async def test_a_header_wins_a_bad_one_too(cookies: World) -> None:
    good, other = cookies.token(*read("chat-1")), cookies.token(*read("chat-2"))
    cookie = {"cookie": f"{NAME}={good}"} | SAME

    assert await ask(cookies, cookie | {"authorization": f"Bearer {other}"}) == (
        403,
        "unauthorized",
    )
    assert await ask(cookies, cookie | {"authorization": "Bearer bad"}) == (401, "token_invalid")
    assert await ask(cookies, cookie | {"authorization": ""}) == (401, "token_missing")


async def test_a_cookie_that_is_none_or_two(cookies: World) -> None:
    good = cookies.token(*read("chat-1"))

    assert await ask(cookies, SAME | {"cookie": f"{NAME}=bad"}) == (401, "token_invalid")
    assert await ask(cookies, SAME | {"cookie": f"{NAME}="}) == (401, "token_missing")
    assert await ask(cookies, SAME | {"cookie": f"{NAME.lower()}={good}"}) == (401, "token_missing")
    assert await ask(cookies, SAME | {"cookie": f"x{NAME}={good}"}) == (401, "token_missing")
    two = SAME | {"cookie": f"{NAME}={good}; {NAME}={good}"}
    assert await ask(cookies, two) == (400, "bad_request")
    split = [("sec-fetch-site", "same-origin"), ("cookie", "a=b"), ("cookie", f"{NAME}={good}")]
    assert await ask(cookies, split) == (200, "")
    assert await ask(cookies, SAME | {"cookie": f"{NAME}=tr_dev_key"}) == (401, "secret_key_sent")
    many = SAME | {"cookie": f"{NAME}={good}" + "; a=b" * 180}
    assert await ask(cookies, many) == (200, "")
    assert await ask(cookies, SAME | {"cookie": ";" * 300}) == (400, "bad_request"), "a flood"


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

    answers = [await ask(cookies, SAME | {"cookie": f"{NAME}=bad"}) for _ in range(3)]

    assert [status for status, _ in answers] == [401, 401, 429]


async def test_without_the_setting_no_cookie_is_looked_at(world: World) -> None:
    cookie = {"cookie": f"{NAME}={world.token(*read('chat-1'))}"}

    assert await ask(world, cookie | SAME) == (401, "token_missing")
    response = await world.browser.get(PATH + "chat-1", headers=SAME)
    assert response.headers["vary"] == "Authorization, Origin"


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
