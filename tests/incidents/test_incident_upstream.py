"""Incidents 26 to 28, 30, 34 and 35: upstream, and the secrets sent to it."""

import asyncio
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.hostile import NOTHING_KEPT, WIDE_OPEN, ask, descriptors, eventually, metric, told
from support.rawsockets import (
    LOOPBACK,
    RawUpstream,
    answer_bytes,
    request,
    requested_id,
    reset,
    talk,
)
from support.world import (
    OWN_KEY,
    PATH,
    SECRET_KEY,
    Executed,
    Gateway,
    World,
    claims,
    environ,
    http,
    read,
    sign,
)

from bff.config import reader, settings
from bff.demo.upstream import Answer, Seen, session

NEXT_KEY = "tr_dev_sk_NEXTsentinel00000000001"

_HIDDEN = {
    "secret key": SECRET_KEY,
    "next secret key": NEXT_KEY,
    "signing key": OWN_KEY,
    "second signing key": "second-own-signing-key-sentinel-0123456789",
    "query": "query-sentinel-1",
    "header": "header-sentinel-1",
    "document": "document-sentinel-1",
    "upstream's text": "upstream-text-sentinel-1",
    "address": "203.0.113.77",
    "id": "id-sentinel-1",
    "bad token": "bad-token-sentinel-1",
}


def test_26_no_output_holds_a_secret(lane: dict[str, str]) -> None:
    document = session(1, "chat-1") | {"metadata": {"x": _HIDDEN["document"]}}
    document["document-sentinel-1 odd name"] = 1
    bodies = {
        "chat-1": answer_bytes(json.dumps(document).encode()),
        "chat-2": answer_bytes(
            json.dumps({"error": _HIDDEN["upstream's text"]}).encode(),
            "500 " + _HIDDEN["upstream's text"],
            f"x-echo: {SECRET_KEY}",
        ),
        "chat-3": answer_bytes(b'{"error": "' + SECRET_KEY.encode() + b'"}', "401 Unauthorized"),
        "chat-4": b"HTTP/9 upstream-text-sentinel-1 " + SECRET_KEY.encode() + b"\r\n\r\n",
        "chat-5": answer_bytes(b"", "302 Found", f"Location: http://{LOOPBACK}/{SECRET_KEY}"),
    }

    def behave(connection: socket.socket, head: bytes) -> None:
        connection.sendall(
            bodies.get(requested_id(head), answer_bytes(b"upstream-text-sentinel-1", "404 No"))
        )
        raise OSError("one answer a connection")

    changes = {
        "TRIGGER_SECRET_KEY": f"{SECRET_KEY},{NEXT_KEY}",
        "BFF_SIGNING_KEYS": f"{OWN_KEY},{_HIDDEN['second signing key']}",
        "BFF_TRUSTED_PROXIES": "127.0.0.1",
        "BFF_BAD_TOKEN_LIMIT": "40/minute",
        "BFF_UPSTREAM_BUDGET": "off",
    }
    received = b""
    tokens = [_HIDDEN["bad token"]]
    with RawUpstream(behave) as up, Executed(up.port, **changes, **lane) as gateway:
        good = gateway.token("read:sessions")
        tokens += [good, gateway.token("read:sessions", exp=1), sign(claims(0, "x"), "y" * 32)]
        tokens += [SECRET_KEY, NEXT_KEY, OWN_KEY]
        lines = (f"X-Forwarded-For: {_HIDDEN['address']}", f"X-Trace: {_HIDDEN['header']}")
        ids = [*bodies, _HIDDEN["id"], "chat-2%0a" + _HIDDEN["id"], "%zz", "..", "x" * 300]
        for token in [*tokens, None]:
            for id_ in ids:
                path = f"{PATH}{id_}?t={_HIDDEN['query']}"
                received += talk(gateway.port, request(path, *lines, token=token)).data
        flood = request(PATH, *[f"x: {_HIDDEN['header']}"] * 101, token=good)
        received += talk(gateway.port, flood).data
        received += talk(gateway.port, b"GARBAGE " + SECRET_KEY.encode() + b"\r\n\r\n").data
        for path in ("/metrics", "/readyz", "/healthz"):
            received += http.get(gateway.ops_url + path).content
        process = Path(f"/proc/{gateway.process.pid}")
        arguments = process.joinpath("cmdline").read_bytes()
    everything = received + gateway.output.encode() + arguments

    assert b"secret_key_sent" in received
    assert b"rate_limited" in received
    assert b"upstream_rejected_credentials" in received
    for what, text in _HIDDEN.items():
        assert text.encode() not in everything, what
    for token in tokens:
        assert token.encode() not in everything
        assert token.rpartition(".")[2].encode() not in everything, "nor a signature"


