"""The fast lane: answers from the protocol class what `Gateway.decide` answers without waiting.

A hit needs no scope, no task and no ASGI cycle, which is most of what an ASGI server costs. So a
complete request without a body is decided as soon as it is parsed. If that gives a `PendingLoad`,
the request goes on to the application and takes the decision that was made with it; whatever is
unusual in framing goes there undecided. Both ways give the same bytes
(`tests/server/test_fast_path.py`).

What is answered is written when the bytes that came in are parsed to their end: where they are not
HTTP, the last answer before says that it is the last, as without the lane. Every bound of
`wire.BoundedProtocol` holds.

This leans on how uvicorn's class works inside, so it is used with the sources that it was written
for and tested with, and no others: see `written_for`.
"""

import asyncio
import re
from collections import OrderedDict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bff.clock import Clock
from bff.gateway.decide import Gateway
from bff.gateway.pending import Pending
from bff.request import HeaderFields, RequestHead
from bff.response import Response
from bff.server.asgi import LOAD
from bff.server.connection import MAX_PIPELINED, BoundedProtocol
from bff.sessions.ids import PLAIN_PATH

_WRITTEN_FOR: Final = frozenset(
    ("ea814cf42e50628dba76b72e12900943da6801b4bcf097f11dff4ea2cdc99455",)  # 0.54.0
)
"""SHA-256 of the sources whose inner workings this knows."""
_MAX_AGAIN: Final = 4096
"""Bytes of a request that a connection keeps, to know it again."""
_MAX_KNOWN: Final = 32 * 1024 * 1024
"""Bytes, about, that may be kept of header lines and of what they say."""
_OVERHEAD: Final = 500
"""Bytes that it costs beyond twice the lines."""
_VALUE_OVERHEAD: Final = 40
"""The same for each value of a header that may stand many times."""
_PLAIN: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=:@/"
"""What a path without query and fragment consists of (RFC 3986 §3.3)."""
_LINE: Final = re.compile(rb"(GET|HEAD|OPTIONS) (%b) HTTP/1\.1" % PLAIN_PATH)
"""A request line that means what it says, whatever the lines after it."""


def protocol(
    gateway: Gateway, bounded_protocol: "partial[BoundedProtocol]", clock: Clock
) -> "partial[BoundedProtocol] | partial[FastPathProtocol]":
    """What uvicorn takes as ``http=``: `FastPathProtocol` where it can be used."""
    if not written_for():
        log = gateway.telemetry.log
        log.warning("fast_lane_off", reason="not tested with this version of uvicorn")
        return bounded_protocol
    return partial(FastPathProtocol, Shared(gateway, clock), **bounded_protocol.keywords)


def written_for() -> bool:
    """Whether the uvicorn that is installed is one this was written for."""
    try:
        sources = [Path(str(m.__file__)).read_bytes() for m in (httptools_impl, flow_control)]
    except OSError:  # installed without its sources
        return False
    return sha256(b"".join(sources)).hexdigest() in _WRITTEN_FOR


