"""How an answer to a browser looks on the wire.

This module writes the header lines, with three exceptions: `bff.limits.headers` writes those of a
limit, `bff.gateway.answers` adds ``x-unavailable-sessions`` to a list, and `bff.server` adds
``connection: close`` to a last answer.

The head of a response is kept as the bytes that are sent. So the parts that many responses share
are built once: for each origin, each copy and each refusal.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from math import ceil
from typing import Final, Protocol

from bff.errors import Refusal
from bff.limits.headers import problem, rate_lines
from bff.limits.rate import MAX_RESET, UNLIMITED_WINDOW, Window

_METHOD_NOT_ALLOWED: Final = HTTPStatus.METHOD_NOT_ALLOWED
_NOT_MODIFIED: Final = HTTPStatus.NOT_MODIFIED
_NO_CONTENT: Final = HTTPStatus.NO_CONTENT
_OK: Final = HTTPStatus.OK
_TOO_LARGE: Final = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
_UNAUTHORIZED: Final = HTTPStatus.UNAUTHORIZED
"""Statuses by plain names: to look one up in the enumeration costs half a microsecond."""

MAX_PREFLIGHT_AGE: Final = 7200
"""Seconds that a browser may keep a preflight; Chromium's own maximum. A removed origin is still
refused at once, because the answer itself then lacks the CORS headers."""
METHODS: Final = "GET, HEAD, OPTIONS"
# A preflight allows more methods than are served: a script can only read a 405 or a 410 if the
# preflight let it send the request. `*` does not cover Authorization, nor does it work in older
# browsers.
_PREFLIGHT: Final = (
    b"access-control-allow-methods: GET, HEAD, PUT, PATCH, POST, DELETE\r\n"
    b"access-control-allow-headers: authorization, content-type, cache-control, if-none-match, "
    b"last-event-id, x-part-id, timeout-seconds, x-peek-settled, x-trigger-stream-start, "
    b"trigger-version, x-trigger-api-version, x-trigger-source, x-trigger-client, "
    b"x-trigger-branch, x-trigger-realtime-streams-version, x-trigger-request-idempotency-key, "
    b"traceparent, tracestate, baggage, *\r\n"
    b"access-control-max-age: %d\r\n" % MAX_PREFLIGHT_AGE
)
_EXPOSED: Final = (
    "ETag, Age, Cache-Control, Cache-Status, x-ratelimit-limit, x-ratelimit-remaining, "
    "x-ratelimit-reset, RateLimit, RateLimit-Policy, Retry-After, x-should-retry, X-Request-Id, "
    "WWW-Authenticate, Allow, Vary, X-Content-Type-Options, X-Unavailable-Sessions, Server-Timing, "
    "X-Stream-Version, X-Session-Settled"
)
_NO_STORE: Final = b"cache-control: no-store\r\n"
NO_RETRY: Final = b"x-should-retry: false\r\n"
"""The SDK repeats every answer that is not a 4xx; the frontend decides about a retry."""
_SESSION: Final = b"%bx-request-id: %b\r\n%bage: %d\r\ncache-status: bff; %b\r\n%b"
_SESSION_BODY: Final = (
    _SESSION + b"content-type: application/json; charset=utf-8\r\ncontent-length: %d\r\n"
)
# A stored stream would be a recording. nginx and others collect a body unless a header forbids it.
_EVENTS: Final = (
    b"cache-control: no-store, no-transform\r\nx-accel-buffering: no\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
)
CHAT_STREAM: Final = b"x-stream-version: v2\r\n"
"""The line of a chat's stream: the version of its records."""
IDLE: Final = b"x-session-settled: true\r\n"
"""The line of a chat's stream if no turn is under way."""
_REVALIDATE: Final = b"cache-control: private, no-cache\r\n"


