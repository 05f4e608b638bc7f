"""One connection to upstream, byte by byte, without sockets."""

import asyncio
from collections.abc import Sequence

import pytest
from support.wire import Reader, connected

from bff.errors import UpstreamError
from bff.upstream.connection import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_UNREAD_BYTES,
    Answer,
    Request,
    Stream,
    header_lines,
)

OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + b"Content-Length: 2\r\nX: y\r\n\r\n{}"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


async def ask(*reads: bytes, ends: bool = False) -> Answer | str:
    """Send a request; returns the answer that *reads* make, or the code of the error."""
    connection, transport = connected()
    future = connection.send(b"GET / HTTP/1.1\r\n\r\n")
    for data in reads:
        transport.deliver(data)
    if ends:
        transport.end()
    await asyncio.sleep(0)
    if not future.done():
        return "incomplete"
    try:
        answer = future.result()
    except UpstreamError as error:
        return error.code
    assert isinstance(answer, Answer)
    return answer


async def test_answer_is_read_and_the_connection_kept() -> None:
    connection, transport = connected()
    for _ in range(3):
        future = connection.send(b"GET / HTTP/1.1\r\n\r\n")
        transport.deliver(GOOD)
        assert await future == Answer(200, {"content-length": "2", "x": "y"}, b"{}")
    assert connection.usable
    assert not transport.aborted
    assert transport.sent == b"GET / HTTP/1.1\r\n\r\n" * 3


async def test_answer_is_the_same_however_it_is_split() -> None:
    whole = CHUNKED + b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\ntrailer: z\r\n\r\n"
    for data in (GOOD, whole, b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + whole):
        expected = await ask(data)
        assert isinstance(expected, Answer)
        assert expected.body == b"{}"
        assert await ask(*[data[n : n + 1] for n in range(len(data))]) == expected
        for n in range(1, len(data)):
            assert await ask(data[:n], data[n:]) == expected
            assert await ask(data[:n]) == "incomplete", "a part is no answer"
            assert await ask(data[:n], ends=True) == "upstream_invalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"\r\n" + GOOD,
        b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + GOOD,
        b"HTTP/1.1 101 Switching\r\n\r\n" + GOOD,
        OK + b"\r\n{}",
        OK + b"connection: close\r\n\r\n{}",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"content-length: 2, 2\r\n\r\n{}",
        OK + b"content-length: +2\r\n\r\n{}",
        OK + b"content-length: 99999999999999999999999\r\n\r\n{}",
        OK + b"content-length:\r\n 2\r\n\r\n{}",
        OK + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"content-length : 2\r\n\r\n{}",
        OK + b"content-length: 2\n\n{}",
        OK + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"transfer-encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
        OK + b"content-encoding: identity\r\n" * 2 + b"content-length: 2\r\n\r\n{}",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\n{}\n0\n\n",
        CHUNKED + b"2\r\n{}xx0\r\n\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    ],
    ids=range(38),
)
async def test_answer_with_unsafe_framing_is_refused(data: bytes) -> None:
    """One that ends with the connection too: a cut answer would look complete."""
    assert await ask(data, ends=True) == "upstream_invalid"
    assert await ask(*[data[n : n + 1] for n in range(len(data))], ends=True) == "upstream_invalid"


@pytest.mark.parametrize("line", [b"", b"connection: close\r\n"])
async def test_answer_that_would_end_with_the_connection_is_refused(line: bytes) -> None:
    """It is refused at its head; nobody waits for the end."""
    assert await ask(OK + line + b"\r\n") == "upstream_invalid"


@pytest.mark.parametrize(
    "reads",
    [
        [OK + b"x: " + b"a" * MAX_HEAD_BYTES + b"\r\n"],
        [OK, *[b"x%d: %b\r\n" % (n, b"a" * 1000) for n in range(70)]],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 3000],
        [CHUNKED, b"1;x=" + b"a" * MAX_HEAD_BYTES, b"\r\n"],
        [CHUNKED + b"1\r\n{\r\n0\r\n", b"x: " + b"a" * MAX_HEAD_BYTES, b"\r\n"],
        [OK + b"content-length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)],
        [CHUNKED, *[b"10000\r\n" + b"x" * 0x10000 + b"\r\n"] * 17],
    ],
    ids=("header", "headers", "interim", "extension", "trailer", "length", "chunks"),
)
async def test_answer_beyond_a_bound_is_refused(reads: Sequence[bytes]) -> None:
    assert await ask(*reads) == "upstream_invalid"


async def test_largest_body_is_accepted() -> None:
    body = b"x" * MAX_BODY_BYTES
    answer = await ask(OK + b"content-length: %d\r\n\r\n" % len(body), body)
    assert isinstance(answer, Answer)
    assert answer.body == body


@pytest.mark.parametrize("status", [204, 304])
async def test_answer_without_a_body_needs_no_length(status: int) -> None:
    assert await ask(b"HTTP/1.1 %d x\r\n\r\n" % status) == Answer(status, {}, b"")


async def test_byte_between_requests_ends_the_connection() -> None:
    connection, transport = connected()
    future = connection.send(b"x")
    transport.deliver(GOOD)
    await future
    transport.deliver(GOOD)
    assert transport.aborted
    assert not connection.usable


