"""Sends the rare requests that do not go to Trigger.dev's API, through httpx2's own client.

These requests go to the key sets of token issuers, and to a gateway that `bff check` tests. Such a
server may use any part of HTTP, so a library's client sends them; `bff.upstream.connection`
supports only what Trigger.dev's API uses.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import httpx2

from bff.clock import Clock
from bff.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from bff.upstream.connection import MAX_BODY_BYTES, Answer
from bff.upstream.pool import Pools, Transport, trusted

_HEADERS: Final = {"accept": "application/json", "accept-encoding": "identity"}


class Client:
    """Sends requests, each on a connection of its own.

    Args:
        transport: sends them; see `sockets`.
        connect_timeout: seconds.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, *, connect_timeout: float) -> None:
        # The client follows no redirect, and takes no proxy and no credential from environment
        # variables. Only connecting has its own timeout: `ask` bounds the whole answer.
        self._http = httpx2.AsyncClient(
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=connect_timeout),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], *, timeout: float
    ) -> Answer:
        """Send one request; the whole answer may take *timeout* seconds.

        Raises:
            UpstreamError: `UpstreamTimeout`, `UpstreamUnavailable` or `UpstreamInvalid`.
        """
        async with self._response(method, url, headers, timeout) as (response, _):
            fields = _fields(response)
            if fields.get("content-encoding", "identity") != "identity":
                raise UpstreamInvalid  # `_HEADERS` accepts none, and decoding could fill memory
            return Answer(response.status_code, fields, await _body(response))

    @asynccontextmanager
    async def follow(
        self, url: str, headers: Mapping[str, str], *, timeout: float
    ) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """GET a stream: its head, and its parts as they come.

        The head may take *timeout* seconds. The caller bounds what it reads of the parts. If the
        answer is not a 200, its whole body is in the head, and no part follows.

        Raises:
            UpstreamError: as `ask`; from a part too.
        """
        async with self._response("GET", url, headers, timeout) as (response, limit):
            opened = response.status_code == HTTPStatus.OK
            body = b"" if opened else await _body(response)
            limit.reschedule(None)
            yield Answer(response.status_code, _fields(response), body), response.aiter_raw()

    @asynccontextmanager
    async def _response(
        self, method: str, url: str, headers: Mapping[str, str], timeout: float
    ) -> AsyncIterator[tuple[httpx2.Response, asyncio.Timeout]]:
        try:
            async with (
                asyncio.timeout(timeout) as limit,
                self._http.stream(method, url, headers={**_HEADERS, **headers}) as response,
            ):
                yield response, limit
        except (TimeoutError, httpx2.TimeoutException):
            raise UpstreamTimeout from None
        except httpx2.RemoteProtocolError:
            raise UpstreamInvalid from None
        except (httpx2.TransportError, httpx2.InvalidURL):
            raise UpstreamUnavailable from None

    async def fetch(self, url: str, *, timeout: float) -> bytes:
        """GET a public document: the body of a 200.

        Raises:
            UpstreamError: `UpstreamUnavailable`, `UpstreamTimeout` or `UpstreamInvalid`.
        """
        answer = await self.ask("GET", url, {}, timeout=timeout)
        if answer.status == HTTPStatus.OK:
            return answer.body
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UpstreamUnavailable
        raise UpstreamInvalid


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise UpstreamInvalid
    return bytes(body)


def _fields(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def sockets(context: ssl.SSLContext) -> httpx2.AsyncBaseTransport:
    """Make the transport of a `Client`; *context* verifies the certificates of https."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)


@dataclass(frozen=True, slots=True)
class Network:
    """How a gateway reaches other servers."""

    api: Transport
    others: Client

    @classmethod
    def open(cls, *, ca_file: str | None, connect_timeout: float, clock: Clock) -> "Network":
        """Reach them on sockets; no connection is opened yet."""
        context = trusted(ca_file)
        return cls(
            Pools(context=context, connect_timeout=connect_timeout, clock=clock),
            Client(sockets(context), connect_timeout=connect_timeout),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self.api.aclose()
        await self.others.aclose()
