"""An upstream of raw bytes on a real socket, and the gateway's API client in front of it."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.world import SECRET_KEY

from bff.clock import system_clock
from bff.errors import UpstreamError
from bff.upstream.api import Quota, Upstream
from bff.upstream.credentials import Credentials
from bff.upstream.pool import Pools

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@contextlib.asynccontextmanager
async def server(answer: bytes | Handler) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each head with *answer* and closes; yields address and heads."""
    heads: list[bytes] = []

    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            try:
                if callable(answer):
                    await answer(reader, writer)
                else:
                    writer.write(answer)
                    await writer.drain()
            finally:
                writer.close()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        host, port = listening.sockets[0].getsockname()
        yield f"http://{host}:{port}", heads
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def upstream(url: str, **changes: Any) -> AsyncIterator[tuple[Upstream, list[Quota]]]:
    quotas: list[Quota] = []
    signed: dict[str, Any] = {
        "url": url,
        "secret_keys": [SECRET_KEY],
        "branch": None,
        "user_agent": "bff/test",
    }
    arguments: dict[str, Any] = {
        "timeout": 0.3,
        "observe": quotas.append,
        "clock": system_clock,
    }
    credentials = Credentials(**(signed | {k: v for k, v in changes.items() if k in signed}))
    arguments |= {k: v for k, v in changes.items() if k not in signed}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no certificate
    async with aclosing(Pools(context=context, connect_timeout=0.2, clock=system_clock)) as pools:
        yield Upstream(pools, credentials=credentials, **arguments), quotas


async def get(asked: Upstream, path: str) -> bytes:
    """GET *path* and return the body of a 200 as it is."""
    return await asked.get(path, read=bytes, again=spent)


async def spent() -> None:
    """Allow a second call, with the next key."""


async def refusal(answer: bytes | Handler) -> tuple[UpstreamError, list[bytes]]:
    async with server(answer) as (url, heads), upstream(url) as (asked, _):
        with pytest.raises(UpstreamError) as raised:
            await get(asked, "/api/v1/sessions/a")
        return raised.value, heads


def http(status: str, body: bytes = b"", *lines: bytes, length: int | None = None) -> bytes:
    head = [b"HTTP/1.1 " + status.encode(), *lines]
    head.append(b"content-length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """Make a certificate for the loopback address; returns the server's context."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {name}.key -out {name}.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context
