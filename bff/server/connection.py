"""What a connection may cost: bounds on the bytes and the seconds of a request, and on how many.

uvicorn's parser takes a head of any size and waits for it for ever, keeps what is never read, and
queues as many requests as fit into one read. Here each of these has a bound; a request that is not
plain HTTP/1.1 (RFC 9112) is refused and ends its connection, and nothing behind it is looked at.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bff.errors import Refusal, Refused
from bff.limits.client_address import Network, address_key, is_trusted
from bff.response import Response

LINGER_SECONDS: Final = 2.0
"""After a refusal what still arrives is read and thrown away this long: a socket that is closed
with bytes unread resets the connection, and the refusal may never be seen."""
MAX_PIPELINED: Final = 32
"""Requests of one connection that wait for the answers before them; browsers send none ahead."""
_BODY: Final = frozenset((b"content-length", b"transfer-encoding"))
Refuse = Callable[[Refusal, str, bytes | None], Response]
"""Renders a refusal for a peer's address and an ``Origin``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one connection, and all of them, may take."""

    head_bytes: int
    headers: int
    request_seconds: float
    """From its first byte, or from the connection's begin, until a request is complete."""
    idle_seconds: float
    """Without a request; and until a browser has read what was written for it."""
    connections: int
    connections_per_address: int


