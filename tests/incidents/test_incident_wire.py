"""Incidents 11, 12, 14, 17, 29, 32 and 33: bytes on the wire."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.hostile import WIDE_OPEN, eventually, metric, resident
from support.rawsockets import (
    LOOPBACK,
    RawUpstream,
    answer_bytes,
    hang,
    request,
    requested_id,
    talk,
)
from support.world import (
    FRIENDLY,
    ORIGIN,
    PATH,
    PATIENCE,
    SECRET_KEY,
    Gateway,
    World,
    read,
    running_upstream,
)

from bff.demo.upstream import session


def test_11_two_authorization_headers_are_400(edge: Gateway, upstream: running_upstream) -> None:
    before = len(upstream.seen)
    token, other = edge.token(*read("chat-1")), edge.token(*read("chat-2"))

    for second in (f"Authorization: Bearer {other}", "authorization: Bearer x", "AUTHORIZATION:"):
        exchange = talk(edge.port, request(PATH + "chat-1", second, token=token))
        assert exchange.statuses == [400]
        assert json.loads(exchange.responses[0].body)["code"] == "bad_request"
    assert len(upstream.seen) == before


def test_11_header_names_with_underscores_are_other_headers(
    upstream: running_upstream, lane: dict[str, str]
) -> None:
    with Gateway(
        upstream.port, BFF_IP_RATE_LIMIT="3/minute", BFF_TRUSTED_PROXIES="127.0.0.0/8", **lane
    ) as gateway:
        token = gateway.token(*read("chat-1"))

        def statuses(name: str) -> list[int]:
            lines = [f"{name}: 192.0.2.{number}" for number in range(5)]
            return [
                talk(gateway.port, request(PATH + "chat-1", line, token=token)).statuses[0]
                for line in lines
            ]

        assert statuses("X-Forwarded-For") == [200] * 5, "each request has another address"
        assert 429 in statuses("X_Forwarded_For"), "all have the address of the peer"
        twin = request(PATH + "chat-1", f"Authorization_: Bearer {token}")
        assert talk(gateway.port, twin).statuses[0] in (401, 429)


@pytest.mark.parametrize(
    "value",
    [
        "authorization",
        "close, authorization",
        "x-trigger-branch, host",
        "Authorization, keep-alive",
    ],
)
def test_12_connection_header_removes_no_header_sent_upstream(
    edge: Gateway, upstream: running_upstream, value: str
) -> None:
    before = len(upstream.seen)
    lines = (f"Connection: {value}", "X-Mine: 1", "Cookie: a=b")

    exchange = talk(edge.port, request(PATH + "nope", *lines, token=edge.token("read:sessions")))

    assert exchange.statuses == [404]
    (seen,) = upstream.seen[before:]
    assert seen.header("authorization") == f"Bearer {SECRET_KEY}"
    assert seen.header("x-mine") is seen.header("cookie") is None
    assert seen.header("connection") is None


def test_14_every_answer_has_cache_control_and_vary(edge: Gateway) -> None:
    token, named = edge.token(*read("chat-1", "nope")), PATH + "chat-1"
    etag = talk(edge.port, request(named, token=token)).responses[0].headers["etag"]
    answers = {
        200: request(named, token=token),
        304: request(named, f"If-None-Match: {etag}", token=token),
        204: request(named, f"Origin: {ORIGIN}", method="OPTIONS"),
        401: request(named),
        403: request(PATH + FRIENDLY["chat-2"], token=edge.token(*read(FRIENDLY["chat-1"]))),
        404: request(PATH + "nope", token=token),
        405: request(named, token=token, method="DELETE"),
        410: request("/api/v1/runs"),
        400: request(PATH + "%zz", token=token),
        431: request(named, *["x: y"] * 101),
    }
    answers_by_bytes = [*answers.items(), (400, b"garbage\r\n\r\n"), (404, request("/nowhere"))]
    for status, data in answers_by_bytes:
        (answer,) = talk(edge.port, data).responses
        assert answer.status == status
        expected = "private, no-cache" if status in (200, 304) else "no-store"
        assert answer.headers["cache-control"] == expected, status
        assert answer.headers["vary"] == "Authorization, Origin, Accept", status


async def test_17_cancelled_leader_cancels_no_other_waiter(world: World) -> None:
    gate = asyncio.Event()

    async def slow(_: object) -> None:
        await gate.wait()

    world.upstream.override = slow
    requests = [asyncio.create_task(world.get("chat-1")) for _ in range(20)]
    await asyncio.sleep(0.01)
    for leaver in requests[:10]:
        leaver.cancel()
    await asyncio.sleep(0.01)
    gate.set()

    assert [response.status_code for response in await asyncio.gather(*requests[10:])] == [200] * 10
    assert all(leaver.cancelled() for leaver in requests[:10])
    assert world.calls == 1
    assert len(world.service.gateway.cache.loads) == 0


def test_17_disconnect_of_the_leader_cancels_no_other_waiter(lane: dict[str, str]) -> None:
    body = json.dumps(session(1, "chat-1")).encode()
    gate = threading.Event()

    def slow(connection: socket.socket, _: bytes) -> None:
        gate.wait(PATIENCE)
        connection.sendall(answer_bytes(body))

    with RawUpstream(slow) as up, Gateway(up.port, **lane) as gateway:
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        leader = socket.create_connection((LOOPBACK, gateway.port))
        leader.sendall(data)
        assert eventually(lambda: len(up.seen) == 1)
        others = [socket.create_connection((LOOPBACK, gateway.port)) for _ in range(20)]
        for other in others:
            other.sendall(data)
        leader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        leader.close()
        time.sleep(0.05)
        gate.set()
        for other in others:
            other.settimeout(PATIENCE)
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
            other.close()

        assert len(up.seen) == 1
        assert metric(gateway, "bff_loads_in_flight") == 0
        assert eventually(lambda: metric(gateway, "bff_connections") <= 1)


_BODY = "POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n"
_GET = _BODY.replace("POST", "GET")
_CHUNKED = _BODY + "Transfer-Encoding: chunked\r\n\r\n"
_SMUGGLED = {
    "TE and CL": _BODY + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CL and TE": _BODY + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "TE after a tab and CL": _BODY
    + "Transfer-Encoding:\tchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two CLs": _BODY + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "two equal CLs": _BODY + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "CL 0 and CL": _GET + "Content-Length: 0\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of CLs": _BODY + "Content-Length: 4, 4\r\n\r\nabcd",
    "a signed CL": _BODY + "Content-Length: +4\r\n\r\nabcd",
    "bare LF in the line": _GET.replace(" HTTP/1.1\r\n", " HTTP/1.1\n") + "\r\n",
    "bare LF after a header": _GET + "X: y\nY: z\r\n\r\n",
    "bare LF at the end": _GET + "\n",
    "bare CR": _GET + "X: y\rTransfer-Encoding: chunked\r\n\r\n",
    "folded header": _GET + "X: y\r\n Transfer-Encoding: chunked\r\n\r\n",
    "space before the colon": _GET + "Transfer-Encoding : chunked\r\n\r\n",
    "NUL": _GET + "X: a\0b\r\n\r\n",
    "hexadecimal prefix": _CHUNKED + "0x5\r\nabcde\r\n0\r\n\r\n",
    "negative chunk": _CHUNKED + "-1\r\nabcde\r\n0\r\n\r\n",
    "endless chunk size": _CHUNKED + "fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    "space after a chunk size": _CHUNKED + "5 \r\nabcde\r\n0\r\n\r\n",
    "bare LF in a chunk extension": _CHUNKED + "5;\nabcde\r\n0\r\n\r\n",
    "no CRLF after a chunk": _CHUNKED + "5\r\nabcdeXX0\r\n\r\n",
    "other coding": _BODY + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding after chunked": _BODY + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "body on GET": _GET + "Content-Length: 5\r\n\r\nabcde",
    "chunks on GET": _GET + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity on GET": _GET + "Transfer-Encoding: identity\r\n\r\n",
    "two hosts": _GET + "host: h\r\n\r\n",
    "two equal hosts": _GET + "Host: g\r\n\r\n",
    "no host": _GET.replace("Host: g\r\n", "") + "\r\n",
    "another protocol": "GET {path} HTTP/2.0\r\nAuthorization: Bearer {token}\r\n\r\n",
    "HTTP/0.9": "GET {path}\r\n\r\n",
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "two hosts of HTTP/1.0": _GET.replace("1.1", "1.0") + "Host: g\r\n\r\n",
    "folded host": _GET.replace("Host: g", "Host: g\r\n h") + "\r\n",
    "space after Host": _GET.replace("Host:", "Host :") + "\r\n",
    "underscore in Host": _GET.replace("Host", "Ho_st") + "\r\n",
    "host in a trailer": _CHUNKED.replace("Host: g\r\n", "") + "0\r\nHost: g\r\n\r\n",
    "foreign URL without host": _GET.replace("{path}", "http://g{path}").replace("Host: g\r\n", "")
    + "\r\n",
    "URL with a bad port": _GET.replace("{path}", "https://u:p@evil.example:99999{path}") + "\r\n",
    "URL of a file": _GET.replace("{path}", "file://{path}") + "\r\n",
    "host and port as target": _GET.replace("{path}", "g:80") + "\r\n",
    "target without slash": _GET.replace("{path}", "api/v1/sessions/chat-1") + "\r\n",
    "no target": _GET.replace("{path}", "") + "\r\n",
    "tab in the target": _GET.replace("{path}", "{path}\tx") + "\r\n",
    "NUL in the target": _GET.replace("{path}", "{path}\0") + "\r\n",
    "beyond ASCII in the target": _GET.replace("{path}", "{path}é") + "\r\n",
    "method in lower case": _GET.replace("GET", "get") + "\r\n",
    "HTTP/1.2": _GET.replace("HTTP/1.1", "HTTP/1.2") + "\r\n",
    "HTTP/3": _GET.replace("HTTP/1.1", "HTTP/3") + "\r\n",
    "protocol in lower case": _GET.replace("HTTP/1.1", "http/1.1") + "\r\n",
    "folded request line": _GET.replace("\r\n", "\r\n x: y\r\n", 1) + "\r\n",
    "folded token": _GET.replace("Bearer ", "Bearer\r\n ") + "\r\n",
    "no name": _GET + ": x\r\n\r\n",
    "no colon": _GET + "x\r\n\r\n",
    "control character in a name": _GET + "x\1y: z\r\n\r\n",
    "beyond ASCII in a name": _GET + "é: z\r\n\r\n",
    "bracket in a name": _GET + "(x): z\r\n\r\n",
    "DEL in a value": _GET + "x: \x7f\r\n\r\n",
    "CL of two zeros": _GET + "Content-Length: 00\r\n\r\n",
    "CL beyond numbers": _BODY + "Content-Length: 99999999999999999999\r\n\r\n",
    "empty CL": _BODY + "Content-Length:\r\n\r\n",
    "CL with a space": _BODY + "Content-Length: 1 0\r\n\r\n",
    "empty TE": _BODY + "Transfer-Encoding:\r\n\r\n",
    "two TEs": _BODY + "Transfer-Encoding: chunked\r\n" * 2 + "\r\n0\r\n\r\n",
    "parameter of TE": _BODY + "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "TE after a vertical tab": _BODY + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "CL in a trailer": _CHUNKED + "0\r\nContent-Length: 50\r\n\r\n",
    "TE in a trailer": _CHUNKED + "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "quoted CRLF in a chunk extension": _CHUNKED + '1;a="\r\n"\r\nx\r\n0\r\n\r\n',
    "bare LF after chunks": _CHUNKED + "1\nx\n0\n\n",
    "request in place of a trailer": _CHUNKED + "0\r\nGET /x HTTP/1.1\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\0\x01\0\x01",
    "PROXY": "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + _GET + "\r\n",
    "PROXY v2": "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + "\1" * 12 + _GET + "\r\n",
    "SSH": "SSH-2.0-x\r\n",
    "byte order mark": "\ufeff" + _GET + "\r\n",
}


@pytest.mark.parametrize("data", _SMUGGLED.values(), ids=_SMUGGLED)
def test_29_ambiguous_request_is_400_and_ends_the_connection(
    edge: Gateway, upstream: running_upstream, data: str
) -> None:
    token = edge.token("read:sessions")
    smuggled = request(PATH + "smuggled", token=token)
    before = len(upstream.seen)

    exchange = talk(edge.port, data.format(path=PATH + "first", token=token).encode() + smuggled)

    assert exchange.closed
    assert exchange.statuses == [400]
    assert exchange.responses[0].headers["connection"] == "close"
    assert json.loads(exchange.responses[0].body)["code"] == "bad_request"
    paths = [seen.raw_path for seen in upstream.seen[before:]]
    assert not [path for path in paths if path.endswith(("first", "smuggled"))]


def test_29_odd_but_unambiguous_request_is_one_request(
    edge: Gateway, upstream: running_upstream
) -> None:
    """All are pipelined on one connection."""
    token, other = edge.token(*read("chat-1")), edge.token(*read("chat-2"))
    path, before = PATH + "chat-1", len(upstream.seen)
    good = request(path, token=token)
    odd = [
        (200, good.replace(path.encode(), b"http://evil.example" + path.encode())),
        (200, good.replace(b"Host: gateway", b"HOST:")),
        (200, request(path, "X-Forwarded-Host: evil", "Forwarded: host=evil", token=token)),
        (200, b"\r\n" * 20 + good),
        (200, request(path, "X-HTTP-Method-Override: DELETE", "X-Method: PUT", token=token)),
        (200, request(path, "Expect: 200-ok", "TE: trailers", "Range: bytes=0-0", token=token)),
        (200, request(path, "X-Forwarded-For: " + "," * 9_000, token=token)),
        (200, request(path, 'If-None-Match: "', "If-Match: x", token=token)),
        (304, request(path, 'If-None-Match: "a", W/"b", *', token=token)),
        (200, request(path, "If-None-Match: " + '"a",' * 2_000, token=token)),
        (403, request(path, "If-None-Match: *", token=other)),
        (401, request(path, "If-None-Match: *")),
        (404, request("*", token=token)),
        (410, request("//evil" + path, token=token)),
        (404, request("/" + path[1:].replace("/", "\\"), token=token)),
        (403, request(path + ";x=y", token=token)),
        (410, request(PATH + "../../../healthz", token=token)),
        (405, request(path, token=token, method="PURGE")),
        (405, request(path, token=token, method="TRACE")),
        (401, request(path + "?access_token=" + token)),
        (401, request(path, f"Proxy-Authorization: Bearer {token}")),
        (401, request(path, f"Authorization: Bearer {token}, Bearer {other}")),
        (401, request(path, f"Authorization: Bearer\xa0{token}")),
        (401, request(path, f"Authorization: {token}")),
        (401, request(path, "Authorization: Bearer " + "." * 9_000)),
        (401, request(path, f"Cookie: token={token}", "Sec-Fetch-Site: same-origin")),
        (400, request(path, "Authorization:", token=token)),
        (400, request(path, f"Origin: {ORIGIN}", "Origin: https://evil.example", token=token)),
        (200, request(path, f"Origin: {ORIGIN}, https://evil.example", token=token)),
        (200, request(path, "Origin: %s%(remaining)d", token=token)),
        (200, request(path, "Connection: keep-alive, close", token=token)),
    ]

    exchange = talk(edge.port, b"".join(data for _, data in odd), b"")

    assert exchange.statuses == [status for status, _ in odd]
    assert exchange.closed
    assert {
        response.headers.get("access-control-allow-origin") for response in exchange.responses
    } == {None}
    assert {seen.raw_path for seen in upstream.seen[before:]} <= {path}


def test_29_nothing_is_answered_after_the_last_request(
    edge: Gateway, upstream: running_upstream
) -> None:
    token = edge.token(*read("chat-1"))
    good = request(PATH + "chat-1", token=token)
    smuggled = request(PATH + "smuggled", token=edge.token("read:sessions"))
    before = len(upstream.seen)

    for first in (
        request(PATH + "chat-1", "Connection: close", token=token),
        request(PATH + "chat-1", token=token).replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(PATH + "chat-1", "Connection: Upgrade", "Upgrade: h2c", token=token),
        good + b"\x16\x03\x01 invalid\r\n\r\n",
    ):
        exchange = talk(edge.port, first + smuggled)
        assert (exchange.statuses, exchange.closed) == ([200], True)
        assert exchange.responses[0].headers["connection"] == "close"
    assert not [seen for seen in upstream.seen[before:] if "smuggled" in seen.raw_path]


def test_29_answers_have_the_order_of_the_requests(edge: Gateway) -> None:
    token = edge.token("read:sessions")
    names = ["chat-1", "nope", "chat-2", "chat-closed", "chat-1"]

    data = b"".join(request(PATH + name, token=token) for name in names)
    exchange = talk(edge.port, data)

    assert exchange.statuses == [200, 404, 200, 200, 200]
    bodies = [json.loads(r.body).get("externalId") for r in exchange.responses]
    assert bodies == ["chat-1", None, "chat-2", "chat-closed", "chat-1"]


def test_29_allowed_body_is_not_read_as_a_request(
    edge: Gateway, upstream: running_upstream
) -> None:
    token = edge.token("read:sessions")
    smuggled = request(PATH + "smuggled", token=token)
    before = len(upstream.seen)
    post = request(PATH + "chat-1", f"Content-Length: {len(smuggled)}", token=token, method="POST")

    assert talk(edge.port, post + smuggled).statuses == [405]
    assert not [seen for seen in upstream.seen[before:] if "smuggled" in seen.raw_path]


_HEADERS = [
    *("Authorization", "Origin", "If-None-Match", "X-Forwarded-For", "Host", "Cookie"),
    *("Content-Length", "Transfer-Encoding", "Expect", "Connection", "Upgrade", "Accept-Encoding"),
    *("Range", "Access-Control-Request-Headers", "traceparent", "X-Request-Id"),
]


@pytest.mark.parametrize("name", _HEADERS)
def test_32_no_header_value_causes_a_5xx_or_unbounded_memory(edge: Gateway, name: str) -> None:
    token = edge.token(*read("chat-1"))
    own = () if name == "Authorization" else (f"Authorization: Bearer {token}",)
    before = resident(edge.process.pid)

    for value in (
        "",
        " ",
        "é",
        "ü\x80\xff",
        ",,,",
        '"',
        "\t",
        "a" * 65_000,
        "a" * 65_536,
        "é" * 60_000,
    ):
        data = f"GET {PATH}chat-1 HTTP/1.1\r\nHost: g\r\n" + "".join(f"{o}\r\n" for o in own)
        exchange = talk(edge.port, (data + f"{name}: {value}\r\n\r\n").encode("latin-1"))
        assert exchange.responses, (name, value[:10])
        assert exchange.statuses[0] < 500, (name, value[:10])

    assert resident(edge.process.pid) - before < 8 * 1024 * 1024
    assert talk(edge.port, request(PATH + "chat-1", token=token)).statuses == [200]


def test_32_header_floods_are_refused_early(edge: Gateway) -> None:
    token = edge.token(*read("chat-1"))
    kilobytes = "y" * 1000
    floods = [
        *(request("/" + "y" * 8_000_000), request(PATH + "x", "x: " + "y" * 8_000_000)),
        request(PATH + "x", *[f"x{n}: {kilobytes}" for n in range(8000)]),
        request(PATH + "x", *[f"x{n}: y" for n in range(101)]),
        request(PATH + "x", *["x: "] * 100_000),
        request(PATH + "x", "x: " + "y" * 66_000),
        request(PATH + "x", "x: " + "y" * 66_000).removesuffix(b"\r\n\r\n"),  # it never ends
        request(PATH + "x", *["x: "] * 200).removesuffix(b"\r\n\r\n"),
    ]
    before = resident(edge.process.pid)

    for flood in floods:
        exchange = talk(edge.port, flood)
        assert (exchange.statuses, exchange.closed) == ([431], True)
        assert json.loads(exchange.responses[0].body)["code"] == "head_too_large"
    assert resident(edge.process.pid) - before < 8 * 1024 * 1024
    fits = request(PATH + "chat-1", *[f"x{n}: {'y' * 600}" for n in range(98)], token=token)
    assert talk(edge.port, fits).statuses == [200], "98, Host and Authorization are 100 headers"


@pytest.fixture(scope="module")
def impatient(lane: dict[str, str]):
    """A gateway with timeouts of one second and sessions of one megabyte."""
    big = session(1, "chat-1") | {"metadata": {"pad": "x" * 900_000}}
    body = json.dumps(big).encode()
    with (
        RawUpstream(lambda connection, _: connection.sendall(answer_bytes(body))) as up,
        Gateway(
            up.port,
            BFF_REQUEST_TIMEOUT="1",
            BFF_IDLE_TIMEOUT="1",
            BFF_EXPOSE_METADATA="pad",
            BFF_CACHE_TTL="60",
            **WIDE_OPEN,
            **lane,
        ) as gateway,
    ):
        yield gateway


def test_33_slow_writers_are_closed_in_bounded_time(impatient: Gateway) -> None:
    token = impatient.token(*read("chat-1"))
    data = request(PATH + "chat-1", token=token)
    drips = [data[:40], *[bytes([byte]) for byte in data[40:70]]]

    slow = (
        drips,
        [b"G"],
        [b""],
        [b"\r\n"] * 20,
        [request(PATH + "chat-1", "Content-Length: 99", method="POST"), *[b"x"] * 20],
        [request(PATH + "chat-1", "Transfer-Encoding: chunked", method="PUT"), *[b"1"] * 20],
        [request(PATH + "chat-1", token=token, method="HEAD"), *[b"\r\n"] * 30],
    )
    with ThreadPoolExecutor(len(slow)) as pool:
        ends = list(pool.map(lambda parts: talk(impatient.port, *parts, pause=0.1), slow))

    for exchange in ends:
        assert exchange.closed
        assert not [status for status in exchange.statuses if status not in (401, 405, 200)]
    assert metric(impatient, "bff_closed_connections") >= 6
    assert talk(impatient.port, data).statuses == [200]


def test_33_half_sent_heads_are_closed_in_bounded_time(impatient: Gateway) -> None:
    connections = [socket.create_connection((LOOPBACK, impatient.port)) for _ in range(50)]
    for connection in connections:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: g\r\nX-Slow: ")

    assert eventually(lambda: metric(impatient, "bff_connections") <= 1)
    for connection in connections:
        connection.close()


def test_33_slow_reader_costs_bounded_memory_for_a_bounded_time(impatient: Gateway) -> None:
    data = request(PATH + "chat-1", token=impatient.token(*read("chat-1")))
    assert talk(impatient.port, data).statuses == [200]
    before = resident(impatient.process.pid)
    connections = []
    for _ in range(20):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((LOOPBACK, impatient.port))
        connection.sendall(data * 30)  # 27 MB of answers each
        connection.setblocking(False)  # noqa: FBT003
        connections.append(connection)
    time.sleep(0.3)

    assert resident(impatient.process.pid) - before < 20 * 2 * 1024 * 1024

    def closed() -> bool:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.recv(4096)  # the kernel sees progress, so it keeps the connection
        return metric(impatient, "bff_connections") <= 1

    assert eventually(closed)
    for connection in connections:
        connection.close()


def test_33_connection_with_an_unread_short_answer_is_closed(
    upstream: running_upstream, lane: dict[str, str]
) -> None:
    with Gateway(upstream.port, BFF_IDLE_TIMEOUT="1", **WIDE_OPEN, **lane) as gateway:
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        connection = socket.create_connection((LOOPBACK, gateway.port))
        connection.sendall(data)
        assert eventually(lambda: metric(gateway, "bff_connections") == 0)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
        connection.close()


def test_33_connections_are_bounded_in_total_and_by_address(
    upstream: running_upstream, lane: dict[str, str]
) -> None:
    def accepted(gateway: Gateway, number: int) -> int:
        connections = [socket.create_connection((LOOPBACK, gateway.port)) for _ in range(number)]
        answered = 0
        for connection in connections:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.settimeout(PATIENCE)
                connection.sendall(request("/healthz"))
                answered += connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        for connection in connections:
            connection.close()
        return answered

    with Gateway(upstream.port, BFF_MAX_CONNECTIONS_PER_ADDRESS="5", **lane) as gateway:
        assert accepted(gateway, 12) == 5
        assert eventually(lambda: accepted(gateway, 5) == 5), "a closed connection frees its place"
    with Gateway(
        upstream.port,
        BFF_MAX_CONNECTIONS_PER_ADDRESS="5",
        BFF_TRUSTED_PROXIES="127.0.0.1",
        BFF_MAX_CONNECTIONS="8",
        **lane,
    ) as gateway:
        assert accepted(gateway, 12) == 8, "only the total bounds the connections of a proxy"


def test_33_hanging_load_ends_in_bounded_time() -> None:
    """Upstream writes slowly."""

    def drip(connection: socket.socket, head: bytes) -> None:
        connection.sendall(answer_bytes(json.dumps(session(1, requested_id(head))).encode())[:60])
        hang(connection, head)

    with RawUpstream(drip) as up, Gateway(up.port, BFF_UPSTREAM_TIMEOUT="0.5") as gateway:
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        exchange = talk(gateway.port, data)
        assert exchange.statuses == [504]
