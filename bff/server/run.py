"""Serves ASGI applications on sockets until a signal comes, several in one event loop."""

import asyncio
import os
import signal
import socket
import sys
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import uvicorn
import uvloop
from uvicorn.config import STARTUP_FAILURE

from bff.limits.client_address import Network, is_trusted
from bff.server.accept import Acceptor
from bff.server.supervisor import Worker
from bff.server.uvicorn_adapter import LOCAL_PEER, UvicornProtocol

SHUTDOWN_SECONDS: Final = 10.0
"""Seconds for requests in flight to finish; the default upstream timeout is shorter."""
END_SECONDS: Final = 3
"""Seconds after which a stop during the start ends the process, whatever it does."""
DRAIN_SECONDS: Final = 5.0
"""A connection without a request stays open for this part of the shutdown. A proxy may send a
request on it at any moment, and the answer tells the proxy that the connection ends."""
_TICK_SECONDS: Final = 0.05
"""Seconds between two checks whether connections have ended."""
ONE_ADDRESS: Final = (
    "the browser socket is a Unix socket, so all browsers have the proxy's address, 127.0.0.1: "
    "add it to BFF_TRUSTED_PROXIES, and let the proxy append to X-Forwarded-For"
)
"""The remedy if all browsers would count as one address."""
_FIRST_FD: Final = 3
"""The number of the first socket that systemd passes."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket to an address or a name. ``::`` takes IPv4 as well, if the system can.

    Raises:
        OSError: the system refuses.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, at = min(infos, key=lambda one: one[0] != socket.AF_INET)  # IPv4 if there is any
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server(at, family=family, backlog=2048, dualstack_ipv6=both)


def bound_silence(sock: socket.socket, seconds: float) -> None:
    """End each connection of *sock* whose other end acknowledges nothing for *seconds*.

    Otherwise a phone that lost its network would keep its streams for a quarter of an hour, and
    could not open others. Accepted connections inherit the option, which only Linux has.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1000))


def address(sock: socket.socket) -> str:
    """Return the address of a listening socket, as log lines show it."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_behind_unknown_proxy(sock: socket.socket, trusted: Sequence[Network]) -> bool:
    """Whether all browsers of *sock* would count as one address: a proxy's at a Unix socket."""
    return sock.family == socket.AF_UNIX and not is_trusted(LOCAL_PEER, trusted)


_NAMES: Final = (["browser"], ["ops"], ["browser", "ops"])


_Accept = Callable[..., Acceptor]


class InheritedError(Exception):
    """The sockets that systemd passed cannot be used; the text is the remedy."""


