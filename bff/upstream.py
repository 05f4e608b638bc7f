"""Asks upstream, and turns its troubles into ours. The only user of the HTTP client.

The secret key lives here. It goes to one host, on requests that are built from nothing of the
browser's but the session's id. They are given to the client's transport, below all that a client
does by itself: nothing here follows a redirect, keeps a cookie, or takes credentials or a proxy
from the environment. That is faster, too.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx2

from bff.errors import Refusal

Transport = httpx2.AsyncBaseTransport
"""How requests leave; the real one is made here, tests bring their own."""

MAX_BODY_BYTES = 1024 * 1024
MAX_RETRY_AFTER = 60.0
CLAIMS_PATH = "/api/v1/auth/jwt/claims"
_KEEP_ALIVE_SECONDS = 4.0
"""Below the five seconds after which common servers close an idle connection: one that is closed
just as a request is sent on it is an error that no retry may mend."""
_MAX_IDLE = 10
"""Connections kept without a request: the client probes each of them at every request, which for a
hundred costs more than the request."""
_HEADERS = {"accept": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer says of the bucket upstream."""

    limit: int
    remaining: int
    reset: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Sends one request at a time of each caller's, on connections that all environments share.

    Args:
        connect_timeout: seconds.
        transport: how requests leave, if not on sockets.
    """

    def __init__(self, *, connect_timeout: float, transport: Transport | None = None) -> None:
        limits = httpx2.Limits(
            max_connections=100,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
        )
        self._transport = transport or httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)
        # All but this is within the seconds that an answer may take in all.
        self._extensions = {"timeout": {"connect": connect_timeout}}

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        timeout: float,  # noqa: ASYNC109  the whole answer's, reading included
    ) -> Answer:
        """Ask once, within *timeout* seconds.

        Raises:
            Refusal: ``upstream_timeout``, ``upstream_unavailable`` or ``upstream_invalid``.
        """
        async with _translated(timeout):
            return await self.send(method, url, headers)

    async def fetch(self, url: str, *, timeout: float) -> bytes:  # noqa: ASYNC109  likewise
        """GET a public document: the body of a 200.

        Raises:
            Refusal: ``upstream_unavailable``, ``upstream_timeout`` or ``upstream_invalid``.
        """
        answer = await self.ask("GET", url, {}, timeout=timeout)
        if answer.status != 200:  # noqa: PLR2004
            raise Refusal("upstream_unavailable" if answer.status >= 500 else "upstream_invalid")  # noqa: PLR2004
        return answer.body

    async def send(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """Ask once, for as long as it takes.

        Raises:
            httpx2.HTTPError: see `_translated`.
            Refusal: ``upstream_invalid``.
        """
        request = httpx2.Request(
            method, url, headers={**_HEADERS, **headers}, extensions=self._extensions
        )
        response = await self._transport.handle_async_request(request)
        try:
            # Once, to a plain map: each look into the client's own costs as much.
            told = {
                k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers.raw
            }
            return Answer(response.status_code, told, await _read(response.stream, told))
        finally:
            await response.aclose()


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[None]:
    """Turn the client's errors into ours, and end what takes longer than *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TimeoutError, httpx2.TimeoutException):
        raise Refusal("upstream_timeout") from None
    except httpx2.RemoteProtocolError:
        raise Refusal("upstream_invalid") from None
    except httpx2.HTTPError:
        raise Refusal("upstream_unavailable") from None


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
        self._url = url
        self._timeout = timeout
        self._observe = observe
        self._credentials = [f"Bearer {key}" for key in secret_keys]
        self._current = 0
        self._accepted = True
        self._headers = {"user-agent": user_agent}
        if branch is not None:
            self._headers["x-trigger-branch"] = branch

    async def get(self, path: str) -> bytes:
        """GET *path*: the body of a 200.

        Raises:
            Refusal: ``not_found``, or one of upstream's (`errors.REFUSALS`); ``over_budget`` for
                upstream's own 429, with ``retry_after``.
        """
        async with _translated(self._timeout):
            used = self._current
            answer = await self._send(path)
            if answer.status == _REJECTED and len(self._credentials) > 1:
                if self._current == used:  # or another load has moved on already
                    self._current = (used + 1) % len(self._credentials)
                # While all keys are rejected, each load costs one call and no more.
                if self._accepted:
                    answer = await self._send(path)
            self._accepted = answer.status != _REJECTED
            return _body(answer)

    async def get_as(self, token: bytes, path: str) -> bytes:
        """GET *path* with a browser's *token* in place of the secret key: the body of a 200.

        Of the bucket that the answer describes nothing is told: it is the token's own.

        Raises:
            Refusal: as `get`; ``token_invalid`` and ``unauthorized`` are the token's.
        """
        bearer = f"Bearer {token.decode('ascii')}"
        headers = {"authorization": bearer, "user-agent": self._headers["user-agent"]}
        answer = await self._client.ask("GET", self._url + path, headers, timeout=self._timeout)
        if answer.status in (_REJECTED, 403):
            raise Refusal("token_invalid" if answer.status == _REJECTED else "unauthorized")
        return _body(answer)

    async def environment_id(self) -> str:
        """Ask which environment the secret key is of; a restricted key may not know.

        Raises:
            Refusal: as `get`.
        """
        answer = await self.probe("POST", CLAIMS_PATH)
        try:
            claims = json.loads(_body(answer))
        except (ValueError, RecursionError):
            claims = None
        subject = claims.get("sub") if isinstance(claims, dict) else None
        if not isinstance(subject, str) or not subject:
            raise Refusal("upstream_invalid")
        return subject

    async def probe(self, method: str, path: str) -> Answer:
        """Ask what the operator wants to know (`bff check`), whatever the status of the answer.

        Raises:
            Refusal: as `ask` does.
        """
        url, headers = self._url + path, self._signed()
        return await self._client.ask(method, url, headers, timeout=self._timeout)

    async def _send(self, path: str) -> Answer:
        try:
            return await self._send_once(path)
        except httpx2.ConnectError:
            # Nothing was sent, so nothing can happen twice.
            return await self._send_once(path)

    async def _send_once(self, path: str) -> Answer:
        answer = await self._client.send("GET", self._url + path, self._signed())
        quota = read_quota(answer.headers)
        if quota is not None:
            self._observe(quota)
        return answer

    def _signed(self) -> dict[str, str]:
        return self._headers | {"authorization": self._credentials[self._current]}


_REJECTED = 401


def _body(response: Answer) -> bytes:
    status = response.status
    if status == 200:  # noqa: PLR2004
        return response.body
    if status == 404 and _is_their_error(response.body):  # noqa: PLR2004
        # Not any 404: a wrong address answers so too, and the SDK starts a paid run on it.
        raise Refusal("not_found")
    if status in (_REJECTED, 403):
        raise Refusal("upstream_rejected_credentials")
    if status == 429:  # noqa: PLR2004
        raise Refusal("over_budget", retry_after=_retry_after(response.headers))
    if status >= 500:  # noqa: PLR2004
        raise Refusal("upstream_unavailable")
    raise Refusal("upstream_invalid")


async def _read(stream: Any, headers: Mapping[str, str]) -> bytes:
    if headers.get("content-encoding", "identity") != "identity":
        raise Refusal("upstream_invalid")  # not asked for; and a bomb may hide in it
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refusal("upstream_invalid")
    return bytes(body)


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
