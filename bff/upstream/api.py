"""Asks upstream, and turns its troubles into ours. The only user of the HTTP client.

The secret key lives here. It goes to one host, on requests that are built from nothing of the
browser's but the session's id. They are given to httpcore2, which httpx2 is made of, below all
that a client does by itself: nothing here follows a redirect, keeps a cookie, resolves dots in a
path, or takes credentials or a proxy from the environment. A load costs a quarter less, too.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

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
from bff.upstream.client import Address, Answer, Client, _translated

MAX_RETRY_AFTER = 60.0


CLAIMS_PATH = "/api/v1/auth/jwt/claims"


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer says of the bucket upstream."""

    limit: int
    remaining: int
    reset: float
    """Unix seconds."""


class Upstream:
    """One environment's API.

    Args:
        url: base URL, without a slash at its end.
        secret_keys: the first is sent as the bearer token; when upstream rejects it, the next is
            from then on, and once for the request at hand.
        branch: sent as ``x-trigger-branch``; preview and named dev branches need it.
        timeout: seconds for a whole answer, connecting and retrying included.
        observe: told of the bucket with each answer that describes it.
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
    ) -> None:
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
        """The headers of a request, for each key."""

    async def get(self, path: str, again: Callable[[], Awaitable[None]]) -> bytes:
        """GET *path*: the body of a 200.

        Args:
            path: below the API's address.
            again: awaited before a second call, which a load makes when its key was rejected just
                now and there is a next one. It spends that call, or raises.

        Raises:
            UpstreamError: `SessionNotFound`; `UpstreamRateLimited` for upstream's own 429, with
                ``retry_after``; or another of upstream's troubles.
            Exception: whatever *again* raises.
        """
        async with _translated(self._timeout):
            used = self._current
            answer = await self._send(path)
            if answer.status == _REJECTED and len(self._signed) > 1:
                if self._current == used:  # or another load has moved on already
                    self._current = (used + 1) % len(self._signed)
                # While all keys are rejected, each load costs one call and no more.
                if self._accepted:
                    await again()
                    answer = await self._send(path)
            self._accepted = answer.status != _REJECTED
            return _body(answer)

    async def get_as(self, token: bytes, path: str, wall: float) -> bytes:
        """GET *path* with a browser's *token* in place of the secret key: the body of a 200.

        Of the bucket that the answer describes nothing is told: it is the token's own.

        Raises:
            UpstreamError: as `get`; `TokenRejected` and `TokenForbidden` are the token's, and so is
                `UpstreamRateLimited`, until the reset that upstream tells (it is *wall* now).
        """
        headers = (self._agent, (b"authorization", b"Bearer " + token))
        async with _translated(self._timeout):
            answer = await self._client.send("GET", self._address, path.encode(), headers)
        if answer.status in (_REJECTED, 403):
            raise TokenRejected if answer.status == _REJECTED else TokenForbidden
        quota = read_quota(answer.headers)
        if answer.status == 429 and quota is not None:  # noqa: PLR2004
            rest = min(max(quota.reset - wall, 0.0), MAX_RETRY_AFTER)
            raise UpstreamRateLimited(retry_after=max(rest, _retry_after(answer.headers) or 0.0))
        return _body(answer)

    async def environment_id(self) -> str:
        """Ask which environment the secret key is of; a restricted key may not know.

        Raises:
            UpstreamError: as `get`.
        """
        answer = await self.probe("POST", CLAIMS_PATH)
        try:
            claims = json.loads(_body(answer))
        except (ValueError, RecursionError):
            claims = None
        subject = claims.get("sub") if isinstance(claims, dict) else None
        if not isinstance(subject, str) or not subject:
            raise UpstreamInvalid
        return subject

    async def probe(self, method: str, path: str) -> Answer:
        """Ask what the operator wants to know (`bff check`), whatever the status of the answer.

        Raises:
            UpstreamError: as `ask` does.
        """
        async with _translated(self._timeout):
            return await self._client.send(
                method, self._address, path.encode(), self._signed[self._current]
            )

    async def _send(self, path: str) -> Answer:
        try:
            return await self._send_once(path)
        except httpcore2.ConnectError:
            # Nothing was sent, so nothing can happen twice.
            return await self._send_once(path)

    async def _send_once(self, path: str) -> Answer:
        headers = self._signed[self._current]
        answer = await self._client.send("GET", self._address, path.encode(), headers)
        quota = read_quota(answer.headers)
        if quota is not None:
            self._observe(quota)
        return answer


_REJECTED = 401


def _body(response: Answer) -> bytes:
    status = response.status
    if status == 200:  # noqa: PLR2004
        return response.body
    if status == 404 and _is_their_error(response.body):  # noqa: PLR2004
        # Not any 404: a wrong address answers so too, and the SDK starts a paid run on it.
        raise SessionNotFound
    if status in (_REJECTED, 403):
        raise CredentialsRejected
    if status == 429:  # noqa: PLR2004
        raise UpstreamRateLimited(retry_after=_retry_after(response.headers))
    if status >= 500:  # noqa: PLR2004
        raise UpstreamUnavailable
    raise UpstreamInvalid


def _is_their_error(body: bytes) -> bool:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("error"), str)


def _number(text: str | None) -> int | None:
    # No more than 15 digits: beyond that it is no count and no date, whatever it is.
    digits = (text or "").strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):  # noqa: PLR2004
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
    return None if seconds is None else min(max(float(seconds), 0.0), MAX_RETRY_AFTER)