@dataclass(slots=True)
class Response:
    """An answer.

    Attributes:
        head: the header lines, each ended with CRLF.
    """

    status: int
    head: bytes
    body: bytes

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Split the header lines into pairs, for ASGI."""
        pairs = (line.partition(b": ") for line in self.head.split(b"\r\n") if line)
        return [(name, value) for name, _, value in pairs]


class EventSink(Protocol):
    """The browser's side of a stream."""

    @property
    def paused(self) -> bool:
        """Whether the browser has to read first; `EventStream.resume` tells when it has."""

    def send_event(self, data: bytes) -> None:
        """Write an event."""

    def finish_stream(self) -> None:
        """End the answer, once the browser has read it."""


class EventStream(Protocol):
    """Events that are written as they come, so that a stream needs no task."""

    @property
    def cut(self) -> bool:
        """Whether the stream has ended too early; its connection then ends without a last chunk."""

    @property
    def reserves(self) -> bool:
        """Whether it counts large events by `bound`, and writes none until the browser reads."""

    def bound(self, hold: Callable[[int], bool]) -> None:
        """Let *hold* count bytes of events in memory; it returns False if there is no room."""

    def attach(self, sink: EventSink) -> None:
        """Write all events to *sink* from now on."""

    def resume(self) -> None:
        """Write what waited: the browser reads again."""

    def release(self, reason: str) -> None:
        """End it, if it has not ended; it writes nothing more."""


class Detached:
    """The sink of a stream that has no browser's side yet, or no longer."""

    paused = True

    def send_event(self, data: bytes) -> None:
        """Write nothing."""

    def finish_stream(self) -> None:
        """End nothing."""


DETACHED: Final = Detached()


@dataclass(slots=True)
class StreamResponse(Response):
    """An answer whose body is a stream. It is the last of its connection."""

    stream: EventStream


class Representation(Protocol):
    """The content of a 200: a `Copy`, or a page of copies."""

    @property
    def head(self) -> bytes:
        """Header lines that depend on the body alone; see `copy_head`."""

    @property
    def body(self) -> bytes:
        """JSON."""

    @property
    def etag(self) -> bytes:
        """The entity tag of the body."""

    @property
    def loaded(self) -> float:
        """When it was loaded; for a page, when its oldest copy was."""


@lru_cache(maxsize=64)  # nearly all texts are constants; a list's query errors name a parameter
def _refusal_body(code: str, detail: str) -> bytes:
    """Make JSON of upstream's shape: the SDK shows ``error``, programs read ``code``."""
    unauthorized = {"param": "access_token", "type": "authorization"}
    extra = unauthorized if code == "unauthorized" else {}
    return json.dumps({"error": detail, "code": code, **extra}).encode()


def vary(*, cookie: bool, live: bool) -> str:
    """The request headers on which an answer depends.

    With *cookie* those of the token's cookie are among them; with *live* the one that asks for an
    event stream.
    """
    with_cookie = ", Cookie, Sec-Fetch-Site" if cookie else ""
    return "Authorization, Origin" + with_cookie + (", Accept" if live else "")


