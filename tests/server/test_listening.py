"""Listeners on sockets: events are pushed past the application, and end with the process."""

import signal
import socket
import time
from collections.abc import Iterator

import pytest
from support.world import (
    OFF,
    PATH,
    PATIENCE,
    Gateway,
    http,
    read,
    running_upstream,
    until,
)

Served = tuple[running_upstream, Gateway]


@pytest.fixture
def served() -> Iterator[Served]:
    settings = OFF | {"BFF_CACHE_TTL": "0.1", "BFF_EXPOSE_METADATA": "text"}
    settings |= {"BFF_DRAIN_SECONDS": "0.2"}
    with running_upstream() as upstream, Gateway(upstream.port, **settings) as gateway:
        yield upstream, gateway


class Page:
    """A page that listens to one session."""

    def __init__(
        self, gateway: Gateway, *, unread: int | None = None, version: str = "1.1"
    ) -> None:
        self.socket = socket.socket()
        if unread is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unread)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", gateway.port))
        token = gateway.token(*read("chat-1"), act={"sub": f"person-{self.socket.fileno()}"})
        self.socket.sendall(
            f"GET {PATH}chat-1 HTTP/{version}\r\nHost: gateway\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        self.received = b""

    def until(self, end: bytes) -> bytes:
        """Read until *end* has arrived."""
        parts, deadline = [self.received], time.monotonic() + PATIENCE
        while end not in b"".join(parts[-2:]):
            assert time.monotonic() < deadline, "comments keep the socket's own time from ending"
            parts.append(self.socket.recv(262_144))
            assert parts[-1], parts[-2][-200:]
        self.received = b"".join(parts)
        return self.received

    def rest(self) -> bytes:
        """Read until the gateway closes."""
        while part := self.socket.recv(65536):
            self.received += part
        self.socket.close()
        return self.received


def rename(upstream: running_upstream, name: str, text: str = "") -> None:
    document = upstream.app.environments[0].find("chat-1")
    assert document is not None
    document.update(taskIdentifier=name, metadata={"text": text})


def test_events_are_pushed_and_end_with_the_process(served: Served) -> None:
    upstream, gateway = served
    pages = [Page(gateway) for _ in range(20)]
    for page in pages:
        page.until(b"event: sessions")
    rename(upstream, "another")
    for page in pages:
        page.until(b'"another"')
    loads = len(upstream.seen)
    gateway.process.send_signal(signal.SIGTERM)

    ends = [page.rest() for page in pages]
    assert gateway.process.wait(timeout=PATIENCE) == 0
    assert all(b"transfer-encoding: chunked" in end for end in ends)
    assert all(
        end.endswith(b'event: end\ndata: {"reason":"shutdown"}\n\n\r\n0\r\n\r\n') for end in ends
    )
    assert loads < 60, "few loads for all"


def test_reader_that_stops_holds_few_bytes_and_gets_the_newest(served: Served) -> None:
    upstream, gateway = served
    slow, fast = Page(gateway, unread=4096), Page(gateway)
    slow.until(b"event: sessions")
    text = "x" * 400_000
    for number in range(12):
        rename(upstream, f"task-{number}", text)
        fast.until(f'"task-{number}"'.encode())
        fast.received = b""
    metrics = http.get(gateway.ops_url + "/metrics").text
    held = float(metrics.split("\nbff_buffered_bytes ")[1].split("\n")[0])
    shown = slow.until(b'"task-11"').count(b"event: session\n")

    assert held < 2_000_000
    assert shown < 12, "what it did not read was replaced by newer states"
    for page in (slow, fast):
        page.socket.close()


def test_listener_that_left_leaves_no_task(served: Served) -> None:
    """nginx speaks HTTP/1.0 by default; such a request takes the way through the application."""
    _, gateway = served
    page = Page(gateway, version="1.0")
    page.until(b"event: sessions")
    page.socket.close()
    until(lambda: "\nbff_listeners 0" in http.get(gateway.ops_url + "/metrics").text)
    gateway.process.send_signal(signal.SIGTERM)

    assert gateway.process.wait(timeout=20) == 0
    assert "server_error" not in gateway.output, "a task of a connection that has ended"
