"""Cursors of a chat list: the position of the next page, and the late sessions. No I/O.

A cursor works for one caller only. It also holds a digest of the ids on earlier pages. So the
gateway notices a token with another list, in which the position could skip sessions.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

MAX_LATE: Final = 360
"""Late sessions that a cursor holds: at two bytes each, it fits into one value of a query."""
_OWNER_BYTES: Final = 10
"""Bytes of the digest that only the caller's cursors have: too many to guess."""
_LIST_BYTES: Final = 6
"""Bytes of the digest that tells the lists of one caller apart."""
_MORE: Final = 0x80
"""The bit of a byte whose number continues in the next byte."""


class CursorError(Exception):
    """The text cannot be read as a cursor of this caller."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins, or ends if it is read backwards.

    Attributes:
        position: how many ids of the token stand before it.
        late: positions of sessions that were late once, and are tried again at the end.
        again: positions of sessions that were late twice, and are tried for the last time.
    """

    position: int
    late: tuple[int, ...] = ()
    again: tuple[int, ...] = ()

    def write(self, named: Sequence[str], caller: bytes) -> str:
        """Write it as text for the caller with this key, whose token names these ids."""
        numbers = [self.position, len(self.late), *_steps(self.late), *_steps(self.again)]
        body = _digest_of_list(named[: self.position]) + b"".join(map(_encode, numbers))
        return base64.urlsafe_b64encode(_digest_of_owner(caller, body) + body).decode().rstrip("=")


def read(text: str, named: Sequence[str], caller: bytes) -> Cursor | None:
    """Read a cursor; None if it belongs to another list of this caller.

    Raises:
        CursorError: it is malformed, or another caller's; the reader cannot distinguish the two.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise CursorError from None
    owner, body = data[:_OWNER_BYTES], data[_OWNER_BYTES:]
    if owner != _digest_of_owner(caller, body):
        raise CursorError
    # The caller can make cursors for itself, so the numbers are checked nevertheless.
    try:
        position, many, *steps = _decode(body[_LIST_BYTES:])
    except ValueError:
        raise CursorError from None
    late, again = tuple(accumulate(steps[:many])), tuple(accumulate(steps[many:]))
    if position > len(named) or body[:_LIST_BYTES] != _digest_of_list(named[:position]):
        return None
    if len(late) + len(again) > MAX_LATE or max((*late, *again, -1)) >= position:
        raise CursorError
    return Cursor(position, late, again)


def _digest_of_owner(caller: bytes, body: bytes) -> bytes:
    return hashlib.sha256(b"cursor" + caller + body).digest()[:_OWNER_BYTES]


def _digest_of_list(ids: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps(list(ids)).encode()).digest()[:_LIST_BYTES]


def _steps(positions: Sequence[int]) -> list[int]:
    """The differences between positions in ascending order: most of them fit into one byte."""
    return [after - before for before, after in pairwise((0, *positions))]


def _encode(number: int) -> bytes:
    written = bytearray()
    while number >= _MORE:
        written.append(number % _MORE | _MORE)
        number //= _MORE
    written.append(number)
    return bytes(written)


def _decode(data: bytes) -> Iterator[int]:
    """Read numbers that `_encode` wrote.

    Raises:
        ValueError: the last one is not complete.
    """
    number, factor = 0, 1
    for byte in data:
        number += byte % _MORE * factor
        factor *= _MORE
        if byte < _MORE:
            yield number
            number, factor = 0, 1
    if factor > 1:
        raise ValueError
