"""The chat routes of the pretend upstream behave as the running server was measured to."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import jwt
import pytest
from support.world import ENVIRONMENT_ID, ROOT_KEY, SECRET_KEY, claims, http, running_upstream, sign

from bff.demo.chat_upstream import MAX_APPEND_BYTES

MESSAGE = {
    "kind": "message",
    "payload": {
        "message": {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]},
        "chatId": "chat-1",
        "trigger": "submit-message",
    },
}
UNAUTHORIZED = {
    "error": "Unauthorized", "code": "unauthorized", "param": "access_token",
    "type": "authorization",
}  # fmt: skip


@pytest.fixture
def upstream() -> Iterator[running_upstream]:
    with running_upstream() as running:
        running.app.chats.pace = 0.0
        yield running


def url(upstream: running_upstream, id_: str, route: str) -> str:
    return f"http://127.0.0.1:{upstream.port}/realtime/v1/sessions/{id_}/{route}"


def append(
    upstream: running_upstream, id_: str = "chat-1", key: str = SECRET_KEY,
    content: bytes | None = None, **headers: str,
) -> httpx2.Response:  # fmt: skip
    sent = {"authorization": f"Bearer {key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    body = json.dumps(MESSAGE).encode() if content is None else content
    return http.post(url(upstream, id_, "in/append"), headers=sent, content=body)


def out(
    upstream: running_upstream, id_: str = "chat-1", key: str = SECRET_KEY, **headers: str
) -> tuple[httpx2.Response, str]:
    sent = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    sent |= {"timeout-seconds": "1"} | {n.replace("_", "-"): v for n, v in headers.items()}
    response = http.get(url(upstream, id_, "out"), headers=sent)
    return response, response.text


def records(text: str) -> list[dict[str, Any]]:
    return [
        record
        for event in text.split("\n\n")
        if event.startswith("event: batch\n")
        for record in json.loads(event.partition("data: ")[2])["records"]
    ]


def token(*scopes: str) -> str:
    return sign(claims(time.time(), *scopes), ROOT_KEY)


def test_append_answers_as_captured(upstream: running_upstream) -> None:
    write = token("write:sessions:chat-1", "read:sessions:chat-1")

    assert append(upstream, key=write, x_part_id="part-1").json() == {"ok": True, "seq": 0}
    assert append(upstream, key=write, x_part_id="part-1").json() == {"ok": True}, "stored once"
    assert append(upstream, content=b"not json").json() == {"ok": True, "seq": 1}
    assert append(upstream, content=b"").json() == {"ok": True, "seq": 2}

    closed = append(upstream, "chat-closed")
    assert (closed.status_code, closed.json()) == (
        400,
        {"ok": False, "error": "Cannot append to a closed session"},
    )
    forbidden = append(upstream, key=token("read:sessions:chat-1"))
    assert (forbidden.status_code, forbidden.json()) == (403, UNAUTHORIZED)
    assert append(upstream, "chat-2", key=write).status_code == 403
    absent = append(upstream, "never-made")
    assert (absent.status_code, absent.json()) == (404, {"error": "Resource not found"})
    large = append(upstream, content=b"x" * (MAX_APPEND_BYTES + 1))
    assert (large.status_code, large.json()) == (413, {"error": "Request body too large"})


def test_append_to_a_closed_session_of_a_newer_server(upstream: running_upstream) -> None:
    upstream.app.chats.closed_status = 409

    answer = append(upstream, "chat-closed")

    assert answer.status_code == 409
    assert answer.json()["code"] == "session_closed"


def test_stream_brings_the_turn_and_its_token(upstream: running_upstream) -> None:
    append(upstream)

    response, text = out(upstream)

    assert response.headers["x-stream-version"] == "v2"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *data, end, command = records(text)
    assert [json.loads(one["body"])["data"]["type"] for one in data][:3] == [
        "start", "start-step", "text-start",
    ]  # fmt: skip
    assert {"headers" in one for one in data} == {True, False}, "both kinds of writers"
    headers = dict(end["headers"])
    assert headers["trigger-control"] == "turn-complete"
    wide = jwt.decode(
        headers["public-access-token"], ROOT_KEY, algorithms=["HS256"],
        audience="https://api.trigger.dev",
    )  # fmt: skip
    assert wide["sub"] == ENVIRONMENT_ID
    assert any(scope.startswith("read:runs:") for scope in wide["scopes"])
    assert command["headers"] == [["", "trim"]]


def test_stream_resumes_after_the_cursor(upstream: running_upstream) -> None:
    append(upstream)
    _, whole = out(upstream)

    _, rest = out(upstream, last_event_id="3")

    assert records(rest) == records(whole)[4:]
    assert records(out(upstream, x_trigger_stream_start="latest")[1]) == []


def test_settled_session_says_so_and_ends_at_once(upstream: running_upstream) -> None:
    append(upstream)
    out(upstream)
    began = time.monotonic()

    response, text = out(upstream, x_peek_settled="1", timeout_seconds="600")

    assert response.headers["x-session-settled"] == "true"
    assert records(text)
    assert time.monotonic() - began < 60


def test_stream_exists_before_its_session_and_pings(upstream: running_upstream) -> None:
    upstream.app.chats.ping = 0.1

    response, text = out(upstream, "never-made")
    friendly, _ = out(upstream, "session_never000000000000000000")

    assert response.status_code == 200
    assert text.startswith("event: ping\ndata: {}\n\n")
    assert (friendly.status_code, friendly.json()) == (404, {"error": "Not found"})
    assert friendly.headers["x-should-retry"] == "false"


def test_stream_of_another_session_is_forbidden(upstream: running_upstream) -> None:
    response, _ = out(upstream, "chat-2", key=token("read:sessions:chat-1"))

    assert (response.status_code, response.json()) == (403, UNAUTHORIZED)


def test_old_agent_ends_a_turn_with_a_record(upstream: running_upstream) -> None:
    upstream.app.chats.legacy = True
    append(upstream)

    last = json.loads(records(out(upstream)[1])[-1]["body"])["data"]

    assert last["type"] == "trigger:turn-complete"
    assert last["publicAccessToken"]


def test_stop_ends_the_turn(upstream: running_upstream) -> None:
    upstream.app.chats.pace = 0.2
    append(upstream)

    append(upstream, content=b'{"kind":"stop"}')

    types = [json.loads(one["body"] or "{}").get("data") for one in records(out(upstream)[1])[:-1]]
    assert {"type": "abort"} in types


def test_cut_stream_has_no_end(upstream: running_upstream) -> None:
    append(upstream)
    upstream.app.chats.cut_after = 2

    with pytest.raises(httpx2.RemoteProtocolError):
        out(upstream)
