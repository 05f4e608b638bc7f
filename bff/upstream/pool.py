"""Keeps connections to the origins that the settings name, and sends requests on them.

A `Pool` has the connections to one origin. A request takes the connection that was used last, so
unneeded connections become idle and end. The cost of a request does not depend on the number of
connections and waiting requests. At `MAX_CONNECTIONS` a request waits for its turn. A connection
ends at a maximum age, so the pool soon follows a changed DNS answer, however steady the load.
"""

import asyncio
import os
import socket
import ssl
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import httpx2
from aiohappyeyeballs import start_connection

from bff.clock import Clock
from bff.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from bff.upstream.connection import Answer, Connection, Request, Stream

MAX_CONNECTIONS: Final = 100
"""Connections to one origin, streams apart."""
MAX_WAITING: Final = 2000
"""Requests to one origin that wait for a connection; each is also bounded by its own timeout."""
IDLE_SECONDS: Final = 4.0
"""Seconds that an idle connection is kept. Common servers close it after five. A request on a
connection that is just being closed fails, and only a GET is sent again."""
MAX_AGE_SECONDS: Final = 45.0
"""Seconds of a connection's life. With one last answer it is under a minute, in which the pool
follows a changed address. Lives differ by up to a quarter, so that connections which were opened
together do not end together."""
_GOLDEN: Final = 0.618
"""The fractional parts of its multiples spread evenly between 0 and 1, and so do the lives."""
_FAMILY_DELAY: Final = 0.25
"""Seconds until the next address is tried as well (RFC 8305 §8)."""
_SWEEP_SECONDS: Final = 1.0
_KEPT: Final = "/?:@!$&'()*+,;=%[]"
"""Characters that a path or query holds unescaped (RFC 3986 §3.3, §3.4)."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, parsed once."""

    secure: bool
    host: str
    port: int
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
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        return cls(secure, host.decode(), port, target.encode(), shown)


def trusted(ca_file: str | None) -> ssl.SSLContext:
    """Make the context that verifies certificates, by the authorities that httpx2 trusts.

    These are the system's, or those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``; and those of
    *ca_file*. Raises OSError if a file cannot be used.
    """
    context = httpx2.create_ssl_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


class Transport(Protocol):
    """Sends requests to any origin; tests bring a transport of their own."""

    def send(self, address: Address, request: Request) -> Coroutine[Any, Any, Answer]:
        """Send *request*; returns the whole answer."""

    async def stream(self, address: Address, request: Request) -> Stream:
        """Send *request* on a connection of its own; returns the head of the answer."""

    async def aclose(self) -> None:
        """Close the connections."""


