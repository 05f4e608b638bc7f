"""The query of a chat list: its values, its errors, and its bounds."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.errors import Refused
from bff.sessions.fields import FIELDS
from bff.sessions.list_query import MAX_SIZE, PARAMETERS, Query, parse

DAY = 86400.0


def error(query: str | bytes) -> str:
    """The text of the refusal of *query*."""
    encoded = query if isinstance(query, bytes) else query.encode()
    with pytest.raises(Refused) as raised:
        parse(encoded, visible=FIELDS, wall=0.0)
    assert raised.value.refusal.code == "bad_request"
    return raised.value.refusal.text


def test_query_sets_every_member() -> None:
    values = {
        "page[size]": "5",
        "page[after]": "x",
        "filter[type]": "a,b",
        "filter[tags]": "t+u",
        "filter[taskIdentifier]": "a%2Cb",
        "filter[externalId]": "c,d%26",
        "filter[status]": "ACTIVE,CLOSED",
        "filter[createdAt][period]": "2d",
        "filter[createdAt][from]": "1500",
        "filter%5BcreatedAt%5D%5Bto%5D": "2500",
    }
    query = "&".join(f"{name}={value}" for name, value in values.items())

    assert parse(query.encode(), visible=FIELDS, wall=3 * DAY) == Query(
        size=5,
        after="x",
        filters={
            "filter[type]": ("a", "b"),
            "filter[tags]": ("t u",),
            "filter[taskIdentifier]": ("a", "b"),
            "filter[externalId]": "c,d&",
            "filter[status]": ("ACTIVE", "CLOSED"),
            "filter[createdAt][period]": DAY,
            "filter[createdAt][from]": 1.5,
            "filter[createdAt][to]": 2.5,
        },
    )
    assert parse(b"", visible=(), wall=0.0) == Query()


def test_parameters_read_fields_of_the_table() -> None:
    assert {name for row in PARAMETERS.values() for name in row.fields} <= {*FIELDS}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("page[size]", ["", "0", "101", "-1", "1e1", "%2B5", "%D9%A3", "9" * 1000]),
        ("page[after]", ["", "%ff"]),
        ("page[before]", [""]),
        ("filter[type]", ["", "a,,b"]),
        ("filter[status]", ["active", "ACTIVE,OPEN"]),
        ("filter[createdAt][from]", ["yesterday", "1.5"]),
        ("filter[createdAt][period]", ["1", "0d"]),
    ],
)
def test_error_of_a_wrong_value_names_its_parameter(name: str, values: list[str]) -> None:
    for value in values:
        assert error(f"{name}={value}") == f"{name} must be {PARAMETERS[name].expected}"
    assert error(name) == f"{name} must be {PARAMETERS[name].expected}"


def test_error_of_a_too_long_value_names_its_parameter() -> None:
    text = "filter[externalId] has more than 1024 characters"

    assert error("filter[externalId]=" + "x" * 1025) == text


def test_error_of_a_repeated_parameter_names_it() -> None:
    size = f"page[size] is repeated: send it once, as a whole number from 1 to {MAX_SIZE}"

    assert error("page[size]=5&filter[type]=a&page%5Bsize%5D=5") == size
    every = "&".join(f"{name}=1d" for name in ("filter[createdAt][period]", "filter[type]"))
    assert error(f"{every}&{every}").startswith("filter[createdAt][period] is repeated")


def test_error_of_two_cursors_names_both() -> None:
    assert error("page[after]=A&page[before]=B").startswith("page[after] and page[before] exclude")


def test_error_of_a_hidden_field_names_its_parameter() -> None:
    with pytest.raises(Refused) as raised:
        parse(b"filter[tags]=a", visible={"type"}, wall=0.0)

    assert raised.value.refusal.text.startswith("filter[tags] reads a field that")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("filter[tag]", "filter[tags]"),
        ("page[Size]", "page[size]"),
        ("pagesize", "page[size]"),
        ("filter[created][from]", "filter[createdAt][from]"),
        ("filter[externalid]", "filter[externalId]"),
    ],
)
def test_error_of_an_unknown_parameter_suggests_a_close_one(name: str, close: str) -> None:
    text = f"The query has an unknown parameter {name}; did you mean {close}?"

    assert error(f"{name}=1") == text


@pytest.mark.parametrize("name", ["x", "limit", "page[number]", "page[limit]", "filter[metadata]"])
def test_error_of_an_unknown_parameter_suggests_no_guess(name: str) -> None:
    text = f"The query has an unknown parameter {name}; a list accepts only page[size], "

    assert error(f"{name}=1").startswith(text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "%ff",
        "sentinel%22%3E%3Cscript%3E",
        "sentinel%0d%0a",
        "tr_dev_sk_SECRETsentinel0000000001",
        "eyJsentinel.eyJhbGciOiJIUzI1NiJ9",
        "sentinel" * 1000,
    ],
)
def test_error_does_not_repeat_an_unsafe_name(name: str) -> None:
    text = error(f"{name}=1")

    assert text.startswith("The query has an unknown parameter; a list accepts only page[size], ")
    assert "sentinel" not in text


def test_query_is_bounded() -> None:
    assert "at most 65536 bytes" in error(b"filter[type]=" + b"%20" * 30_000)
    assert "percent-encoded" in error("filter[type]=ü")
    assert "unknown parameter" in error("&" * 65_000)


@given(st.binary(max_size=200))
def test_any_query_is_parsed_or_refused(query: bytes) -> None:
    with suppress(Refused):
        parse(query, visible=FIELDS, wall=0.0)
