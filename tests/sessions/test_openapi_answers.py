"""Every error of the description has a name, and an example that its schema allows."""

import json
from typing import Any

import pytest
from programs.api_descriptions import descriptions
from support.described import check, validator

from bff.errors import REFUSALS, Refusal
from bff.gateway.chat_messages import read_answer
from bff.limits.rate import UNLIMITED_WINDOW, Limiter, Window
from bff.response import ResponseBuilder
from bff.sessions import openapi, openapi_answers
from bff.upstream.connection import Answer

DESCRIPTIONS = descriptions()


@pytest.mark.parametrize("described", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_each_error_has_a_named_schema_and_an_example(described: dict[str, Any]) -> None:
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    names = set()
    for operation in operations:
        for status, answer in operation["responses"].items():
            if int(status) < 400:
                continue
            for media in answer["content"].values():
                names.add(media["schema"]["$ref"].rpartition("/")[2])
                assert media["examples"]
                for code, example in media["examples"].items():
                    validator(described, media["schema"]).validate(example["value"])
                    assert example["value"]["code"] == code
                    closed = (status, code) == ("400", "session_closed")  # servers before 4.8
                    assert REFUSALS[code].status == int(status) or closed

    assert {"TokenError", "ScopeError", "RateLimited", "Unavailable"} <= names
    assert names <= described["components"]["schemas"].keys()


def test_refusals_are_described_by_status_in_their_order() -> None:
    described = openapi_answers.refusals(["rate_limited", "unauthorized", "token_invalid"])

    assert list(described) == ["401", "403", "429"]
    assert [*described["429"]["content"]] == ["application/problem+json"]
    assert "WWW-Authenticate" in described["401"]["headers"]


LIMITED = Window(Limiter("caller", 5, 60.0), "ann", 60.0, leased=False)
UNDESCRIBED = {"method_not_allowed": 405, "not_served": 410}
"""Codes of other methods and other paths: the text of the description tells of them."""


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_each_error_is_sent_as_it_is_described(name: str) -> None:
    """Every code of every route, whether a limit counts the request or not."""
    described, seen = DESCRIPTIONS[name], set()
    builder = ResponseBuilder(
        [], cookie=name == "types", live="LiveEvent" in described["components"]["schemas"]
    )
    for path in described["paths"].values():
        for operation in path.values():
            answers = operation["responses"].items()
            contents = [(s, c) for s, a in answers if int(s) >= 400 for c in a["content"].values()]
            codes = {(code, int(status)) for status, c in contents for code in c["examples"]}
            for code, status in codes - {("session_closed", 400)}:
                for window in (UNLIMITED_WINDOW, LIMITED):
                    if window is UNLIMITED_WINDOW and code == "rate_limited":
                        continue  # a limit that is off refuses nothing
                    sent = builder.refusal(
                        Refusal(code, retry_after=2.0), window=window, origin=None, request_id=b"r"
                    )
                    assert sent.status == status
                    lines = [(n.decode(), v.decode()) for n, v in sent.headers()]
                    check(described, operation, sent.status, lines, sent.body)
            seen |= {code for code, _ in codes}

    chat = openapi.CHAT_OUT in described["paths"]
    unserved = set(UNDESCRIBED) | (set() if chat else {*openapi_answers.OF_CHATS})
    assert seen | {"too_many_streams"} == REFUSALS.keys() - unserved
    assert {code: REFUSALS[code].status for code in UNDESCRIBED} == UNDESCRIBED


@pytest.mark.parametrize("status", [400, 409, 413])
def test_refusal_by_upstream_is_sent_as_it_is_described(status: int) -> None:
    described = DESCRIPTIONS["chats"]
    error = "Cannot append to a closed session" if status == 400 else "no"
    body = json.dumps({"error": error, "closedReason": "done"}).encode()
    answer = read_answer(Answer(status, {}, body), shows_reason=True)

    sent = ResponseBuilder([], cookie=False, live=True).json(
        answer.status, json.dumps(answer.body).encode(), b"", origin=None, request_id=b"r"
    )

    lines = [(name.decode(), value.decode()) for name, value in sent.headers()]
    check(described, described["paths"][openapi.CHAT_IN]["post"], status, lines, sent.body)
