"""Calls the chat routes of Trigger.dev's API: sends one message, opens one stream.

Both use a connection of their own, outside the pool of loads. A stream lasts, and a message must
not be lost to a kept connection that is just being closed. The module builds each request from
checked values and copies nothing from the browser's request.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from bff.clock import Clock
from bff.errors import (
    CredentialsRejected,
    SessionNotFound,
    StreamVersionUnknown,
    UpstreamError,
    UpstreamInvalid,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from bff.upstream.api import retry_after
from bff.upstream.connection import MAX_BODY_BYTES, Answer, Request, Stream, header_lines
from bff.upstream.credentials import Credentials
from bff.upstream.identity import api_error
from bff.upstream.pool import Transport

ROUTE: Final = "/realtime/v1/sessions/"
VERSION: Final = "v2"
"""The version of streams whose records the gateway can filter."""
_EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """The options of a stream, which a browser may choose.

    Attributes:
        cursor: the number of the last record that the browser has; digits.
        seconds: the time after which upstream ends the stream.
        peek: end at once if no turn is under way.
        latest: begin with the next record.
    """

    cursor: bytes | None = None
    seconds: int = 60
    peek: bool = False
    latest: bool = False


_PEEK: Final = StreamOptions(seconds=1, peek=True, latest=True)
_FIRST_PEEK: Final = StreamOptions(seconds=1, peek=True)
_RECORD: Final = b'"seq_num"'
"""Each record has this key; a ping and a comment do not."""


class ChatUpstream:
    """The chat routes of one environment's API.

    Args:
        transport: sends the requests.
        credentials: sign the requests. If upstream rejects the secret key, the next one is used
            for later requests; a message is never sent again.
        timeout: seconds for the head of an answer, and for the whole answer to a message.
        clock: the two times.
    """

    def __init__(
        self, transport: Transport, *, credentials: Credentials, timeout: float, clock: Clock
    ) -> None:
        self._transport = transport
        self._credentials = credentials
        self._timeout = timeout
        self._clock = clock

    async def append(self, session_id: str, body: bytes, part_id: str) -> Answer:
        """Send a message once; returns an answer that is about the message.

        Raises:
            UpstreamError: upstream's trouble. If its `sent` is true, the message may have arrived.
        """
        lines = header_lines(
            (b"accept", b"application/json"),
            (b"content-type", b"application/json"),
            (b"x-part-id", part_id.encode()),
        )
        request = self._request(b"POST", session_id, "in/append", lines, body)
        used = self._credentials.in_use
        stream = None
        try:
            async with asyncio.timeout(self._timeout):
                stream = await self._transport.stream(self._credentials.address, request)
                answer = await _whole(stream)
        except TimeoutError:
            trouble = UpstreamTimeout()
            trouble.sent = True
            raise trouble from None
        except UpstreamError as error:
            error.sent = error.sent or stream is not None
            raise
        finally:
            if stream is not None:
                stream.abort()
        try:
            return self._checked(answer, used)
        except (UpstreamUnavailable, UpstreamInvalid) as error:
            error.sent = True  # the answering server may have accepted the message
            raise

    async def open(self, session_id: str, options: StreamOptions) -> Stream:
        """Open the stream of a session; the caller aborts it.

        Raises:
            UpstreamError: `SessionNotFound`, `StreamVersionUnknown`, or another of its troubles.
        """
        headers: list[tuple[bytes, bytes]] = [
            (b"accept", _EVENTS.encode()),
            (b"timeout-seconds", b"%d" % options.seconds),
        ]
        if options.cursor is not None:
            headers.append((b"last-event-id", options.cursor))
        elif options.latest:
            headers.append((b"x-trigger-stream-start", b"latest"))
        if options.peek:
            headers.append((b"x-peek-settled", b"1"))
        request = self._request(b"GET", session_id, "out", header_lines(*headers))
        used, stream = self._credentials.in_use, None
        try:
            async with asyncio.timeout(self._timeout):
                stream = await self._transport.stream(self._credentials.address, request)
                if stream.status != HTTPStatus.OK:
                    self._checked(await _whole(stream), used)
            _check_kind(stream)
        except TimeoutError:
            _abort(stream)
            raise UpstreamTimeout from None
        except BaseException:
            _abort(stream)
            raise
        return stream

    async def peek(self, session_id: str, *, has_record: bool) -> bool | None:
        """Whether the last record of a session's stream ends a turn; None if it has no record.

        The head of a stream without a record is that of a running turn. So the body is read to its
        first record, or to its end after a second, unless *has_record* says that there is one.

        Raises:
            UpstreamError: as `open`.
        """
        stream = await self.open(session_id, _PEEK if has_record else _FIRST_PEEK)
        try:
            if stream.headers.get("x-session-settled") == "true":
                return True
            async with asyncio.timeout(self._timeout):
                return False if has_record or await _has_record(stream) else None
        except TimeoutError:
            raise UpstreamTimeout from None
        finally:
            stream.abort()

    def _request(
        self, method: bytes, session_id: str, route: str, lines: bytes, body: bytes = b""
    ) -> Request:
        path = f"{ROUTE}{quote(session_id, safe='')}/{route}"
        credentials = self._credentials
        target = credentials.address.target + path.encode()
        return Request(method, target, credentials.signed(credentials.in_use) + lines, body)

    def _checked(self, answer: Answer, used: int) -> Answer:
        """Return an answer that is about the request; raise what any other one means."""
        status, error = answer.status, api_error(answer)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            _, wall = self._clock()
            raise UpstreamRateLimited(retry_after=retry_after(answer.headers, wall))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UpstreamUnavailable
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            if error is None:
                raise UpstreamInvalid
            if status == HTTPStatus.UNAUTHORIZED:
                self._credentials.reject(used)
            raise CredentialsRejected
        if status == HTTPStatus.NOT_FOUND:
            raise SessionNotFound if error is not None else UpstreamInvalid
        return answer


def _check_kind(stream: Stream) -> None:
    kind = stream.headers.get("content-type", "").partition(";")[0].strip().lower()
    if stream.status != HTTPStatus.OK or kind != _EVENTS:
        raise UpstreamInvalid
    if stream.headers.get("x-stream-version") != VERSION:
        raise StreamVersionUnknown


class _Body:
    """Collects the body of a stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.complete: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def receive(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > MAX_BODY_BYTES:
            self._set(UpstreamInvalid())

    def ended(self, error: UpstreamError | None) -> None:
        self._set(error)

    def _set(self, error: UpstreamError | None) -> None:
        if self.complete.done():
            return
        if error is not None:
            self.complete.set_exception(error)
        else:
            self.complete.set_result(bytes(self._bytes))


class _FirstRecord:
    """Waits for the first record of a stream."""

    def __init__(self) -> None:
        self._end = b""
        self.came: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def receive(self, data: bytes) -> None:
        text = self._end + data
        self._end = text[-len(_RECORD) :]
        if _RECORD in text and not self.came.done():
            self.came.set_result(True)

    def ended(self, error: UpstreamError | None) -> None:
        if self.came.done():
            return
        if error is not None:
            self.came.set_exception(error)
        else:
            self.came.set_result(False)


async def _has_record(stream: Stream) -> bool:
    reader = _FirstRecord()
    stream.attach(reader)
    return await reader.came


async def _whole(stream: Stream) -> Answer:
    body = _Body()
    stream.attach(body)
    return Answer(stream.status, stream.headers, await body.complete)


def _abort(stream: Stream | None) -> None:
    if stream is not None:
        stream.abort()
