"""One HTTP/1.1 connection to upstream: sends one request at a time and reads its answer.

Framing is as strict as on the browsers' side. httptools refuses what is malformed: both lengths, a
repeated length, a bad chunk, a folded line, a bare line feed. `Connection` refuses what is valid
and yet unsafe: an unknown transfer coding, and a compressed body. It also refuses a body that ends
with the connection, because a cut answer would look complete. Interim answers (1xx) are skipped. A
byte that arrives without a request ends the connection, so it is never taken for an answer.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple, Self

import httptools

from bff.errors import UpstreamError, UpstreamInvalid, UpstreamUnavailable

MAX_BODY_BYTES: Final = 1024 * 1024
"""Bytes of an answer; upstream's documents have a few KiB, and a larger one would fill memory."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Bytes in a row that belong to no body: heads, interim answers, chunk extensions, trailers."""
MAX_UNREAD_BYTES: Final = 64 * 1024
"""Bytes of a streamed body that wait for their reader; beyond them the connection is not read."""
_ONCE: Final = frozenset(("content-length", "transfer-encoding", "content-encoding"))
"""Headers that say how a body is read; repeated, they could be read in two ways."""
_TARGET: Final = re.compile(rb"[!-~]+")
_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_STATUSES: Final = range(200, 600)
"""Statuses of an answer; that of an interim answer is 1xx."""
_INTERIM: Final = b"HTTP/1.1 1"
_END: Final = b"\r\n\r\n"


class Request(NamedTuple):
    """A request, with header lines that `header_lines` rendered."""

    method: bytes
    target: bytes
    lines: bytes
    body: bytes = b""

    def encoded(self) -> bytes:
        """Return the bytes of the request."""
        if _TARGET.fullmatch(self.target) is None:
            raise ValueError("the target of a request has a byte that would end it")
        framing = b"" if self.method == b"GET" else b"content-length: %d\r\n" % len(self.body)
        return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (
            self.method,
            self.target,
            self.lines,
            framing,
            self.body,
        )


def header_lines(*headers: tuple[bytes, bytes]) -> bytes:
    """Render header lines; refuses a value that would end its line (ValueError)."""
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    ends = lines.count(b"\r\n")
    if not ends == lines.count(b"\r") == lines.count(b"\n") == len(headers) or b"\0" in lines:
        raise ValueError("a header has a line end or a NUL")
    return lines


