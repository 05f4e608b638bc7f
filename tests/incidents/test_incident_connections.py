"""Connections: how they are accepted and ended, and what they may hold in memory."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest
from support.hostile import metric, resident
from support.rawsockets import request
from support.workers import by_worker, child_pids, kill_worker, running_workers, up
from support.world import (
    KEPT,
    OFF,
    ORIGIN,
    PATH,
    PATIENCE,
    Clock,
    Executed,
    Gateway,
    World,
    environ,
    http,
    read,
    running_upstream,
    until,
)

from bff.demo.upstream import Answer, session
from bff.server import run
from bff.server.hardening import bounded_connections

PATHS = pytest.mark.parametrize("fast", ["true", "false"], ids=["fast", "asgi"])


# -- 39: the supervisor


def test_39_unknown_child_does_not_end_the_supervisor(upstream: running_upstream) -> None:
    """PID 1 of a container adopts the orphans of other processes."""
    gateway = Executed(upstream.port, "--workers", "2", **OFF)
    gateway.command = ["sh", "-c", 'sleep 3 & exec "$0" "$@"', *gateway.command]
    with gateway:
        until(lambda: len(child_pids(gateway)) == 2 and up(gateway) == [1, 1])
        kill_worker(gateway, child_pids(gateway)[1])


# -- 81: many processes


def test_81_long_connections_are_shared_by_all_workers(upstream: running_upstream) -> None:
    with running_workers(upstream, 4) as gateway:
        opened: list[socket.socket] = []

        def accepted() -> bool:
            return sum(by_worker(gateway, "bff_connections")) >= len(opened)

        try:
            # A worker that the machine pauses gets nothing of a burst, so one may have few.
            for _ in range(3):
                opened += [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(64)]
                until(accepted)
                shares = sorted(by_worker(gateway, "bff_connections"))
                if shares[1] >= len(opened) / 5:
                    break
            assert shares[1] >= len(opened) / 5, f"{shares}: a quarter is fair"
        finally:
            for connection in opened:
                connection.close()


# -- 82: few descriptors


class Limited(Executed):
    """A gateway that may open few files."""

    files = 160

    def __enter__(self) -> Self:
        self.command = ["bash", "-c", f'ulimit -n {self.files}; exec "$@"', "-", *self.command]
        return super().__enter__()


def test_82_ops_port_and_log_work_without_descriptors(upstream: running_upstream) -> None:
    with Limited(upstream.port, **OFF) as gateway:
        opened = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(300)]
        try:
            for connection in opened:
                connection.settimeout(0.01)
            until(lambda: metric(gateway, "bff_closed_connections", "too_many") >= 200)
            for _ in range(5):
                assert http.get(gateway.ops_url + "/healthz").status_code == 200
                # A refused connection counts until its end.
                until(lambda: metric(gateway, "bff_connections") <= gateway.files / 2)
            opened[0].settimeout(PATIENCE)
            opened[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert opened[0].recv(100).startswith(b"HTTP/1.1 200")
        finally:
            for connection in opened:
                connection.close()
        until(lambda: '"few_open_files"' in gateway.output)
    lines = [json.loads(line) for line in gateway.output.splitlines()]
    (few,) = [line for line in lines if line["event"] == "few_open_files"]
    assert (few["limit"], few["connections"]) == (160, 80)
    assert [line["open_files"] for line in lines if line["event"] == "listening"] == [160]


@pytest.mark.parametrize(("files", "expected"), [(1_000_000, 10_000), (1024, 512), (4096, 3584)])
def test_82_browsers_leave_descriptors_free(files: int, expected: int) -> None:
    assert bounded_connections(files, 10_000) == expected


# -- 83: the end of a process


class Kept:
    """A proxy's kept connection, always with a request."""

    def __init__(self, port: int, head: bytes, number: int) -> None:
        self.port, self.head, self.pause = port, head, 0.003 * number
        self.answers = self.lost = self.closed = 0

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.closed and not self.lost:
            await asyncio.sleep(self.pause)
            try:
                writer.write(self.head)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
            except (OSError, EOFError):
                self.lost += 1
            else:
                assert head.startswith(b"HTTP/1.1 200")
                self.answers += 1
                self.closed = b"connection: close" in head.lower()
        writer.close()


@PATHS
def test_83_busy_connections_lose_no_request_at_the_end(
    upstream: running_upstream, fast: str
) -> None:
    with Gateway(upstream.port, BFF_FAST_PATH=fast, BFF_CACHE_TTL="60", **OFF) as gateway:
        head = request(PATH + "chat-1", token=gateway.token(*read("chat-1")))
        kept = [Kept(gateway.port, head, number) for number in range(100)]

        async def drive() -> None:
            tasks = [asyncio.create_task(one.run()) for one in kept]
            while min(one.answers for one in kept) < 3:
                await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*tasks), 30)

        asyncio.run(drive())
        assert [one.lost for one in kept] == [0] * 100
        assert all(one.closed for one in kept)
        assert gateway.process.wait(PATIENCE) == 0


