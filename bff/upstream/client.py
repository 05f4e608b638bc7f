"""Sends requests on connections that all environments share: the only user of the HTTP client."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

import httpcore2
import httpx2

from bff.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable

_KEPT = "/?:@!$&'()*+,;=%[]"
"""What stands in a path or query as it is (RFC 3986 §3.3, §3.4)."""


MAX_BODY_BYTES = 1024 * 1024


_KEEP_ALIVE_SECONDS = 4.0
"""Below the five seconds after which common servers close an idle connection: one that is closed
just as a request is sent on it is an error that no retry may mend."""


_MAX_IDLE = 10
"""Connections kept without a request: the client probes each of them at every request, which for a
hundred costs more than the request."""


_HEADERS = ((b"accept", b"application/json"), (b"accept-encoding", b"identity"))


Headers = Iterable[tuple[bytes, bytes]]


class Transport(Protocol):
    """How requests leave; the real one is made here, tests bring their own."""

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Send *request*, and give the head of what comes back."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart once."""

    scheme: bytes
    host: bytes
    port: int | None
    target: bytes
    """Path and query; empty for none."""
    shown: bytes
    """The ``Host`` header."""

    @classmethod
    def read(cls, url: str) -> "Address":
        """Take *url* apart, which `settings` has checked."""
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        target = quote(parts.path + (f"?{parts.query}" if parts.query else ""), safe=_KEPT)
        shown = b"[%b]" % host if b":" in host else host
        if parts.port is not None:
            shown += b":%d" % parts.port
        return cls(parts.scheme.encode(), host, parts.port, target.encode(), shown)


class Client:
    """Sends requests, on connections that all environments share.

    Args:
        connect_timeout: seconds.
        transport: how requests leave, if not on sockets.
    """

    def __init__(self, *, connect_timeout: float, transport: Transport | None = None) -> None:
        self._transport: Transport = transport or httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=100,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
        )
        # All but this is within the seconds that an answer may take in all.
        self._extensions = {"timeout": {"connect": connect_timeout}}

    async def __aenter__(self) -> Self:
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
        timeout: float,
    ) -> Answer:
        """Ask once, within *timeout* seconds.

        Raises:
            UpstreamError: `UpstreamTimeout`, `UpstreamUnavailable` or `UpstreamInvalid`.
        """
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with _translated(timeout):
            return await self.send(method, Address.read(url), b"", lines)

    async def fetch(self, url: str, *, timeout: float) -> bytes:
        """GET a public document: the body of a 200.

        Raises:
            UpstreamError: `UpstreamUnavailable`, `UpstreamTimeout` or `UpstreamInvalid`.
        """
        answer = await self.ask("GET", url, {}, timeout=timeout)
        if answer.status != 200:  # noqa: PLR2004
            raise UpstreamUnavailable if answer.status >= 500 else UpstreamInvalid  # noqa: PLR2004
        return answer.body

    async def send(self, method: str, address: Address, path: bytes, headers: Headers) -> Answer:
        """Ask once, for as long as it takes, for *path* below *address*.

        Raises:
            Exception: httpcore2's; see `_translated`.
            UpstreamError: `UpstreamInvalid`.
        """
        lines = [(b"host", address.shown), *_HEADERS, *headers]
        if method == "POST":
            lines.append((b"content-length", b"0"))  # nothing here has a body
        url = httpcore2.URL(
            scheme=address.scheme,
            host=address.host,
            port=address.port,
            target=address.target + path or b"/",
        )
        response = await self._transport.handle_async_request(
            httpcore2.Request(method, url, headers=lines, extensions=self._extensions)
        )
        try:
            told = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
            return Answer(response.status, told, await _read(response.stream, told))
        finally:
            await response.aclose()


@asynccontextmanager
async def _translated(seconds: float) -> AsyncIterator[None]:
    """Turn the client's errors into ours, and end what takes longer than *seconds*."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TimeoutError, httpcore2.TimeoutException):
        raise UpstreamTimeout from None
    except httpcore2.RemoteProtocolError:
        raise UpstreamInvalid from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.UnsupportedProtocol):
        raise UpstreamUnavailable from None


def cause(error: UpstreamError) -> str | None:
    """What the system said beneath an *error*: of where was asked, never of what was sent."""
    beneath = error.__context__
    while beneath is not None:
        match beneath:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not good, {beneath.verify_message}"
            case ssl.SSLError():
                return "it does not speak TLS with us"
            case socket.gaierror():
                return "no such host"
            case OSError(errno=int(number)):
                return os.strerror(number)
        beneath = beneath.__cause__ or beneath.__context__
    return None


async def _read(stream: Any, headers: Mapping[str, str]) -> bytes:
    if headers.get("content-encoding", "identity") != "identity":
        raise UpstreamInvalid  # not asked for; and a bomb may hide in it
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamInvalid
    return bytes(body)
