"""What `/openapi.json` says is what the service does, whatever the policy."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import answers, documents, policies
from support.world import (
    FRIENDLY,
    ORIGIN,
    ROOT_KEY,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.demo.upstream import Answer, Seen, session

SUPPORT = str(Path(__file__).parent.parent / "support")

OPEN = """
BFF_EXPOSE_METADATA = "*"
BFF_EXPOSE_TAGS = "*"
[policies."chat.support"]
BFF_EXPOSE_METADATA = ["plan"]
BFF_EXPOSE_FIELDS = ["id", "type", "taskIdentifier", "createdAt", "updatedAt", "triggerConfig"]
"""


@pytest.fixture(scope="module", params=["closed", "open"])
def served(
    request: pytest.FixtureRequest, upstream: running_upstream, tmp_path_factory: Any
) -> Iterator[Gateway]:
    """A gateway per policy, with no limit in the way."""
    told = {f"BFF_{name}": "off" for name in ("RATE_LIMIT", "IP_RATE_LIMIT", "BAD_TOKEN_LIMIT")}
    if request.param == "open":
        path = tmp_path_factory.mktemp("config") / "bff.toml"
        path.write_text(OPEN)
        told["BFF_CONFIG"] = str(path)
    upstream.app.environments[0].add(session(30, "support", type="chat.support"))
    with Gateway(upstream.port, BFF_UPSTREAM_BUDGET="off", **told) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("where", "scopes"),
    [
        (["--exclude-path=/api/v1/sessions"], ["read:sessions"]),
        (["--include-path=/api/v1/sessions"], read("chat-1", "support", "nope")),
    ],
    ids=["one", "list"],
)
def test_schemathesis_finds_nothing(
    served: Gateway, tmp_path: Path, where: list[str], scopes: list[str]
) -> None:
    found = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            f"{served.url}/openapi.json",
            f"--header=Authorization: Bearer {served.token(*scopes)}",
            f"--header=Origin: {ORIGIN}",
            "--checks=all",
            "--max-examples=25",
            "--seed=1",
            "--generation-database=none",
            "--no-color",
            *where,
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": SUPPORT},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # it keeps notes
    )

    assert found.returncode == 0, found.stdout + found.stderr


def test_refusals_are_as_described(served: Gateway) -> None:
    described = http.get(f"{served.url}/openapi.json").json()
    one, list_ = "/api/v1/sessions/{session}", "/api/v1/sessions"
    asked = [
        (one, "chat-1", served.token(*read("chat-1")), 200),
        (one, FRIENDLY["chat-1"], served.token(*read("chat-1")), 200),
        (one, "support", served.token(*read("support")), 200),
        (one, "chat-1", "garbage", 401),
        (one, "chat-1", served.token(*read("chat-2")), 403),
        (one, "nope", served.token(*read("nope")), 404),
        (one, "%zz", served.token(*read("nope")), 400),
        (list_, "", served.token(*read("chat-1", "support")), 200),
        (list_, "", served.token("read:sessions"), 403),
    ]
    for path, id_, token, status in asked:
        headers = {"authorization": f"Bearer {token}"}
        response = http.get(served.url + path.replace("{session}", id_), headers=headers)
        assert response.status_code == status
        content = described["paths"][path]["get"]["responses"][str(status)]["content"]
        media = response.headers["content-type"].partition(";")[0]
        _validator(described, content[media]["schema"]).validate(response.json())


async def test_what_a_gateway_says_that_does_not_know_its_environment_yet_is_described(
    world: World,
) -> None:
    async def down(_: Seen) -> Answer:
        return Answer(500, {})

    world.upstream.override = down
    await world.start(BFF_SIGNING_KEYS=ROOT_KEY, BFF_ENVIRONMENT_ID=None)
    described = (await world.browser.get("/openapi.json")).json()

    response = await world.get(
        "chat-1", token=sign(claims(world.clock.wall, *read("chat-1")), ROOT_KEY)
    )

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    path = described["paths"]["/api/v1/sessions/{session}"]
    schema = path["get"]["responses"]["503"]["content"]["application/json"]["schema"]
    _validator(described, schema).validate(response.json())


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    whole = {**schema, "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


@settings(max_examples=60, deadline=None)
@given(policy=policies, some=st.lists(documents, min_size=1, max_size=3))
def test_every_answer_is_as_described(
    policy: dict[str, str], some: list[dict[str, object]]
) -> None:
    told = asyncio.run(answers(policy, some))
    schemas = told["openapi"]["components"]["schemas"]

    for body in told["retrieve"]:
        _validator(told["openapi"], schemas["Session"]).validate(body)
    for body in told["list"]:
        _validator(told["openapi"], schemas["Sessions"]).validate(body)
    named = {*policy["BFF_EXPOSE_FIELDS"].split(",")}
    never_absent = {"externalId", "closedAt", "closedReason", "expiresAt", "metadata", "tags"}
    described = schemas["Session"]["properties"]
    assert {*described} == named | never_absent
    hidden = [name for name in never_absent - named if name not in ("metadata", "tags")]
    assert all(described[name]["type"] == "null" for name in hidden)