def test_83_ops_port_says_not_ready_while_requests_finish(upstream: running_upstream) -> None:
    with Gateway(upstream.port, **OFF) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: http.get(gateway.ops_url + "/readyz").status_code == 503)

            def last() -> bool:
                new = http.get(gateway.url + "/healthz")
                assert new.status_code == 200
                return new.headers.get("connection") == "close"

            until(last)
            idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while chunk := idle.recv(4096):
                answer += chunk
            assert b"connection: close" in answer
        assert gateway.process.wait(PATIENCE) == 0


# -- 84: a browser that ends its side


@PATHS
def test_84_half_closed_connection_gets_its_answer(upstream: running_upstream, fast: str) -> None:
    async def slow(_: object) -> Answer | None:
        await asyncio.sleep(0.3)
        return None

    with Gateway(upstream.port, BFF_FAST_PATH=fast, BFF_CACHE_TTL="0", **OFF) as gateway:
        upstream.app.override = slow
        try:
            for target, expected in (
                (PATH + "chat-1", b"200"),
                ("/healthz", b"200"),
                ("/x", b"404"),
            ):
                with socket.create_connection(
                    ("127.0.0.1", gateway.port), timeout=PATIENCE
                ) as browser:
                    browser.sendall(request(target, token=gateway.token("read:sessions")))
                    browser.shutdown(socket.SHUT_WR)
                    answer = b""
                    while chunk := browser.recv(65536):
                        answer += chunk
                assert answer.startswith(b"HTTP/1.1 " + expected), (target, answer[:80])
        finally:
            upstream.app.override = None
        until(lambda: metric(gateway, "bff_connections") == 0)


# -- 44, 48, 85, 86: addresses and clocks


async def test_44_health_check_is_not_limited_with_browsers(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="3/minute")
    statuses = [(await world.get("chat-1")).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    health = [(await world.browser.get("/healthz")).status_code for _ in range(5)]
    assert health == [200, 200, 200, 429, 429]


async def test_44_pages_do_not_use_up_the_limit_of_browsers(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="3/minute")
    for _ in range(9):
        await world.browser.get("/openapi.json")
    assert (await world.get("chat-1")).status_code == 200


@pytest.mark.parametrize("wildcard", ["::", "::0", "0:0:0:0:0:0:0:0"])
def test_85_ipv6_wildcard_takes_ipv4_too(wildcard: str) -> None:
    with run.listen(wildcard, 0) as sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=PATIENCE):
                sock.accept()[0].close()


ACTIVATE = """
import os, sys
for fd, target in ((int(sys.argv[1]), 3), (int(sys.argv[2]), 4)):
    os.dup2(fd, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="browser:ops")
os.execv(sys.executable, [sys.executable, "-m", "bff", "serve"])
"""


@pytest.mark.parametrize("trusted", ["127.0.0.1", ""])
def test_48_browsers_behind_a_unix_socket_have_addresses(tmp_path: Path, trusted: str) -> None:
    path = str(tmp_path / "bff.sock")
    with socket.socket(socket.AF_UNIX) as browser, socket.create_server(("127.0.0.1", 0)) as ops:
        browser.bind(path)
        browser.listen(100)
        numbers = [fcntl.fcntl(sock, fcntl.F_DUPFD, 20) for sock in (browser, ops)]
        settings = environ(BFF_IP_RATE_LIMIT="2/minute", BFF_TRUSTED_PROXIES=trusted)
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, *map(str, numbers)],
            env=KEPT | settings,
            pass_fds=numbers,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in numbers:
            os.close(number)

        def get(address: str) -> int:
            with socket.socket(socket.AF_UNIX) as proxy:
                proxy.settimeout(PATIENCE)
                proxy.connect(path)
                lines = ("Connection: close", f"X-Forwarded-For: {address}")
                proxy.sendall(request(PATH + "chat-1", *lines, token="x"))
                return int(proxy.recv(100).split()[1])

        try:
            one = [get("192.0.2.1") for _ in range(3)]
            other = get("192.0.2.2")
        finally:
            process.terminate()
            output, _ = process.communicate(timeout=PATIENCE)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["browser"] for line in lines if line["event"] == "listening"] == [f"unix:{path}"]
    warned = [line for line in lines if line["event"] == "one_address_for_all"]
    assert one == [401, 401, 429]
    assert (other, len(warned)) == ((401, 0) if trusted else (429, 1))


