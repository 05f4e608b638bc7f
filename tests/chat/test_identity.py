"""The signed identity, as an agent verifies it."""

from typing import Any, cast

import jwt
import pytest

from bff.chat.identity import SECONDS, Signer, Speaker

KEY = "a key that the gateway shares with the agent"
SPEAKER = Speaker(
    subject="env_1",
    actor="user_1",
    session_id="chat-1",
    part_id="part-1",
    address="192.0.2.1",
    headers={"x-user": "ü"},
)


def claims(token: str, key: str = KEY, **options: Any) -> dict[str, object]:
    return jwt.decode(token, key, algorithms=["HS256"], issuer="bff", options=cast("Any", options))


def test_agent_reads_who_speaks_in_which_message() -> None:
    read = claims(Signer(KEY).sign(SPEAKER, 1000.7), verify_exp=False, verify_iat=False)

    assert read == {
        "iss": "bff",
        "sub": "env_1",
        "act": {"sub": "user_1"},
        "session": "chat-1",
        "part": "part-1",
        "address": "192.0.2.1",
        "headers": {"x-user": "ü"},
        "iat": 1000,
        "exp": 1000 + SECONDS,
    }


def test_identity_expires_and_has_one_key() -> None:
    token = Signer(KEY).sign(SPEAKER, 1000.0)

    with pytest.raises(jwt.ExpiredSignatureError):
        claims(token)
    with pytest.raises(jwt.InvalidSignatureError):
        claims(token, "another key that is long enough to be used", verify_exp=False)


def test_identity_without_an_actor_names_none() -> None:
    speaker = Speaker(
        subject="user_1", actor=None, session_id="s", part_id="p", address="192.0.2.1"
    )

    assert "act" not in claims(Signer(KEY).sign(speaker, 1000.0), verify_exp=False)
