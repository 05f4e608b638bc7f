"""The official npm packages, unmodified, on Node, against `bff serve`."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clients import Front, Node
from support.policies import answers, documents, policies
from support.world import FRIENDLY, Gateway, read, running_upstream

from bff.demo.upstream import Answer, Seen, session

ODD = ["a/b: c%?#ü", "../../admin", "chat 1+2", "日本/語", "healthz", "%2e%2e", "a:b:c"]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture
def front(gateway: Gateway) -> Iterator[Front]:
    with Front(gateway.port) as front:
        yield front


def test_retrieve_works_with_both_ids_below_a_prefix(
    node: Node, front: Front, gateway: Gateway
) -> None:
    token = gateway.token(*read("chat-1"))

    external = node.call("retrieve", front.url, token, id="chat-1")
    friendly = node.call("retrieve", front.url + "/", token, id=FRIENDLY["chat-1"])

    assert external["value"] == friendly["value"]
    assert external["value"]["id"] == FRIENDLY["chat-1"]
    assert external["value"]["createdAt"] == session(1)["createdAt"]
    assert "triggerConfig" not in external["value"]
    assert front.seen == [
        "GET /trigger/api/v1/sessions/chat-1 HTTP/1.1",
        f"GET /trigger/api/v1/sessions/{FRIENDLY['chat-1']} HTTP/1.1",
    ]


@pytest.mark.parametrize("id_", ODD)
def test_retrieve_works_with_any_id(
    node: Node, front: Front, gateway: Gateway, upstream: running_upstream, id_: str
) -> None:
    environment = upstream.app.environments[0]
    if environment.find(id_) is None:
        environment.add(session(100 + ODD.index(id_), id_))

    answer = node.call("retrieve", front.url, gateway.token(*read(id_)), id=id_)

    assert answer["value"]["externalId"] == id_


@pytest.mark.parametrize(
    ("call", "kind", "status", "code"),
    [
        ({"token": "garbage"}, "AuthenticationError", 401, "token_invalid"),
        ({"exp": 1}, "AuthenticationError", 401, "token_expired"),
        ({"scopes": ["read:sessions:chat-2"]}, "PermissionDeniedError", 403, "unauthorized"),
        ({"id": "nope"}, "NotFoundError", 404, "not_found"),
        ({"id": ".."}, "BadRequestError", 400, "invalid_session_id"),
        ({"call": "update"}, "ApiError", 405, "method_not_allowed"),
        ({"call": "close"}, "ApiError", 410, "not_served"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusal_is_an_sdk_error_after_one_attempt(
    node: Node, front: Front, gateway: Gateway, call: dict, kind: str, status: int, code: str
) -> None:
    id_ = call.get("id", "chat-1")
    token = gateway.token(
        *call.get("scopes", read(id_)), **{k: call[k] for k in ("exp",) if k in call}
    )

    answer = node.call(call.get("call", "retrieve"), front.url, call.get("token", token), id=id_)

    if id_ == "..":  # the URL class resolves dots, so the request is for another route
        status, code, kind = 410, "not_served", "ApiError"
    assert (answer["kind"], answer["status"], answer["code"]) == (kind, status, code)
    assert isinstance(answer["error"], str)
    assert answer["requestId"]
    assert len(front.seen) == 1
    if status == 403:
        assert (answer["param"], answer["type"]) == ("access_token", "authorization")


def test_sdk_waits_out_a_429_until_the_reset(node: Node, upstream: running_upstream) -> None:
    with Gateway(upstream.port, BFF_RATE_LIMIT="1/second") as gateway, Front(gateway.port) as front:
        token = gateway.token(*read("chat-1"))
        answers = []
        while len(front.seen) <= len(answers) or len(answers) < 3:  # until one was refused
            answers.append(node.call("retrieve", front.url, token, id="chat-1"))

    assert {answer["value"]["externalId"] for answer in answers} == {"chat-1"}
    assert len(front.seen) <= 2 * len(answers), "retried after the reset, not before it"
    assert max(answer["seconds"] for answer in answers) < 30, "the window is a second"


def test_sdk_raises_a_429_when_retries_are_off(node: Node, upstream: running_upstream) -> None:
    with Gateway(upstream.port, BFF_RATE_LIMIT="1/minute") as gateway, Front(gateway.port) as front:
        token, once = gateway.token(*read("chat-1")), {"maxAttempts": 1}
        node.call("retrieve", front.url, token, once, id="chat-1")
        answer = node.call("retrieve", front.url, token, once, id="chat-1")

    assert (answer["kind"], answer["status"]) == ("RateLimitError", 429)
    assert answer["code"] == "rate_limited"
    assert answer["error"].startswith("Rate limit exceeded: 0/1 requests remaining")
    assert len(front.seen) == 2


def test_sdk_does_not_retry_an_upstream_failure(node: Node) -> None:
    with (
        running_upstream() as upstream,
        Gateway(upstream.port, BFF_UPSTREAM_BUDGET="1/minute") as gateway,
        Front(gateway.port) as front,
    ):
        upstream.app.override = _down
        token = gateway.token(*read("chat-1", "chat-2"))
        answers = [node.call("retrieve", front.url, token, id=id_) for id_ in ("chat-1", "chat-2")]

    shown = [(answer["kind"], answer["status"], answer["code"]) for answer in answers]
    assert shown == [
        ("InternalServerError", 502, "upstream_unavailable"),
        ("InternalServerError", 503, "over_budget"),
    ]
    assert len(front.seen) == 2
    assert len(upstream.seen) == 1


async def _down(_: Seen) -> Answer:
    return Answer(500, {"error": "down"})


# -- the chat list


def test_sdk_lists_and_iterates_all_pages(
    node: Node, front: Front, gateway: Gateway, upstream: running_upstream
) -> None:
    names = [f"listed-{number}" for number in range(45)]
    for number, name in enumerate(names, start=200):
        upstream.app.environments[0].add(session(number, name))
    token = gateway.token(*read(*names, "nope"))

    whole = node.call("iterate", front.url, token)["value"]
    tens = node.call("iterate", front.url, token, options={"limit": 10})["value"]
    first = node.call("list", front.url, token, options={"limit": 2})["value"]
    before = node.call("before", front.url, token, options={"limit": 2})["value"]

    assert whole == tens == names
    assert [one["externalId"] for one in first["data"]] == names[:2]
    assert [one["externalId"] for one in before] == names[:2]
    assert len(front.seen) == 3 + 5 + 1 + 3
    assert front.seen[0] == "GET /trigger/api/v1/sessions HTTP/1.1"


def test_two_cursors_are_refused_as_upstream_does(
    node: Node, front: Front, gateway: Gateway
) -> None:
    """The SDK sends both cursors: the same request would have two meanings."""
    token = gateway.token(*read("chat-1", "chat-2", "chat-closed"))

    answer = node.call("back", front.url, token, options={"limit": 1})

    assert (answer["kind"], answer["code"]) == ("BadRequestError", "bad_request")
    assert "exclude each other" in answer["error"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"status": "CLOSED"}, ["chat-closed"]),
        ({"status": ["ACTIVE", "CLOSED"]}, ["chat-1", "chat-closed"]),
        (
            {"type": ["chat.agent", "chat.other"], "taskIdentifier": "my-chat"},
            ["chat-1", "chat-closed"],
        ),
        ({"externalId": "chat-1"}, ["chat-1"]),
        ({"period": "1h"}, []),
        ({"from": 0, "to": 1767323046000}, ["chat-1", "chat-closed"]),
    ],
    ids=str,
)
def test_sdk_filters_select_sessions(
    node: Node, front: Front, gateway: Gateway, options: dict, names: list[str]
) -> None:
    token = gateway.token(*read("chat-1", "chat-closed"))

    assert node.call("iterate", front.url, token, options=options)["value"] == names


def test_list_refusal_is_an_sdk_error(node: Node, front: Front, gateway: Gateway) -> None:
    tags = node.call("list", front.url, gateway.token(*read("chat-1")), options={"tag": "org:acme"})
    every = node.call("list", front.url, gateway.token("read:sessions"))

    assert (tags["kind"], tags["code"]) == ("BadRequestError", "bad_request")
    assert (every["kind"], every["code"]) == ("PermissionDeniedError", "unauthorized")
    assert "read:sessions:<id>" in every["error"]
    assert len(front.seen) == 2


# -- the SDK's schema parses every answer under any policy


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(policy=policies, documents=st.lists(documents, min_size=1, max_size=3))
def test_sdk_parses_every_answer_under_any_policy(
    node: Node, policy: dict[str, str], documents: list[dict[str, object]]
) -> None:
    bodies = asyncio.run(answers(policy, documents))

    bodies.pop("openapi")
    for schema, some in bodies.items():
        for body, parsed in zip(
            some, node.call("parse", schema=schema, bodies=some)["value"], strict=True
        ):
            assert "data" in parsed, (body, parsed)
