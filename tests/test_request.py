"""The head of a request, as the gateway reads it."""

import pytest

from bff.request import HeaderFields, RequestHead

BEARER = (b"authorization", b"Bearer abc")


def test_other_headers_are_not_kept() -> None:
    fields = HeaderFields.read([(b"x-trigger-branch", b"x"), (b"cache-control", b"max-age=0")])

    assert fields == HeaderFields()


def test_token_is_read_from_the_usual_header() -> None:
    assert HeaderFields.read([BEARER]).token == b"abc"
    assert HeaderFields.read([(b"authorization", b"bearer abc")]).token is None


@pytest.mark.parametrize("header", [BEARER, (b"origin", b"https://a.example")])
def test_header_that_may_stand_once_is_ambiguous_twice(header: tuple[bytes, bytes]) -> None:
    assert not HeaderFields.read([header]).ambiguous
    assert HeaderFields.read([header, header]).ambiguous


def test_repeated_sec_fetch_site_counts_as_absent() -> None:
    once = (b"sec-fetch-site", b"same-origin")

    assert HeaderFields.read([once]).fetch_site == b"same-origin"
    assert HeaderFields.read([once, once]).fetch_site == b""


def test_forwarded_addresses_and_cookies_keep_their_order() -> None:
    headers = [(b"x-forwarded-for", b"1"), (b"cookie", b"a=1"), (b"x-forwarded-for", b"2")]
    fields = HeaderFields.read([*headers, (b"cookie", b"b=2")])

    assert tuple(fields.forwarded) == (b"1", b"2")
    assert tuple(fields.cookies) == (b"a=1", b"b=2")


def test_plain_path_gives_the_session_id_at_once() -> None:
    def id_of(path: bytes) -> str | None:
        return RequestHead.read("GET", path, b"", [], "192.0.2.1").id

    assert id_of(b"/api/v1/sessions/chat-1") == "chat-1"
    assert id_of(b"/api/v1/sessions/a%2Fb") is None, "it has to be decoded"
    assert id_of(b"/api/v1/sessions") is None
