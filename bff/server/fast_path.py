"""The fast path: answers requests that need no I/O before an ASGI scope or a task exists.

The scope, the task and the cycle are most of what an ASGI server costs. So `FastPathProtocol`
decides a complete request without a body as soon as it is parsed. If the decision has to wait for
a call upstream, the end of that call writes the answer. For other waits there is one task.

The application gets two kinds of requests: those with unusual framing, undecided, and those of a
pipeline that have to wait, with their decision. Both ways write the same bytes
(`tests/server/test_fast_path.py`), so the fast path is optional.

The answers to one read are written together when all of it is parsed. If a part is not HTTP, the
last of these answers says that the connection ends, as without the fast path. All bounds of
`BoundedProtocol` apply.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from bff.clock import Clock
from bff.errors import Refusal
from bff.gateway.decide import Gateway
from bff.gateway.pending import Pending
from bff.request import RequestHead
from bff.response import Response, StreamResponse
from bff.server.asgi import PENDING
from bff.server.connection import MAX_PIPELINED, BoundedProtocol
from bff.server.header_cache import HeaderCache
from bff.server.slow_readers import LARGE_ANSWER
from bff.server.uvicorn_adapter import why_unusable

_BAD_REQUEST: Final = HTTPStatus.BAD_REQUEST
"""Statuses by plain names: to look one up in the enumeration costs half a microsecond."""

Parts = tuple[bytes, bytes, bytes, bytes]
"""An answer: the status line with the server's headers, header lines, the end of them, body."""
_LAST: Final = b"connection: close\r\n\r\n"
"""The end of the header lines of a last answer."""
_END: Final = b"\r\n\r\n"
"""The end of a request without a body."""
_MAX_REPEATED: Final = 4096
"""Bytes of a request that a connection keeps, to recognise the same request."""
_MAX_UNSENT: Final = 65536
"""Bytes of answers that one read may produce before its next requests queue in uvicorn."""
_PATH_CHARACTERS: Final = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:@/"
)
"""Characters of a path without query and fragment (RFC 3986 §3.3)."""


def protocol(
    gateway: Gateway, bounded_protocol: "partial[BoundedProtocol]", clock: Clock
) -> "partial[BoundedProtocol] | partial[FastPathProtocol]":
    """Return what uvicorn takes as ``http=``: `FastPathProtocol` if it can be used."""
    if reason := why_unusable():
        gateway.telemetry.log.warning("fast_path_off", reason=reason)
        return bounded_protocol
    return partial(FastPathProtocol, Shared(gateway, clock), **bounded_protocol.keywords)


def why_off(*, enabled: bool, tracing: bool) -> str | None:
    """Tell why a gateway with these settings would not use the fast path; None if it would."""
    if not enabled:
        return "BFF_FAST_PATH is false"
    return "BFF_TRACING is on, and a span needs a task" if tracing else why_unusable()


