"""`/openapi.json` describes the answers of the service under every policy."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs.api_descriptions import descriptions
from support.clients import SDK, need
from support.described import check, validator
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
    """A gateway per policy, without limits."""
    settings = {f"BFF_{name}": "off" for name in ("RATE_LIMIT", "IP_RATE_LIMIT", "BAD_TOKEN_LIMIT")}
    if request.param == "open":
        path = tmp_path_factory.mktemp("config") / "bff.toml"
        path.write_text(OPEN)
        settings["BFF_CONFIG"] = str(path)
    upstream.app.environments[0].add(session(30, "support", type="chat.support"))
    with Gateway(upstream.port, BFF_UPSTREAM_BUDGET="off", **settings) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("where", "scopes"),
    [
        (["--exclude-path=/api/v1/sessions"], ["read:sessions"]),
        (["--include-path=/api/v1/sessions"], read("chat-1", "support", "nope")),
    ],
    ids=["one", "list"],
)
def test_schemathesis_finds_no_contradiction(
    served: Gateway, tmp_path: Path, where: list[str], scopes: list[str]
) -> None:
    result = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            f"{served.url}/openapi.json",
            f"--header=Authorization: Bearer {served.token(*scopes)}",
            f"--header=Origin: {ORIGIN}",
            "--checks=all",
            "--max-examples=10",
            "--seed=1",
            "--generation-database=none",
            "--no-color",
            *where,
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": SUPPORT},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # schemathesis writes files
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_document_describes_the_bodies_of_answers(served: Gateway) -> None:
    described = http.get(f"{served.url}/openapi.json").json()
    one, list_ = "/api/v1/sessions/{session}", "/api/v1/sessions"
    requests = [
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
    for path, id_, token, status in requests:
        headers = {"authorization": f"Bearer {token}"}
        response = http.get(served.url + path.replace("{session}", id_), headers=headers)
        assert response.status_code == status
        content = described["paths"][path]["get"]["responses"][str(status)]["content"]
        media = response.headers["content-type"].partition(";")[0]
        validator(described, content[media]["schema"]).validate(response.json())


async def test_document_describes_503_of_a_gateway_not_ready(world: World) -> None:
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
    validator(described, schema).validate(response.json())


async def test_document_describes_the_headers_of_answers(world: World) -> None:
    assert await _described_vary(world) == "Authorization, Origin, Accept"


async def test_document_describes_vary_with_the_token_cookie(world: World) -> None:
    await world.start(BFF_TOKEN_COOKIE="__Host-bff-token")

    assert await _described_vary(world) == "Authorization, Origin, Cookie, Sec-Fetch-Site, Accept"


async def _described_vary(world: World) -> str:
    """Hold the headers of an answer of each kind to the document; return its `Vary`."""
    world.reload(BFF_RATE_LIMIT="9/minute")
    document = (await world.browser.get("/openapi.json")).json()
    one, list_ = "/api/v1/sessions/{session}", "/api/v1/sessions"
    token = world.token(*read("chat-1", "chat-2", "nope"))

    async def ask(path: str, id_: str = "", method: str = "GET", **headers: str) -> Any:
        sent = {"authorization": f"Bearer {token}", "origin": ORIGIN}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = path.replace("{session}", id_)
        return path.partition("?")[0], await world.browser.request(method, url, headers=sent)

    loaded, listed = await ask(one, "chat-1"), await ask(list_)
    world.answer(500, {})
    world.clock.advance(70)
    results = [
        loaded,
        listed,
        await ask("/healthz"),
        await ask(list_ + "?x=1"),
        await ask(one, "chat-1", authorization="Bearer x"),
        await ask(one, "chat-closed"),
        await ask(one, "chat-1"),
    ]
    world.answer(0)
    results += [
        await ask(one, "nope"),
        await ask(one, "chat-1", method="HEAD"),
        await ask(one, "chat-1", if_none_match=loaded[1].headers["etag"]),
        await ask(list_, if_none_match=listed[1].headers["etag"]),
        await ask(list_, if_none_match="*"),
    ]
    while results[-1][1].status_code != 429:
        results.append(await ask(one, "chat-1"))

    statuses = {response.status_code for _, response in results}
    assert statuses == {200, 304, 400, 401, 403, 404, 429, 502}
    assert {r.status_code for _, r in results if "server-timing" in r.headers} == {200, 304}
    for path, response in results:
        operation = document["paths"][path]["get"]
        if response.status_code == 304:
            assert response.headers["etag"]
        else:
            check(
                document,
                operation,
                response.status_code,
                response.headers.items(),
                response.content,
            )
    (vary,) = {response.headers["vary"] for _, response in results}
    return vary


def test_description_passes_the_recommended_rules(tmp_path: Path) -> None:
    """Redocly's; `make api-lint` checks Spectral's too, whose rules the next test holds."""
    files = []
    for name, described in descriptions().items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(described))
    redocly = SDK / "node_modules/@redocly/cli/bin/cli.js"
    command = [need("node"), redocly, "lint", "--extends=recommended", "--format=json", *files]
    environ = os.environ | {"REDOCLY_TELEMETRY": "off", "CI": "true"}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env=environ, cwd=tmp_path
    )

    totals = re.findall(r'"(?:errors|warnings|ignored)": (\d+)', done.stdout)
    assert totals == ["0"] * 3 * len(files), done.stdout


@pytest.mark.parametrize("name", descriptions())
def test_each_operation_has_an_id_a_tag_and_texts(name: str) -> None:
    described = descriptions()[name]
    operations = [one for path in described["paths"].values() for one in path.values()]
    tags = {tag["name"] for tag in described["tags"]}

    assert len({one["operationId"] for one in operations}) == len(operations)
    assert {tag for one in operations for tag in one["tags"]} == tags
    assert all(one["summary"] and one["description"] for one in operations)
    assert {method for path in described["paths"].values() for method in path} <= {"get", "post"}
    assert described["servers"]
    assert described["info"]["license"]["identifier"] == "Apache-2.0"
    chats = {path for path in described["paths"] if path.startswith("/realtime/")}
    assert len(chats) == (0 if name in ("closed", "live") else 2)
    schemas = described["components"]["schemas"]
    for example in schemas["Session"].get("examples", []):
        validator(described, schemas["Session"]).validate(example)


@settings(max_examples=25, deadline=None)
@given(policy=policies, some=st.lists(documents, min_size=1, max_size=3))
def test_document_describes_bodies_under_any_policy(
    policy: dict[str, str], some: list[dict[str, object]]
) -> None:
    bodies = asyncio.run(answers(policy, some))
    schemas = bodies["openapi"]["components"]["schemas"]

    for body in bodies["retrieve"]:
        validator(bodies["openapi"], schemas["Session"]).validate(body)
    for body in bodies["list"]:
        validator(bodies["openapi"], schemas["Sessions"]).validate(body)
    named = {*policy["BFF_EXPOSE_FIELDS"].split(",")}
    never_absent = {"externalId", "closedAt", "closedReason", "expiresAt", "metadata", "tags"}
    described = schemas["Session"]["properties"]
    assert {*described} == named | never_absent
    hidden = [name for name in never_absent - named if name not in ("metadata", "tags")]
    assert all(described[name]["type"] == "null" for name in hidden)
