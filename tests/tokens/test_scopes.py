"""The scope grammar, compared with a second program that follows the measured rules."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bff.sessions import ids
from bff.tokens.scopes import Grant

IDS = ["chat-1", "chat-2", "session_a", "session_b", "a:b", "a:b:c", "all", "sessions", ""]
words = st.sampled_from(
    ["read", "write", "admin", "*", "all", "sessions", "runs", "READ", "", "sessions "]
)
scope = st.one_of(
    st.lists(words, min_size=1, max_size=4).map(":".join),
    st.builds("{}:{}:{}".format, words, words, st.sampled_from(IDS)),
    st.text(max_size=12),
)


def can_read(scopes: list[object], *ids: str) -> bool:
    """The rules of the server, one rule a line."""
    for text in scopes:
        if not isinstance(text, str):
            continue
        action, type_, id_ = (*text.split(":", 2), "", "")[:3]
        if action == "admin" and type_ == "":
            return True
        if action not in ("read", "*"):
            continue
        if type_ == "all" or (type_ == "sessions" and (id_ == "" or id_ in ids)):
            return True
    return False


@given(
    st.lists(st.one_of(scope, st.none(), st.integers(), st.lists(scope)), max_size=6),
    st.sampled_from(IDS),
)
@settings(max_examples=500)
@example(["admin:sessions"], "chat-1")
@example(["read:sessions:"], "chat-1")
@example(["read:all:whatever"], "chat-1")
@example(["read:sessions:a:b"], "a:b")
@example(["admin::whatever"], "chat-1")
def test_grant_follows_the_grammar_of_upstream(scopes: list[object], id_: str) -> None:
    other = "session_x"
    granted = ids.grant(scopes)

    assert granted.covers(id_, other) is can_read(scopes, id_, other)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "read",
        "read:",
        "read:sessions:*",
        "READ:sessions",
        "admin:sessions",
        "admin:all",
        "write:all",
        "read:runs",
        "",
        ":",
        "::",
    ],
)
def test_scope_grants_nothing(text: str) -> None:
    granted = ids.grant([text])

    assert not granted.every
    assert not granted.covers("chat-1", "session_1")
    assert not granted.covers("chat-1")


@pytest.mark.parametrize(
    "text",
    [
        "admin",
        "admin:",
        "admin::",
        "admin::x",
        "read:all",
        "*:all:x",
        "read:sessions",
        "*:sessions:",
    ],
)
def test_scope_grants_every_session(text: str) -> None:
    assert ids.grant([text]) == Grant(every=True, ids=frozenset())


def test_id_is_everything_after_the_second_colon() -> None:
    assert ids.grant(["read:sessions:a:b:c"]).ids == {"a:b:c"}
