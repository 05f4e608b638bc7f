"""JSON of which no two parsers can disagree."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff import strict_json

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)  # fmt: skip


@given(_VALUES)
def test_valid_json_is_read_as_it_is(value: object) -> None:
    assert strict_json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": 1, "\\u0061": 2}',
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "[" * 100_000,
        '{"a": 1',
        "",
        b"\xff",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_ambiguous_or_invalid_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the message is for nobody: callers refuse
        strict_json.loads(text)


@given(_VALUES)
def test_structure_is_counted_outside_strings(value: object) -> None:
    data = json.dumps([value]).encode()
    strings = False, 0
    for number, byte in enumerate(data):
        inside, count = strings
        if byte == 34 and (len(data[:number]) - len(data[:number].rstrip(b"\\"))) % 2 == 0:
            inside = not inside
        strings = inside, count + (byte in b"{[," and not inside)

    assert strict_json.loads(data, most=max(strings[1], 8 * len(data))) == [value]
    assert strict_json._structure_outside_strings(data, len(data)) == strings[1]


@pytest.mark.parametrize("text", ["[" + "1," * 20 + "1]", '{"a":{},"b":[{},{},{},{},{}]}'])
def test_text_with_too_many_members_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too many members"):
        strict_json.loads(text, most=10)
    with pytest.raises(ValueError, match="too many members"):
        strict_json.read_object(text.encode(), most=10)


def test_number_beyond_the_floats_is_refused() -> None:
    assert strict_json.loads("9" * 309) == int("9" * 309)
    with pytest.raises(ValueError, match="digits"):
        strict_json.loads("9" * 310)


def test_object_is_read_without_its_inner_objects() -> None:
    members = strict_json.read_object(b'{"a": {"b": 1, "b": 2}, "c": [{}], "d": 7}', most=99)

    assert members == {"a": (("b", 1.0), ("b", 2.0)), "c": [()], "d": 7.0}
    with pytest.raises(ValueError, match="repeated"):
        strict_json.unique(members["a"])


@pytest.mark.parametrize(
    "text", [b'{"a":1,"a":2}', b"[]", b"7", b'"a"', b'{"a":NaN}', b"{", b"[" * 99]
)
def test_text_that_is_not_one_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the message is for nobody: callers refuse
        strict_json.read_object(text, most=200)
