"""Ids and documents: what is let in, and what is asked upstream."""

import json
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bff.demo.upstream import session
from bff.errors import Refused, UpstreamInvalid
from bff.sessions import ids
from bff.sessions.document import parse_document

some_ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=256)


@given(some_ids)
@example("..%2f")
@example("%2e%2e/")
@example("..;/")
@example("a/../b")
@example("//")
@example("?#%")
def test_any_id_makes_one_encoded_segment_and_comes_back(id_: str) -> None:
    if id_ in (".", ".."):
        return
    path = ids.path(id_)
    segment = path.removeprefix("/api/v1/sessions/")

    assert segment == quote(id_, safe="")
    assert "/" not in segment
    # The HTTP client sends it as it is.
    assert httpx2.URL("http://127.0.0.1:1" + path).raw_path == path.encode()
    assert ids.parse_id(segment.encode()) == id_


@given(st.binary(max_size=300))
def test_any_segment_is_an_id_or_refused(segment: bytes) -> None:
    try:
        id_ = ids.parse_id(segment)
    except Refused as refused:
        code = refused.refusal.code
    else:
        assert 1 <= len(id_) <= 256
        assert id_ not in (".", "..")
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in id_)
        return
    assert code == "invalid_session_id"


def test_decoded_once_only() -> None:
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
def test_refused(segment: bytes) -> None:
    with pytest.raises(Refused, match="invalid_session_id"):
        ids.parse_id(segment)


def test_the_longest_id_is_counted_in_characters() -> None:
    assert ids.parse_id(b"%C3%BC" * 256) == "ü" * 256
    assert ids.parse_id(b"%F0%9F%98%80" * 256) == "\U0001f600" * 256


def test_what_is_too_long_however_it_reads_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "unquote_to_bytes", None)
    with pytest.raises(Refused, match="invalid_session_id"):
        ids.parse_id(b"%41" * 20_000)


@pytest.mark.parametrize(
    ("id_", "named", "expected"),
    [
        ("chat-1", ["session_1"], True),
        ("session_1", ["chat-1"], True),
        ("chat-1", ["chat-2"], False),
        ("session_1", ["session_2"], False),
        ("session_1", [], False),
        ("chat-1", ["chat-2", "session_2"], True),
    ],
)
def test_only_the_other_form_may_be_an_alias(id_: str, named: list[str], expected: bool) -> None:
    granted = ids.grant([f"read:sessions:{name}" for name in named])

    assert ids.may_be_alias(id_, granted) is expected


def made(**changes: object) -> dict[str, object]:
    return session(1, "chat-1", **changes)


def parse(body: object, asked: str = "chat-1") -> dict[str, object]:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_document(encoded, asked=asked)


@pytest.mark.parametrize("asked", ["chat-1", made()["id"]])
def test_a_document_is_read_under_either_id(asked: str) -> None:
    assert parse(made(), asked) == made()


@pytest.mark.parametrize("absent", ["triggerConfig", "currentRunId"])
def test_what_the_sdk_lets_be_absent_may_be_absent(absent: str) -> None:
    body = made()
    del body[absent]

    assert absent not in parse(body)


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"<html>",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"id": 1',
        json.dumps(made()).replace("chat-1", 'chat-1", "externalId": "chat-2').encode(),
        json.dumps(made(metadata={"n": float("nan")})).encode(),
        json.dumps(made(metadata={"n": "BIG"})).replace('"BIG"', "1" * 5000).encode(),
        made(metadata={"deep": nested(80)}),
        made(id="run_1"),
        made(externalId="session_other"),
        made(externalId="chat-2"),
        made(externalId=7),
        made(type=None),
        made(tags=None),
        made(tags=[1]),
        made(tags="a"),
        made(metadata="text"),
        made(metadata=[]),
        made(triggerConfig=None),
        made(currentRunId=1),
        made(closedAt="yesterday"),
        made(closedAt=1),
        made(createdAt=None),
        made(updatedAt="2026-02-30T00:00:00.000Z"),
        made(createdAt="2026-01-02"),
        *(
            {k: v for k, v in made().items() if k != name}
            for name in made()
            if name not in ("triggerConfig", "currentRunId")
        ),
    ],
)
def test_what_is_no_session_document_is_refused(body: object) -> None:
    with pytest.raises(UpstreamInvalid):
        parse(body)
