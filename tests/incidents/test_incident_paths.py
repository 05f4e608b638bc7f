"""Incidents 5 to 10, 20, 31: the parts of a request that decide, and the requests to upstream."""

import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest
from support.hostile import NOTHING_KEPT, WIDE_OPEN, ask
from support.hostile import told as headers_of
from support.rawsockets import request, talk
from support.world import (
    ENVIRONMENT_ID,
    FRIENDLY,
    ORIGIN,
    PATH,
    Gateway,
    World,
    read,
    running_upstream,
)

import bff
from bff.demo.upstream import session


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "gateway/api/v1/sessions/chat-2?",
        "gateway#",
        "gateway@evil.example",
        "",
        "127.0.0.1:9787",
        "[::1",
        "a b",
        "gateway:99999999",
        "x" * 5000,
    ],
)
def test_05_host_does_not_change_the_decision(
    edge: Gateway, upstream: running_upstream, host: str
) -> None:
    token = edge.token(*read("chat-1"))
    before = len(upstream.seen)

    def status(path: str) -> int:
        data = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
        (response,) = talk(edge.port, data.encode()).responses
        return response.status

    assert status(PATH + "chat-1") in (200, 400)
    assert status(PATH + FRIENDLY["chat-2"]) in (403, 400)
    assert status("/metrics") in (404, 400)
    assert {seen.header("host") for seen in upstream.seen[before:]} <= {
        f"127.0.0.1:{upstream.port}"
    }


def test_05_no_module_reads_a_url_made_from_the_host() -> None:
    for module in Path(bff.__file__).parent.rglob("*.py"):
        assert not re.search(r"request\.(url|base_url)|\"path\"\]", module.read_text()), module


_TRAVERSALS = {
    "..%2f": "../",
    "..%2F..%2Fadmin": "../../admin",
    "%2e%2e/": None,
    "%2e%2e%2f": "../",
    "%252e%252e%252f": "%2e%2e%2f",
    "..;/": None,
    "..;": "..;",
    "..%5c": "..\\",
    "chat-1/": None,
    "/chat-1": None,
    "a//b": None,
    "a%2F%2Fb": "a//b",
    "%00": None,
    "chat-1%00": None,
    "%0d%0aX:%20y": None,
    "chat-1%0d%0a": None,
    "%c0%ae%c0%ae%c0%af": None,
    "%e0%80%af": None,
    "%3F": "?",
    "%23": "#",
    "%253F": "%3F",
    "a%20b": "a b",
    "a+b": "a+b",
    "%u002e": None,
    "https:%2f%2fevil.example%2f": "https://evil.example/",
    "@evil.example": "@evil.example",
    ":8080": ":8080",
}


@pytest.mark.parametrize(("segment", "id_"), _TRAVERSALS.items())
def test_06_upstream_sees_one_encoded_segment_or_nothing(
    edge: Gateway, upstream: running_upstream, segment: str, id_: str | None
) -> None:
    before = len(upstream.seen)

    result = talk(edge.port, request(PATH + segment, token=edge.token("read:sessions")))

    seen = upstream.seen[before:]
    if id_ is None:
        assert result.responses[0].status in (400, 410)
        assert seen == []
    else:
        # Upstream cannot find an id with an encoded slash, so it is not called for one.
        found = [] if "%2f" in id_.lower() else [(PATH + quote(id_, safe=""), "")]
        assert [(s.raw_path, s.query) for s in seen] == found
        assert result.statuses == [404]


@pytest.mark.parametrize("dots", [".", "..", "%2e", "%2E", "%2e.", ".%2e", "%2e%2e", "%2E%2E"])
def test_07_dots_do_not_request_the_list_of_all_sessions(
    edge: Gateway, upstream: running_upstream, dots: str
) -> None:
    before = len(upstream.seen)

    for segment in (dots, dots.replace("%", "%25")):
        token = edge.token("read:sessions", *read(dots, ".", ".."))
        result = talk(edge.port, request(PATH + segment, token=token))
        if "%25" not in segment:
            assert result.statuses == [400]
    for path in (PATH + dots + "/", PATH + dots + "/runs", PATH + "x/" + dots, PATH):
        assert talk(edge.port, request(path, token=token)).responses[0].status in (400, 410)

    paths = [seen.raw_path for seen in upstream.seen[before:]]
    # Dots that are encoded twice are an id; upstream decodes them once and finds no session.
    assert paths == ([PATH + dots.replace("%", "%25")] if "%" in dots else [])
    assert not [path for path in paths if path.rstrip("/") == PATH.rstrip("/")]


@pytest.mark.parametrize(
    "path",
    [
        "/API/V1/Sessions/chat-1",
        "/api/v1/%53essions/chat-1",
        "/api/v1/sessions/chat-1/",
        "/api/v1//sessions/chat-1",
        "//api/v1/sessions/chat-1",
        "/api/./v1/sessions/chat-1",
        "/api/v1/x/../sessions/chat-1",
        "/api/v1/sessions/%63hat-1",
    ],
)
async def test_08_another_spelling_does_not_bypass_the_limits(world: World, path: str) -> None:
    await world.start(BFF_IP_RATE_LIMIT="3/minute")
    token = world.token(*read("chat-1"))
    head = {"authorization": f"Bearer {token}", "origin": ORIGIN}

    statuses = [
        (await world.browser.get("http://gateway" + path, headers=head)).status_code
        for _ in range(4)
    ]

    assert len(set(statuses[:3])) == 1
    assert statuses[0] in (200, 404, 410)
    assert statuses[3] == 429, "the limit counts every request, of any path"
    assert world.calls == (1 if statuses[0] == 200 else 0)