async def test_86_token_of_a_clock_that_is_ahead_is_accepted(world: World, clock: Clock) -> None:
    for ahead, status in ((50, 200), (70, 401)):
        for claim in ("nbf", "iat"):
            token = world.token(*read("chat-1"), **{claim: int(clock.wall) + ahead})
            assert (await world.get("chat-1", token=token)).status_code == status, (claim, ahead)


# -- 87: memory


def connect(gateway: Gateway, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.bind((source, 0))
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", gateway.port))
    return sock


MEMORY = 100 * 1024 * 1024
"""Bytes by which a process may grow while 64 MiB of its buffers are full."""


@PATHS
def test_87_unread_pages_take_bounded_memory(upstream: running_upstream, fast: str) -> None:
    environment = upstream.app.environments[0]
    ids = [f"large-{number}" for number in range(50)]
    for number, id_ in enumerate(ids):
        environment.add(session(1000 + number, id_, metadata={"text": "x" * 200_000}))
    changes = {"BFF_EXPOSE_METADATA": "text", "BFF_CACHE_TTL": "600", "BFF_FAST_PATH": fast}
    with Gateway(upstream.port, **OFF | changes) as gateway:
        token = gateway.token(*read(*ids))
        target = "/api/v1/sessions?page[size]=50"
        headers = {"authorization": f"Bearer {token}"}
        # A load that is late is missing in the page, and there in a later one.
        until(lambda: len(http.get(gateway.url + target, headers=headers).content) > 9_000_000)
        whole = http.get(gateway.url + target, headers=headers)
        before = resident(gateway.process.pid)
        readers = []
        try:
            for _ in range(60):
                readers.append(connect(gateway))
                readers[-1].sendall(request(target, token=token))
                time.sleep(0.02)
            until(lambda: metric(gateway, "bff_closed_connections", "buffers_full") > 30)
            assert metric(gateway, "bff_buffered_bytes") < 64 * 1024 * 1024
            assert resident(gateway.process.pid) - before < MEMORY
            # A browser that reads gets a 503, and is not only cut off.
            refused = http.get(gateway.url + target, headers=headers)
            assert refused.json()["code"] == "overloaded"
            # Another browser gets its answer meanwhile.
            assert (
                http.get(
                    gateway.url + PATH + "large-1", headers={"authorization": f"Bearer {token}"}
                ).status_code
                == 200
            )
        finally:
            for reader in readers:
                reader.close()
        until(lambda: metric(gateway, "bff_buffered_bytes") == 0)
        again = http.get(gateway.url + target, headers=headers)
        assert again.content == whole.content


@PATHS
def test_87_unfinished_requests_take_bounded_memory(upstream: running_upstream, fast: str) -> None:
    changes = {"BFF_FAST_PATH": fast, "BFF_REQUEST_TIMEOUT": "60"}
    with Gateway(upstream.port, **OFF | changes) as gateway:
        before = resident(gateway.process.pid)
        head = b"POST /api/v1/sessions/chat-1 HTTP/1.1\r\nhost: x\r\n"
        head += b"".join(b"x-%d: %b\r\n" % (n, b"y" * 1000) for n in range(60))
        opened = []
        try:
            for source in range(1, 5):
                for _ in range(500):
                    opened.append(connect(gateway, f"127.0.0.{source}"))
                    opened[-1].sendall(head)
            until(lambda: metric(gateway, "bff_closed_connections", "overloaded") > 700)
            assert metric(gateway, "bff_buffered_bytes") <= 64 * 1024 * 1024
            assert resident(gateway.process.pid) - before < 1.5 * MEMORY
            token = gateway.token(*read("chat-1"))
            assert (
                http.get(
                    gateway.url + PATH + "chat-1", headers={"authorization": f"Bearer {token}"}
                ).status_code
                == 200
            )
        finally:
            for one in opened:
                one.close()
        until(lambda: metric(gateway, "bff_buffered_bytes") == 0)


def test_87_refused_request_gets_a_503(upstream: running_upstream) -> None:
    head = b"GET / HTTP/1.1\r\norigin: " + ORIGIN.encode() + b"\r\nx: " + b"y" * 40_000
    with (
        Gateway(upstream.port, BFF_MAX_BUFFERED_BYTES="50000", **OFF) as gateway,
        connect(gateway) as first,
        connect(gateway) as second,
    ):
        first.sendall(head)
        until(lambda: metric(gateway, "bff_buffered_bytes") > 39_000)
        second.sendall(head)
        answer = second.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1\r\n" in answer
    assert b"overloaded" in answer
    assert ORIGIN.encode() in answer
