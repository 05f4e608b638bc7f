"""The table of fields agrees with the rules of the official SDK's parser."""

import pytest
from support.sdk_rules import parses

from bff.demo.upstream import session
from bff.sessions.document import is_complete
from bff.sessions.fields import FIELDS
from bff.sessions.policy import DEFAULT_FIELDS, REQUIRED_FIELDS, Policy


def test_table_has_a_row_for_each_field_of_upstream() -> None:
    assert [*FIELDS] == [*session(1)]


@pytest.mark.parametrize("name", FIELDS)
def test_row_accepts_what_the_sdk_accepts(name: str) -> None:
    row, document = FIELDS[name], session(1)
    without = {field: value for field, value in document.items() if field != name}

    assert is_complete(document)
    assert row.absent is is_complete(without) is parses(without)
    for value in (None, 7, "text", ["text"], [7], {"basePayload": {}}, "2026-02-30T00:00:00Z"):
        changed = document | {name: value}
        assert is_complete(changed) is parses(changed), value
    assert row.required is not (row.null or row.absent)


def test_default_policy_shows_the_rows_marked_shown() -> None:
    shown = Policy().project(session(1, "chat-1"))

    assert [name for name, row in FIELDS.items() if row.default == "shown"] == [*DEFAULT_FIELDS]
    assert {name for name in shown if FIELDS[name].default == "shown"} == {*DEFAULT_FIELDS}
    assert {name for name in shown if FIELDS[name].default == "own setting"} == {"metadata", "tags"}
    assert not [name for name in shown if FIELDS[name].default == "hidden"]


def test_hidden_row_is_null_only_where_the_sdk_needs_the_field() -> None:
    shown = Policy(fields=REQUIRED_FIELDS).project(session(1, "chat-1"))

    for name, row in FIELDS.items():
        if name not in (*REQUIRED_FIELDS, "tags"):
            assert (name in shown) is row.null_when_hidden
            assert shown.get(name) is None
    assert parses(shown)
