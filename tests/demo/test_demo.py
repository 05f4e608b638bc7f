"""The demo: its chats change as time passes, and upstream accepts no token of its page."""

import jwt
import pytest
from support.world import Clock

from bff.demo import demo


def test_demo_chats_change_as_time_passes() -> None:
    times = Clock()
    made = demo.make(lambda: times.wall)
    environment = made.upstream.environments[0]

    def document(name: str) -> dict:
        return made.upstream.document(environment.find(name) or {})

    first = document("chat-live")
    times.advance(5)
    assert document("chat-live")["metadata"]["progress"] > first["metadata"]["progress"]
    assert document("chat-live")["updatedAt"] == first["updatedAt"]
    times.advance(demo.RUN_SECONDS)
    assert document("chat-live")["currentRunId"] != first["currentRunId"]
    assert document("chat-live")["updatedAt"] > first["updatedAt"]
    assert document("chat-closing")["closedAt"] is None
    times.advance(demo.CLOSING_SECONDS)
    closed = document("chat-closing")
    times.advance(600)
    assert closed["closedAt"] is not None
    assert document("chat-closing") == closed, "a closed chat stays closed"


def test_demo_token_names_the_environment_and_its_session() -> None:
    times = Clock()
    made = demo.make(lambda: times.wall)
    token = made.token("chat-live", actor="ann")
    decoded = jwt.decode(token, options={"verify_signature": False})

    assert decoded["sub"] == demo.ENVIRONMENT_ID
    assert decoded["scopes"] == ["read:sessions:chat-live"]
    with pytest.raises(jwt.InvalidSignatureError):  # upstream accepts it nowhere
        jwt.decode(token, made.root_key, algorithms=["HS256"], audience=decoded["aud"])


def test_chats_of_the_demo_begin_without_a_record() -> None:
    """An end of a turn would end the first answer of the official transport, which had no text."""
    made = demo.make(lambda: Clock().wall)
    environment = made.upstream.environments[0]

    for name in environment.sessions:
        assert made.upstream.chats.channel(environment, name).out == [], name
