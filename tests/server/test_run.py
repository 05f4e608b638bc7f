"""`bff serve` as a process, with real sockets on both sides."""

import asyncio
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import pytest
import uvloop
from support.rawsockets import request
from support.world import (
    FRIENDLY,
    KEPT,
    OFF,
    ORIGIN,
    PATH,
    PATIENCE,
    SECRET_KEY,
    Gateway,
    environ,
    http,
    read,
    running_upstream,
)

from bff.demo.upstream import Answer, Seen, session
from bff.server import hardening, run
from bff.sessions import ids

# As systemd does: sockets at 3 and 4, and the id of the process in LISTEN_PID.
ACTIVATE = """
import os, sys
for fd, target in ((int(sys.argv[1]), 3), (int(sys.argv[2]), 4)):
    os.dup2(fd, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="browser:ops")
os.execv(sys.executable, [sys.executable, "-m", "bff", "serve"])
"""


def start(*sockets: socket.socket) -> subprocess.Popen[str]:
    # Numbers beyond 3 and 4, or one socket could take the place of the other.
    numbers = [fcntl.fcntl(sock, fcntl.F_DUPFD, 20) for sock in sockets]
    process = subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, *map(str, numbers)],
        env=KEPT | environ(),
        pass_fds=numbers,
        stdout=subprocess.PIPE,
        text=True,
    )
    for number in numbers:
        os.close(number)
    return process


def test_restart_with_an_inherited_socket_refuses_no_connection() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as browser,
        socket.create_server(("127.0.0.1", 0)) as ops,
    ):
        url = f"http://127.0.0.1:{browser.getsockname()[1]}/healthz"
        for _ in range(2):
            process = start(browser, ops)
            # The socket is open, so this request waits until the process is ready.
            assert http.get(url).status_code == 200
            address = f"http://127.0.0.1:{ops.getsockname()[1]}"
            assert "bff_requests" in http.get(address + "/metrics").text
            process.terminate()
            output, _ = process.communicate(timeout=PATIENCE)
            listening = json.loads(output.splitlines()[0])
            assert listening["browser"].endswith(str(browser.getsockname()[1]))
        silent = browser.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert silent == 75_000, "milliseconds for which a browser may acknowledge nothing"


def test_threads_that_look_up_names_run_from_the_start(gateway: Gateway) -> None:
    """If no thread is left later, libuv aborts."""
    tasks = Path(f"/proc/{gateway.process.pid}/task").iterdir()

    assert len(list(tasks)) >= hardening.least_threads(1) - 1, "no traces, so one less"


def test_variable_of_another_server_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    run.config(None, lifespan=False)


def test_name_with_an_ipv6_address_alone_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with run.listen("gateway.internal", 0) as sock:
        assert sock.getsockname()[0] == "::1"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signal_of_a_log_rotation_ends_nothing(upstream: running_upstream, workers: str) -> None:
    """Other servers open their logs again; the default of the signal is to end the process."""
    with Gateway(upstream.port, "--workers", workers) as gateway:
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            gateway.process.send_signal(signum)
        gateway.process.send_signal(signal.SIGTERM)

        assert gateway.process.wait(timeout=PATIENCE) == 0, "the status of a stop by SIGTERM"


def test_connections_end_whose_browser_has_vanished() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as browser:
        run.bound_silence(listening, 0.5)
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        browser.connect(listening.getsockname())
        connection, _ = listening.accept()
        connection.settimeout(PATIENCE)
        with connection, pytest.raises(TimeoutError) as ended:
            connection.sendall(bytes(64 * 1024 * 1024))  # the browser reads nothing

    assert ended.value.errno == errno.ETIMEDOUT, "the system has ended it"


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_stop_during_the_start_ends_it(options: tuple[str, ...]) -> None:
    # PID 1 of a container would not even end: the kernel gives it no signal without a handler.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-m", "bff", "serve", *options]
        port = silent.getsockname()[1]
        settings = environ(TRIGGER_API_URL=f"http://127.0.0.1:{port}", BFF_UPSTREAM_TIMEOUT="60")
        with subprocess.Popen(command, env=KEPT | settings) as process:
            silent.settimeout(PATIENCE)
            connection, _ = silent.accept()  # it waits for the id of the environment
            process.terminate()
            assert process.wait(PATIENCE) == 0
            connection.close()


