"""Serves ASGI applications on sockets until a signal comes, several in one event loop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import uvicorn

from bff.telemetry import ServerLog, Telemetry

SHUTDOWN_SECONDS: Final = 10
"""For requests in flight to finish; by default a load may take less."""
_FIRST_FD: Final = 3
"""The number of the first socket that systemd passes."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket.

    Raises:
        OSError: the system refuses.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def inherited(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the sockets that systemd opened (sd_listen_fds(3)), by name.

    They stay open while the gateway restarts, so no connection is refused meanwhile.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    fds = range(_FIRST_FD, _FIRST_FD + int(environ.get("LISTEN_FDS", "0")))
    return {name: socket.socket(fileno=fd) for name, fd in zip(names, fds, strict=False)}


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `run` has one handler for all servers


def config(app: Any, *, lifespan: bool, protocol: Any = "httptools") -> uvicorn.Config:
    """Configure a server that takes nothing from the environment or from forwarding headers.

    Args:
        app: the ASGI application.
        lifespan: whether it has startup and shutdown.
        protocol: makes the protocol of each connection, with uvicorn's arguments.
    """
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


async def run(
    servers: Sequence[tuple[uvicorn.Config, socket.socket]], telemetry: Telemetry
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight, unless a second comes."""
    log = logging.getLogger("uvicorn")
    log.handlers, log.propagate = [ServerLog(telemetry)], False
    log.setLevel(logging.WARNING)
    running = [(_Server(config), sock) for config, sock in servers]

    def stop() -> None:
        for server, _ in running:
            server.force_exit = server.should_exit
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop)
    await asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in running))
