"""Connections to upstream: timeouts, certificates, proxies."""

import asyncio
import contextlib
import ssl
import subprocess

import pytest
from support.raw_upstream import get, http, refusal, server, upstream

from bff.errors import UpstreamError


async def test_silent_upstream_times_out_at_every_stage() -> None:
    async def before_head(*_: object) -> None:
        await asyncio.sleep(2)

    async def before_body(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await asyncio.sleep(2)

    async def drops(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
        for _ in range(50):
            writer.write(b"x")
            await asyncio.sleep(0.05)

    for stage in (before_head, before_body, drops):
        started = asyncio.get_running_loop().time()
        raised, _ = await refusal(stage)
        assert raised.code == "upstream_timeout"
        assert asyncio.get_running_loop().time() - started < 1


async def test_refused_connection_is_unavailable() -> None:
    async with upstream("http://127.0.0.1:1") as (asked, _):
        with pytest.raises(UpstreamError, match="upstream_unavailable"):
            await get(asked, "/x")


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with server(http("200 OK", b"{}")) as (url, heads), upstream(url) as (asked, _):
        assert await get(asked, "/x") == b"{}"

    assert heads[0].startswith(b"GET /x HTTP/1.1")


async def test_certificates_are_verified(tmp_path) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key -out cert"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)  # noqa: ASYNC221
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    reached = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(100))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        async with upstream(f"https://127.0.0.1:{port}") as (asked, _):
            with pytest.raises(UpstreamError, match="upstream_unavailable"):
                await get(asked, "/x")

    assert reached == [], "the secret was never sent"
