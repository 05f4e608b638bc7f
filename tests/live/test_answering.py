"""The state of turns, from messages, ends and peeks in any order."""

import pytest
from support.world import Clock

from bff.live.answering import (
    PENDING_SECONDS,
    RUNNING_SECONDS,
    VALID_SECONDS,
    Answering,
    NoAnswering,
    Peek,
)
from bff.sessions.copy import Copy

IDS = ("session_1", "chat-1")


def copy(*, closed: bool = False) -> Copy:
    return Copy("default", *IDS, b"{}", closed=closed, loaded=0.0)


class Known(Answering):
    def __init__(self, clock: Clock) -> None:
        self.changes: list[tuple[str, ...]] = []
        self.announced: list[tuple[int, bool]] = []
        self.time = clock
        super().__init__(
            lambda: clock.now,
            changed=lambda _, ids: self.changes.append(ids),
            announce=lambda _, __, number, ended: self.announced.append((number, ended)),
        )

    def peek(self, *, idle: bool | None) -> None:
        self.time.advance(0.001)
        self.peeked(copy(), Peek(idle, self.time.now))


@pytest.fixture
def known(clock: Clock) -> Known:
    return Known(clock)


def test_nothing_is_known_at_first(known: Known) -> None:
    assert known.of(copy()) is None
    assert NoAnswering().of(copy()) is None


def test_peek_tells_both_states(known: Known) -> None:
    known.peek(idle=False)
    running = known.of(copy())
    known.peek(idle=True)

    assert (running, known.of(copy())) == (True, False)


def test_message_counts_until_its_own_turn_has_ended(known: Known) -> None:
    known.peek(idle=True)
    known.appended("default", ("chat-1",), 7)
    known.peek(idle=True)  # the agent has not begun
    known.passed("default", IDS, 6)
    before = known.of(copy())
    known.passed("default", IDS, 7)

    assert (before, known.of(copy())) == (True, False)
    assert known.announced == [(7, False), (7, True)]


def test_peeks_tell_the_end_of_a_turn_whose_begin_they_have_seen(known: Known) -> None:
    known.appended("default", IDS, 7)
    known.peek(idle=False)
    known.peek(idle=True)

    assert known.of(copy()) is False


def test_peek_that_began_before_a_message_tells_less(known: Known, clock: Clock) -> None:
    began = clock.now
    clock.advance(1)
    known.appended("default", IDS, 7)
    known.passed("default", IDS, 7)
    known.peeked(copy(), Peek(idle=False, began=began))

    assert known.of(copy()) is False


def test_peek_of_another_upstream_says_nothing(known: Known, clock: Clock) -> None:
    began = clock.now
    clock.advance(1)
    known.forget()
    known.peeked(copy(), Peek(idle=False, began=began))

    assert known.of(copy()) is None


def test_message_without_a_record_counts_for_a_bounded_time(known: Known, clock: Clock) -> None:
    known.appended("default", IDS, 7)
    clock.advance(PENDING_SECONDS - 1)
    known.passed("default", IDS, -1)  # a record extends it
    clock.advance(PENDING_SECONDS - 1)
    still = known.of(copy())
    clock.advance(1)

    assert (still, known.of(copy())) == (True, None)


@pytest.mark.parametrize("number", [None, 7])
def test_peeks_alone_tell_of_a_turn_for_a_bounded_time(
    known: Known, clock: Clock, number: int | None
) -> None:
    """The agent died in its turn."""
    if number is not None:
        known.appended("default", IDS, number)
    told = []
    for _ in range(int(RUNNING_SECONDS + PENDING_SECONDS) // 30 + 2):
        known.peek(idle=False)
        told.append(known.of(copy()))
        clock.advance(30)
    known.peek(idle=True)
    ended = known.of(copy())
    known.peek(idle=False)

    assert told[: int(RUNNING_SECONDS) // 30] == [True] * (int(RUNNING_SECONDS) // 30)
    assert told[-1] is None
    assert (ended, known.of(copy())) == (False, True)


def test_chat_without_a_record_is_answered_after_a_message_only(known: Known, clock: Clock) -> None:
    known.peek(idle=None)
    fresh = known.of(copy())
    known.appended("default", IDS, 0)
    known.peek(idle=None)
    waiting = known.of(copy())
    clock.advance(PENDING_SECONDS)
    known.peek(idle=None)

    assert (fresh, waiting, known.of(copy())) == (None, True, None)


def test_records_show_that_a_long_turn_is_running(known: Known, clock: Clock) -> None:
    known.appended("default", IDS, 7)
    for _ in range(30):
        known.peek(idle=False)
        known.passed("default", IDS, -1)
        clock.advance(30)

    assert known.of(copy()) is True


def test_queued_message_counts_between_two_turns(known: Known) -> None:
    for number in (7, 8):
        known.appended("default", IDS, number)
    known.peek(idle=False)
    known.passed("default", IDS, 7)
    known.peek(idle=True)
    between = known.of(copy())
    known.passed("default", IDS, 8)

    assert (between, known.of(copy())) == (True, False)


def test_message_that_may_have_come_leaves_it_unknown(known: Known, clock: Clock) -> None:
    told = []
    known.peek(idle=True)
    known.appended("default", IDS, None)
    told.append(known.of(copy()))
    known.peek(idle=True)  # the agent has not begun, or has got no message
    told.append(known.of(copy()))
    known.peek(idle=False)
    told.append(known.of(copy()))
    known.peek(idle=True)
    told.append(known.of(copy()))
    known.appended("default", IDS, None)
    clock.advance(PENDING_SECONDS)
    known.peek(idle=True)

    assert told == [None, None, True, False]
    assert known.of(copy()) is False


def test_newest_of_the_states_under_both_ids_counts(known: Known, clock: Clock) -> None:
    known.appended("default", IDS[:1], 7)
    clock.advance(1)
    known.appended("default", IDS[1:], 8)
    known.passed("default", IDS[1:], 8)

    assert known.of(copy()) is False


def test_old_state_is_unknown(known: Known, clock: Clock) -> None:
    known.peek(idle=False)
    clock.advance(VALID_SECONDS)

    assert known.of(copy()) is None


def test_repeated_records_of_an_idle_session_tell_nothing(known: Known) -> None:
    known.passed("default", IDS, 3)
    known.peek(idle=False)
    known.passed("default", IDS, 3)

    assert known.of(copy()) is True
    assert known.announced == []


def test_announcement_of_an_ended_turn_brings_it_not_back(known: Known) -> None:
    known.appended("default", IDS, 7)
    known.passed("default", IDS, 7)
    known.learn("default", IDS, 7, ended=False)

    assert known.of(copy()) is False


def test_closed_session_is_not_answered_and_not_peeked(known: Known) -> None:
    known.appended("default", IDS, 7)

    assert known.of(copy(closed=True)) is False
    assert not known.due(copy(closed=True), 0.0, 2.0)


def test_peeks_of_a_session_keep_their_distance(known: Known, clock: Clock) -> None:
    due = []
    for _ in range(8):
        due.append(known.due(copy(), clock.now, 2.0))
        clock.advance(0.5)

    assert due == [True, False, False, False] * 2


def test_each_session_has_a_state_of_its_own(known: Known) -> None:
    known.appended("default", ("chat-1",), 7)
    other = Copy("default", "session_2", "chat-2", b"{}", closed=False, loaded=0.0)
    foreign = Copy("another", *IDS, b"{}", closed=False, loaded=0.0)

    assert (known.of(other), known.of(foreign), known.of(copy())) == (None, None, True)
    known.forget()
    assert known.of(copy()) is None
