"""Introspections: what upstream said of tokens, and how long each answer stands."""

from bff.tokens.introspected import Introspections


def test_token_stays_authentic_for_a_minute_after_a_refused_session() -> None:
    introspections = Introspections()

    introspections.refuse(b"token", "chat-9", 1000.0, "not_found", 5.0)

    assert introspections.authentic(b"token", 1000.0)
    assert introspections.authentic(b"token", 1059.0)
    assert not introspections.authentic(b"token", 1060.0)
    assert not introspections.authentic(b"another token", 1000.0)