def test_stop_that_python_drops_ends_the_start() -> None:
    code = """
import os, signal, sys, time
from bff.server import run

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

run.END_SECONDS = 1
signal.signal(signal.SIGTERM, run.end_the_start)
Finalized()
print("dropped", flush=True)
time.sleep(15)
sys.exit("it went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False, env=KEPT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "dropped\n")
    assert "SystemExit" in done.stderr, "Python tells what it dropped"


@pytest.mark.parametrize("swallowed", [False, True], ids=["cancelled", "swallowed"])
def test_stop_during_the_async_start_ends_it(
    swallowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of a signal handler would be lost in a callback of the loop."""
    handlers: dict[int, Any] = {}
    steps: list[str] = []

    async def work() -> None:
        handlers[signal.SIGTERM]()
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            steps.append("cancelled")
            if not swallowed:
                raise

    async def on_stop() -> None:
        steps.append("stopped")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_signal_handler", handlers.__setitem__, raising=False)
        await run.start(work(), on_stop=on_stop)
        steps.append("serves")

    monkeypatch.setattr(uvloop, "new_event_loop", asyncio.new_event_loop)
    run.run_loop(main())

    assert steps == ["cancelled", "stopped"]


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_reload_during_the_stop_does_no_harm(
    upstream: running_upstream, options: tuple[str, ...]
) -> None:
    with Gateway(upstream.port, *options) as gateway:
        gateway.process.terminate()
        for _ in range(100):
            gateway.process.send_signal(signal.SIGHUP)
            time.sleep(0.02)

    assert gateway.process.returncode == 0


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"LISTEN_FDNAMES": "browser:bff-ops.socket"}, "FileDescriptorName="),
        ({"LISTEN_FDNAMES": "browser:browser"}, "FileDescriptorName="),
        ({"LISTEN_FDNAMES": ""}, "FileDescriptorName="),
        ({"LISTEN_FDS": "two"}, "LISTEN_FDS"),
        ({}, "LISTEN_FDS"),
    ],
    ids=["other name", "one name twice", "no name", "no number", "no socket"],
)
def test_inherited_socket_that_nobody_accepts_on_is_refused(
    changes: dict[str, str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections would wait for ever, because the gateway listened elsewhere."""
    with Path(os.devnull).open() as one:
        monkeypatch.setattr(run, "_FIRST_FD", one.fileno())
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
        with pytest.raises(run.InheritedError, match=remedy):
            run.inherited(passed | {"LISTEN_FDNAMES": "browser:ops"} | changes)


def test_sockets_for_another_process_are_ignored() -> None:
    assert run.inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ops"}) == {}


def get(gateway: Gateway, segment: str, *scopes: str, **headers: str) -> httpx2.Response:
    authorization = f"Bearer {gateway.token(*(scopes or ['read:sessions']))}"
    sent = {"authorization": authorization, "origin": ORIGIN} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return http.get(gateway.url + PATH + segment, headers=sent)


def raw_get(gateway: Gateway, target: str, *lines: str) -> bytes:
    token = gateway.token("read:sessions")
    return gateway.raw(request(target, "Connection: close", *lines, token=token))


def test_session_is_served_end_to_end(gateway: Gateway, upstream: running_upstream) -> None:
    before = len(upstream.seen)

    first = get(gateway, "chat-1")
    again = get(gateway, FRIENDLY["chat-1"])
    same = get(gateway, "chat-1", if_none_match=first.headers["etag"])

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
def test_upstream_gets_one_encoded_segment_or_no_request(
    gateway: Gateway, upstream: running_upstream, target: str
) -> None:
    before = len(upstream.seen)

    answer = raw_get(gateway, PATH + target)

    status = int(answer.split(b" ", 2)[1])
    calls = upstream.seen[before:]
    assert status in (200, 400, 404, 410)
    reachable = ids.is_reachable(unquote(target))
    assert len(calls) == (1 if status in (200, 404) and reachable else 0)
    for seen in calls:
        segment = seen.raw_path.removeprefix(PATH)
        assert seen.raw_path.startswith(PATH)
        assert seen.query == ""
        assert "/" not in segment
        assert segment not in (".", "..")
        id_ = unquote(target.partition("?")[0].partition("#")[0], errors="strict")
        assert segment == quote(id_, safe="")


def test_500_browsers_of_a_cold_session_cause_one_load(upstream: running_upstream) -> None:
    """All are in flight at once, and half of the callers have no access."""
    upstream.app.environments[0].add(session(50, "chat-cold"))

    async def slow(_: object) -> Answer | None:
        await asyncio.sleep(0.3)
        return None

    async def status(gateway: Gateway, token: str) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request(PATH + "chat-cold", "Connection: close", token=token))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(answer.split()[1])

    async def all_statuses(gateway: Gateway) -> list[int]:
        named = gateway.token(*read("chat-cold"))
        unnamed = [gateway.token(*read("chat-1")), gateway.token(*read(FRIENDLY["chat-2"]))]
        tokens = [named, unnamed[0], named, unnamed[1]] * 125
        return await asyncio.gather(*(status(gateway, token) for token in tokens))

    upstream.app.override = slow
    before = len(upstream.seen)
    try:
        # A busy machine needs longer for 500 requests than the usual copy is fresh.
        with Gateway(upstream.port, **OFF, BFF_CACHE_TTL="60") as gateway:
            statuses = asyncio.run(all_statuses(gateway))
    finally:
        upstream.app.override = None

    assert statuses == [200, 403, 200, 403] * 125
    calls = [seen.raw_path for seen in upstream.seen[before:]]
    assert calls.count(PATH + "chat-cold") == 1
    assert len(calls) <= 2, "and one of the session that a token names in the other form"


def test_odd_requests_never_cause_a_5xx(gateway: Gateway) -> None:
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
    assert get(gateway, "chat-1").status_code == 200
    assert "Traceback" not in gateway.output


def test_gateway_recovers_when_upstream_returns() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Gateway(port, BFF_CACHE_TTL="0.2", BFF_CACHE_STALE_WHILE_REVALIDATE="0") as gateway:
        down = get(gateway, "chat-1")
        assert (down.status_code, down.json()["code"]) == (502, "upstream_unavailable")
        assert down.headers["access-control-allow-origin"] == ORIGIN
        ready = http.get(gateway.ops_url + "/readyz?verbose")
        assert (ready.status_code, "[-] upstream of default" in ready.text) == (200, True)

        with running_upstream(port):
            up = get(gateway, "chat-1")
            assert up.status_code == 200
        time.sleep(0.3)
        stale = get(gateway, "chat-1")
        assert (stale.status_code, stale.content) == (200, up.content)
        assert http.get(gateway.ops_url + "/readyz").status_code == 200

        with running_upstream(port):
            time.sleep(1.1)
            assert get(gateway, "chat-1").headers["age"] == "0"


def test_sigterm_lets_requests_in_flight_finish(upstream: running_upstream) -> None:
    with Gateway(upstream.port) as gateway, socket.socket() as connection:

        async def slow(seen: Seen) -> Answer | None:
            if not seen.raw_path.endswith("chat-1"):
                return None  # the gateway's own question
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
        assert gateway.process.wait(timeout=PATIENCE) == 0


def test_log_lines_are_json_without_secrets(upstream: running_upstream) -> None:
    with Gateway(upstream.port) as gateway:
        token = gateway.token("read:sessions")
        http.get(gateway.url + PATH + "chat-1?sentinel-query", headers={"authorization": token})
        get(gateway, "chat-1")
        get(gateway, "nope")
        http.get(gateway.url + PATH + "chat-1", headers={"authorization": f"Bearer {SECRET_KEY}"})
        gateway.raw(b"GARBAGE sentinel-garbage\r\n\r\n")
        metrics = http.get(gateway.ops_url + "/metrics").text
        refused = get(gateway, "%00")
    lines = [json.loads(line) for line in gateway.output.splitlines()]

    for hidden in (SECRET_KEY, "own-signing-key", token, "sentinel", "first message", "tenant"):
        assert hidden not in gateway.output + metrics
    ids = {line.get("request_id") for line in lines}
    assert refused.headers["x-request-id"] in ids
    assert {"listening", "load_finished", "request_refused", "secret_key_sent_by_browser"} <= {
        line["event"] for line in lines
    }


def test_ops_routes_are_on_the_ops_port_only(gateway: Gateway) -> None:
    assert http.get(gateway.ops_url + "/healthz").json() == {"status": "ok"}
    assert "bff_requests_total" in http.get(gateway.ops_url + "/metrics").text
    assert http.get(gateway.url + "/metrics").status_code == 404
    assert http.get(gateway.ops_url + PATH + "chat-1").status_code == 404
