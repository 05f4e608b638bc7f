"""Session documents: which answers of upstream are valid."""

import json

import pytest

from bff.demo.upstream import session
from bff.errors import UpstreamInvalid
from bff.sessions.document import parse_document


def made(**changes: object) -> dict[str, object]:
    return session(1, "chat-1", **changes)


def parse(body: object, requested_id: str = "chat-1") -> dict[str, object]:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_document(encoded, requested_id=requested_id)


@pytest.mark.parametrize("requested_id", ["chat-1", made()["id"]])
def test_document_is_valid_under_either_id(requested_id: str) -> None:
    assert parse(made(), requested_id) == made()


@pytest.mark.parametrize("absent", ["triggerConfig", "currentRunId"])
def test_document_may_lack_a_field_that_the_sdk_does_not_need(absent: str) -> None:
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
def test_parse_document_rejects_an_invalid_document(body: object) -> None:
    with pytest.raises(UpstreamInvalid):
        parse(body)
