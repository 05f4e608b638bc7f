"""Bytes on the wire: a browser and an upstream without any HTTP library between them and it."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from support.world import PATH

LOOPBACK = "127.0.0.1"


def request(path: str, *lines: str, method: str = "GET", token: str | None = None) -> bytes:
    """One request, exactly so."""
    bearer = [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: gateway", *bearer, *lines, "", ""]
    ).encode("latin-1")


@dataclass
class Heard:
    """The bytes that one connection received."""

    data: bytes
    closed: bool
    seconds: float
    responses: list["Said"] = field(init=False)

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
            self.responses.append(Said(status, headers, rest[:length]))
            rest = rest[length:]

    @property
    def statuses(self) -> list[int]:
        return [response.status for response in self.responses]


@dataclass
class Said:
    status: int
    headers: dict[str, str]
    body: bytes


_LAST = b"OPTIONS / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
"""A preflight: no limit counts it, upstream never sees it, and its answer is a 204."""


def talk(port: int, *data: bytes, pause: float = 0.0, patience: float = 1.0) -> Heard:
    """Send *data*, *pause* seconds between its parts; listen until closed or *patience* is over.

    Or, behind a whole answer that does not announce the end, until one more request is answered:
    had the gateway more to say to *data*, it would have come before.
    """
    began = time.monotonic()
    received, closed, first = b"", False, 0
    with socket.create_connection((LOOPBACK, port), timeout=10) as connection:
        try:
            for number, part in enumerate(data):
                if number and pause:
                    time.sleep(pause)
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            closed = True
        connection.settimeout(patience)
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if not first and len(data) == 1 and _goes_on(received):
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
    return Heard(received, closed, time.monotonic() - began)


def _goes_on(received: bytes) -> bool:
    """Whether there is a whole answer, and the connection stays open behind it."""
    head, blank, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    whole = blank and (length is None or head[9:12] == b"304" or len(body) >= int(length[1]))
    return bool(whole and b"connection: close" not in received)


def answered(body: bytes, status: str = "200 OK", *lines: str) -> bytes:
    """A plain answer with its length."""
    head = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


Behaviour = Callable[[socket.socket, bytes], None]
"""Answers one request, given its bytes, on its connection; an exception ends the connection."""


class RawUpstream:
    """An upstream of plain sockets, that can misbehave at any byte.

    `seen` holds the bytes of each request's head; `behave` answers.
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
                self.seen.append(head)
                self.behave(connection, head)
        self._open.discard(connection)


def hang(connection: socket.socket, _: bytes) -> None:
    """Never answer; return when the other side gave up."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass
    raise OSError("gone")


def reset(connection: socket.socket) -> None:
    """End the connection with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    raise OSError("reset")


def asked(head: bytes) -> str:
    """The raw segment below the route that a request asks for."""
    return head.split(b" ")[1].decode().removeprefix(PATH)
