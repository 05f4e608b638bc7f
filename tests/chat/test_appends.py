"""Messages under way, and messages that were charged."""

import pytest
from support.world import Clock

from bff.chat.appends import CHARGED_SECONDS, MAX_APPENDS, MAX_APPENDS_PER_CALLER, Appends
from bff.errors import Refused

PART = ("chat-1", "part-1")


@pytest.fixture
def appends(clock: Clock) -> Appends:
    return Appends(lambda: clock.now)


def refused(appends: Appends, caller: str) -> str | None:
    try:
        appends.begin(caller)
    except Refused as refused:
        return refused.refusal.code
    return None


def test_one_callers_uploads_refuse_nobody_else(appends: Appends) -> None:
    for _ in range(MAX_APPENDS_PER_CALLER):
        assert refused(appends, "slow") is None

    assert refused(appends, "slow") == "too_many_messages"
    assert refused(appends, "ann") is None
    appends.end("slow")
    assert refused(appends, "slow") is None


def test_messages_under_way_are_bounded(appends: Appends) -> None:
    assert [refused(appends, f"caller {n}") for n in range(MAX_APPENDS)] == [None] * MAX_APPENDS
    assert refused(appends, "one more") == "overloaded"
    for number in range(MAX_APPENDS):
        appends.end(f"caller {number}")
    assert len(appends) == 0
    assert not appends._by_caller


def test_charge_covers_the_same_message_for_a_while(appends: Appends, clock: Clock) -> None:
    appends.charged("ann", PART, b"hello")

    assert not appends.is_charged("bob", PART, b"hello")
    assert not appends.is_charged("ann", PART, b"another")
    assert not appends.is_charged("ann", ("chat-2", "part-1"), b"hello")
    assert [appends.is_charged("ann", PART, b"hello") for _ in range(4)] == [True] * 3 + [False]
    appends.charged("ann", PART, b"hello")
    clock.advance(CHARGED_SECONDS + 1)
    assert not appends.is_charged("ann", PART, b"hello")
