"""Our connection against httpx2's engine: the same outcome, or our connection refuses.

    DIFFERENTIAL=200000 pytest tests/upstream/test_differential.py

asks as many made-up answers: good, odd and hostile, cut anywhere, in any reads.
"""

import os
import random

from support.wire import REFUSED, Outcome, ours, theirs

ANSWERS = int(os.environ.get("DIFFERENTIAL", "1500"))
_STATUS_LINES = [
    *[b"HTTP/1.1 200 OK\r\n"] * 12,
    *(b"HTTP/1.1 %d x\r\n" % status for status in (204, 304, 401, 403, 404, 429, 500, 999)),
    *(b"HTTP/1.1 200\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 \r\n"),
    *(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", b"HTTP/2 200 OK\r\n"),
    *(b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\n", b"ICY 200 OK\r\n"),
    *(b"http/1.1 200 OK\r\n", b"\r\nHTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\n"),
    *(b"HTTP/1.1 101 Up\r\n", b"HTTP/1.1 20 OK\r\n", b"HTTP/1.1 2000 OK\r\n", b""),
]
_LINES = [
    *(b"Content-Type: application/json", b"X: y", b"X: ", b"x:z", b"X:\t a \t", b"x: \xff\xfe"),
    *(b"connection: close", b"Connection: keep-alive", b"Keep-Alive: timeout=5", b"Set-Cookie: a"),
    *(
        b"x: a\r\n b",
        b"x : y",
        b": y",
        b"x",
        b"x: a\0b",
        b"x: a\rb",
        b"upgrade: h2c",
        b"x: a\nb: c",
    ),
    *(
        b"content-encoding: gzip",
        b"content-encoding: identity",
        b"trailer: x",
        b"x: " + b"a" * 9000,
    ),
]
_LENGTHS = [b"%d", *(b"0%d", b"+%d", b"-%d", b" %d ", b"%d, %d", b"0x%d", b"%d;", b"%d_0", b"")]
_CODINGS = [
    b"chunked",
    b"Chunked",
    b"gzip",
    b"gzip, chunked",
    b"chunked, chunked",
    b"xchunked",
    b"",
]


def body_of(random_: random.Random) -> bytes:
    return random_.choice((b"", b"{}", b'{"error":"Not found"}', b"x" * random_.randrange(3000)))


def chunks(random_: random.Random, body: bytes) -> bytes:
    """Encode *body* in chunks; now and then wrongly."""
    encoded = b""
    while body:
        size = random_.randint(1, len(body))
        line = (
            random_.choice((b"%x", b"%x", b"%x", b"%X", b"00%x", b"%x;a=b", b'%x;a="b;c"')) % size
        )
        if random_.random() < 0.03:
            line = random_.choice((b"%x ", b" %x", b"0x%x", b"+%x", b"-%x", b"%x\t", b"g%x")) % size
        end = b"\n" if random_.random() < 0.01 else b"\r\n"
        encoded += line + end + body[:size] + end
        body = body[size:]
    return (
        encoded
        + b"0\r\n"
        + random_.choice((b"", b"", b"x: y\r\n", b"content-length: 5\r\n"))
        + b"\r\n"
    )


def good(random_: random.Random) -> bytes:
    """Make an answer that every client accepts."""
    body = body_of(random_)
    lines = random_.sample(_LINES[:5], random_.randrange(3))
    if random_.random() < 0.5:
        lines.append(b"Content-Length: %d" % len(body))
    else:
        lines.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    random_.shuffle(lines)
    status = random_.choice((200, 401, 404, 429, 500))
    return b"HTTP/1.1 %d x\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(lines), body)


def odd(random_: random.Random) -> bytes:
    """Make an answer that may be anything between good and hostile."""
    body = body_of(random_)
    lines = random_.sample(_LINES[:10], random_.randrange(4))
    lines += random_.sample(_LINES[10:], random_.choice((0, 0, 0, 1, 2)))
    encoded = body
    for _ in range(random_.choice((1, 1, 1, 1, 1, 1, 0, 2))):
        if random_.random() < 0.5:
            form = _LENGTHS[0] if random_.random() < 0.7 else random_.choice(_LENGTHS)
            count = form.count(b"%d")
            lines.append(b"Content-Length: " + form % ((len(body),) * count))
        else:
            coding = b"chunked" if random_.random() < 0.7 else random_.choice(_CODINGS)
            lines.append(b"transfer-encoding: " + coding)
            encoded = chunks(random_, body)
    random_.shuffle(lines)
    end = b"\n" if random_.random() < 0.02 else b"\r\n"
    head = random_.choice(_STATUS_LINES) + b"".join(line + end for line in lines) + end
    rest = random_.choice((b"", b"", b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x"))
    data = bytearray(head + encoded + rest)
    for _ in range(random_.choice((0, 0, 0, 1, 3))):
        at = random_.randrange(len(data))
        what = random_.choice((b"", b"\r", b"\n", b" ", b":", b"\0", b"\xff", b"0", b"\r\n"))
        data[at : at + random_.randrange(2)] = what
    return bytes(data)


def reads_of(random_: random.Random, data: bytes) -> list[bytes]:
    """Cut *data* off anywhere or nowhere, and split it into reads."""
    if random_.random() < 0.2:
        data = data[: random_.randrange(len(data) + 1)]
    if random_.random() < 0.1:
        return [data[n : n + 1] for n in range(len(data))]
    cuts = sorted(random_.randrange(len(data) + 1) for _ in range(random_.randrange(4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def test_outcome_is_httpx2s_or_a_refusal() -> None:
    random_ = random.Random(15)
    accepted = refused = 0
    for _ in range(ANSWERS):
        reads = reads_of(random_, odd(random_))
        mine = await ours(reads)
        if mine == REFUSED:
            refused += 1
            continue
        accepted += 1
        assert mine == await theirs(reads), reads
    assert min(accepted, refused) > ANSWERS // 10, "the answers are of both kinds"


async def test_good_answer_is_read_as_httpx2_reads_it() -> None:
    random_ = random.Random(16)
    for _ in range(ANSWERS // 5):
        data = good(random_)
        cuts = sorted(random_.randrange(len(data) + 1) for _ in range(random_.randrange(4)))
        reads = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        mine = await ours(reads)
        assert mine != REFUSED, reads
        assert mine == await theirs(reads), reads


async def test_every_split_of_an_answer_has_one_outcome() -> None:
    random_ = random.Random(17)
    for _ in range(max(3, ANSWERS // 300)):
        data = good(random_)[:400]
        whole = await ours([data])
        for n in range(1, len(data)):
            assert await ours([data[:n], data[n:]]) == whole
        assert isinstance(whole, Outcome)
