"""`bff serve` as a process, real sockets on both sides."""

import asyncio
import json
import signal
import socket
import time
from urllib.parse import quote, unquote

import httpx2
import pytest
from support.rawsockets import request
from support.world import FRIENDLY, ORIGIN, PATH, SECRET_KEY, Gateway, http, read, running_upstream

from bff.demo.upstream import Answer, session


def ask(gateway: Gateway, segment: str, *scopes: str, **headers: str) -> httpx2.Response:
    authorization = f"Bearer {gateway.token(*(scopes or ['read:sessions']))}"
    sent = {"authorization": authorization, "origin": ORIGIN} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return http.get(gateway.url + PATH + segment, headers=sent)


def raw_get(gateway: Gateway, target: str, *lines: str) -> bytes:
    token = gateway.token("read:sessions")
    return gateway.raw(request(target, "Connection: close", *lines, token=token))


def test_a_session_end_to_end(gateway: Gateway, upstream: running_upstream) -> None:
    before = len(upstream.seen)

    first = ask(gateway, "chat-1")
    again = ask(gateway, FRIENDLY["chat-1"])
    same = ask(gateway, "chat-1", if_none_match=first.headers["etag"])

    assert [r.status_code for r in (first, again, same)] == [200, 200, 304]
    assert first.json()["externalId"] == "chat-1"
    assert "triggerConfig" not in first.json()
    (seen,) = upstream.seen[before:]
    assert seen.header("authorization") == f"Bearer {SECRET_KEY}"
    assert seen.header("origin") is None


@pytest.mark.parametrize(
    "target",
    [
        *("..%2f", "..%2Fother", "%2e%2e%2f", "%252e%252e%252f", "..;/", "..%3b%2f", "%5c..%5c"),
        *("%2f%2f", "%2f", "%3f", "%23", "a%3fb%23c", "%00", "%0d%0a", "%0d%0aX-A:%20b", "%c0%ae"),
        *(
            ".",
            "..",
            "%2e",
            "%2e%2e",
            "%252e",
            "../sessions",
            "./x",
            "a?b=c",
            "a#b",
            "a;b",
            "a%25b",
        ),
        *("a\\b", "'", '"', "<x>", "|", "^", "{}", "~", "!$&()*+,;=:@", "%F0%9F%98%80"),
    ],
)
def test_upstream_sees_exactly_one_encoded_segment_or_nothing(
    gateway: Gateway, upstream: running_upstream, target: str
) -> None:
    before = len(upstream.seen)

    answer = raw_get(gateway, PATH + target)

    status = int(answer.split(b" ", 2)[1])
    asked = upstream.seen[before:]
    assert status in (200, 400, 404, 410)
    assert len(asked) == (1 if status in (200, 404) else 0)
    for seen in asked:
        segment = seen.raw_path.removeprefix(PATH)
        assert seen.raw_path.startswith(PATH)
        assert seen.query == ""
        assert "/" not in segment
        assert segment not in (".", "..")
        id_ = unquote(target.partition("?")[0].partition("#")[0], errors="strict")
        assert segment == quote(id_, safe="")


def test_500_browsers_on_a_cold_session_are_one_call(
    gateway: Gateway, upstream: running_upstream
) -> None:
    """On sockets, all in flight at once, half of them not entitled."""
    upstream.app.environments[0].add(session(50, "chat-cold"))

    async def slow(_: object) -> Answer | None:
        await asyncio.sleep(0.3)
        return None

    async def status(token: str) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request(PATH + "chat-cold", "Connection: close", token=token))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(answer.split()[1])

    async def everyone() -> list[int]:
        entitled = gateway.token(*read("chat-cold"))
        unnamed = [gateway.token(*read("chat-1")), gateway.token(*read(FRIENDLY["chat-2"]))]
        tokens = [entitled, unnamed[0], entitled, unnamed[1]] * 125
        return await asyncio.gather(*map(status, tokens))

    upstream.app.override = slow
    before = len(upstream.seen)
    try:
        statuses = asyncio.run(everyone())
    finally:
        upstream.app.override = None

    assert statuses == [200, 403, 200, 403] * 125
    assert len(upstream.seen) - before == 1