class Pools:
    """Sends requests to any origin, through a pool for each.

    Args:
        context: verifies the certificates of https.
        connect_timeout: seconds for the name, the connection and TLS together.
        clock: reads the two clocks.
    """

    def __init__(self, *, context: ssl.SSLContext, connect_timeout: float, clock: Clock) -> None:
        context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._pools: dict[tuple[bool, str, int], Pool] = {}

    def pool(self, address: Address) -> "Pool":
        """Return the pool of an origin."""
        key = (address.secure, address.host, address.port)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                address.host,
                address.port,
                context=self._context if address.secure else None,
                connect_timeout=self._connect_timeout,
                clock=self._clock,
            )
        return pool

    def send(self, address: Address, request: Request) -> Coroutine[Any, Any, Answer]:
        """Send *request*; see `Pool.send`."""
        return self.pool(address).send(request)

    async def stream(self, address: Address, request: Request) -> Stream:
        """Send *request* on a connection of its own; see `Pool.stream`."""
        return await self.pool(address).stream(request)

    async def aclose(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            pool.close()


class Pool:
    """The connections to one origin.

    Args:
        context: verifies its certificate; None for plain http.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        context: ssl.SSLContext | None,
        connect_timeout: float,
        clock: Clock,
    ) -> None:
        self._host = host
        self._port = port
        self._context = context
        self._connect_timeout = connect_timeout
        self._clock = clock
        self._numbers = count()
        self._addresses = _literal(host, port)
        self._used = 0
        """Connections that are open or being opened: at most `MAX_CONNECTIONS`."""
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        """When each idle connection was last used; the last one is the newest."""
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, request: Request) -> Answer:
        """Send *request* and return the whole answer; the caller bounds the time.

        A GET that got no byte back on a kept connection is sent once more, on a new connection.
        Upstream closed the kept one before it read the request.

        Raises:
            UpstreamError: `UpstreamUnavailable`, `UpstreamTimeout` (of the connect) or
                `UpstreamInvalid`.
        """
        data = request.encoded()
        connection = await self._take()
        try:
            if connection is not None:
                try:
                    return await connection.send(data)  # type: ignore[return-value]
                except UpstreamError:
                    if not connection.silent or request.method != b"GET":
                        raise
            connection = await self._open()
            return await connection.send(data)  # type: ignore[return-value]
        except asyncio.CancelledError:
            if connection is not None:
                connection.abort()  # its answer would be taken for that of the next request
            raise
        finally:
            self._give_back(connection)

    async def stream(self, request: Request) -> Stream:
        """Send *request* on a connection of its own and return when the head has arrived.

        The caller bounds the time, and calls `Stream.abort` unless it reads the body to its end.

        Raises:
            UpstreamError: as `send`; its `sent` tells whether the request has left.
        """
        connection = await self._open()
        try:
            return await connection.stream(request.encoded())  # type: ignore[return-value]
        except BaseException as exc:
            connection.abort()
            if isinstance(exc, UpstreamError):
                exc.sent = True
            raise

    def close(self) -> None:
        """Close the idle connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._idle:
            self._drop(next(iter(self._idle)))

    # -- the connections

    async def _take(self) -> Connection | None:
        """Take an idle connection; None for the right to open one."""
        while self._idle:
            connection, since = self._idle.popitem()
            now, _ = self._clock()
            if connection.usable and now < connection.ends_at and now - since < IDLE_SECONDS:
                return connection
            self._used -= 1
            connection.abort()
        if self._used < MAX_CONNECTIONS:
            self._used += 1
            return None
        if len(self._waiting) >= MAX_WAITING:
            raise UpstreamUnavailable
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            return await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():  # it got its turn at that very moment
                self._give_back(turn.result())
            raise

    def _give_back(self, connection: Connection | None) -> None:
        """Let the next request have the connection, or the right to open one."""
        now, _ = self._clock()
        if connection is not None and not (connection.usable and now < connection.ends_at):
            connection.abort()
            connection = None
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._used -= 1
            return
        self._idle[connection] = now
        if self._sweeper is None:
            self._sweep()

    def _sweep(self) -> None:
        """End the connections that are idle for too long; again in a second if any are left."""
        now, _ = self._clock()
        while self._idle:
            connection = next(iter(self._idle))
            if now - self._idle[connection] < IDLE_SECONDS:
                loop = asyncio.get_running_loop()
                self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
                return
            self._drop(connection)
        self._sweeper = None

    def _drop(self, connection: Connection) -> None:
        """Stop counting an idle connection, and end it."""
        if self._idle.pop(connection, None) is not None:
            self._used -= 1
            connection.abort()

    async def _open(self) -> Connection:
        """Connect. A failure is tried once more, for no byte of a request was sent."""
        try:
            return await self._connect()
        except UpstreamUnavailable:
            return await self._connect()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        now, _ = self._clock()
        life = MAX_AGE_SECONDS * (1 - (next(self._numbers) * _GOLDEN) % 1 / 4)
        connection = Connection(ends_at=now + life, on_end=self._drop)
        try:
            async with asyncio.timeout(self._connect_timeout):
                addresses = self._addresses or await loop.getaddrinfo(
                    self._host, self._port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
                connected = await start_connection(addresses, happy_eyeballs_delay=_FAMILY_DELAY)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.create_connection(
                    lambda: connection,
                    sock=connected,
                    ssl=self._context,
                    server_hostname=self._host if self._context else None,
                )
        except TimeoutError:
            raise UpstreamTimeout from None
        except (OSError, RuntimeError):  # uvloop can raise the latter when a connect fails
            raise UpstreamUnavailable from None
        return connection


def _literal(host: str, port: int) -> list[Any]:
    """Return what a lookup of *host* returns if it is an IP address; else nothing."""
    try:
        address = ip_address(host)
    except ValueError:
        return []
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
    rest = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", rest)]


def is_untrusted(error: UpstreamError) -> bool:
    """Tell whether an *error* comes from a certificate that is not valid."""
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in _beneath(error))


def cause(error: UpstreamError) -> str | None:
    """Return what TLS or the operating system reported, if that caused *error*.

    The text repeats nothing of the request. None if neither of them caused the error.
    """
    for beneath in _beneath(error):
        match beneath:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not valid, {beneath.verify_message}"
            case ssl.SSLError():
                return "TLS with it fails"
            case socket.gaierror():
                return "no such host"
            case OSError(errno=int(number)):
                return os.strerror(number)
    return None


def _beneath(error: UpstreamError) -> Iterator[BaseException]:
    beneath = error.__context__
    while beneath is not None:
        yield beneath
        beneath = beneath.__cause__ or beneath.__context__
