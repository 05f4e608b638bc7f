"""A browser and an upstream of plain sockets, so that tests control every byte."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from support.world import PATH, PATIENCE

from bff.copies.readiness import READINESS_ID

LOOPBACK = "127.0.0.1"


def request(path: str, *lines: str, method: str = "GET", token: str | None = None) -> bytes:
    """Return the bytes of one request."""
    bearer = [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: gateway", *bearer, *lines, "", ""]
    ).encode("latin-1")


@dataclass
class Exchange:
    """The bytes that came back on one connection, and the responses in them."""

    data: bytes
    closed: bool
    seconds: float
    responses: list["RawResponse"] = field(init=False)

    def __post_init__(self) -> None:
        self.responses = []
        rest = self.data
        while b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status_line, *lines = head.split(b"\r\n")
            pairs = [line.partition(b": ") for line in lines]
            headers = {name.lower().decode(): value.decode("latin-1") for name, _, value in pairs}
            status = int(status_line.split()[1])
            length = 0 if status == 304 else int(headers.get("content-length", 0))
            self.responses.append(RawResponse(status, headers, rest[:length]))
            rest = rest[length:]

    @property
    def statuses(self) -> list[int]:
        return [response.status for response in self.responses]


@dataclass
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes


_LAST = b"OPTIONS / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
"""A last request, which no limit counts and upstream does not see; the answer is 204."""


def talk(port: int, *data: bytes, pause: float = 0.0, timeout: float = PATIENCE) -> Exchange:
    """Send *data*, with *pause* seconds between its parts, and receive until the gateway closes.

    Stops when nothing arrives for *timeout* seconds. If a complete answer leaves the connection
    open, one more request is sent: the gateway answers it after everything that it has to say to
    *data*, so the answer to it marks the end.
    """
    began = time.monotonic()
    received, closed, first = b"", False, 0
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE) as connection:
        try:
            for number, part in enumerate(data):
                if number and pause:
                    time.sleep(pause)
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            closed = True
        connection.settimeout(timeout)
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if not first and len(data) == 1 and _stays_open(received):
                    first = len(received)
                    connection.sendall(_LAST)
            closed = True
        except TimeoutError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            closed = True
    more, last, _ = received[first:].rpartition(b"HTTP/1.1 204 ")
    if first and last:
        received, closed = received[:first] + more, False
    return Exchange(received, closed, time.monotonic() - began)


def _stays_open(received: bytes) -> bool:
    """Tell whether *received* has a complete answer that leaves the connection open."""
    head, blank, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    whole = blank and (length is None or head[9:12] == b"304" or len(body) >= int(length[1]))
    return bool(whole and b"connection: close" not in received)


def answer_bytes(body: bytes, status: str = "200 OK", *lines: str) -> bytes:
    """Return the bytes of an answer with its length."""
    head = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


Behaviour = Callable[[socket.socket, bytes], None]
"""Answers one request on its connection, given the bytes of the head; an OSError closes it."""


class RawUpstream:
    """An upstream that may break HTTP at any byte.

    `behave` answers; `seen` has the bytes of every head that was received, apart from those of the
    questions that an idle gateway asks.
    """

    def __init__(self, behave: Behaviour, port: int = 0) -> None:
        self.behave = behave
        self.seen: list[bytes] = []
        self._socket = socket.create_server((LOOPBACK, port), backlog=512)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._open: set[socket.socket] = set()

    def __enter__(self) -> "RawUpstream":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    chunk = connection.recv(65536)
                    if not chunk:
                        return
                    buffer += chunk
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                if head.startswith(b"POST /api/v1/auth/"):
                    # The gateway compares its environment's id at start; this upstream tells none.
                    (length,) = map(int, re.findall(rb"(?i)content-length: (\d+)", head))
                    while len(buffer) < length:
                        buffer += connection.recv(65536)
                    buffer = buffer[length:]
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                if requested_id(head) != READINESS_ID:
                    self.seen.append(head)
                self.behave(connection, head)
        self._open.discard(connection)


def hang(connection: socket.socket, _: bytes) -> None:
    """Never answer; return when the gateway closes the connection."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass
    raise OSError("gone")


def reset(connection: socket.socket) -> None:
    """End the connection with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    raise OSError("reset")


def requested_id(head: bytes) -> str:
    """Return the id of the requested session, as it was encoded."""
    return head.split(b" ")[1].decode().removeprefix(PATH)
