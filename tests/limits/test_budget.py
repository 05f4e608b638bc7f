"""The upstream budget; the tests pass the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.limits.budget import Budget


@given(st.lists(st.floats(0, 1.5), max_size=200), st.integers(1, 5))
def test_budget_is_not_exceeded_in_any_period(pauses, limit) -> None:
    budget = Budget(limit, 1.0)
    now, spent = 1000.0, []
    for pause in pauses:
        now += pause
        if budget.wait(now) == 0:
            budget.spend(now)
            spent.append(now)

    for index, start in enumerate(spent):
        assert sum(1 for t in spent[index:] if t < start + 1.0 - 1e-6) <= limit


def test_wait_returns_the_time_until_the_next_load() -> None:
    budget = Budget(2, 1.0)
    budget.spend(10.0)
    budget.spend(10.25)

    assert budget.wait(10.5) == 0.5
    assert budget.wait(11.0) == 0
    assert budget.left(10.5) == 0
    assert budget.left(11.0) == 1
    assert budget.left(12.0) == 2


def test_budget_leaves_the_lower_half_to_the_customer() -> None:
    budget = Budget(None)
    budget.observe(0, limit=10, remaining=7, reset=5)
    for _ in range(2):
        assert budget.wait(1) == 0
        budget.spend(1)

    assert budget.wait(1) == 4
    assert budget.wait(5) == 0


@pytest.mark.parametrize(
    ("seconds", "paused"), [(-5, 1), (0, 1), (7, 7), (10**9, 60), (float("inf"), 60)]
)
def test_pause_has_a_lower_and_an_upper_bound(seconds: float, paused: float) -> None:
    budget = Budget(10)
    budget.pause(100, seconds)

    assert budget.wait(100) == paused


def test_wait_counts_the_loads_ahead() -> None:
    budget = Budget(2, 1.0)
    assert [budget.wait(10.0, ahead) for ahead in range(5)] == [0, 0, 1, 1, 2]
    budget.spend(10.0)
    budget.spend(10.25)

    assert [budget.wait(10.5, ahead) for ahead in range(5)] == [0.5, 0.75, 1.5, 1.75, 2.5]
    budget.pause(10.5, 5)
    assert [budget.wait(10.5, ahead) for ahead in range(3)] == [5, 5, 6]


@given(st.lists(st.floats(0, 1.5), max_size=20), st.integers(1, 5), st.integers(0, 12))
def test_expected_wait_is_what_loads_then_wait(pauses, limit, ahead) -> None:
    budget, now = Budget(limit, 1.0), 1000.0
    for pause in pauses:
        now += pause
        if budget.wait(now) == 0:
            budget.spend(now)
    expected, began = budget.wait(now, ahead), now

    for _ in range(ahead):
        now += budget.wait(now)
        budget.spend(now)

    assert now + budget.wait(now) - began == pytest.approx(expected, abs=1e-6)


def test_freshness_does_not_stretch_without_a_budget() -> None:
    budget = Budget(None)

    assert budget.hot.stretch == 0
    assert budget.left(0) is None