_CHECK = """
import json, os, sys
from click.testing import CliRunner
from bff.cli import main
for environ in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environ)
    print(json.dumps(CliRunner().invoke(main, ["check"]).output))
"""
"""Runs `bff check` with one environment after another, in a process that may be hardened."""


def test_26_check_and_repr_show_no_secret() -> None:
    environments = [
        environ(**changes)
        for changes in (
            {},
            {"BFF_SIGNING_KEYS": "short-sentinel"},
            {"BFF_SIGNING_KEYS": "tr_dev_sk_sentinel-additional-key-01"},
            {"TRIGGER_SECRET_KEY": "not-a-key-sentinel"},
            {"TRIGGER_SECRET_KEY": "tr_dev_sentinel with a space"},
            {"TRIGGER_SECRET_KEY_FILE": "/nowhere"},
            {"BFF_UNKNOWN": "sentinel"},
            {"BFF_RATE_LIMIT": "sentinel"},
        )
    ]
    run = subprocess.run(
        [sys.executable, "-c", _CHECK],
        input=json.dumps(environments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for shown in map(json.loads, run.stdout.splitlines()):
        assert shown
        assert "sentinel" not in shown
    assert len(run.stdout.splitlines()) == len(environments)
    for environment in environments:
        try:
            shown = repr(reader.load(environment))
        except settings.SettingsError as exc:
            shown = repr(exc) + str(exc)
        assert "sentinel" not in shown


def test_26_the_process_shows_no_secret() -> None:
    with Executed(1) as gateway:
        process = Path(f"/proc/{gateway.process.pid}")
        limits = (process / "limits").read_text()
        arguments = (process / "cmdline").read_bytes()
    code = "import ctypes; from bff.server.hardening import harden; harden(); "
    code += "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    dumpable = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)

    assert b"sentinel" not in arguments
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert dumpable.stdout == b"0\n"


async def test_26_tracebacks_hold_lines_and_no_texts(world: World) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(SECRET_KEY)

    world.service.gateway.loader._project = broken
    assert (await world.get("chat-1")).json()["code"] == "internal"
    world.service.gateway.admission.authenticate = broken
    assert (await world.get("chat-1")).json()["code"] == "internal"

    assert SECRET_KEY not in world.log.getvalue()
    failures = [line for line in world.logged() if line.get("exception") == "RuntimeError"]
    assert {line["event"] for line in failures} == {"load_failed", "request_failed"}
    assert all(line["frames"] for line in failures)


def test_27_an_unverified_certificate_gets_no_request(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl, which makes the certificate, is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    shaken: list[str] = []

    def behave(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                shaken.append("a request: " + secure.recv(100).decode())
        except (ssl.SSLError, OSError) as exc:
            shaken.append(type(exc).__name__)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            behave(connection)

    listener = socket.create_server((LOOPBACK, 0))
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    # The gateway ignores the variables that turn verification off in other programs.
    off = {"PYTHONHTTPSVERIFY": "0", "CURL_CA_BUNDLE": "", "SSL_VERIFY": "0"}
    off |= {
        "REQUESTS_CA_BUNDLE": str(certificate),
        "HTTPS_PROXY": f"http://127.0.0.1:{port}",
        "NODE_TLS_REJECT_UNAUTHORIZED": "0",
    }
    with Gateway(1, TRIGGER_API_URL=f"https://127.0.0.1:{port}", **off) as gateway:
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        (response,) = talk(gateway.port, data).responses
        assert (response.status, json.loads(response.body)["code"]) == (502, "upstream_unavailable")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()

    assert shaken
    assert not [what for what in shaken if what.startswith("a request")]


def test_27_plain_http_is_for_loopback_unless_allowed() -> None:
    for url in ("http://api.trigger.dev", "http://10.0.0.1", "http://127.0.0.1.evil.example"):
        with pytest.raises(settings.SettingsError, match="unencrypted"):
            reader.load(environ(TRIGGER_API_URL=url))
        reader.load(environ(TRIGGER_API_URL=url, BFF_ALLOW_HTTP_API_URL="true"))
    for url in ("http://127.0.0.1:3030", "http://localhost", "http://[::1]:1", "https://a.example"):
        reader.load(environ(TRIGGER_API_URL=url))
    names = set(settings.SETTINGS) - {"BFF_VERIFY"}  # chooses who verifies tokens
    assert not [name for name in names if "VERIFY" in name or "INSECURE" in name]


def test_28_a_redirect_is_not_followed(lane: dict[str, str]) -> None:
    statuses = ("301", "302", "303", "307", "308", "300")
    with RawUpstream(lambda c, _: c.sendall(answer_bytes(b"{}"))) as elsewhere:
        target = f"http://localhost:{elsewhere.port}/steal"

        def redirect(connection: socket.socket, head: bytes) -> None:
            connection.sendall(
                answer_bytes(b"", f"{requested_id(head)} Moved", f"Location: {target}")
            )

        with RawUpstream(redirect) as up, Gateway(up.port, **lane) as gateway:
            for status in statuses:
                data = request(PATH + status, token=gateway.token(*read(status)))
                (response,) = talk(gateway.port, data).responses
                assert (response.status, json.loads(response.body)["code"]) == (
                    502,
                    "upstream_invalid",
                )
                assert b"steal" not in response.body
            assert [requested_id(head) for head in up.seen] == [*statuses]
        assert elsewhere.seen == []


def test_30_a_flapping_upstream_leaves_no_socket_open(lane: dict[str, str]) -> None:
    body = json.dumps(session(1, "chat-1")).encode()
    turn = iter(range(10**9))

    def flap(connection: socket.socket, _: bytes) -> None:
        match next(turn) % 4:
            case 0:
                connection.sendall(answer_bytes(body))
            case 1:
                reset(connection)
            case 2:
                connection.sendall(answer_bytes(b"{}", "503 Down"))
            case _:
                raise OSError("closes without an answer")

    with (
        RawUpstream(flap) as up,
        Gateway(up.port, **WIDE_OPEN, **NOTHING_KEPT, **lane) as gateway,
        httpx2.Client(base_url=gateway.url) as browser,
    ):
        headers = {"authorization": f"Bearer {gateway.token(*read('chat-1'))}"}

        def poll(times: int) -> set[int]:
            return {browser.get(PATH + "chat-1", headers=headers).status_code for _ in range(times)}

        assert poll(100) == {200, 502}
        before = descriptors(gateway.process.pid)
        assert poll(300) == {200, 502}
        assert descriptors(gateway.process.pid) <= before + 2
        assert metric(gateway, "bff_loads_in_flight") == 0


async def test_35_the_next_key_takes_over_once(world: World) -> None:
    keys = world.upstream.environments[0].additional_keys
    await world.start(TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY}", **WIDE_OPEN, **NOTHING_KEPT)
    assert (await world.get("chat-1")).status_code == 200

    keys[NEXT_KEY] = keys.pop(SECRET_KEY)  # upstream rotates the key
    responses = [await world.get("chat-1") for _ in range(5)]

    assert [r.status_code for r in responses] == [200] * 5
    sent = [seen.header("authorization").removeprefix("Bearer ") for seen in world.upstream.seen]
    assert sent == [SECRET_KEY, SECRET_KEY, NEXT_KEY, *[NEXT_KEY] * 4]
    assert (await world.ops.get("/readyz")).status_code == 200


async def test_35_browsers_get_502_when_all_keys_are_rejected(world: World) -> None:
    await world.start(TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY}")
    fresh = await world.get("chat-1")
    world.upstream.environments[0].additional_keys.clear()
    before = world.calls

    cold = await world.get("chat-2")
    assert (cold.status_code, cold.json()["code"]) == (502, "upstream_rejected_credentials")
    assert world.calls - before == 2, "each key once"
    again = await world.get("chat-2")
    assert again.status_code == 502
    assert world.calls - before == 3, "while all are rejected, one call a load"
    world.clock.advance(60)
    stale = await world.get("chat-1")
    assert (stale.status_code, stale.content) == (200, fresh.content)
    ready = await world.ops.get("/readyz?verbose")
    assert ready.status_code == 200, "requests are decided"
    assert "[-] upstream of default" in ready.text
    assert "TRIGGER_SECRET_KEY" in ready.text
    assert "upstream_rejects_our_key" in [line["event"] for line in world.logged()]
    world.clock.advance(3)
    assert (await world.get("chat-1")).status_code == 502, "never 401"

    world.upstream.environments[0].additional_keys[SECRET_KEY] = ("read:sessions",)
    for _ in range(2):
        world.clock.advance(2)
        recovered = await world.get("chat-2")
    assert recovered.status_code == 200


def _all_at_once(number: int) -> Any:
    """Hold every answer of upstream until *number* requests have arrived."""
    arrived = 0

    async def together(_: Seen) -> Answer | None:
        nonlocal arrived
        arrived += 1
        while arrived < number:
            await asyncio.sleep(0)
        return None

    return together


async def test_35_concurrent_loads_switch_the_key_once(world: World) -> None:
    keys = world.upstream.environments[0].additional_keys
    keys[NEXT_KEY] = keys.pop(SECRET_KEY)
    await world.start(TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY}", **WIDE_OPEN)
    world.upstream.override = _all_at_once(3)
    token = world.token("read:sessions")
    names = ("chat-1", "chat-2", "chat-closed")
    responses = await asyncio.gather(*(ask(world, name, token) for name in names))

    assert [response.status for response in responses] == [200] * 3
    assert world.calls == 6


async def test_35_the_call_with_the_next_key_is_spent_from_the_budget(world: World) -> None:
    keys = world.upstream.environments[0].additional_keys
    keys[NEXT_KEY] = keys.pop(SECRET_KEY)
    budget = {"BFF_UPSTREAM_BUDGET": "3/second"}
    await world.start(TRIGGER_SECRET_KEY=f"{SECRET_KEY},{NEXT_KEY}", **WIDE_OPEN | budget)
    world.upstream.override = _all_at_once(3)
    token = world.token("read:sessions")
    names = ("chat-1", "chat-2", "chat-closed")

    responses = await asyncio.gather(*(ask(world, name, token) for name in names))

    assert world.calls == 3, "not six: nothing was left for the next key"
    assert [response.status for response in responses] == [503] * 3
    assert {json.loads(response.body)["code"] for response in responses} == {"over_budget"}
    assert {told(response)["retry-after"] for response in responses} == {"1"}
    world.clock.advance(1)
    responses = [await ask(world, name, token) for name in names]
    assert [response.status for response in responses] == [200] * 3, "by the next key, at once"
    assert world.calls == 6


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("401 Unauthorized", b'{"error":"Invalid API key"}'),
        ("403 Forbidden", b'{"error":"Forbidden","code":"unauthorized"}'),
    ],
)
def test_35_a_rejected_key_is_replaced_on_the_wire(
    lane: dict[str, str], status: str, error: bytes
) -> None:
    with (
        RawUpstream(lambda c, _: c.sendall(answer_bytes(error, status))) as up,
        Gateway(up.port, **lane) as gateway,
    ):
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        (response,) = talk(gateway.port, data).responses
        assert response.status == 502
        assert json.loads(response.body)["code"] == "upstream_rejected_credentials"
        assert "www-authenticate" not in response.headers
        assert eventually(
            lambda: "rejects the secret key" in http.get(gateway.ops_url + "/readyz?verbose").text
        )


def test_34_a_429_is_honoured_on_the_wire(lane: dict[str, str]) -> None:
    limited = json.dumps({"error": "limited"}).encode()

    def behave(connection: socket.socket, head: bytes) -> None:
        if len(up.seen) == 1:
            lines = (
                *("x-ratelimit-limit: 750", "x-ratelimit-remaining: 0"),
                f"x-ratelimit-reset: {int((time.time() + 3) * 1000)}",
            )
            connection.sendall(answer_bytes(limited, "429 Too Many Requests", *lines))
        else:
            connection.sendall(answer_bytes(json.dumps(session(1, requested_id(head))).encode()))

    with RawUpstream(behave) as up, Gateway(up.port, **lane) as gateway:
        data = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        (response,) = talk(gateway.port, data).responses
        assert (response.status, response.headers["retry-after"] in "23") == (503, True)
        for _ in range(5):
            assert talk(gateway.port, data).statuses == [503]
        assert len(up.seen) == 1
        assert eventually(lambda: talk(gateway.port, data).statuses == [200])
