"""The chat routes upstream: what is sent, once, and what each answer means."""

import asyncio
from email.utils import formatdate
from typing import Any

import pytest
from support.world import Clock

from bff.errors import (
    CredentialsRejected,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from bff.upstream.chats import ChatUpstream, StreamOptions
from bff.upstream.connection import Request, Stream
from bff.upstream.credentials import Credentials
from bff.upstream.pool import Address

EVENTS = {"content-type": "text/event-stream", "x-stream-version": "v2"}


class Transport:
    """Answers each request with the next of *answers*; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.aborted = 0

    async def stream(self, address: Address, request: Request) -> Stream:
        assert address.host == "127.0.0.1"
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.sleep(60)
        status, headers, body = answer
        stream = Stream(status, headers, self)  # type: ignore[arg-type]
        stream.feed(body)
        stream.end(None)
        return stream

    def abort(self) -> None:
        self.aborted += 1

    def resume_reading(self) -> None:
        pass


def chats(transport: Transport, *keys: str, timeout: float = 5.0) -> ChatUpstream:
    return ChatUpstream(
        transport,  # type: ignore[arg-type]
        credentials=Credentials(
            url="http://127.0.0.1:1/base",
            secret_keys=keys or ("key-1",),
            branch="feat/one",
            user_agent="bff/test",
        ),
        timeout=timeout,
        clock=Clock(),
    )


async def test_message_is_sent_once_with_the_key_and_the_branch() -> None:
    transport = Transport((200, {}, b'{"ok":true}'))

    answer = await chats(transport).append("a/b", b"body", "part-1")

    (request,) = transport.requests
    assert (request.method, request.target) == (
        b"POST", b"/base/realtime/v1/sessions/a%2Fb/in/append",
    )  # fmt: skip
    for line in (
        b"authorization: Bearer key-1",
        b"x-trigger-branch: feat/one",
        b"x-part-id: part-1",
    ):
        assert line in request.lines
    assert request.body == b"body"
    assert (answer.status, answer.body) == (200, b'{"ok":true}')
    assert transport.aborted == 1, "its connection"


async def test_rejected_key_is_replaced_for_later_messages_only() -> None:
    rejected = 401, {"content-type": "application/json"}, b'{"error":"Invalid API key"}'
    transport = Transport(rejected, (200, {}, b"{}"))
    upstream = chats(transport, "key-1", "key-2")

    with pytest.raises(CredentialsRejected) as caught:
        await upstream.append("s", b"", "p")
    await upstream.append("s", b"", "p")

    assert not caught.value.sent
    assert b"Bearer key-1" in transport.requests[0].lines
    assert b"Bearer key-2" in transport.requests[1].lines


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (UpstreamUnavailable(), False),
        ((500, {}, b""), True),
        ((404, {}, b"<html>"), True),
        ((429, {}, b""), False),
    ],
)
async def test_error_tells_whether_the_message_may_have_arrived(answer: Any, sent: bool) -> None:
    transport = Transport(answer)

    with pytest.raises(UpstreamError) as caught:
        await chats(transport).append("s", b"", "p")

    assert caught.value.sent is sent
    assert len(transport.requests) == 1


@pytest.mark.parametrize("value", ["7", formatdate(Clock().wall + 7, usegmt=True)])
async def test_pause_of_upstream_may_be_a_date(value: str) -> None:
    with pytest.raises(UpstreamRateLimited) as caught:
        await chats(Transport((429, {"retry-after": value}, b""))).append("s", b"", "p")

    assert caught.value.retry_after == 7.0


async def test_late_answer_may_mean_that_the_message_arrived() -> None:
    with pytest.raises(UpstreamTimeout) as caught:
        await chats(Transport(None), timeout=0.05).append("s", b"", "p")

    assert caught.value.sent


async def test_stream_is_opened_by_checked_options() -> None:
    transport = Transport((200, EVENTS, b""), (200, EVENTS, b""))
    upstream = chats(transport)

    await upstream.open("s", StreamOptions(cursor=b"7", seconds=9, peek=True, latest=True))
    await upstream.open("s", StreamOptions(latest=True))

    first, second = (request.lines for request in transport.requests)
    assert b"last-event-id: 7\r\n" in first
    assert b"timeout-seconds: 9\r\n" in first
    assert b"x-peek-settled: 1\r\n" in first
    assert b"x-trigger-stream-start" not in first, "the cursor says where it starts"
    assert b"x-trigger-stream-start: latest\r\n" in second
    assert transport.requests[0].target == b"/base/realtime/v1/sessions/s/out"
    assert transport.aborted == 0, "the caller has the stream"


PING = b"event: ping\ndata: {}\n\n"
RECORD = b'event: batch\ndata: {"records":[{"seq_num":0}]}\n\n'
SETTLED = EVENTS | {"x-session-settled": "true"}


@pytest.mark.parametrize(
    ("headers", "body", "idle"),
    [(EVENTS, PING, None), (EVENTS, PING + RECORD, False), (SETTLED, RECORD, True)],
)
async def test_first_peek_reads_to_the_first_record(
    headers: dict[str, str], body: bytes, idle: bool | None
) -> None:
    transport = Transport((200, headers, body), (200, headers, body))
    upstream = chats(transport)

    assert await upstream.peek("s", has_record=False) is idle
    assert await upstream.peek("s", has_record=True) is (idle is True)
    assert [b"latest" in request.lines for request in transport.requests] == [False, True]
    assert transport.aborted == 2


async def test_first_record_may_arrive_in_parts() -> None:
    class Parts(Transport):
        async def stream(self, address: Address, request: Request) -> Stream:
            stream = await super().stream(address, request)
            for n in range(len(RECORD)):
                stream.feed(RECORD[n : n + 1])
            stream.end(None)
            return stream

    assert await chats(Parts((200, EVENTS, PING))).peek("s", has_record=False) is False


async def test_body_of_a_peek_that_breaks_or_never_comes_is_an_error() -> None:
    class Breaks(Transport):
        error: UpstreamError | None = UpstreamUnavailable()

        async def stream(self, address: Address, request: Request) -> Stream:
            del address, request
            stream = Stream(200, EVENTS, self)  # type: ignore[arg-type]
            if self.error is not None:
                stream.end(self.error)
            return stream

    transport = Breaks()
    with pytest.raises(UpstreamUnavailable):
        await chats(transport).peek("s", has_record=False)
    transport.error = None
    with pytest.raises(UpstreamTimeout):
        await chats(transport, timeout=0.01).peek("s", has_record=False)

    assert transport.aborted == 2


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/html"}, EVENTS | {"x-stream-version": "v1"}]
)
async def test_other_body_is_aborted(headers: dict[str, str]) -> None:
    transport = Transport((200, headers, b""))

    with pytest.raises(UpstreamError):
        await chats(transport).open("s", StreamOptions())

    assert transport.aborted == 1


async def test_key_that_a_chat_sees_rejected_is_replaced_for_loads() -> None:
    changes: list[int] = []
    keys = Credentials(
        url="http://127.0.0.1:1",
        secret_keys=["key-1", "key-2"],
        branch=None,
        user_agent="bff/test",
        on_key=changes.append,
    )
    transport: Any = Transport((401, {}, b'{"error":"Invalid API key"}'))

    with pytest.raises(CredentialsRejected):
        await ChatUpstream(transport, credentials=keys, timeout=5, clock=Clock()).append(
            "chat-1", b"{}", "part"
        )

    assert (keys.in_use, changes) == (1, [2])
