"""Header lines that were parsed before: how many are kept, and what is read from them.

Whole requests are compared in `test_fast_path.py`.
"""

import tracemalloc

import pytest
from support.world import PATH

from bff.request import HeaderFields
from bff.server.header_cache import HeaderCache

LINES = b"\r\nhost: x\r\n\r\n"


def test_kept_lines_are_read_with_any_plain_path() -> None:
    cache, fields = HeaderCache(), HeaderFields(origin=b"https://a.example")
    cache.keep(b"GET %bone HTTP/1.1" % PATH.encode() + LINES, fields)

    head = cache.read(b"OPTIONS %btwo HTTP/1.1" % PATH.encode() + LINES, "192.0.2.1")

    assert head is not None
    assert (head.method, head.id, head.peer) == ("OPTIONS", "two", "192.0.2.1")
    assert head.fields is fields


@pytest.mark.parametrize(
    "data",
    [
        b"GET %bone HTTP/1.1\r\nhost: y\r\n\r\n" % PATH.encode(),
        b"GET %bo%%6ee HTTP/1.1" % PATH.encode() + LINES,
        b"GET %bone HTTP/1.0" % PATH.encode() + LINES,
        b"POST %bone HTTP/1.1" % PATH.encode() + LINES,
        b"GET / HTTP/1.1" + LINES,
        b"",
    ],
)
def test_other_bytes_are_left_to_the_parser(data: bytes) -> None:
    cache = HeaderCache()
    cache.keep(b"GET %bone HTTP/1.1" % PATH.encode() + LINES, HeaderFields())

    assert cache.read(data, "192.0.2.1") is None


@pytest.mark.parametrize("name", [b"cookie", b"x-forwarded-for", b"x"])
def test_header_cache_does_not_underestimate_its_memory(name: bytes) -> None:
    """Short values, and as many as a head may have."""
    values = [b"%02x" % n for n in range(98)]
    lines = b"".join(b"%b:%b\r\n" % (name, value) for value in values)
    cache = HeaderCache()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(200):
            fields = HeaderFields.read([(name, bytes(bytearray(value))) for value in values])
            cache.keep(b"GET %bx HTTP/1.1\r\nhost:%d\r\n" % (PATH.encode(), n) + lines, fields)
        assert tracemalloc.get_traced_memory()[0] - before < cache.entries.currsize
    finally:
        tracemalloc.stop()
