"""Cursors of a chat list: what they hold, whose they are, and how long they get."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.sessions.cursor import MAX_LATE, Cursor, CursorError, read
from bff.sessions.list_query import MAX_TEXT

NAMED = [f"chat-{number}" for number in range(300)]
ME = b"me"


@given(
    st.integers(0, len(NAMED)),
    st.sets(st.integers(0, len(NAMED) - 1)),
    st.sets(st.integers(0, len(NAMED) - 1)),
)
def test_cursor_is_read_as_it_was_written(position: int, late: set[int], again: set[int]) -> None:
    first = sorted(p for p in late - again if p < position)
    last = sorted(p for p in again if p < position)
    cursor = Cursor(position, tuple(first), tuple(last))

    assert read(cursor.write(NAMED, ME), NAMED, ME) == cursor


def test_longest_cursor_fits_into_a_query() -> None:
    named = [str(number) for number in range(16_000)]
    late = tuple(range(0, len(named), len(named) // MAX_LATE))[:MAX_LATE]

    text = Cursor(len(named), late).write(named, ME)

    assert 24 <= len(Cursor(0).write([], ME)) < len(text) <= MAX_TEXT
    assert read(text, named, ME) == Cursor(len(named), late)


@pytest.mark.parametrize("text", ["", "nonsense", "A" * 24, "A" * 1024, "ü", "=", "AAAA AAAA"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(CursorError):
        read(text, NAMED, ME)


def test_cursor_of_another_caller_is_refused() -> None:
    text = Cursor(3, (1,)).write(NAMED, ME)

    with pytest.raises(CursorError):
        read(text, NAMED, b"another")


@given(st.data())
def test_changed_cursor_is_refused(data: st.DataObject) -> None:
    text = Cursor(200, (1, 5), (7,)).write(NAMED, ME)
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    changed = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")

    with pytest.raises(CursorError):
        read(changed, NAMED, ME)


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ([*NAMED, "new"], True),
        (NAMED[:10], True),
        (["new", *NAMED], False),
        (NAMED[1:], False),
        ([*NAMED[1::-1], *NAMED[2:]], False),
        (NAMED[:9], False),
    ],
    ids=["longer", "as far", "new in front", "one gone", "reordered", "shorter"],
)
def test_cursor_of_another_list_is_noticed(named: list[str], *, same: bool) -> None:
    cursor = Cursor(10, (3,))

    assert read(cursor.write(NAMED, ME), named, ME) == (cursor if same else None)


@pytest.mark.parametrize(
    "cursor", [Cursor(3, (3,)), Cursor(3, (), (7,)), Cursor(3, tuple([0] * (MAX_LATE + 1)))]
)
def test_numbers_out_of_range_are_refused(cursor: Cursor) -> None:
    """A caller knows its own digest, so it can make any cursor for itself."""
    with pytest.raises(CursorError):
        read(cursor.write(NAMED, ME), NAMED, ME)