class ConnectionLimiter:
    """The open connections, counted in all and by address.

    Args:
        trusted: proxies, which bring the connections of many and are counted in all only.
        count: told of each connection that ends for a reason of ours.
    """

    def __init__(
        self, bounds: Bounds, *, trusted: Sequence[Network], count: Callable[[str], None]
    ) -> None:
        self.open = 0
        self.count = count
        self._bounds = bounds
        self.trusted = trusted
        self._by_address: Counter[str] = Counter()

    def enter(self, peer: str) -> bool:
        """Count a connection in; tell whether it may stay. `leave` it either way."""
        self.open += 1
        address = address_key(peer)
        self._by_address[address] += 1
        if self.open > self._bounds.connections:
            self.count("too_many")
            return False
        if self._by_address[address] > self._bounds.connections_per_address and not is_trusted(
            peer, self.trusted
        ):
            self.count("too_many_of_address")
            return False
        return True

    def leave(self, peer: str) -> None:
        """Count a connection out."""
        self.open -= 1
        address = address_key(peer)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class ClosedSafeTransport:
    """A transport to answer on: if a browser is gone, nothing is written (uvloop's would raise)."""

    __slots__ = ("_write", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._write = transport.write
        self.close, self.is_closing = transport.close, transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, while anyone may read it."""
        if not self.is_closing():
            self._write(data)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within bounds; whole requests on a kept connection cost no timer more.

    Args:
        bounds: see there.
        connections: shared by all connections.
        refuse: renders what a connection is told before it ends.
    """

    def __init__(
        self,
        *args: Any,
        bounds: Bounds,
        connections: ConnectionLimiter,
        refuse: Refuse,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = bounds.idle_seconds  # type: ignore[assignment]  # fractions work
        self._bounds = bounds
        self._connections = connections
        self._render = refuse
        self._chunk = 0
        """Bytes of the read under way."""
        self._received = 0
        """Bytes of the reads that the request under way is in, so no less than its own."""
        self._content = 0
        """Bytes of its body, without what frames them."""
        self._incomplete = True
        """A request is under way; or the first one of the connection is awaited."""
        self._in_head = True
        self._framed = False
        """The request says how its body is framed, even if it has none."""
        self._body = False
        self._hosts = 0
        self._refused = False
        self._peer = "local"
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    # -- from the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let a connection in, or close it where there are too many."""
        super().connection_made(transport)
        if self.client:
            self._peer = self.client[0]
        if self._connections.enter(self._peer):
            self._within(self._bounds.request_seconds, self._late)
        else:
            self._refused = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers."""
        self._connections.leave(self._peer)
        self._unset_keepalive_if_required()
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; end the connection over what it, or a bound, refuses."""
        if self._refused:
            return
        self._chunk = len(data)
        if self._incomplete:
            self._received += self._chunk
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as the plain request it is too, after which the connection ends.
            self._refused = True
        except httptools.HttpParserError as exc:
            cause = exc.__context__
            self._refuse(cause.refusal if isinstance(cause, Refused) else Refusal("bad_request"))
            return
        if not self._incomplete:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._received - self._content > self._bounds.head_bytes or (
            self._in_head and self.headers is not None and len(self.headers) > self._bounds.headers
        ):
            self._refuse(Refusal("head_too_large"))
        elif self._deadline is None or self._received == self._chunk:  # it began in this read
            self._within(self._bounds.request_seconds, self._late)

    def pause_writing(self) -> None:
        """Give the browser a bounded time to read what was written."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._bounds.idle_seconds, self._never_read)

    def resume_writing(self) -> None:
        """Note that the browser reads."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # -- from the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin()
        super().on_message_begin()

    def _begin(self) -> None:
        """Note a new request, unless the one before it was the connection's last."""
        if self.cycle is not None and not self.cycle.keep_alive:
            raise Refused("bad_request")
        # Not when bytes arrive: empty lines between requests would keep a connection for ever.
        self._unset_keepalive_if_required()
        if not self._incomplete:
            self._received = self._chunk
        self._incomplete = self._in_head = True
        self._framed = self._body = False
        self._content = self._hosts = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head; remember whether it announces a body."""
        if not self._in_head:  # a trailer, which nobody reads
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name in _BODY:
            self._framed = True
            if value != b"0":
                self._body = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head, and hand the request on."""
        self._check()
        self._check_ahead()
        self._hand_on()

    def _check(self) -> str:
        """Hold the head against the bounds; the version of HTTP it speaks."""
        bounds = self._bounds
        if len(self.headers) > bounds.headers or (
            self._received > bounds.head_bytes
            and len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
            > bounds.head_bytes
        ):
            raise Refused("head_too_large")
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused("bad_request", "Speak HTTP/1.1")
        if self._hosts > 1 or (not self._hosts and version == "1.1"):  # RFC 9112 §3.2
            raise Refused("bad_request", "Send one Host header")
        # A proxy that takes the same bytes for the next request is how requests are smuggled.
        if self._body and self.parser.get_method() in (b"GET", b"HEAD", b"OPTIONS"):
            raise Refused("bad_request", "Send no body")
        return version

    def _check_ahead(self) -> None:
        if self._ahead() > MAX_PIPELINED:
            raise Refused("bad_request", "Send fewer requests ahead")

    def _ahead(self) -> int:
        """How many requests are to be answered before this one."""
        return len(self.pipeline) + self._answering()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _hand_on(self) -> None:
        """Let the application have the request."""
        super().on_headers_complete()
        self.cycle.transport = ClosedSafeTransport(self.transport)  # type: ignore[assignment]
        self._in_head = False
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Note how much of what comes is a body: the rest, trailers above all, is bounded."""
        self._content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._incomplete = False
        super().on_message_complete()

    # -- the ends of a connection

    def on_response_complete(self) -> None:
        """Wait for the next request; or, after the last answer, until it is read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._within(self._bounds.idle_seconds, self._never_read)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; at once, if it did not even read its last answer."""
        if self.transport.get_write_buffer_size():
            self._never_read()
        else:
            super().timeout_keep_alive_handler()

    def _within(self, seconds: float, then: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, then)

    def _late(self) -> None:
        # Nothing is said: a browser that opened a connection ahead would take it for an answer.
        self._connections.count("incomplete_request")
        self.transport.abort()

    def _never_read(self) -> None:
        self._connections.count("unread_answer")
        self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Tell why and end the connection; after the answers that are due before, silently."""
        self._refused = True
        self._connections.count(refusal.code)
        if self._end_after_answers():
            return
        if self._answering():
            self.cycle.disconnected = True  # it is this request whose body is malformed
        elif self._incomplete and not self._in_head:
            self._end()  # this one's too, and it was answered
            return
        origin = next((v for n, v in self.headers or () if n == b"origin"), None)
        response = self._render(refusal, self._peer, origin)
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b"
            % (
                response.status,
                HTTPStatus(response.status).phrase.encode(),
                response.head,
                response.body,
            )
        )
        self._end()

    def _end_after_answers(self) -> bool:
        """Let the last answer that is due end the connection; False if none is."""
        if self._answering() and (
            self._in_head or self._ahead() > 1 or self.cycle.response_started
        ):
            self.cycle.keep_alive = False
            return True
        return False

    def _end(self) -> None:
        self.transport.write_eof()
        self._within(LINGER_SECONDS, self.transport.abort)
