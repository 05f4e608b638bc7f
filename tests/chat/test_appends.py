"""Messages under way, and messages that were charged."""

import pytest
from support.world import Clock

from bff.chat.appends import (
    CHARGED_SECONDS,
    MAX_APPENDS,
    MAX_APPENDS_PER_CALLER,
    MAX_STOPS,
    MAX_STOPS_PER_CALLER,
    Appends,
    Places,
)
from bff.errors import Refused

PART = ("chat-1", "part-1")


@pytest.fixture
def appends(clock: Clock) -> Appends:
    return Appends(lambda: clock.now)


def refused(places: Places, caller: str) -> str | None:
    try:
        places.begin(caller)
    except Refused as refused:
        return refused.refusal.code
    return None


def test_one_callers_uploads_refuse_nobody_else(appends: Appends) -> None:
    for places, each in (
        (appends.messages, MAX_APPENDS_PER_CALLER),
        (appends.stops, MAX_STOPS_PER_CALLER),
    ):
        for _ in range(each):
            assert refused(places, "slow") is None

        assert refused(places, "slow") == "too_many_messages"
        assert refused(places, "ann") is None
        places.end("slow")
        assert refused(places, "slow") is None


def test_messages_under_way_are_bounded(appends: Appends) -> None:
    for places, most in ((appends.messages, MAX_APPENDS), (appends.stops, MAX_STOPS)):
        assert [refused(places, f"caller {n}") for n in range(most)] == [None] * most
        assert refused(places, "one more") == "overloaded"
        for number in range(most):
            places.end(f"caller {number}")
        assert not places._by_caller
    assert len(appends) == 0


def test_charge_covers_the_same_message_for_a_while(appends: Appends, clock: Clock) -> None:
    appends.charged("ann", PART, b"hello")

    assert not appends.is_charged("bob", PART, b"hello")
    assert not appends.is_charged("ann", PART, b"another")
    assert not appends.is_charged("ann", ("chat-2", "part-1"), b"hello")
    assert [appends.is_charged("ann", PART, b"hello") for _ in range(4)] == [True] * 3 + [False]
    appends.charged("ann", PART, b"hello")
    clock.advance(CHARGED_SECONDS + 1)
    assert not appends.is_charged("ann", PART, b"hello")