class Shared:
    """What the connections of one server share.

    Args:
        gateway: decides.
        clock: the two times of `Gateway.decide`.
    """

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self.gateway = gateway
        self.clock = clock
        self._defaults: list[tuple[bytes, bytes]] = []
        self._starts: dict[int, bytes] = {}
        self._known: OrderedDict[bytes, HeaderFields] = OrderedDict()
        """By header lines, from the end of the request line."""
        self._bytes = 0

    def start(self, status: int, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """Status line and the server's own headers, which it makes anew once a second."""
        if defaults is not self._defaults:
            self._defaults, self._starts = defaults, {}
        start = self._starts.get(status)
        if start is None:
            lines = b"".join(b"%b: %b\r\n" % header for header in defaults)
            start = self._starts[status] = STATUS_LINE[status] + lines
        return start

    def keep(self, data: bytes, fields: HeaderFields) -> None:
        """Remember that the header lines of *data*, a whole request, say *fields*."""
        line = _LINE.match(data)
        lines = data[line.end() :] if line else b""
        if lines and lines not in self._known:
            self._known[lines] = fields
            self._bytes += _cost(lines, fields)
            while self._bytes > _MAX_KNOWN:
                self._bytes -= _cost(*self._known.popitem(last=False))

    def read(self, data: bytes, peer: str) -> RequestHead | None:
        """Read the head of a request whose header lines are known; None for any other bytes."""
        line = _LINE.match(data)
        fields = self._known.get(data[line.end() :]) if line else None
        if line is None or fields is None:
            return None
        method, path, id_ = line.groups()
        return RequestHead(method.decode(), path, fields, peer, id_.decode())


def _cost(lines: bytes, fields: HeaderFields) -> int:
    values = len(fields.forwarded) + len(fields.cookies)
    return 2 * len(lines) + _OVERHEAD + _VALUE_OVERHEAD * values


class FastPathProtocol(BoundedProtocol):
    """One connection."""

    def __init__(self, shared: Shared, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._shared = shared
        self._usual = not (self.access_log or self.root_path)
        self._plain = False
        self._requests = 0
        """Begun in the bytes at hand."""
        self._head: RequestHead | None = None
        """Of the last request in them that was decided here."""
        self._granted = False
        """It was not refused."""
        self._load: Pending | None = None
        """Decided already, for the request that is parsed next."""
        self._again = b""
        """Bytes that are one request to be decided here, whole, and `_head` is its head."""
        self._written: list[bytes] = []
        """Answers, in four parts each."""
        self._held = 0
        """Bytes in `_written`."""
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and write what was answered meanwhile.

        A tab that polls sends the same bytes each time, and the same header lines whatever session
        it asks for and whichever connection a proxy takes. Between two requests the parser
        remembers nothing, so they would come out as the same: only what is new is parsed.
        """
        head = self._head if data == self._again else self._read(data)
        response = None if head is None or self._busy() else self._decide(head)
        if response is not None:
            if self.timeout_keep_alive_task is not None:
                self._unset_keepalive_if_required()
            self.transport.write(b"".join(self._parts(response)))
            self._rest()
        else:
            head = self._parse(data)
        self._head = head
        self._again = data if head is not None and len(data) <= _MAX_AGAIN else b""

    def _parse(self, data: bytes) -> RequestHead | None:
        """Parse *data*, and answer what is answered here; the head, if that is one request."""
        began, self._requests, self._head = not self._incomplete, 0, None
        super().data_received(data)
        self._load = None  # taken by now: it was the only request's
        if self._written:
            self.transport.write(b"".join(self._written))
            self._written.clear()
            self._held = 0
            if self._refused:
                if not self._answering():
                    self.transport.close()
                    self._within(self._bounds.idle_seconds, self._never_read)
            elif not self._incomplete and not self._answering():
                self._rest()
        head = self._head if began and self._requests == 1 and not self._refused else None
        if head is not None and self._granted:
            self._shared.keep(data, head.fields)
        return head

    # -- the parser's callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin()
        self._idle_since = None
        self.url = b""
        self.headers = []
        self._requests += 1

    def on_headers_complete(self) -> None:
        """Choose the lane."""
        version = self._check()
        if self.pipeline or self._requests > MAX_PIPELINED:
            self._check_ahead()
        self._plain = self._usual and not (
            self._framed
            or version != "1.1"
            or self.url[:1] != b"/"
            or self.url.translate(None, _PLAIN)
            or not self.parser.should_keep_alive()
            or self.parser.should_upgrade()
            or self._busy()
        )
        if not self._plain:
            self._hand_on()

    def on_message_complete(self) -> None:
        """Answer, if this is the lane for it."""
        if self._plain:
            self._plain = False
            self._incomplete = False
            method = self.parser.get_method().decode()
            self._head = head = RequestHead.read(method, self.url, b"", self.headers, self._peer)
            self._granted = False
            response = self._decide(head) if self._load is None else None
            if response is not None:
                parts = self._parts(response)
                self._written += parts
                self._held += sum(map(len, parts))
                self._granted = response.status < 400  # noqa: PLR2004
                return
            load, self._load = self._load, None
            self._hand_on()
            self.scope["extensions"] = {LOAD: load}  # type: ignore[dict-item]
        super().on_message_complete()

    # -- what becomes of a request

    def _read(self, data: bytes) -> RequestHead | None:
        """Read a request that may be known by its header lines."""
        if self._incomplete or self._refused or len(data) > self._bounds.head_bytes:
            return None
        return self._shared.read(data, self._peer)

    def _decide(self, head: RequestHead) -> Response | None:
        """Answer a request; None if that has to wait, for `_load`."""
        shared = self._shared
        head.served_by = "fast"  # again: what had to wait the last time may be a hit now
        try:
            answer = shared.gateway.decide(head, *shared.clock())
        except Exception as exc:  # noqa: BLE001  as in `asgi.ErrorBoundary`
            answer = shared.gateway.failed(head, exc)
        if isinstance(answer, Response):
            return answer
        head.served_by = "asgi"
        self._load = answer
        return None

    def _parts(self, response: Response) -> tuple[bytes, bytes, bytes, bytes]:
        """What is written for a reply."""
        server = self.server_state
        server.total_requests += 1
        start = self._shared.start(response.status, server.default_headers)
        return start, response.head, b"\r\n", response.body

    def _hand_on(self) -> None:
        """Let uvicorn's own class have the request, as if it had seen it all along."""
        url, headers = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        self.headers += headers  # the scope's
        super()._hand_on()

    def _ahead(self) -> int:
        return len(self._written) // 4 + super()._ahead()

    def _end_after_answers(self) -> bool:
        if self._written and not self._answering():
            self._written[-2] = b"connection: close\r\n\r\n"
            return True
        return super()._end_after_answers()

    def _busy(self) -> bool:
        """Whether a request has to queue: uvicorn does that, and holds back what comes in."""
        limit = self.limit_concurrency
        return (
            (self.cycle is not None and not self.cycle.response_complete)
            or self.flow.write_paused
            or self._held > HIGH_WATER_LIMIT
            or (limit is not None and max(len(self.connections), len(self.tasks)) >= limit)
        )

    # -- idle connections

    def _rest(self) -> None:
        """Note that everything is answered."""
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._wait_idle(self.timeout_keep_alive)

    def _wait_idle(self, seconds: float) -> None:
        self._idle_timer = self.loop.call_later(seconds, self._idle)

    def _idle(self) -> None:
        """Close, if nothing came for as long as a connection is kept.

        One timer that is set again when it goes off: uvicorn's, made anew for each request, costs
        as much as a decision.
        """
        self._idle_timer = None
        if self._idle_since is not None:
            rest = self._idle_since + self.timeout_keep_alive - self.loop.time()
            if rest > 0:
                self._wait_idle(rest)
            else:
                self.timeout_keep_alive_handler()
