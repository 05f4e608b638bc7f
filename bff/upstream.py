"""Asks upstream, and turns its troubles into ours. The only user of the HTTP client.

The secret key lives here. It goes to one host, on requests that are built from nothing of the
browser's but the session's id: no redirect is followed, no proxy of the environment used, no
certificate left unchecked, no cookie kept, no header passed on.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy

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


@dataclass(frozen=True, slots=True)
class Quota:
    """What an answer says of the bucket upstream."""

    limit: int
    remaining: int
    reset: float
    """Unix seconds."""


def client(
    *, connect_timeout: float, timeout: float, transport: Transport | None = None
) -> httpx2.AsyncClient:
    """Open the one client that all environments share."""
    limits = httpx2.Limits(
        max_connections=100,
        max_keepalive_connections=_MAX_IDLE,
        keepalive_expiry=_KEEP_ALIVE_SECONDS,
    )
    http = httpx2.AsyncClient(
        transport=transport or httpx2.AsyncHTTPTransport(limits=limits, trust_env=False),
        timeout=httpx2.Timeout(timeout, connect=connect_timeout),
        follow_redirects=False,
        trust_env=False,
        headers={"accept": "application/json", "accept-encoding": "identity"},
    )
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return http


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(
    http: httpx2.AsyncClient,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    timeout: float,  # noqa: ASYNC109  the whole answer's, reading included
) -> Answer:
    """Ask once, within *timeout* seconds; no redirect is followed.

    Raises:
        Refusal: ``upstream_timeout``, ``upstream_unavailable`` or ``upstream_invalid``.
    """
    async with _translated(timeout), http.stream(method, url, headers=headers) as response:
        return Answer(response.status_code, response.headers, await _read(response))


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[None]:
    """Turn the client's errors into ours, and end what takes longer than *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TimeoutError, httpx2.TimeoutException):
        raise Refusal("upstream_timeout") from None
    except (httpx2.RemoteProtocolError, httpx2.DecodingError):
        raise Refusal("upstream_invalid") from None
    except httpx2.HTTPError:
        raise Refusal("upstream_unavailable") from None


class Upstream:
    """One environment's API.

    Args:
        http: from `client`.
        url: base URL, without a slash at its end.
        secret_keys: the first is sent as the bearer token; when upstream rejects it, the next is
            from then on, and once for the request at hand.
        branch: sent as ``x-trigger-branch``; preview and named dev branches need it.
        timeout: seconds for a whole answer, connecting and retrying included.
        observe: told of the bucket with each answer that describes it.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        url: str,
        secret_keys: Sequence[str],
        branch: str | None,
        timeout: float,
        user_agent: str,
        observe: Callable[[Quota], None],
    ) -> None:
        self._http = http
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
        answer = await ask(self._http, "GET", self._url + path, headers, timeout=self._timeout)
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
        return await ask(self._http, method, url, headers, timeout=self._timeout)

    async def _send(self, path: str) -> Answer:
        try:
            return await self._send_once(path)
        except httpx2.ConnectError:
            # Nothing was sent, so nothing can happen twice.
            return await self._send_once(path)

    async def _send_once(self, path: str) -> Answer:
        headers = self._signed()
        async with self._http.stream("GET", self._url + path, headers=headers) as response:
            quota = read_quota(response.headers)
            if quota is not None:
                self._observe(quota)
            return Answer(response.status_code, response.headers, await _read(response))

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


async def fetch(http: httpx2.AsyncClient, url: str, seconds: float) -> bytes:
    """GET a public document, by the rules of everything that leaves here: the body of a 200.

    *seconds* are for the whole answer.

    Raises:
        Refusal: ``upstream_unavailable``, ``upstream_timeout`` or ``upstream_invalid``.
    """
    answer = await ask(http, "GET", url, {}, timeout=seconds)
    if answer.status != 200:  # noqa: PLR2004
        raise Refusal("upstream_unavailable" if answer.status >= 500 else "upstream_invalid")  # noqa: PLR2004
    return answer.body


async def _read(response: httpx2.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Refusal("upstream_invalid")  # not asked for; and a bomb may hide in it
    body = bytearray()
    async for chunk in response.aiter_raw():
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