def test_odd_requests_are_answered_or_refused_never_failed(gateway: Gateway) -> None:
    token = gateway.token("read:sessions")
    good = f"authorization: Bearer {token}"
    start, end = f"GET {PATH}chat-1 HTTP/1.1", "connection: close\r\n\r\n"
    requests = [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        f"OPTIONS * HTTP/1.1\r\nhost: x\r\n{end}",
        f"GET {PATH}chat-1 HTTP/1.0\r\n{good}\r\n\r\n",
        f"GET http://evil.example{PATH}chat-1 HTTP/1.1\r\nhost: x\r\n{good}\r\n{end}",
        f"{start}\r\nhost: evil/..?#\r\n{good}\r\n{end}",
        f"{start}\r\nhost: x\r\nauthorization: Bearer \xff\r\n{end}",
        f"{start}\r\nhost: x\r\norigin: \xff\r\n{end}",
        f"{start}\r\nhost: x\r\n{good}\r\nif-none-match: {'x,' * 20000}\r\n{end}",
        f"{start}\r\nhost: x\r\n{good}\r\nx-forwarded-for: {'a,' * 20000}\r\n{end}",
        f"GET {PATH}\xc3\xbc HTTP/1.1\r\nhost: x\r\n{good}\r\n{end}",
        f"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n{end}",
        f"TRACE {PATH}chat-1 HTTP/1.1\r\nhost: x\r\n{end}",
    ]
    for text in requests:
        answer = gateway.raw(text.encode("latin-1"))
        status = int(answer.split(b" ", 2)[1]) if answer else 0
        assert status < 500, (text[:80], answer[:200])
    assert ask(gateway, "chat-1").status_code == 200
    assert "Traceback" not in gateway.output


def test_upstream_comes_and_goes() -> None:
    """Nobody listens where upstream was; then somebody does again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Gateway(port, BFF_CACHE_TTL="0.2", BFF_CACHE_STALE_WHILE_REVALIDATE="0") as gateway:
        down = ask(gateway, "chat-1")
        assert (down.status_code, down.json()["code"]) == (502, "upstream_unavailable")
        assert down.headers["access-control-allow-origin"] == ORIGIN
        assert http.get(gateway.ops_url + "/readyz").status_code == 503

        with running_upstream(port):
            up = ask(gateway, "chat-1")
            assert up.status_code == 200
        time.sleep(0.3)
        stale = ask(gateway, "chat-1")
        assert (stale.status_code, stale.content) == (200, up.content)
        assert http.get(gateway.ops_url + "/readyz").status_code == 200

        with running_upstream(port):
            time.sleep(1.1)
            assert ask(gateway, "chat-1").headers["age"] == "0"


def test_requests_in_flight_finish_when_it_is_told_to_stop(upstream: running_upstream) -> None:
    with Gateway(upstream.port) as gateway, socket.socket() as connection:

        async def slow(_: object) -> Answer | None:
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            return None

        upstream.app.override = slow
        connection.connect(("127.0.0.1", gateway.port))
        authorization = f"authorization: Bearer {gateway.token('read:sessions')}"
        head = f"GET {PATH}chat-1 HTTP/1.1\r\nhost: x\r\n{authorization}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        upstream.app.override = None

        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"externalId":"chat-1"' in answer
        assert gateway.process.wait(timeout=5) == 0


def test_every_line_it_prints_is_json_without_secrets(upstream: running_upstream) -> None:
    with Gateway(upstream.port) as gateway:
        token = gateway.token("read:sessions")
        http.get(gateway.url + PATH + "chat-1?sentinel-query", headers={"authorization": token})
        ask(gateway, "chat-1")
        ask(gateway, "nope")
        http.get(gateway.url + PATH + "chat-1", headers={"authorization": f"Bearer {SECRET_KEY}"})
        gateway.raw(b"GARBAGE sentinel-garbage\r\n\r\n")
        metrics = http.get(gateway.ops_url + "/metrics").text
        refused = ask(gateway, "%00")
    lines = [json.loads(line) for line in gateway.output.splitlines()]

    for hidden in (SECRET_KEY, "own-signing-key", token, "sentinel", "first message", "tenant"):
        assert hidden not in gateway.output + metrics
    ids = {line.get("request_id") for line in lines}
    assert refused.headers["x-request-id"] in ids
    assert {"listening", "load_finished", "request_refused", "secret_key_sent_by_browser"} <= {
        line["event"] for line in lines
    }


def test_the_ops_port_is_on_loopback_and_apart(gateway: Gateway) -> None:
    assert http.get(gateway.ops_url + "/healthz").json() == {"status": "ok"}
    assert "bff_requests_total" in http.get(gateway.ops_url + "/metrics").text
    assert http.get(gateway.url + "/metrics").status_code == 404
    assert http.get(gateway.ops_url + PATH + "chat-1").status_code == 404
