"""Session ids: parsing, aliases, and the path upstream."""

from urllib.parse import quote

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bff.errors import Refused
from bff.sessions import ids

some_ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=256)


@given(some_ids)
@example("..%2f")
@example("%2e%2e/")
@example("..;/")
@example("a/../b")
@example("//")
@example("?#%")
def test_path_encodes_any_id_as_one_segment_that_parses_back(id_: str) -> None:
    if id_ in (".", ".."):
        return
    path = ids.path(id_)
    segment = path.removeprefix("/api/v1/sessions/")

    assert segment == quote(id_, safe="")
    assert "/" not in segment
    # The HTTP client sends the path unchanged.
    assert httpx2.URL("http://127.0.0.1:1" + path).raw_path == path.encode()
    assert ids.parse_id(segment.encode()) == id_


@given(st.binary(max_size=300))
def test_parse_id_accepts_or_refuses_any_segment(segment: bytes) -> None:
    try:
        id_ = ids.parse_id(segment)
    except Refused as refused:
        code = refused.refusal.code
    else:
        assert 1 <= len(id_) <= 256
        assert id_ not in (".", "..")
        assert not any(c != "\t" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in id_)
        return
    assert code == "invalid_session_id"


def test_parse_id_decodes_once() -> None:
    assert ids.parse_id(b"%252e") == "%2e"
    assert ids.path("%2e") == "/api/v1/sessions/%252e"


@pytest.mark.parametrize(
    "segment",
    [
        b".",
        b"..",
        b"%2e",
        b"%2E.",
        b"%",
        b"%1",
        b"%g1",
        b"%ff",
        b"%c0%ae",
        b"%ed%a0%80",
        b"%00",
        b"%1f",
        b"%7f",
        b"%c2%80",
        b"a/b",
        b"",
        b"x" * 257,
        b"%C3%BC" * 257,
    ],
)
def test_parse_id_refuses_an_invalid_segment(segment: bytes) -> None:
    with pytest.raises(Refused, match="invalid_session_id"):
        ids.parse_id(segment)


def test_parse_id_bounds_characters_not_bytes() -> None:
    assert ids.parse_id(b"%C3%BC" * 256) == "ü" * 256
    assert ids.parse_id(b"%F0%9F%98%80" * 256) == "\U0001f600" * 256


def test_parse_id_does_not_decode_a_too_long_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "unquote_to_bytes", None)
    with pytest.raises(Refused, match="invalid_session_id"):
        ids.parse_id(b"%41" * 20_000)


@pytest.mark.parametrize(
    ("id_", "named", "expected"),
    [
        ("chat-1", ["session_1"], ("session_1",)),
        ("session_1", ["chat-1", "chat-2"], ("chat-1", "chat-2")),
        ("chat-1", ["chat-2"], ()),
        ("session_1", ["session_2"], ()),
        ("session_1", [], ()),
        ("chat-1", ["chat-2", "session_2"], ("session_2",)),
        ("session_1", ["a%2Fb", "a%2fb", ".", "x" * 257, "a\0b", "good"], ("good",)),
    ],
)
def test_only_ids_of_the_other_form_may_be_an_alias(
    id_: str, named: list[str], expected: tuple[str, ...]
) -> None:
    granted = ids.grant([f"read:sessions:{name}" for name in named])

    assert ids.named_in_other_form(granted, id_) == expected


def test_channel_is_granted_and_covered_by_nothing() -> None:
    granted = ids.grant(["read:sessions:a:channels:b", "read:sessions:a", "*:sessions::channels:"])

    assert granted.ids == {"a"}
    assert granted.named == ("a",)
    assert not ids.covers(granted, "a:channels:b")
    assert not ids.covers(ids.grant(["read:sessions"]), "a:channels:b")
    assert ids.covers(ids.grant(["read:sessions"]), "a:channel:b")


def test_tab_is_the_only_control_character_of_ids() -> None:
    assert ids.parse_id(b"a%09b") == "a\tb"
    legal = [chr(n) for n in (*range(32), *range(127, 160)) if ids.is_id(chr(n))]
    assert legal == ["\t"]


@given(st.text())
def test_only_a_text_that_can_be_a_path_is_an_id(text: str) -> None:
    if ids.is_id(text):
        path = ids.path(text)
        assert ids.parse_id(path.removeprefix("/api/v1/sessions/").encode()) == text


@pytest.mark.parametrize("id_", [".", "..", "../x", "a/..", "a/./b", "..\\x", "a\\.."])
def test_dot_segment_of_an_id_is_recognised(id_: str) -> None:
    assert ids.has_dots(id_)


@pytest.mark.parametrize("id_", ["...", "a..b", "../x".replace("/", "-"), ".a", "a./b", "a/.b"])
def test_dots_within_a_segment_are_allowed(id_: str) -> None:
    assert not ids.has_dots(id_)
