"""Bounds on what one connection, and all of them, may cost: bytes, seconds, open connections.

uvicorn's parser takes a head of any size, waits for it without end, keeps answers that are never
read, and queues every request of one read. `BoundedProtocol` bounds each of these. A request that
is not plain HTTP/1.1 (RFC 9112) is refused and ends its connection; the bytes after it are ignored.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import httptools

from bff.errors import Refusal, Refused
from bff.response import EventStream, Response
from bff.server.asgi import CUT, HOLD, STREAM
from bff.server.slow_readers import SlowReaderProtocol
from bff.server.timers import IdleTimer

LINGER_SECONDS: Final = 2.0
"""After a refusal the gateway discards incoming bytes for this long before it closes: closing with
unread bytes resets the connection, and the browser may never see the refusal."""
MAX_PIPELINED: Final = 32
"""Requests of one connection that may wait for earlier answers. Browsers do not pipeline."""
_CODING: Final = b"transfer-encoding"
_FRAMING: Final = frozenset((b"content-length", _CODING))


def _last_answer(response: Response) -> bytes:
    """Render a response that ends its connection."""
    status, phrase = response.status, HTTPStatus(response.status).phrase.encode()
    start = b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    return start + response.head + b"connection: close\r\n\r\n" + response.body


class BoundedProtocol(SlowReaderProtocol):
    """One connection within bounds. A complete request on a kept connection starts no timer.

    Args:
        arguments: those of `SlowReaderProtocol`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._refused = False
        self._incomplete = True
        """Whether the request is incomplete, or the first request has not begun."""
        self._in_head = True
        self._framed = False
        """Whether the head announces a body, even an empty one."""
        self._has_body = False
        self._hosts = 0
        """Host headers of the request."""
        self._read_bytes = 0
        """Size of the current read."""
        self._request_bytes = 0
        """Sum of the reads that the request is in, so at least the request's own size."""
        self._body_bytes = 0
        """Size of the request's body without its framing."""
        self._idle = IdleTimer(self.loop, self._bounds.idle_seconds, self._close_idle)

    # -- callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or close it if there are too many."""
        super().connection_made(transport)
        if self._connections.enter(self.peer):
            self._deadline.set(self._bounds.request_seconds, self._close_incomplete)
        else:
            self._refused = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection and its timers."""
        self._connections.leave(self.peer)
        self._idle.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse *data*; refuse what is not HTTP or exceeds a bound."""
        if self._refused:
            return
        self._read_bytes = len(data)
        if self._incomplete:
            self._request_bytes += self._read_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The application answers it as a plain request, and the connection ends.
            self._refused = True
        except httptools.HttpParserError as exc:
            cause = exc.__context__
            self._refuse(cause.refusal if isinstance(cause, Refused) else Refusal("bad_request"))
            return
        if not self._incomplete:
            self._deadline.cancel()
        elif self._request_bytes - self._body_bytes > self._bounds.head_bytes or (
            self._in_head and len(self.headers) > self._bounds.headers
        ):
            self._refuse(Refusal("head_too_large"))
        elif not self._deadline.is_set or self._request_bytes == self._read_bytes:
            # The request began in this read.
            self._deadline.set(self._bounds.request_seconds, self._close_incomplete)
        if not self.hold_requests(self._head_bytes()) and not self._refused:
            self._refuse(Refusal("overloaded", retry_after=1.0))

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """Start a request, unless the one before it was the connection's last."""
        if self.is_closing_after_answer():
            raise Refused("bad_request")
        # Not as soon as bytes arrive: empty lines must not keep an idle connection open.
        self._idle.stop()
        if not self._incomplete:
            self._request_bytes = self._read_bytes
        self._incomplete = self._in_head = True
        self._framed = self._has_body = False
        self._body_bytes = self._hosts = 0
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head, and note whether it announces a body."""
        if not self._in_head:  # a trailer, which the gateway does not use
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name in _FRAMING:
            self._framed = True
            if value != b"0":
                self._has_body = True
            if name == _CODING and value.strip(b" \t").lower() != b"chunked":
                raise Refused("bad_request", "Send no transfer coding but chunked")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head, and give the request to the application."""
        self._check_head()
        self._check_pipeline()
        self.hand_over()

    def hand_over(self, extensions: dict[str, object] | None = None) -> None:
        """Give the request to the application; later header lines are trailers."""
        common = {HOLD: self.hold_body, STREAM: self.begin_stream, CUT: self.transport.close}
        super().hand_over(common | (extensions or {}))
        self._in_head = False

    def begin_stream(self, stream: EventStream) -> None:
        """Let the answer be a stream; the gateway ignores what comes after its request."""
        self._refused = True
        super().begin_stream(stream)

    def resume_writing(self) -> None:
        """Let a stream go on, once the bytes before it are released."""
        super().resume_writing()
        self.resume_stream()

    def finish_stream(self) -> None:
        """End a stream, and give the browser a bounded time to read it."""
        if not self.transport.is_closing():  # else the browser has left, and nothing ends a timer
            super().finish_stream()
            self.limit_last_answer()

    def close_answered(self) -> None:
        """Close after the last answer; if the body was not read, so that the answer arrives."""
        if self.is_receiving():
            self._refused = True
            self._close_lingering()
        else:
            super().close_answered()

    def hold_body(self, size: int) -> bool:
        """Count *size* bytes for the request that is answered; False if there is no room."""
        return self._holding.answer(size, self.peer)

    def _check_head(self) -> str:
        """Refuse a head that exceeds a bound or is ambiguous; return its version of HTTP."""
        bounds = self._bounds
        if len(self.headers) > bounds.headers or (
            self._request_bytes > bounds.head_bytes
            and len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
            > bounds.head_bytes
        ):
            raise Refused("head_too_large")
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused("bad_request", "Speak HTTP/1.1")
        if version == "1.0" and self._framed and any(n == _CODING for n, _ in self.headers):
            raise Refused("bad_request", "Send no transfer coding with HTTP/1.0")  # RFC 9112 §6.1
        if self._hosts > 1 or (not self._hosts and version == "1.1"):  # RFC 9112 §3.2
            raise Refused("bad_request", "Send one Host header")
        # Request smuggling: a proxy may read the body of such a request as the next request.
        if self._has_body and self.parser.get_method() in (b"GET", b"HEAD", b"OPTIONS"):
            raise Refused("bad_request", "Send no body")
        return version

    def _check_pipeline(self) -> None:
        if self._requests_ahead() > MAX_PIPELINED:
            raise Refused("bad_request", "Send fewer requests ahead")

    def _requests_ahead(self) -> int:
        """Count the requests that must be answered before the newest."""
        return self.unanswered()

    def _head_bytes(self) -> int:
        """Count the bytes of a head that is not complete."""
        return self._request_bytes if self._incomplete and self._in_head else 0

    def on_body(self, body: bytes) -> None:
        """Count the body's bytes: only its framing is bounded, as a head is."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._incomplete = False
        super().on_message_complete()

    # -- ends of a connection

    def on_response_complete(self) -> None:
        """Wait for the next request or, after the last answer, until the browser has read it."""
        super().on_response_complete()
        self.hold_requests(self._head_bytes())
        if self.transport.is_closing():
            self.limit_last_answer()
        elif not self.is_answering():
            self._idle.start()

    def _close_idle(self) -> None:
        """Close the connection. An answer that its browser has not read is lost."""
        if self.transport.get_write_buffer_size():
            self._close_unread()
        else:
            self.transport.close()

    def _close_incomplete(self) -> None:
        # No answer is sent: a browser that opened the connection early would take it for the
        # answer to its next request.
        self._connections.count("incomplete_request")
        self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with the refusal and end the connection; only end it if an answer is due."""
        self._refused = True
        if self._close_after_due_answers():
            self._connections.count(refusal.code)
            return
        if self.is_answering():
            self.discard_answer()  # the body of this request is malformed
        elif self._incomplete and not self._in_head:
            self._connections.count(refusal.code)
            self._close_lingering()  # it is answered already
            return
        self._end_with(refusal, next((v for n, v in self.headers if n == b"origin"), None))

    def _end_with(self, refusal: Refusal, origin: bytes | None) -> None:
        """Write the refusal as the last answer."""
        self._refused = True
        self._connections.count(refusal.code)
        response = self._render(refusal, self.peer, origin)
        self.transport.write(_last_answer(response))
        self._close_lingering()

    def _close_after_due_answers(self) -> bool:
        """Let the last answer that is due end the connection; False if no answer is due."""
        if self.is_answering() and (
            self._in_head or self._requests_ahead() > 1 or self.is_answer_started()
        ):
            self.close_after_answer()
            return True
        return False

    def _close_lingering(self) -> None:
        self.transport.write_eof()
        self._deadline.set(LINGER_SECONDS, self.transport.abort)


class NewestProtocol(BoundedProtocol):
    """One connection of a bounded number: a new one takes the place of the longest silent one.

    So clients that hold connections keep no health check out.

    Args:
        open_: the open connections of the server, the longest silent one first.
        most: how many of them there may be.
        arguments: those of `BoundedProtocol`.
    """

    def __init__(self, *, open_: "dict[NewestProtocol, None]", most: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._open = open_
        self._most = most

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[self] = None
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        """Note that this connection is not silent."""
        super().on_message_begin()
        if self._open.pop(self, self) is None:
            self._open[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        self._open.pop(self, None)
        super().connection_lost(exc)
