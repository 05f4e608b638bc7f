"""The description of event streams holds for the bytes that the gateway sends."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from programs.api_descriptions import descriptions
from support.chats import BOTH, CHAT, append, batch, message, out, streams
from support.described import check, check_stream, validator
from support.listening import LIST, change, listen, look, settle
from support.world import OFF, PATH, World, read

from bff import metrics
from bff.chat.records import ERROR
from bff.live import events
from bff.sessions import openapi
from bff.sessions.openapi_answers import object_of
from bff.sessions.openapi_streams import live_schemas

FRONTEND = (Path(__file__).parents[2] / "docs/FRONTEND.md").read_text()
ONE = PATH + "{session}"


async def described(world: World) -> dict[str, Any]:
    document: dict[str, Any] = (await world.browser.get("/openapi.json")).json()
    return document


def schemas(document: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = document["components"]["schemas"]
    return named


@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize("metadata", ["", "plan"])
async def test_events_of_a_list_are_described(world: World, answering: bool, metadata: str) -> None:
    exposed = {"BFF_EXPOSE_ANSWERING": str(answering).lower(), "BFF_EXPOSE_METADATA": metadata}
    await world.start(**CHAT, **exposed)
    streams(world, x_session_settled="true")
    document = await described(world)
    operation = document["paths"][LIST]["get"]
    listening = await listen(world, None, *read("chat-1", "nope"))
    await look(world)
    change(world, "chat-1", taskIdentifier="another")
    await look(world, 2.1)
    world.upstream.environments[0].sessions.clear()
    await look(world, 60)
    world.reload(BFF_LIVE="false", **exposed)
    for _ in world.service.gateway.stream_checks.check():
        pass
    await settle(world)

    text = listening.received.decode()
    seen = check_stream(document, operation, text)
    assert seen[0] == "sessions"
    assert {*seen} == {"sessions", "session", "gone", "end"}
    assert ('"answering":false' in text) is answering
    assert ("LiveSession" in schemas(document)) is answering
    lines = [(name.decode(), value.decode()) for name, value in listening.response.headers()]
    check_headers(document, operation, lines)


def check_headers(
    document: dict[str, Any], operation: dict[str, Any], lines: list[tuple[str, str]]
) -> None:
    assert ("x-accel-buffering", "no") in lines
    check(document, operation, 200, lines, b"")


async def test_only_events_have_answering(world: World) -> None:
    await world.start(**CHAT, BFF_EXPOSE_ANSWERING="true")
    document = await described(world)
    polled = (await world.get("chat-1")).json()
    shown = polled | {"metadata": {"answering": True}}

    def accepts(name: str, value: object) -> bool:
        valid: bool = validator(document, schemas(document)[name]).is_valid(value)
        return valid

    assert accepts("Session", polled)
    assert accepts("LiveSession", polled)
    assert accepts("LiveSession", shown)
    assert not accepts("Session", shown)
    assert not accepts("LiveSession", polled | {"metadata": {"answering": "yes"}})
    assert not accepts("LiveSession", polled | {"metadata": {"plan": "hidden"}})


async def test_events_of_a_chat_are_described(world: World) -> None:
    await world.start(**CHAT)
    document = await described(world)
    operation = document["paths"][openapi.CHAT_OUT]["get"]
    control = {"seq_num": 2, "timestamp": 1, "headers": [["trigger-control", "turn-complete"]]}
    end = b"event: batch\ndata: %b\n\n" % json.dumps({"records": [control]}).encode()
    ping = b"event: ping\ndata: {}\n\n"
    body = batch({"type": "finish"}) + ping + end + ERROR + b"data: [DONE]\n\n"
    streams(world, body, x_session_settled="true")

    response = await out(world)

    assert check_stream(document, operation, response.text) == [
        *("batch", "ping", "batch", "error", "[DONE]")
    ]
    check_headers(document, operation, [*response.headers.items()])


async def test_messages_and_their_answers_are_described(world: World) -> None:
    await world.start(**CHAT)
    document = await described(world)
    operation = document["paths"][openapi.CHAT_IN]["post"]
    form = validator(document, operation["requestBody"]["content"]["application/json"]["schema"])
    stop = {"kind": "stop"}
    foreign = message() | {"kind": "handover"}

    assert form.is_valid(message())
    assert form.is_valid(stop)
    assert not form.is_valid(foreign)
    assert not form.is_valid({"kind": "message"})
    for body, status in ((message(), 200), (stop, 200), (foreign, 400)):
        sent = await append(world, body)
        assert sent.status_code == status
        check(document, operation, status, sent.headers.items(), sent.content)


async def test_no_message_is_described_with_the_cookie(world: World) -> None:
    await world.start(**CHAT, BFF_TOKEN_COOKIE="__Host-bff-token")
    paths = (await described(world))["paths"]

    assert paths[openapi.CHAT_IN]["post"]["security"] == [{"token": []}]
    assert "security" not in paths[openapi.CHAT_OUT]["get"], "the default has both"


async def test_any_message_is_described_where_any_is_sent(world: World) -> None:
    await world.start(**CHAT, BFF_INPUT="any")
    document = await described(world)
    sent = await append(world, {"kind": "handover"}, token=world.token(*BOTH))

    assert sent.status_code == 200
    assert validator(document, schemas(document)["Message"]).is_valid({"kind": "handover"})


@pytest.mark.parametrize("name", descriptions())
def test_example_of_each_stream_is_described(name: str) -> None:
    document = descriptions()[name]
    for path in document["paths"].values():
        for operation in path.values():
            stream = operation["responses"]["200"]["content"].get("text/event-stream")
            if stream is not None:
                assert check_stream(document, operation, stream["example"])


async def test_gateway_without_streams_describes_none(world: World) -> None:
    await world.start(**OFF, BFF_LIVE="false")
    text = (await world.browser.get("/openapi.json")).text

    assert "event-stream" not in text
    assert "X-Accel-Buffering" not in text


def test_reasons_of_ends_are_those_of_the_documentation() -> None:
    (row,) = re.findall(r"^\| `end` \| (.+?) \|", FRONTEND, re.MULTILINE)
    polls = {"Session": {}, "Sessions": object_of({"unavailable": {}})}
    enum = live_schemas(polls, answering=False)["LiveEnd"]["properties"]["reason"]["enum"]

    assert [*metrics.LISTENER_REASONS] == enum
    assert set(re.findall(r"`(\w+)`", row)) - {"reason"} == set(enum)
    assert events.end("expired") == b'event: end\ndata: {"reason":"expired"}\n\n'
