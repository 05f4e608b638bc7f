"""Recognises header lines that were parsed before, so that a server parses them once."""

import contextlib
import re
from operator import itemgetter
from typing import Final

from cachetools import FIFOCache

from bff.request import HeaderFields, RequestHead
from bff.sessions.ids import PLAIN_PATH

_MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
"""Bytes of memory, estimated, that the kept header lines and their fields may take."""
_ENTRY_BYTES: Final = 500
"""Estimated memory of one entry beyond twice its header lines."""
_VALUE_BYTES: Final = 40
"""Estimated memory of one more value of a header that may be repeated."""
_REQUEST_LINE: Final = re.compile(rb"(GET|HEAD|OPTIONS) (%b) HTTP/1\.1" % PLAIN_PATH)
"""A request line with one meaning, whatever header lines follow."""


class HeaderCache:
    """The fields of header lines that were parsed before, for all connections of one server.

    The same header lines have the same meaning on every connection and for every session.
    """

    def __init__(self) -> None:
        self.entries: FIFOCache[bytes, tuple[HeaderFields, int]] = FIFOCache(
            _MAX_HEADER_BYTES, getsizeof=itemgetter(1)
        )
        """Fields and estimated memory, by everything after the request line."""

    def keep(self, data: bytes, fields: HeaderFields) -> None:
        """Keep *fields* for the header lines of *data*, which is one whole request."""
        line = _REQUEST_LINE.match(data)
        lines = data[line.end() :] if line else b""
        if lines and lines not in self.entries:
            with contextlib.suppress(ValueError):  # larger than the whole cache
                self.entries[lines] = fields, _cost(lines, fields)

    def read(self, data: bytes, peer: str) -> RequestHead | None:
        """Read *data* as one whole request; None unless its header lines are kept."""
        line = _REQUEST_LINE.match(data)
        if line is None:
            return None
        try:
            fields, _ = self.entries[data[line.end() :]]
        except KeyError:
            return None
        method, path, id_ = line.groups()
        return RequestHead(method.decode(), path, fields, peer, id_.decode())


def _cost(lines: bytes, fields: HeaderFields) -> int:
    values = len(fields.forwarded) + len(fields.cookies)
    return 2 * len(lines) + _ENTRY_BYTES + _VALUE_BYTES * values
