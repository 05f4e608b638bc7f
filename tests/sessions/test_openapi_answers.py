"""Every error of the description has a name, and an example that its schema allows."""

from typing import Any

import jsonschema_rs
import pytest
from programs.api_descriptions import descriptions

from bff.errors import REFUSALS
from bff.sessions import openapi_answers

DESCRIPTIONS = descriptions()


@pytest.mark.parametrize("described", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_each_error_has_a_named_schema_and_an_example(described: dict[str, Any]) -> None:
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    names = set()
    for operation in operations:
        for status, answer in operation["responses"].items():
            if int(status) < 400:
                continue
            (media,) = answer["content"].values()
            reference = media["schema"]["$ref"]
            names.add(reference.rpartition("/")[2])
            schema = {"$ref": reference, "components": described["components"]}
            validator = jsonschema_rs.Draft202012Validator(schema)
            assert media["examples"]
            for code, example in media["examples"].items():
                validator.validate(example["value"])
                assert example["value"]["code"] == code
                assert REFUSALS[code].status == int(status)

    assert {"TokenError", "ScopeError", "RateLimited", "Unavailable"} <= names
    assert names <= described["components"]["schemas"].keys()


def test_refusals_are_described_by_status_in_their_order() -> None:
    described = openapi_answers.refusals(["rate_limited", "unauthorized", "token_invalid"])

    assert list(described) == ["401", "403", "429"]
    assert [*described["429"]["content"]] == ["application/problem+json"]
    assert "WWW-Authenticate" in described["401"]["headers"]
