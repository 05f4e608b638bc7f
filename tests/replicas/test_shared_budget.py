"""A replica remembers for a second that the store denied a load."""

from bff.replicas.shared_budget import Denials, SharedBudget

BUDGET = SharedBudget("origin", 10, 60.0)


def test_denial_is_remembered_for_a_second_at_most() -> None:
    denials = Denials()
    denials.record(BUDGET, 100.0, 30.0)

    assert [denials.wait(BUDGET, now) for now in (100.0, 100.5, 101.0)] == [30.0, 29.5, 0.0]


def test_denial_ends_when_the_next_load_may_start() -> None:
    denials = Denials()
    denials.record(BUDGET, 100.0, 0.25)

    assert [denials.wait(BUDGET, now) for now in (100.0, 100.25)] == [0.25, 0.0]


def test_denial_holds_for_no_other_budget() -> None:
    denials = Denials()
    denials.record(BUDGET, 100.0, 30.0)

    assert denials.wait(SharedBudget("origin", 20, 60.0), 100.0) == 0.0


def test_one_load_asks_for_all_when_the_memory_ends() -> None:
    denials = Denials()
    denials.record(BUDGET, 100.0, 30.0)

    assert [denials.ask(BUDGET, 101.0) for _ in range(3)] == [0.0, 29.0, 29.0]


def test_allowed_load_ends_the_memory() -> None:
    denials = Denials()
    denials.record(BUDGET, 100.0, 30.0)
    denials.forget(BUDGET)

    assert [denials.ask(BUDGET, 100.5) for _ in range(3)] == [0.0, 0.0, 0.0]