class ResponseBuilder:
    """Builds responses for the configured *origins* (exact; ``*`` for any).

    *cookie* says that a browser may send its token in a cookie, and *live* that it may get an event
    stream; answers then vary with the headers for it.
    """

    def __init__(self, origins: Sequence[str], *, cookie: bool, live: bool) -> None:
        varies = vary(cookie=cookie, live=live)
        always = f"vary: {varies}\r\nx-content-type-options: nosniff\r\n".encode()

        def lines(origin: str) -> bytes:
            allowed = f"access-control-allow-origin: {origin}\r\n"
            return (
                f"{allowed}access-control-expose-headers: {_EXPOSED}\r\n".encode("latin-1") + always
            )

        self._lines: dict[bytes | None, bytes] = {None: always}
        """By origin."""
        self._others = always
        if "*" in origins:
            self._others = lines("*")
        else:
            self._lines |= {origin.encode("latin-1"): lines(origin) for origin in origins}

    def _common(self, origin: bytes | None, request_id: bytes) -> bytes:
        return b"%bx-request-id: %b\r\n" % (self._lines.get(origin, self._others), request_id)

    def preflight(self, origin: bytes | None, request_id: bytes) -> Response:
        """Answer OPTIONS for any path: a script must be able to read the refusal of any route."""
        common = self._common(origin, request_id)
        allowed = b"access-control-allow-origin" in common
        head = common + _NO_STORE + (_PREFLIGHT if allowed else b"") + b"allow: " + METHODS.encode()
        return Response(_NO_CONTENT, head + b"\r\n", b"")

    def session(
        self,
        copy: Representation,
        *,
        not_modified: bool,
        cache_status: bytes,
        window: Window,
        now: float,
        wall: float,
        origin: bytes | None,
        request_id: bytes,
        lines: bytes = b"",
    ) -> Response:
        """Answer with *copy*. The gateway has checked that the caller may read it."""
        age = max(0.0, now - copy.loaded)
        common = self._lines.get(origin, self._others)
        rate = rate_lines(window, now, wall) + lines
        if not_modified:
            return Response(
                _NOT_MODIFIED,
                _SESSION % (common, request_id, copy.head, age, cache_status, rate),
                b"",
            )
        body = copy.body
        return Response(
            _OK,
            _SESSION_BODY % (common, request_id, copy.head, age, cache_status, rate, len(body)),
            body,
        )

    def events(
        self, stream: EventStream, lines: bytes, *, origin: bytes | None, request_id: bytes
    ) -> StreamResponse:
        """Answer with events as they come: of a chat, or of sessions that change."""
        head = self._common(origin, request_id) + _EVENTS + lines
        return StreamResponse(_OK, head + b"connection: close\r\n", b"", stream)

    def refusal(
        self,
        refusal: Refusal,
        *,
        window: Window = UNLIMITED_WINDOW,
        now: float = 0.0,
        wall: float = 0.0,
        origin: bytes | None,
        request_id: bytes,
        methods: Sequence[str] = ("GET", "HEAD"),
    ) -> Response:
        """Answer with a refusal; *window* is the limit that was charged last."""
        status = refusal.status
        lines = rate_lines(window, now, wall)
        content_type = b"application/json; charset=utf-8"
        retry_after = refusal.retry_after
        if refusal.code == "rate_limited":
            content_type = b"application/problem+json; charset=utf-8"
            body = problem(refusal, window, now, wall)
            retry_after = window.reset(now)
        else:
            body = _refusal_body(refusal.code, refusal.text)
            lines += NO_RETRY
        if retry_after is not None:
            lines += b"retry-after: %d\r\n" % max(1, ceil(min(retry_after, MAX_RESET)))
        if status == _UNAUTHORIZED:
            lines += _challenge(refusal)
        elif status == _METHOD_NOT_ALLOWED:
            lines += b"allow: " + ", ".join((*methods, "OPTIONS")).encode() + b"\r\n"
        elif status == _TOO_LARGE:
            lines += b"connection: close\r\n"  # the rest of the body is not read
        return self.json(
            status,
            body,
            lines,
            origin=origin,
            request_id=request_id,
            content_type=content_type,
        )

    def json(
        self,
        status: int,
        body: bytes,
        lines: bytes = b"",
        *,
        origin: bytes | None,
        request_id: bytes,
        content_type: bytes = b"application/json; charset=utf-8",
    ) -> Response:
        """Answer with JSON that no cache stores; *lines* are more header lines."""
        head = b"%b%b%bcontent-type: %b\r\ncontent-length: %d\r\n" % (
            self._common(origin, request_id),
            _NO_STORE,
            lines,
            content_type,
            len(body),
        )
        return Response(status, head, body)


def copy_head(etag: bytes) -> bytes:
    """Make the header lines that depend on a copy alone."""
    return b"%betag: %b\r\n" % (_REVALIDATE, etag)


def server_timing(seconds: float) -> bytes:
    """Make the header line that tells for how long the request waited, in milliseconds."""
    return b"server-timing: bff;dur=%.1f\r\n" % (seconds * 1000)


def _challenge(refusal: Refusal) -> bytes:
    # RFC 6750 §3.1: a request without a token gets no error code.
    if refusal.code == "token_missing":
        return b'www-authenticate: Bearer realm="bff"\r\n'
    return (
        b'www-authenticate: Bearer realm="bff", error="invalid_token", error_description="%b"\r\n'
        % refusal.text.encode("latin-1")
    )
