"""Requests through the whole gateway: the browser's answer, and the calls that upstream saw."""

import json
import random
from urllib.parse import quote

import pytest
from support.hostile import ask, raw_request
from support.world import (
    FRIENDLY,
    OFF,
    ORIGIN,
    PATH,
    SECRET_KEY,
    World,
    read,
)

from bff.demo.upstream import can_read, session


async def test_browser_gets_the_session_without_hidden_fields(world: World) -> None:
    response = await world.get("chat-1")

    assert response.status_code == 200
    assert response.json() == {
        "id": FRIENDLY["chat-1"],
        "externalId": "chat-1",
        "type": "chat.agent",
        "taskIdentifier": "my-chat",
        "currentRunId": session(1)["currentRunId"],
        "closedAt": None,
        "closedReason": None,
        "expiresAt": None,
        "createdAt": "2026-01-02T03:04:05.678Z",
        "updatedAt": "2026-01-02T03:04:06.789Z",
        "metadata": None,
        "tags": [],
    }


async def test_upstream_sees_one_segment_and_the_secret_key(
    world: World,
) -> None:
    await world.get("a/b: c%?#ü", cookie="a=1", traceparent="00-1", x_custom="sentinel")

    (seen,) = world.upstream.seen
    assert seen.method == "GET"
    assert seen.raw_path == PATH + quote("a/b: c%?#ü", safe="")
    assert seen.query == ""
    assert dict(seen.headers) == {
        "host": "127.0.0.1:1",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": dict(seen.headers)["user-agent"],
        "authorization": f"Bearer {SECRET_KEY}",
    }


@pytest.mark.parametrize("scope_form", ["external", "friendly"])
@pytest.mark.parametrize("asked_form", ["external", "friendly"])
async def test_scope_on_either_id_grants_both(
    world: World, scope_form: str, asked_form: str
) -> None:
    forms = {"external": "chat-1", "friendly": FRIENDLY["chat-1"]}

    response = await world.get(forms[asked_form], *read(forms[scope_form]))

    assert response.status_code == 200
    assert response.json()["externalId"] == "chat-1"


@pytest.mark.parametrize(
    "scopes",
    [[], ["read:runs"], ["write:sessions:chat-1"], ["admin:sessions"], ["*"], read("chat-2")],
    ids=repr,
)
async def test_id_that_no_scope_covers_is_refused_at_once(world: World, scopes: list[str]) -> None:
    response = await world.get("chat-1", token=world.token(*scopes))

    assert response.status_code == 403
    assert response.json() == {
        "error": "Unauthorized",
        "code": "unauthorized",
        "param": "access_token",
        "type": "authorization",
    }
    assert world.calls == 0


async def test_random_scope_sets_decide_as_upstream_does(world: World) -> None:
    """The pretend upstream answers the same token itself; it has a grammar of its own."""
    await world.start(**OFF)
    chooser = random.Random(7)
    documents = list(world.upstream.environments[0].sessions.values())
    ids = [id_ for d in documents for id_ in (d["id"], d["externalId"]) if id_]
    actions, types = ["read", "write", "admin", "*", ""], ["sessions", "all", "runs", ""]
    granted = 0

    def scope() -> object:
        parts = [chooser.choice(actions), chooser.choice(types), chooser.choice([*ids, "", "x"])]
        text = ":".join(parts[: chooser.choice([1, 2, 3, 3, 3])])
        return chooser.choice([text] * 20 + ["admin", "read:sessions", None, 7])

    for _ in range(3000):
        scopes = [scope() for _ in range(chooser.randrange(5))]
        document, asked = chooser.choice(
            [(d, id_) for d in documents for id_ in (d["id"], d["externalId"]) if id_]
        )
        texts = tuple(text for text in scopes if isinstance(text, str))
        expected = can_read(texts, document)
        granted += expected

        response = await ask(world, quote(asked, safe=""), world.token(*scopes))

        assert (response.status == 200) is expected, (asked, scopes)
        assert response.status in (200, 403)
    assert 300 < granted < 2700, "both happen often"


async def test_missing_session_gets_404_for_a_named_id(world: World) -> None:
    named = await world.get("nope")
    type_wide = await world.get("nope", "read:sessions")

    assert [named.status_code, type_wide.status_code] == [404, 404]
    assert named.json() == {"error": "Not found", "code": "not_found"}
    assert named.headers["x-should-retry"] == "false"
    assert world.calls == 1, "the 404 is remembered for a second"
    world.clock.advance(1)
    world.upstream.environments[0].add(session(9, "nope"))
    assert (await world.get("nope")).status_code == 200


@pytest.mark.parametrize(
    "segment",
    [
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%",
        "%zz",
        "%ff",
        "%c0%af",
        "%00",
        "%0a",
        "%0d%0a",
        "",
        "x" * 257,
    ],
)
async def test_invalid_session_id_gets_400_without_a_load(world: World, segment: str) -> None:
    headers = {"authorization": f"Bearer {world.token('read:sessions')}", "origin": ORIGIN}
    app = world.service.browser_app
    messages = await raw_request(app, PATH.encode() + segment.encode(), headers)

    assert messages[0]["status"] == 400
    assert json.loads(messages[1]["body"])["code"] == "invalid_session_id"
    assert world.calls == 0
