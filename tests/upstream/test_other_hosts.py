"""The client for what is rare: key sets, and a gateway under a check."""

import asyncio
import ssl
from contextlib import aclosing

import pytest
from support.raw_upstream import Handler, http, server

from bff.errors import UpstreamError
from bff.upstream.connection import MAX_BODY_BYTES
from bff.upstream.other_hosts import Client, sockets


def client() -> Client:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return Client(sockets(context), connect_timeout=2)


async def fetch(answer: bytes | Handler) -> bytes | str:
    """Fetch what a server answers; returns the body, or the code of the error."""
    async with server(answer) as (url, heads), aclosing(client()) as asked:
        try:
            return await asked.fetch(url + "/keys", timeout=3)
        except UpstreamError as error:
            return error.code
        finally:
            assert len(heads) == 1
            assert b"authorization" not in heads[0].lower()


async def hang(*_: object) -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http("200 OK", b"{}"), b"{}"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}"),
        (http("500 Oops", b"{}"), "upstream_unavailable"),
        (http("404 Not Found", b"{}"), "upstream_invalid"),
        (http("302 Found", b"", b"location: http://127.0.0.1:1/"), "upstream_invalid"),
        (http("200 OK", b"\x1f\x8b", b"content-encoding: gzip"), "upstream_invalid"),
        (http("200 OK", b"x" * (MAX_BODY_BYTES + 1)), "upstream_invalid"),
        (http("200 OK", b"{", length=10), "upstream_invalid"),
        (b"nonsense\r\n\r\n", "upstream_invalid"),
        (hang, "upstream_timeout"),
    ],
    ids=range(10),
)
async def test_document_is_fetched_within_bounds(
    answer: bytes | Handler, expected: bytes | str
) -> None:
    assert await fetch(answer) == expected


async def test_unreachable_server_is_unavailable() -> None:
    async with aclosing(client()) as asked:
        with pytest.raises(UpstreamError, match="upstream_unavailable"):
            await asked.fetch("http://127.0.0.1:1/keys", timeout=2)


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(http("200 OK", b"{}")) == b"{}"