@pytest.mark.parametrize(
    "tail", ["?x=1", "?id=chat-2", "?token=abc", "?/chat-2", "#/chat-2", "?a=%0d%0a", "?", "#"]
)
def test_09_query_and_fragment_do_not_reach_upstream(
    edge: Gateway, upstream: running_upstream, tail: str
) -> None:
    token = edge.token(*read("chat-1"))
    plain = talk(edge.port, request(PATH + "chat-1", token=token)).responses[0]
    before = len(upstream.seen)

    result = talk(edge.port, request(PATH + "chat-1" + tail, token=token)).responses[0]
    other = talk(edge.port, request(PATH + FRIENDLY["chat-2"] + tail, token=token)).responses[0]

    if result.status != 400:  # a request line with a fragment is malformed
        assert (result.status, result.body) == (200, plain.body)
        assert result.headers["etag"] == plain.headers["etag"]
    assert other.status in (403, 400)
    assert not [s for s in upstream.seen[before:] if s.query or (tail.strip("?#") in s.raw_path[1:]
                and tail.strip("?#"))]  # fmt: skip


_FORWARDING = [
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Uri: /healthz",
    "X-Original-URL: /healthz",
    "X-Rewrite-URL: /api/v1/sessions/chat-2",
    "Forwarded: for=127.0.0.1;host=evil.example",
    "X-Real-IP: 127.0.0.1",
    "X-HTTP-Method-Override: DELETE",
    "User-Agent: kube-probe/1.29",
    "User-Agent: GoogleHC/1.0",
    "X-Auth-Request-User: admin",
    "X-Trigger-Branch: other",
    "Cookie: session=admin",
    "Via: 1.1 trusted",
    "Cache-Control: only-if-cached, no-store",
    "Range: bytes=0-1",
]


@pytest.mark.parametrize("line", _FORWARDING)
def test_10_forwarding_header_does_not_change_the_decision(
    edge: Gateway, upstream: running_upstream, line: str
) -> None:
    before = len(upstream.seen)

    def status(id_: str, token: str | None) -> int:
        return talk(edge.port, request(PATH + id_, line, token=token)).responses[0].status

    assert status("chat-1", edge.token(*read("chat-1"))) == 200
    assert status(FRIENDLY["chat-1"], edge.token(*read(FRIENDLY["chat-2"]))) == 403
    assert status("chat-1", None) == 401
    name = line.partition(":")[0].lower()
    if name != "user-agent":
        assert not [s for s in upstream.seen[before:] if s.header(name) is not None]


async def test_10_forwarded_address_of_an_untrusted_peer_is_ignored(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="3/minute")

    statuses = [
        (await ask(world, "x", None, forwarded=(f"10.0.0.{n}".encode(),))).status for n in range(4)
    ]

    assert statuses == [401, 401, 401, 429]


async def test_20_similar_ids_do_not_share_a_copy(world: World) -> None:
    await world.start(**WIDE_OPEN)
    composed = unicodedata.normalize("NFC", "café")
    alike = [
        composed,
        unicodedata.normalize("NFD", composed),
        *("chat", "Chat", "CHAT", "chat ", "chat/", "chat//", "chat%", "chat%20", "cha t", "chat:"),
        *(f"{ENVIRONMENT_ID}:chat", "default:chat", "default", "\uff43hat", "chat\u200b", "chat|1"),
        *("Straße", "STRASSE", "\u0131", "i", "I", "\u0130"),
    ]
    for number, name in enumerate(alike, start=100):
        world.upstream.environments[0].add(session(number, name))

    for _ in range(2):
        for name in alike:
            response = await world.get(name, "read:sessions")
            assert response.json()["externalId"] == name
    assert world.calls == len(alike)
    for name in alike:
        for other in alike:
            status = (await world.get(other, *read(name))).status_code
            assert status == (200 if other == name else 403), (name, other)


@pytest.mark.parametrize(
    "id_", ["healthz", "readyz", "metrics", "cache", "openapi.json", "frontend"]
)
def test_31_id_equal_to_a_route_word_grants_nothing(
    edge: Gateway, upstream: running_upstream, id_: str
) -> None:
    before = len(upstream.seen)

    def get(token: str | None, method: str = "GET"):
        return talk(edge.port, request(PATH + id_, token=token, method=method)).responses[0]

    assert get(None).status == 401
    assert get(edge.token(*read("chat-1"))).status == 403
    assert get(edge.token(*read(id_)), "DELETE").status == 405
    assert len(upstream.seen) == before
    assert get(edge.token(*read(id_))).status == 404
    assert [s.raw_path for s in upstream.seen[before:]] == [PATH + id_]


async def test_31_route_word_is_a_valid_session_id(world: World) -> None:
    await world.start(**WIDE_OPEN, **NOTHING_KEPT)
    for number, name in enumerate(("healthz", "metrics", "cache"), start=200):
        world.upstream.environments[0].add(session(number, name))
        response = await ask(world, name, world.token(*read(name)))
        assert (response.status, headers_of(response)["cache-control"]) == (
            200,
            "private, no-cache",
        )
        assert (await ask(world, name, world.token(*read("chat-1")))).status == 403