class Answer(NamedTuple):
    """A response of any status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Stream:
    """An answer whose body is read while it arrives, no faster than its reader reads.

    Iterate over it for the parts of the body. The iteration ends with the body, or with an
    `UpstreamError` if the connection ends before.
    """

    status: int
    headers: Mapping[str, str]
    _connection: "Connection"
    _parts: deque[bytes] = field(default_factory=deque)
    _unread: int = 0
    _ended: bool = False
    _error: UpstreamError | None = None
    _waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the bytes that have arrived; if the buffer is empty, wait."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        part = self._parts.popleft()
        self._unread -= len(part)
        if self._unread <= MAX_UNREAD_BYTES // 2:
            self._connection.resume_reading()
        return part

    def abort(self) -> None:
        """Close the connection at once."""
        self._connection.abort()

    def feed(self, part: bytes) -> None:
        """Add bytes of the body."""
        self._parts.append(part)
        self._unread += len(part)
        if self._unread > MAX_UNREAD_BYTES:
            self._connection.pause_reading()
        self._wake()

    def end(self, error: UpstreamError | None) -> None:
        """End the body; with *error* if it is not complete."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        ends_at: seconds on the clock of the pool; from then on the connection gets no request.
        on_end: called when the connection has ended.
    """

    def __init__(self, *, ends_at: float, on_end: "Callable[[Connection], None]") -> None:
        self.ends_at = ends_at
        self.usable = True
        """Whether the connection can take a request."""
        self.silent = True
        """Whether no byte of the current answer has arrived."""
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: asyncio.Future[Answer | Stream] | None = None
        """The future that the current request waits for; None between requests."""
        self._streamed = False
        self._stream: Stream | None = None
        self._started = False
        """Whether the head of the answer has begun."""
        self._start = b""
        """The start of an interim answer, as far as it has arrived."""
        self._complete = False
        self._in_head = True
        self._overhead = 0
        """Bytes since the request, or since the last bytes of a body."""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    # -- what a pool calls

    def send(self, data: bytes) -> "asyncio.Future[Answer | Stream]":
        """Send a request; the future gets the whole answer, or an `UpstreamError`."""
        loop = asyncio.get_running_loop()
        self._answer = future = loop.create_future()
        self.silent, self._started, self._overhead = True, False, 0
        if self.usable and self._transport is not None:
            self._transport.write(data)
        else:
            future.set_exception(UpstreamUnavailable())
        return future

    def stream(self, data: bytes) -> "asyncio.Future[Answer | Stream]":
        """Send a request; the future gets the head of the answer as a `Stream`."""
        self._streamed = True
        return self.send(data)

    def abort(self) -> None:
        """Close the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Read nothing more from upstream for now."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from upstream again."""
        if self.usable and self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    # -- callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the connection."""
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse *data*; end the connection if no request waits for it."""
        answer = self._answer
        if answer is None or self._parser is None or not self.usable:
            self.abort()
            return
        self.silent = False
        self._overhead += len(data)
        try:
            if not self._started:
                data = self._after_interim(data)
                self._started = bool(data)
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UpstreamInvalid):
            if not self._complete:
                self._fail(UpstreamInvalid())
                return
            self.usable = False
        if self._complete:
            self._finish(answer)
        elif self._overhead > MAX_HEAD_BYTES:
            self._fail(UpstreamInvalid())

    def eof_received(self) -> None:
        """Upstream sends nothing more: end the connection."""
        self.usable = False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer that is not complete."""
        error = UpstreamInvalid() if exc is None else UpstreamUnavailable()
        error.__context__ = exc
        self._fail(error)
        self._parser = self._transport = None  # both refer to this object
        self._on_end(self)

    def _after_interim(self, data: bytes) -> bytes:
        """Return the bytes after the interim answers; empty until the answer begins.

        The parser would accept empty lines between answers, and RTSP.
        """
        data, self._start = self._start + data, b""
        at = 0
        while _INTERIM.startswith(data[at : at + len(_INTERIM)]):
            end = data.find(_END, at)
            if end < 0:
                self._start = data[at:]
                return b""
            _check_interim(data[at : end + len(_END)])
            at = end + len(_END)
        if data[at : at + 1] != b"H":
            raise UpstreamInvalid
        return data[at:]

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """Start the head of the answer."""
        if self._complete:
            raise UpstreamInvalid
        self._in_head = True
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head."""
        if not self._in_head:  # a trailer, which the gateway does not use
            return
        key = name.decode("latin-1").lower()
        if key in _ONCE and key in self._headers:
            raise UpstreamInvalid
        self._headers[key] = value.decode("latin-1").rstrip(" \t")

    def on_headers_complete(self) -> None:
        """Check how the body is framed."""
        assert self._parser is not None  # noqa: S101  it calls this method
        self._status, self._in_head = self._parser.get_status_code(), False
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0") or self._status not in _STATUSES:
            raise UpstreamInvalid
        headers = self._headers
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and (coding.lower() != "chunked" or version == "1.0"):
            raise UpstreamInvalid
        if coding is None and length is None and self._status not in _WITHOUT_BODY:
            raise UpstreamInvalid
        # The request accepts no encoding, and decoding could fill memory.
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UpstreamInvalid
        if self._streamed:
            self._stream = Stream(self._status, headers, self)
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(self._stream)
        elif length is not None and int(length) > MAX_BODY_BYTES:
            raise UpstreamInvalid

    def on_body(self, body: bytes) -> None:
        """Keep bytes of the body, or pass them on."""
        self._overhead = 0
        if self._stream is not None:
            self._stream.feed(body)
            return
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise UpstreamInvalid

    def on_message_complete(self) -> None:
        """Note that the answer is complete, and whether the connection can be kept."""
        assert self._parser is not None  # noqa: S101  it calls this method
        self._complete = True
        if self._streamed or not self._parser.should_keep_alive():
            self.usable = False

    # -- ends

    def _finish(self, future: "asyncio.Future[Answer | Stream]") -> None:
        """Give the answer to the request that waits for it, and get ready for the next one."""
        body, self._body = self._body, []
        self._answer, self._complete, self._body_bytes = None, False, 0
        if self._stream is not None:
            self._stream.end(None)
        elif not future.done():
            whole = body[0] if len(body) == 1 else b"".join(body)
            future.set_result(Answer(self._status, self._headers, whole))
        if not self.usable:
            self.abort()

    def _fail(self, error: UpstreamError) -> None:
        """End the connection, and fail the request or stream that waits for it."""
        future, self._answer = self._answer, None
        if self._stream is not None:
            self._stream.end(error)
        elif future is not None and not future.done():
            future.set_exception(error)
        self.abort()


class _Interim:
    """Callbacks of a parser of interim answers, which are read and ignored."""


def _check_interim(head: bytes) -> None:
    """Refuse an interim answer that is malformed; the parser also refuses to switch protocols."""
    httptools.HttpResponseParser(_Interim()).feed_data(head)
