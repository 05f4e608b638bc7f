"""One client, one secret key, and upstream's troubles as errors; over real sockets."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from support.raw_upstream import get, http, refusal, server, spent, upstream
from support.world import SECRET_KEY

from bff.errors import UpstreamError, UpstreamInvalid
from bff.upstream.api import Quota, read_quota, retry_after


async def test_get_returns_the_body_and_observes_the_quota() -> None:
    answer = http(
        "200 OK",
        b"{}",
        b"x-ratelimit-limit: 750",
        b"x-ratelimit-remaining: 749",
        b"x-ratelimit-reset: 1795462431273",
        b"set-cookie: a=b",
    )
    async with server(answer) as (url, heads), upstream(url, branch="feat/x") as (asked, quotas):
        assert await get(asked, "/api/v1/sessions/a%2Fb") == b"{}"
        assert await get(asked, "/api/v1/sessions/a%2Fb") == b"{}"

    assert quotas == [Quota(750, 749, 1795462431.273)] * 2
    lines = heads[1].split(b"\r\n")
    assert lines[0] == b"GET /api/v1/sessions/a%2Fb HTTP/1.1"
    assert b"authorization: Bearer " + SECRET_KEY.encode() in [
        line.replace(b"Auth", b"auth") for line in lines
    ]
    assert b"x-trigger-branch: feat/x" in lines
    assert not [line for line in lines if line.lower().startswith(b"cookie")]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http("301 Moved", b"", b"location: http://127.0.0.1:1/"), "upstream_invalid"),
        (http("200 OK", b"{", length=10), "upstream_invalid"),
        (http("200 OK", b"\x1f\x8b", b"content-encoding: gzip"), "upstream_invalid"),
        (http("200 OK", b"x" * (1024 * 1024 + 1)), "upstream_invalid"),
        (b"not http at all\r\n\r\n", "upstream_invalid"),
        (b"", "upstream_invalid"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "upstream_invalid"),
        (http("404 Not Found", b'{"error":"Not found"}'), "not_found"),
        (http("404 Not Found", b"<html>no such page</html>"), "upstream_invalid"),
        (http("418 Teapot", b"{}"), "upstream_invalid"),
        (http("401 Unauthorized", b'{"error":"Invalid API key"}'), "upstream_rejected_credentials"),
        (http("401 Unauthorized", b"{}"), "upstream_invalid"),
        (http("500 Oops", b"{}"), "upstream_unavailable"),
        (http("429 Slow down", b"{}"), "over_budget"),
    ],
    ids=range(14),
)
async def test_answer_of_upstream_becomes_an_error(answer: bytes, code: str) -> None:
    raised, heads = await refusal(answer)

    assert raised.code == code
    assert len(heads) == 1, "asked once"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"7", 7), (b"0", 0), (b"100000", 60), (b"soon", None), (b"-3", 0), (b"9" * 40, None)],
)
async def test_retry_after_is_taken_within_bounds(value: bytes, expected: float | None) -> None:
    raised, _ = await refusal(http("429 Slow", b"{}", b"retry-after: " + value))

    assert raised.retry_after == expected


@pytest.fixture(params=["UTC", "XXX+8", "XXX-8"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of this machine."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
def test_date_means_the_same_in_every_zone() -> None:
    wall = 784111777.0
    dates = ("Sun, 06 Nov 1994 08:49:47 GMT", "Sun Nov  6 08:49:47 1994")
    assert [retry_after({"retry-after": date}, wall) for date in dates] == [10, 10]


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "expected"),
    [
        ("750", "749", "1795462431273", Quota(750, 749, 1795462431.273)),
        ("5", "-1", "1000", Quota(5, -1, 1.0)),
        ("0", "0", "1795462431273", None),
        ("-5", "3", "1795462431273", None),
        ("750", "749", "1e12", None),
        ("750", "9" * 16, "1795462431273", None),
        ("٣", "1", "1000", None),
    ],
)
def test_quota_is_read_if_it_can_be_one(
    limit: str, remaining: str, reset: str, expected: Quota | None
) -> None:
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    assert read_quota(dict(zip(names, (limit, remaining, reset), strict=True))) == expected


DATE = b"date: Mon, 23 Nov 2026 17:33:41 GMT"
QUOTA = (
    b"x-ratelimit-limit: 750",
    b"x-ratelimit-remaining: 1",
    b"x-ratelimit-reset: 1795462431273",
)


@pytest.mark.parametrize(
    ("answer", "learns"),
    [
        (http("200 OK", b"{}", *QUOTA), True),
        (http("404 Not Found", b'{"error":"Not found"}', *QUOTA), True),
        (http("429 Slow", b'{"error":"Rate limit exceeded"}', *QUOTA), True),
        (http("401 Unauthorized", b'{"error":"Invalid API key"}', *QUOTA), False),
        (http("403 Forbidden", b'{"error":"No","code":"unauthorized"}', *QUOTA), False),
        (http("404 Not Found", b"<html>", *QUOTA), False),
        (http("429 Slow", b"<html>", *QUOTA), False),
        (http("500 Oops", b"{}", *QUOTA), False),
        (http("200 OK", b"<html>", b"content-type: text/html", *QUOTA), False),
        (http("200 OK", b"[]", *QUOTA), False),
    ],
    ids=range(10),
)
async def test_quota_is_learned_from_accepted_answers_only(answer: bytes, learns: bool) -> None:
    """A 401 shows the bucket of unknown keys, and another server's quota is not upstream's."""

    def read(body: bytes) -> bytes:
        if body != b"{}":
            raise UpstreamInvalid
        return body

    async with server(answer) as (url, _), upstream(url) as (asked, quotas):
        with contextlib.suppress(UpstreamError):
            await asked.get("/x", read=read, again=spent)
    assert bool(quotas) is learns


FOREIGN = [
    http(f"{status} x", body, b"content-type: " + kind, *lines)
    for status in (401, 403, 404)
    for body, kind, *lines in (
        (b"<html>Access denied</html>", b"text/html"),
        (b'{"message":"no","error":"Not Found","statusCode":404}', b"application/json"),
        (b'{"detail":"Not Found"}', b"application/json"),
        (b"", b"text/plain"),
        (b'{"error":"Log in"}', b"application/json", b"www-authenticate: Basic"),
    )
]


@pytest.mark.parametrize("answer", FOREIGN, ids=range(len(FOREIGN)))
async def test_answer_of_something_else_is_upstream_trouble(answer: bytes) -> None:
    """With the key and with a token; and it switches no key."""
    keys = {"secret_keys": ["tr_dev_one", "tr_dev_two"]}
    async with server(answer) as (url, heads), upstream(url, **keys) as (asked, _):
        for _ in range(2):
            with pytest.raises(UpstreamError, match="upstream_invalid"):
                await get(asked, "/x")
        with pytest.raises(UpstreamError, match="upstream_invalid"):
            await asked.get_as(b"token", "/x", read=bytes)
    assert len(heads) == 3
    assert b"tr_dev_one" in heads[1], "no next key"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http("401 x", b'{"error":"Public Access Token is invalid"}'), "token_invalid"),
        (http("403 x", b'{"error":"Unauthorized","code":"unauthorized"}'), "unauthorized"),
        (http("404 x", b'{"error":"Not found"}'), "not_found"),
        (http("429 x", b"<html>", *QUOTA), "over_budget"),
    ],
    ids=range(4),
)
async def test_answer_about_a_token_is_believed_of_the_api(answer: bytes, code: str) -> None:
    async with server(answer) as (url, _), upstream(url) as (asked, quotas):
        with pytest.raises(UpstreamError, match=code):
            await asked.get_as(b"token", "/x", read=bytes)
    assert quotas == []
