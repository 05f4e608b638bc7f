"""One client, one secret, and upstream's troubles told as ours; over real sockets."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable

import httpcore2
import pytest
from support.world import SECRET_KEY

from bff.errors import UpstreamError
from bff.upstream.api import Quota, Upstream
from bff.upstream.client import Client

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


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
async def upstream(url: str, **changes: object) -> AsyncIterator[tuple[Upstream, list[Quota]]]:
    quotas: list[Quota] = []
    arguments = {
        "url": url,
        "secret_keys": [SECRET_KEY],
        "branch": None,
        "timeout": 0.3,
        "user_agent": "bff/test",
        "observe": quotas.append,
    }
    async with Client(connect_timeout=0.2) as client:
        yield Upstream(client, **(arguments | changes)), quotas


async def spent() -> None:
    """What a second call, with the next key, asks for: it may be made."""


async def refusal(answer: bytes | Handler) -> tuple[UpstreamError, list[bytes]]:
    async with server(answer) as (url, heads), upstream(url) as (asked, _):
        with pytest.raises(UpstreamError) as raised:
            await asked.get("/api/v1/sessions/a", spent)
        return raised.value, heads


def http(status: str, body: bytes = b"", *lines: bytes, length: int | None = None) -> bytes:
    head = [b"HTTP/1.1 " + status.encode(), *lines]
    head.append(b"content-length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def test_a_body_comes_back_and_the_bucket_is_told() -> None:
    answer = http(
        "200 OK",
        b"{}",
        b"x-ratelimit-limit: 750",
        b"x-ratelimit-remaining: 749",
        b"x-ratelimit-reset: 1795462431273",
        b"set-cookie: a=b",
    )
    async with server(answer) as (url, heads), upstream(url, branch="feat/x") as (asked, quotas):
        assert await asked.get("/api/v1/sessions/a%2Fb", spent) == b"{}"
        assert await asked.get("/api/v1/sessions/a%2Fb", spent) == b"{}"

    assert quotas == [Quota(750, 749, 1795462431.273)] * 2
    lines = heads[1].split(b"\r\n")
    assert lines[0] == b"GET /api/v1/sessions/a%2Fb HTTP/1.1"
    assert b"authorization: Bearer " + SECRET_KEY.encode() in [
        line.replace(b"Auth", b"auth") for line in lines
    ]
    assert b"x-trigger-branch: feat/x" in lines
    assert not [line for line in lines if line.lower().startswith(b"cookie")]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http("301 Moved", b"", b"location: http://127.0.0.1:1/"), "upstream_invalid"),
        (http("200 OK", b"{", length=10), "upstream_invalid"),
        (http("200 OK", b"\x1f\x8b", b"content-encoding: gzip"), "upstream_invalid"),
        (http("200 OK", b"x" * (1024 * 1024 + 1)), "upstream_invalid"),
        (b"not http at all\r\n\r\n", "upstream_invalid"),
        (b"", "upstream_invalid"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "upstream_invalid"),
        (http("404 Not Found", b'{"error":"Not found"}'), "not_found"),
        (http("404 Not Found", b"<html>no such page</html>"), "upstream_invalid"),
        (http("418 Teapot", b"{}"), "upstream_invalid"),
        (http("401 Unauthorized", b"{}"), "upstream_rejected_credentials"),
        (http("500 Oops", b"{}"), "upstream_unavailable"),
        (http("429 Slow down", b"{}"), "over_budget"),
    ],
    ids=range(13),
)
async def test_what_upstream_says_in_our_words(answer: bytes, code: str) -> None:
    raised, heads = await refusal(answer)

    assert raised.code == code
    assert len(heads) == 1, "asked once"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"7", 7), (b"0", 0), (b"100000", 60), (b"soon", None), (b"-3", 0), (b"9" * 40, None)],
)
async def test_a_retry_after_is_believed_within_bounds(
    value: bytes, expected: float | None
) -> None:
    raised, _ = await refusal(http("429 Slow", b"{}", b"retry-after: " + value))

    assert raised.retry_after == expected


async def test_silence_ends_in_time_at_every_stage() -> None:
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


async def test_a_connection_error_is_tried_once_more_and_only_that() -> None:
    attempts = []

    class Refusing:
        async def aclose(self) -> None:
            pass

        async def handle_async_request(self, request):
            attempts.append(request)
            raise httpcore2.ConnectError("refused") if len(attempts) < 9 else AssertionError

    async with Client(connect_timeout=1, transport=Refusing()) as client:  # type: ignore[arg-type]
        asked = Upstream(
            client,
            url="http://127.0.0.1:1",
            secret_keys=["tr_dev_x"],
            branch=None,
            timeout=1,
            user_agent="bff",
            observe=lambda _: None,
        )
        with pytest.raises(UpstreamError, match="upstream_unavailable"):
            await asked.get("/x", spent)

    assert len(attempts) == 2


async def test_nobody_there_is_unavailable() -> None:
    async with upstream("http://127.0.0.1:1") as (asked, _):
        with pytest.raises(UpstreamError, match="upstream_unavailable"):
            await asked.get("/x", spent)


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with server(http("200 OK", b"{}")) as (url, heads), upstream(url) as (asked, _):
        assert await asked.get("/x", spent) == b"{}"

    assert heads[0].startswith(b"GET /x HTTP/1.1")


async def test_certificates_are_checked(tmp_path) -> None:
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
                await asked.get("/x", spent)

    assert reached == [], "the secret was never sent"
