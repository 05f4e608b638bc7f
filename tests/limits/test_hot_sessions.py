"""Hot sessions, and the stretch of each caller's copies; the tests pass the time."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cost import calls_of

from bff.limits.hot_sessions import EPOCH, NO_SHARE, HotSessions, Share

TTL = 2.0


def request(
    hot: HotSessions, caller: str, shares: list[Share], now: float, ttl: float = TTL
) -> None:
    """Let *caller* request each session, for the first time in this epoch."""
    for index, share in enumerate(shares):
        shares[index] = hot.count(share, caller, now, ttl)


def test_sessions_that_fit_the_budget_are_not_stretched() -> None:
    hot, sessions = HotSessions(10.0), [NO_SHARE] * 20

    request(hot, "ann", sessions, 0.0)

    assert sessions[0].stretch == 0.0
    assert hot.stretch == 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.floats(0.0, 20.0), st.booleans())
    ),
    st.sampled_from([0.5, 10.0, inf]),
)
def test_longest_stretch_is_that_of_some_caller(
    requests: list[tuple[str, int, float, bool]], rate: float
) -> None:
    hot, shares, now = HotSessions(rate), [NO_SHARE] * 6, 0.0
    for caller, session, seconds, takes_over in requests:
        now += seconds
        work = hot.take_over if takes_over and shares[session] is not NO_SHARE else hot.count
        shares[session] = work(shares[session], caller, now, TTL)

        assert max(hot.stretch_of(one) for one in "abcd") <= hot.stretch
    hot._divide(now, TTL)
    assert max(hot.stretch_of(one) for one in "abcd") == hot.stretch


def test_longest_stretch_costs_nothing_to_read() -> None:
    hot = HotSessions(10.0)
    for number in range(300):
        request(hot, str(number), [NO_SHARE], 0.0)

    assert calls_of(lambda: hot.stretch) < 10


def test_one_caller_alone_gets_the_whole_budget() -> None:
    hot, sessions = HotSessions(10.0), [NO_SHARE] * 500

    request(hot, "ann", sessions, 0.0)

    assert sessions[0].stretch == 50.0
    assert hot.stretch_of("ann") == 50.0


def test_many_sessions_of_one_caller_stretch_only_their_own() -> None:
    hot, big, small = HotSessions(10.0), [NO_SHARE] * 300, [NO_SHARE] * 5

    request(hot, "big", big, 0.0)
    request(hot, "small", small, 0.0)
    hot._divide(0.0, TTL)

    assert small[0].stretch <= TTL
    assert big[0].stretch == pytest.approx(300 / 7.5), "what the other does not need is its"


def test_session_of_two_callers_is_in_the_smaller_share() -> None:
    hot, big, small = HotSessions(10.0), [NO_SHARE] * 300, [NO_SHARE]
    request(hot, "big", big, 0.0)
    request(hot, "small", small, 0.0)

    shared = hot.take_over(big[0], "small", 0.0, TTL)

    assert shared is small[0]
    assert (shared.size, big[0].size) == (2, 299)
    assert shared.stretch <= TTL
    assert hot.take_over(shared, "big", 0.0, TTL) is shared, "and not back"


def test_two_callers_of_the_same_sessions_stretch_as_one() -> None:
    hot, sessions = HotSessions(10.0), [NO_SHARE] * 300
    for epoch in range(6):
        now = epoch * EPOCH
        request(hot, "ann", sessions, now)
        for caller in ("bob", "ann"):
            sessions[:] = [hot.take_over(share, caller, now, TTL) for share in sessions]
        hot._divide(now, TTL)

    assert hot.stretch == pytest.approx(30.0, rel=0.02)


def test_stretch_ends_when_the_sessions_are_cold() -> None:
    hot, many, one = HotSessions(10.0), [NO_SHARE] * 500, [NO_SHARE]
    request(hot, "ann", many, 0.0)

    request(hot, "bob", one, EPOCH)
    before = hot.stretch_of("ann")
    request(hot, "bob", one, 2 * EPOCH)
    request(hot, "bob", one, 3 * EPOCH)

    assert before > 0, "the previous epoch still counts"
    assert hot.stretch_of("ann") == 0.0
    assert hot.stretch == 0.0


@pytest.mark.parametrize(
    ("rate", "ttl", "stretch"), [(inf, 2.0, 0.0), (inf, 0.0, 0.0), (4.0, 0.0, 2.0)]
)
def test_budget_off_or_no_ttl_is_a_case_too(rate: float, ttl: float, stretch: float) -> None:
    hot, sessions = HotSessions(rate), [NO_SHARE] * 8

    request(hot, "ann", sessions, 0.0, ttl)

    assert sessions[0].stretch == stretch


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 40))
def test_stretched_loads_fit_the_budget(sizes: list[int], rate: int) -> None:
    hot = HotSessions(float(rate))
    shares = {str(n): [NO_SHARE] * size for n, size in enumerate(sizes)}
    for caller, sessions in shares.items():
        request(hot, caller, sessions, 0.0)
    hot._divide(0.0, TTL)

    loads = {
        caller: len(sessions) / max(TTL, hot.stretch_of(caller))
        for caller, sessions in shares.items()
    }
    assert sum(loads.values()) <= rate * 1.001
    largest = max(loads.values())
    for caller, sessions in shares.items():
        assert loads[caller] >= min(len(sessions) / TTL, largest) * 0.999, "nobody gets less"