@pytest.mark.parametrize("rest", [b"H", b"x", GOOD, b"HTTP/1.1 500 No\r\n\r\n"])
async def test_bytes_behind_an_answer_end_the_connection(rest: bytes) -> None:
    connection, transport = connected()
    future = connection.send(b"x")
    transport.deliver(GOOD + rest)
    assert (await future).body == b"{}"
    assert transport.aborted
    assert not connection.usable


@pytest.mark.parametrize("line", [b"connection: close\r\n", b"Connection: Close, x\r\n"])
async def test_answer_that_closes_is_the_last(line: bytes) -> None:
    connection, transport = connected()
    future = connection.send(b"x")
    transport.deliver(OK + line + b"content-length: 2\r\n\r\n{}")
    assert (await future).body == b"{}"
    assert not connection.usable


async def test_half_closed_connection_takes_no_request() -> None:
    connection, transport = connected()
    connection.eof_received()
    with pytest.raises(UpstreamError, match="upstream_unavailable"):
        await connection.send(b"x")
    assert connection.silent
    assert transport.sent == b""


async def test_lost_connection_ends_the_request() -> None:
    for begun, error, code in (
        (b"", None, "upstream_invalid"),
        (b"", ConnectionResetError(), "upstream_unavailable"),
        (GOOD[:20], ConnectionResetError(), "upstream_unavailable"),
    ):
        connection, transport = connected()
        future = connection.send(b"x")
        if begun:
            transport.deliver(begun)
        transport.end(error)
        with pytest.raises(UpstreamError, match=code):
            await future
        assert connection.silent is not bool(begun)


async def test_stream_is_read_no_faster_than_its_reader() -> None:
    connection, transport = connected()
    future = connection.stream(b"x")
    transport.deliver(CHUNKED)
    stream = await future
    assert isinstance(stream, Stream)
    assert stream.status == 200
    part = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    delivered = 0
    while transport.is_reading():
        transport.deliver(part)
        delivered += 0x4000
        assert delivered <= MAX_UNREAD_BYTES + 0x4000
    reader = Reader()
    stream.attach(reader)
    assert transport.is_reading()
    assert len(reader.received) == delivered
    stream.pause()
    while transport.is_reading():
        transport.deliver(part)
    assert len(reader.received) == delivered, "nothing while the reader has paused"
    stream.resume()
    assert transport.is_reading()
    transport.deliver(b"2\r\nyy\r\n0\r\n\r\n")
    assert reader.received.endswith(b"xyy")
    assert reader.ends == [None]
    assert transport.aborted, "the connection serves one stream"


async def test_stream_that_ends_while_paused_ends_after_its_bytes() -> None:
    connection, transport = connected()
    future = connection.stream(b"x")
    transport.deliver(CHUNKED)
    stream, reader = await future, Reader()
    assert isinstance(stream, Stream)
    stream.attach(reader)
    stream.pause()
    transport.deliver(b"2\r\nab\r\n0\r\n\r\n")
    assert (reader.received, reader.ends) == (b"", [])
    stream.resume()
    assert (reader.received, reader.ends) == (b"ab", [None])


async def test_stream_hands_over_each_read_and_has_no_total_bound() -> None:
    connection, transport = connected()
    future = connection.stream(b"x")
    transport.deliver(CHUNKED)
    stream = await future
    assert isinstance(stream, Stream)
    reader = Reader()
    stream.attach(reader)
    for number in range(40):
        digit = b"%d" % (number % 10)
        transport.deliver(b"8000\r\n%b\r\n8000\r\n%b\r\n" % (digit * 0x8000, digit * 0x8000))
    assert reader.sizes == [0x10000] * 40, "the chunks of one read come together"
    stream.abort()
    assert transport.aborted


@pytest.mark.parametrize("cut", [b"", b"5\r\nab", b"zz\r\n"])
async def test_stream_that_is_cut_ends_with_an_error(cut: bytes) -> None:
    connection, transport = connected()
    future = connection.stream(b"x")
    transport.deliver(CHUNKED + b"2\r\n{}\r\n" + cut)
    stream = await future
    assert isinstance(stream, Stream)
    transport.end()
    reader = Reader()
    stream.attach(reader)
    assert reader.received in (b"{}", b"{}ab"), "what arrived before is not lost"
    assert [str(end) for end in reader.ends] == ["upstream_invalid"]


def test_request_is_rendered_as_its_parts_say() -> None:
    lines = header_lines((b"host", b"a"), (b"x", b"y z"))
    assert Request(b"GET", b"/a?b", lines).encoded() == (
        b"GET /a?b HTTP/1.1\r\nhost: a\r\nx: y z\r\n\r\n"
    )
    assert Request(b"POST", b"/a", lines, b"{}").encoded() == (
        b"POST /a HTTP/1.1\r\nhost: a\r\nx: y z\r\ncontent-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\r\n"])
def test_value_that_would_end_its_line_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        header_lines((b"a", b"1"), (b"x", value))


@pytest.mark.parametrize("target", [b"", b"/a b", b"/a\r\nx: y", b"/\xff", b"/\0", b"/a\n"])
def test_target_that_would_end_its_line_is_refused(target: bytes) -> None:
    with pytest.raises(ValueError, match="target"):
        Request(b"GET", target, b"").encoded()
