"""Calls Trigger.dev's API and turns its troubles into `UpstreamError`.

This module holds the secret key. It sends the key to one host, on requests that take only the
session's id from the browser. The requests go to httpcore2, the engine below httpx2: it follows no
redirect, keeps no cookie, resolves no dots in a path, and takes no credentials and no proxy from
the environment. A load also costs a quarter less.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import httpcore2

from bff.errors import (
    CredentialsRejected,
    SessionNotFound,
    TokenForbidden,
    TokenRejected,
    UpstreamInvalid,
    UpstreamRateLimited,
    UpstreamUnavailable,
)
from bff.limits.rate import MAX_RESET
from bff.upstream.client import Address, Answer, Client, translated

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


class Upstream:
    """One environment's API.

    Args:
        url: base URL, without a slash at its end.
        secret_keys: the first is the bearer token. When upstream rejects it, the next takes its
            place, and the request is sent once more.
        branch: sent as ``x-trigger-branch``; preview and named dev branches need it.
        timeout: seconds for a whole answer, connecting and retrying included.
        observe: called with the quota of each answer that describes one.
        on_key: called with the position of the secret key, from 1, when another one takes over.
    """

    def __init__(
        self,
        client: Client,
        *,
        url: str,
        secret_keys: Sequence[str],
        branch: str | None,
        timeout: float,
        user_agent: str,
        observe: Callable[[Quota], None],
        on_key: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._on_key = on_key
        self.has_branch = branch is not None
        self._client = client
        self._address = Address.read(url)
        self._timeout = timeout
        self._observe = observe
        self._current = 0
        self._accepted = True
        self._agent = (b"user-agent", user_agent.encode())
        branches = () if branch is None else ((b"x-trigger-branch", branch.encode()),)
        self._signed = [
            (self._agent, *branches, (b"authorization", b"Bearer " + key.encode()))
            for key in secret_keys
        ]
        """The headers of a request, one set a key."""

    async def get(self, path: str, again: Callable[[], Awaitable[None]]) -> bytes:
        """GET *path*: the body of a 200.

        Args:
            path: below the API's address.
            again: awaited before a second call, which follows when the key is rejected and there
                is a next one. It spends that call from the budget, or raises.

        Raises:
            UpstreamError: `SessionNotFound`; `UpstreamRateLimited` for upstream's own 429, with
                ``retry_after``; or another of upstream's troubles.
            Exception: whatever *again* raises.
        """
        async with translated(self._timeout):
            used = self._current
            answer = await self._send(path)
            if answer.status == _REJECTED and len(self._signed) > 1:
                if self._current == used:  # otherwise another load has switched keys
                    self._current = (used + 1) % len(self._signed)
                    self._on_key(self.key_number)
                # While all keys are rejected, a load makes one call only.
                if self._accepted:
                    await again()
                    answer = await self._send(path)
            self._accepted = answer.status != _REJECTED
            return _body(answer)

    async def get_as(self, token: bytes, path: str, wall: float) -> bytes:
        """GET *path* with a browser's *token* in place of the secret key: the body of a 200.

        The quota of the answer is the token's quota, so it is not observed.

        *wall* is Unix seconds.

        Raises:
            UpstreamError: as `get`. `TokenRejected`, `TokenForbidden` and `UpstreamRateLimited` are
                about the token; the last holds until the token's quota is reset.
        """
        headers = (self._agent, (b"authorization", b"Bearer " + token))
        async with translated(self._timeout):
            answer = await self._client.send("GET", self._address, path.encode(), headers)
        if answer.status in (_REJECTED, HTTPStatus.FORBIDDEN):
            raise TokenRejected if answer.status == _REJECTED else TokenForbidden
        quota = read_quota(answer.headers)
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS and quota is not None:
            rest = min(max(quota.reset - wall, 0.0), MAX_RESET)
            raise UpstreamRateLimited(retry_after=max(rest, _retry_after(answer.headers) or 0.0))
        return _body(answer)

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
        headers = self._signed[self._current if key is None else key]
        if body:
            headers = (*headers, (b"content-type", b"application/json"))
        async with translated(self._timeout):
            return await self._client.send(method, self._address, path.encode(), headers, body=body)

    @property
    def key_number(self) -> int:
        """The position of the secret key in use, from 1."""
        return self._current + 1

    @property
    def key_count(self) -> int:
        """How many secret keys there are."""
        return len(self._signed)

    async def _send(self, path: str) -> Answer:
        try:
            return await self._send_once(path)
        except httpcore2.ConnectError:
            # No byte was sent, so a second try cannot repeat an effect.
            return await self._send_once(path)

    async def _send_once(self, path: str) -> Answer:
        headers = self._signed[self._current]
        answer = await self._client.send("GET", self._address, path.encode(), headers)
        quota = read_quota(answer.headers)
        if quota is not None:
            self._observe(quota)
        return answer


_REJECTED = HTTPStatus.UNAUTHORIZED


def _body(answer: Answer) -> bytes:
    status = answer.status
    if status == HTTPStatus.OK:
        return answer.body
    if status == HTTPStatus.NOT_FOUND and _is_api_error(answer.body):
        # A wrong address answers 404 too, and the SDK starts a paid run on our 404.
        raise SessionNotFound
    if status in (_REJECTED, HTTPStatus.FORBIDDEN):
        raise CredentialsRejected
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise UpstreamRateLimited(retry_after=_retry_after(answer.headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise UpstreamUnavailable
    raise UpstreamInvalid


def _is_api_error(body: bytes) -> bool:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("error"), str)


_MAX_DIGITS = 15
"""Digits of a number in a header; a longer one is neither a count nor a date."""


def _number(text: str | None) -> int | None:
    digits = (text or "").strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        return None
    return int(text or "")


def read_quota(headers: Mapping[str, str]) -> Quota | None:
    """Read ``x-ratelimit-*``; upstream's reset is in Unix milliseconds."""
    limit, remaining, reset = (
        _number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining", "reset")
    )
    if limit is None or remaining is None or reset is None:
        return None
    return Quota(limit, remaining, reset / 1000)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    seconds = _number(headers.get("retry-after"))
    return None if seconds is None else min(max(float(seconds), 0.0), MAX_RESET)
