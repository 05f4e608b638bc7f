"""Calls Trigger.dev's API and turns its troubles into `UpstreamError`.

This module holds the secret key. It sends the key to one host, on requests that take only the
session's id from the browser. `bff.upstream.pool` sends the requests. It follows no redirect, keeps
no cookie and resolves no dots in a path. It takes no credentials and no proxy from the environment.
It sends a GET again if upstream closed the connection before the GET arrived.

An answer counts as the API's only if it looks like the API's (`bff.upstream.identity`). Anything
else is upstream's trouble, whatever its status says.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from bff.clock import Clock
from bff.errors import (
    CredentialsRejected,
    SessionNotFound,
    TokenForbidden,
    TokenRejected,
    UpstreamInvalid,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from bff.limits.rate import MAX_RESET
from bff.upstream.connection import Answer, Request, header_lines
from bff.upstream.credentials import Credentials
from bff.upstream.identity import api_error, is_json
from bff.upstream.pool import Transport

T = TypeVar("T")

_UNAUTHORIZED = HTTPStatus.UNAUTHORIZED
_ACCEPT = header_lines((b"accept", b"application/json"))
_NUMBER = re.compile(r"\s*-?[0-9]{1,15}\s*")
"""A number in a header; a longer one is neither a count nor a date."""
CLAIMS_PATH = "/api/v1/auth/jwt/claims"


@dataclass(frozen=True, slots=True)
class Quota:
    """Upstream's rate limit, as an answer describes it.

    Attributes:
        reset: Unix seconds.
    """

    limit: int
    remaining: int
    reset: float


@dataclass(eq=False)
class Upstream:
    """One environment's API.

    Args:
        transport: sends the requests.
        credentials: sign the requests. If upstream rejects the secret key, a load is sent once
            more with the next one.
        timeout: seconds for a whole answer, connecting and retrying included.
        observe: called with the quota of each accepted answer that describes one.
        clock: reads the two clocks.
    """

    transport: Transport
    credentials: Credentials
    timeout: float
    observe: Callable[[Quota], None]
    clock: Clock
    _accepted: bool = field(default=True, init=False)
    """Whether upstream accepted a secret key in the last answer to a load."""

    def get(
        self, path: str, *, read: Callable[[bytes], T], again: Callable[[], Awaitable[None]]
    ) -> Coroutine[Any, Any, T]:
        """GET *path* and read the body of a 200.

        Args:
            path: below the API's address.
            read: reads the body; raises `UpstreamInvalid` if the API cannot have sent it.
            again: awaited before a second call, with the next secret key. It spends that call from
                the budget, or raises.

        Raises:
            UpstreamError: `SessionNotFound`; `UpstreamRateLimited` for upstream's own 429, with
                ``retry_after``; or another of upstream's troubles.
            Exception: whatever *again* raises.
        """
        return self._bounded(self._get(path, read, again))

    async def _get(
        self, path: str, read: Callable[[bytes], T], again: Callable[[], Awaitable[None]]
    ) -> T:
        credentials = self.credentials
        used = credentials.in_use
        answer = await self._send("GET", path, credentials.signed(used))
        rejected = _rejects_key(answer)
        if rejected and len(credentials) > 1:
            credentials.reject(used)
            # While all keys are rejected, a load makes one call only.
            if self._accepted:
                await again()
                answer = await self._send("GET", path, credentials.signed(credentials.in_use))
                rejected = _rejects_key(answer)
        self._accepted = not rejected
        return self._read(answer, read, self.observe)

    async def get_as(self, token: bytes, path: str, *, read: Callable[[bytes], T]) -> T:
        """GET *path* with a browser's *token* in place of the secret key; read the body of a 200.

        The quota of the answer is the token's quota, so it is not observed.

        Raises:
            UpstreamError: as `get`. `TokenRejected`, `TokenForbidden` and `UpstreamRateLimited` are
                about the token; the last holds until the token's quota is reset.
        """
        bearer = header_lines((b"authorization", b"Bearer " + token))
        lines = self.credentials.unsigned + bearer
        answer = await self._bounded(self._send("GET", path, lines))
        error = None if answer.status == HTTPStatus.OK else api_error(answer)
        if error is not None:
            if answer.status == _UNAUTHORIZED:
                raise TokenRejected
            if answer.status == HTTPStatus.FORBIDDEN:
                raise TokenForbidden
        return self._read(answer, read, lambda _: None)

    async def probe(
        self, method: str, path: str, *, key: int | None = None, body: bytes = b""
    ) -> Answer:
        """Send one request that no browser caused; returns an answer of any status.

        Args:
            method: the HTTP method.
            path: below the API's address.
            key: the position of the secret key, from 0; None for the one in use.
            body: JSON.

        Raises:
            UpstreamError: the request failed.
        """
        lines = self.credentials.signed(self.credentials.in_use if key is None else key)
        if body:
            lines += header_lines((b"content-type", b"application/json"))
        return await self._bounded(self._send(method, path, lines, body))

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        """Do *work* within the timeout; `asyncio.timeout` costs four times as much."""
        task, expired = asyncio.current_task(), False
        assert task is not None  # noqa: S101  coroutines run in tasks

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        cancelling = task.cancelling()
        timer = asyncio.get_running_loop().call_later(self.timeout, expire)
        try:
            return await work
        except asyncio.CancelledError:
            if expired and task.uncancel() <= cancelling:
                raise UpstreamTimeout from None
            raise
        finally:
            timer.cancel()

    def _send(
        self, method: str, path: str, lines: bytes, body: bytes = b""
    ) -> Coroutine[Any, Any, Answer]:
        address = self.credentials.address
        target = address.target + path.encode() or b"/"
        request = Request(method.encode(), target, _ACCEPT + lines, body)
        return self.transport.send(address, request)

    def _read(
        self, answer: Answer, read: Callable[[bytes], T], observe: Callable[[Quota], None]
    ) -> T:
        """Return what *read* makes of a 200; raise what any other answer means."""
        status = answer.status
        if status == HTTPStatus.OK:
            if not is_json(answer.headers):
                raise UpstreamInvalid
            document = read(answer.body)
            _observed(answer, observe)
            return document
        if status == HTTPStatus.TOO_MANY_REQUESTS:  # also from a CDN: fewer calls help
            raise self._rate_limited(answer, observe)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UpstreamUnavailable
        if api_error(answer) is not None:
            if status == HTTPStatus.NOT_FOUND:
                _observed(answer, observe)
                raise SessionNotFound
            if status in (_UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise CredentialsRejected
        raise UpstreamInvalid

    def _rate_limited(
        self, answer: Answer, observe: Callable[[Quota], None]
    ) -> UpstreamRateLimited:
        """Return the error of a 429; the API's own lasts until its bucket is reset.

        `Budget.observe` ignores a period that ends before the one that it knows; a 429 always
        counts, so its seconds do not depend on what the gateway loaded before.
        """
        _, wall = self.clock()
        after = retry_after(answer.headers, wall)
        quota = read_quota(answer.headers)
        if quota is None or api_error(answer) is None:
            return UpstreamRateLimited(retry_after=after)
        observe(quota)
        rest = min(max(quota.reset - wall, 0.0), MAX_RESET)
        return UpstreamRateLimited(retry_after=max(rest, after or 0.0))


def _observed(answer: Answer, observe: Callable[[Quota], None]) -> None:
    quota = read_quota(answer.headers)
    if quota is not None:
        observe(quota)


def _rejects_key(answer: Answer) -> bool:
    return answer.status == _UNAUTHORIZED and api_error(answer) is not None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def read_quota(headers: Mapping[str, str]) -> Quota | None:
    """Read ``x-ratelimit-*``; upstream's reset is in Unix milliseconds. A limit is at least 1."""
    limit = _number(headers.get("x-ratelimit-limit"))
    remaining = _number(headers.get("x-ratelimit-remaining"))
    reset = _number(headers.get("x-ratelimit-reset"))
    if limit is None or limit < 1 or remaining is None or reset is None:
        return None
    return Quota(limit, remaining, reset / 1000)


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Read ``Retry-After``: seconds, or a date, which is compared with upstream's own ``Date``.

    *wall* is Unix seconds; it stands in for an absent ``Date``.
    """
    text = headers.get("retry-after")
    seconds: float | None = _number(text)
    if seconds is None and text is not None:
        until = _date(text)
        if until is not None:
            seconds = until - (_date(headers.get("date", "")) or wall)
    return None if seconds is None else min(max(float(seconds), 0.0), MAX_RESET)


def _date(text: str) -> float | None:
    """Read an HTTP date; returns Unix seconds. Without a zone it is in UTC (RFC 9110 §5.6.7)."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