class Shared:
    """State that the connections of one server share.

    Args:
        gateway: decides.
        clock: the two times of `Gateway.decide`.
    """

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.headers = HeaderCache()
        self._server_headers: list[tuple[bytes, bytes]] = []
        self._starts: dict[int, bytes] = {}

    def start(self, status: int, server_headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the status line and *server_headers*, rendered once for each list of them."""
        if server_headers is not self._server_headers:
            self._server_headers, self._starts = server_headers, {}
        start = self._starts.get(status)
        if start is None:
            phrase = HTTPStatus(status).phrase.encode()
            lines = b"".join(b"%b: %b\r\n" % header for header in server_headers)
            start = self._starts[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, phrase, lines)
        return start


class UnsentAnswers:
    """The answers to one read, which are written together."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._parts) // 4

    def add(self, parts: Parts) -> None:
        """Add an answer."""
        self._parts += parts
        self.size += sum(map(len, parts))

    def end_connection(self) -> None:
        """Say in the last of them that the connection ends."""
        self._parts[-2] = _LAST

    def take(self) -> bytes:
        """Return the bytes of all, and forget them."""
        data = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return data


class FastPathProtocol(BoundedProtocol):
    """One connection."""

    def __init__(self, shared: Shared, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._shared = shared
        self._eligible = False
        """Whether the newest request may be answered on the fast path."""
        self._requests = 0
        """Requests that began in the current read."""
        self._head: RequestHead | None = None
        """The last request of this read that was decided on the fast path."""
        self._accepted = False
        """Whether the request of `_head` was answered, and not refused."""
        self._pending: Pending | None = None
        """The decision on the next request to be parsed, which has to wait."""
        self._repeated = b""
        """The last read, if it was exactly the request of `_head`."""
        self._unsent = UnsentAnswers()
        self._read = b""
        """The current read."""
        self._waiting: RequestHead | None = None
        """The request that waits for its answer."""
        self._leave_early: Callable[[], None] | None = None
        self._held: list[bytes] = []
        """Reads that arrived while it waits."""
        self._closing = False
        """Whether the server stops: that answer is then the last."""

    def data_received(self, data: bytes) -> None:
        """Answer the requests in *data*.

        A tab that polls sends the same bytes each time, and the same header lines for every
        session, whichever connection a proxy takes. The parser keeps nothing between two requests,
        so equal bytes would give an equal head: only new bytes are parsed.
        """
        if self._waiting is not None:
            if not self._refused:
                self._held.append(data)
                self.transport.pause_reading()  # browsers do not pipeline
                self._hold(len(data), self._waiting)
            return
        head = self._head if data == self._repeated else self._read_kept(data)
        response = None if head is None or self.must_queue() else self._decide(head)
        if response is not None:
            self.transport.write(b"".join(self._parts(response)))
            self._idle.start()
        elif head is not None and self._pending is not None:
            self._wait(head, data, keep=False)
        else:
            head = self._parse(data)
        self._head = head
        self._repeated = data if head is not None and len(data) <= _MAX_REPEATED else b""

    def _parse(self, data: bytes) -> RequestHead | None:
        """Parse *data* and write the answers; return the head if *data* is one decided request."""
        between_requests, self._requests, self._head = not self._incomplete, 0, None
        self._read = data
        super().data_received(data)
        self._read = b""  # an idle connection must not hold its last bytes
        if self._unsent.size:
            self.transport.write(self._unsent.take())
            if self._refused:
                if not self.is_answering():
                    self.transport.close()
                    self.limit_last_answer()
            elif not self._incomplete and not self.is_answering():
                self._idle.start()
        alone = between_requests and self._requests == 1 and not self._refused
        head = self._head if alone else None
        if self._pending is not None and self._head is not None:
            self._wait(self._head, data, keep=alone)
        elif head is not None and self._accepted:
            self._shared.headers.keep(data, head.fields)
        return head

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """Count the requests of this read."""
        super().on_message_begin()
        self._requests += 1

    def on_headers_complete(self) -> None:
        """Choose between the fast path and the application."""
        version = self._check_head()
        self._eligible = not (
            self._framed
            or self.draining
            or version != "1.1"
            or self.url[:1] != b"/"
            or self.url.translate(None, _PATH_CHARACTERS)
            or not self.parser.should_keep_alive()
            or self.parser.should_upgrade()
            or self._requests > MAX_PIPELINED
            or self._unsent.size > _MAX_UNSENT
            or self.must_queue()
        )
        if not self._eligible:
            self._check_pipeline()
            self.hand_over()

    def on_message_complete(self) -> None:
        """Answer the request, or give it to the application with its pending decision."""
        if self._eligible:
            self._eligible = self._incomplete = False
            method = self.parser.get_method().decode()
            self._head = head = RequestHead.read(method, self.url, b"", self.headers, self.peer)
            self._accepted = False
            response = self._decide(head)
            if response is not None:
                self._unsent.add(self._parts(response))
                self._accepted = response.status < _BAD_REQUEST
                return
            end = self._read.find(_END)
            if not self._unsent.size and 0 <= end == len(self._read) - len(_END):
                return  # the read ends with this request, so `_parse` waits for its answer
            head.served_by = "asgi"
            pending, self._pending = self._pending, None
            self.hand_over({PENDING: pending})
        super().on_message_complete()

    # -- decisions and answers

    def _read_kept(self, data: bytes) -> RequestHead | None:
        """Read a request without the parser; None if the parser has to read *data*."""
        if self._incomplete or self._refused or self.draining:
            return None
        if len(data) > self._bounds.head_bytes:
            return None
        return self._shared.headers.read(data, self.peer)

    def _decide(self, head: RequestHead) -> Response | None:
        """Answer a request; None if the answer has to wait, with the decision in `_pending`."""
        shared = self._shared
        # A repeated head has it from the last time, when it may have been another.
        head.served_by = "fast"
        try:
            answer = shared.gateway.decide(head, *shared.clock())
        except Exception as exc:  # noqa: BLE001  as `asgi.ErrorBoundary`
            answer = shared.gateway.failed(head, exc)
        if isinstance(answer, Response):
            # It is written at the end of this read, and `pause_writing` counts what is left.
            return answer if len(answer.body) < LARGE_ANSWER else self._admit_large(answer, head)
        self._pending = answer
        return None

    def _wait(self, head: RequestHead, data: bytes, *, keep: bool) -> None:
        """Wait for the answer to *head*; then *keep* its header lines if it is all of *data*."""
        pending, self._pending = self._pending, None
        assert pending is not None  # noqa: S101  the caller checks it
        self._idle.stop()
        self._waiting = head
        write = partial(self._write, head, data if keep else b"")
        self._leave_early = self._shared.gateway.call_back(pending, write, self.start_task)
        self._hold(len(data), head)

    def _hold(self, size: int, head: RequestHead) -> None:
        """Count the bytes that wait with the request of *head*; without room it is refused."""
        self._waiting_bytes += size
        if not self.hold_requests(0):
            if self._held:
                self._held.clear()
                self.transport.resume_reading()
            self._end_with(Refusal("overloaded", retry_after=1.0), head.fields.origin)

    def _write(self, head: RequestHead, data: bytes, response: Response) -> None:
        """Write the answer that the request of *head* waited for."""
        self._waiting = self._leave_early = None
        if isinstance(response, StreamResponse):
            self._join(response)
            return
        self.hold_requests(0)
        if self.transport.is_closing() or self._refused:
            return
        last = self._closing and not self._held
        parts = self._parts(self._admit_large(response, head), last=last)
        self.transport.write(b"".join(parts))
        if last:
            self.transport.close()
            self.limit_last_answer()
            return
        self._idle.start()
        if data and response.status < _BAD_REQUEST:
            self._shared.headers.keep(data, head.fields)
        if self._held:
            held, self._held = b"".join(self._held), []
            self.transport.resume_reading()
            self.data_received(held)
            if self._closing:
                self.shutdown()

    def _join(self, response: StreamResponse) -> None:
        """Join a stream to this connection, as its last answer."""
        stream = response.stream
        if self.transport.is_closing() or self._refused:
            stream.release("browser")
            return
        start = self._shared.start(response.status, self.server_headers())
        self._held, self._repeated = [], b""
        self.hold_requests(0)
        self.begin_stream(stream)
        stream.bound(self.hold_body)
        self.join(b"%b%btransfer-encoding: chunked\r\n\r\n" % (start, response.head), stream)

    def _parts(self, response: Response, *, last: bool = False) -> Parts:
        start = self._shared.start(response.status, self.server_headers())
        return start, response.head, _LAST if last else b"\r\n", response.body

    def _admit_large(self, response: Response, head: RequestHead) -> Response:
        """Return *response* if there is room for it; it is written before the next read."""
        admitted = self.admit(response, head.fields)
        self._holding.answered()
        return admitted

    # -- the end of the connection

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for no load any more."""
        if self._leave_early is not None:
            self._leave_early()
        super().connection_lost(exc)

    def drain(self) -> None:
        """Answer the next request as the last: the parser has to read it, so what is kept goes."""
        super().drain()
        self._repeated = b""

    def close_after_answer(self) -> None:
        """End the connection with its newest answer, which a task may wait for."""
        if self._waiting is not None:
            self._closing = True
        else:
            super().close_after_answer()

    def unanswered(self) -> int:
        """Count the requests that wait, with that of the fast path."""
        return super().unanswered() + (self._waiting is not None)

    def _requests_ahead(self) -> int:
        return len(self._unsent) + super()._requests_ahead()

    def _close_after_due_answers(self) -> bool:
        if self._unsent.size and not self.is_answering():
            self._unsent.end_connection()
            return True
        return super()._close_after_due_answers()