def inherited(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the sockets that systemd opened (sd_listen_fds(3)), by name.

    They stay open while the gateway restarts, so no connection is refused meanwhile.

    Raises:
        InheritedError: nobody would accept connections on one of them.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    try:
        fds = range(_FIRST_FD, _FIRST_FD + int(environ.get("LISTEN_FDS", "0")))
        if fds and (len(names) != len(fds) or sorted(names) not in _NAMES):
            raise InheritedError(
                "The sockets of systemd need the names browser and ops, each once: set "
                "FileDescriptorName= and one ListenStream= in each unit (deploy/systemd)"
            )
        return {name: socket.socket(fileno=fd) for name, fd in zip(names, fds, strict=False)}
    except (OSError, ValueError):
        raise InheritedError("LISTEN_FDS does not name open sockets (sd_listen_fds(3))") from None


class _Server(uvicorn.Server):
    """uvicorn's server with another way to accept connections and to end.

    Args:
        accept: makes the acceptor of a socket.
        drains: idle connections may be a proxy's, which would lose a request.
    """

    def __init__(self, config: uvicorn.Config, accept: _Accept, *, drains: bool) -> None:
        super().__init__(config)
        self._accept = accept
        self._drains = drains
        self._draining = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `run` has one handler for all servers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        connections = self.server_state.connections
        self._acceptors = [
            self._accept(sock, self._make_protocol, count=lambda: len(connections))
            for sock in sockets or ()
        ]
        self.servers = []
        self.started = True

    def _make_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        if self._draining and isinstance(protocol, UvicornProtocol):
            protocol.drain()
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Let connections end, then close the socket, so that nobody who waits is refused."""
        state, loop = self.server_state, asyncio.get_running_loop()
        began = loop.time()
        if self._drains:
            self._draining = True
            for connection in list(state.connections):
                if isinstance(connection, UvicornProtocol):
                    connection.drain()
            await self._wait(began + DRAIN_SECONDS, lambda: not state.connections)
        for acceptor in self._acceptors:
            acceptor.close()
        await asyncio.sleep(0)  # for the connections that this accepted
        for connection in list(state.connections):
            connection.shutdown()
        ended = await self._wait(
            began + SHUTDOWN_SECONDS, lambda: not (state.connections or state.tasks)
        )
        if not ended:
            for task in state.tasks:
                task.cancel(msg="the time for requests in flight is over")
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _wait(self, until: float, ended: Callable[[], bool]) -> bool:
        loop = asyncio.get_running_loop()
        while not ended() and not self.force_exit and loop.time() < until:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(_TICK_SECONDS)
        return ended()


def config(app: Any, *, lifespan: bool, protocol: Any = "httptools") -> uvicorn.Config:
    """Configure a server that takes nothing from the environment or from forwarding headers.

    Args:
        app: the ASGI application.
        lifespan: whether it has startup and shutdown.
        protocol: makes the protocol of each connection, with uvicorn's arguments.
    """
    return uvicorn.Config(
        app,
        workers=1,  # otherwise uvicorn reads WEB_CONCURRENCY, which may be a word
        http=protocol,
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run *main* in an event loop; returns also if it was stopped while it started."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, suppress(CancelledError):
        runner.run(main)


def end_the_start(*_: object) -> None:
    """End a process that does not serve yet; a handler of signals.

    Raises:
        SystemExit: unless Python drops it, as in a finalizer. Then an alarm ends the process.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(END_SECONDS)
    sys.exit()


async def start(work: Awaitable[None], *, on_stop: Callable[[], Awaitable[None]]) -> None:
    """Wait for *work*; on SIGTERM cancel it, call *on_stop*, and raise `CancelledError`.

    Until the loop runs, a handler may raise. Later the loop would drop the exception in a callback,
    and the process would go on.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  it is called in one
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await loop.getaddrinfo(None, 0)  # starts the threads that look up names
        await work
    finally:
        if task.cancelling():
            await on_stop()
    if task.cancelling():  # a client took it for its own timeout
        raise CancelledError


async def run(
    browsers: Sequence[tuple[uvicorn.Config, socket.socket]],
    ops: tuple[uvicorn.Config, socket.socket],
    *,
    worker: Worker | None,
    drains: bool = True,
    on_stop: Callable[[], None],
    on_short: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight, unless a second comes.

    The ops port answers until the last request of a browser is answered.

    Args:
        browsers: configuration and socket of each server for browsers, if any.
        ops: those of the ops port.
        worker: this process, if it shares the sockets with others.
        drains: idle connections of browsers stay open for `DRAIN_SECONDS`, for they may be a
            proxy's, which would lose a request.
        on_stop: called at the first signal.
        on_short: called when the system has no descriptor for a connection.
    """
    accept = partial(Acceptor, on_short=on_short)
    shared = partial(accept, worker=worker)
    servers = [(_Server(config, shared, drains=drains), sock) for config, sock in browsers]
    last = _Server(ops[0], partial(accept, worker=None), drains=False)
    signalled = [server for server, _ in servers] or [last]  # the demo's upstream has one port

    def stop() -> None:
        on_stop()
        for server in signalled:
            server.force_exit, server.should_exit = server.should_exit, True
        last.force_exit = any(server.force_exit for server in signalled)

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop)
    serving = asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in servers))
    watching = asyncio.ensure_future(last.serve(sockets=[ops[1]]))
    ending = (serving, watching) if servers else (watching,)
    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
    for server in (last, *(server for server, _ in servers)):
        server.should_exit = True
    await serving
    await watching
