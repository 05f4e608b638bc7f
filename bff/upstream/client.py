"""Sends requests on connections that all environments share: the only user of the HTTP client."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, Self
from urllib.parse import quote, urlsplit

import httpcore2
import httpx2

from bff.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable

_KEPT = "/?:@!$&'()*+,;=%[]"
"""Characters that a path or query holds unescaped (RFC 3986 §3.3, §3.4)."""
MAX_BODY_BYTES = 1024 * 1024
"""Bytes of an answer; upstream's documents have a few KiB, and a larger one would fill memory."""
_KEEP_ALIVE_SECONDS = 4.0
"""Seconds that an idle connection is kept: below the five after which common servers close it. A
request on a connection that is just being closed fails, and must not be sent again."""
_MAX_IDLE = 10
"""Idle connections that are kept. The client tests each of them at every request, and testing a
hundred costs more than the request."""
_HEADERS = ((b"accept", b"application/json"), (b"accept-encoding", b"identity"))
Headers = Iterable[tuple[bytes, bytes]]


class Transport(Protocol):
    """Sends requests; tests bring a transport of their own."""

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        """Send *request*; returns the head of the response."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, parsed once."""

    scheme: bytes
    host: bytes
    port: int | None
    target: bytes
    """Path and query; empty for none."""
    shown: bytes
    """The ``Host`` header."""

    @classmethod
    def read(cls, url: str) -> "Address":
        """Parse *url*, which the settings have checked."""
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
        transport: sends requests, if not on sockets.
    """

    def __init__(self, *, connect_timeout: float, transport: Transport | None = None) -> None:
        self._transport: Transport = transport or httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=100,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
        )
        # The other timeouts are part of the time that a whole answer may take.
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
        """Send one request; the whole answer may take *timeout* seconds.

        Raises:
            UpstreamError: `UpstreamTimeout`, `UpstreamUnavailable` or `UpstreamInvalid`.
        """
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with translated(timeout):
            return await self.send(method, Address.read(url), b"", lines)

    async def fetch(self, url: str, *, timeout: float) -> bytes:
        """GET a public document: the body of a 200.

        Raises:
            UpstreamError: `UpstreamUnavailable`, `UpstreamTimeout` or `UpstreamInvalid`.
        """
        answer = await self.ask("GET", url, {}, timeout=timeout)
        if answer.status != HTTPStatus.OK:
            raise (
                UpstreamUnavailable
                if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
                else UpstreamInvalid
            )
        return answer.body

    async def send(
        self, method: str, address: Address, path: bytes, headers: Headers, body: bytes = b""
    ) -> Answer:
        """Send one request for *path* below *address*; the caller bounds the time.

        Raises:
            Exception: those of httpcore2; see `translated`.
            UpstreamError: `UpstreamInvalid`.
        """
        lines = [(b"host", address.shown), *_HEADERS, *headers]
        if method == "POST":
            lines.append((b"content-length", b"%d" % len(body)))
        url = httpcore2.URL(
            scheme=address.scheme,
            host=address.host,
            port=address.port,
            target=address.target + path or b"/",
        )
        response = await self._transport.handle_async_request(
            httpcore2.Request(
                method, url, headers=lines, content=body or None, extensions=self._extensions
            )
        )
        try:
            fields = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            return Answer(response.status, fields, await _read(response.stream, fields))
        finally:
            await response.aclose()


@asynccontextmanager
async def translated(seconds: float) -> AsyncIterator[None]:
    """Turn errors of httpcore2 into `UpstreamError`, and time out after *seconds*."""
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
    """The operating system's report beneath an *error*; it repeats nothing of the request."""
    beneath = error.__context__
    while beneath is not None:
        match beneath:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not valid, {beneath.verify_message}"
            case ssl.SSLError():
                return "TLS with it fails"
            case socket.gaierror():
                return "no such host"
            case OSError(errno=int(number)):
                return os.strerror(number)
        beneath = beneath.__cause__ or beneath.__context__
    return None


async def _read(stream: Any, headers: Mapping[str, str]) -> bytes:
    if headers.get("content-encoding", "identity") != "identity":
        raise UpstreamInvalid  # the request refuses encodings, and a decoder may blow up memory
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamInvalid
    return bytes(body)
