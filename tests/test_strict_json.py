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
