"""The queue of loads: the order, the bounds, and what each caller gets."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from support.cost import calls_of

from bff.limits.queue import _SKIPPED, MAX_TURNS, REFRESH_EVERY, FairQueue, Turn


def filled(**callers: int) -> FairQueue[Turn]:
    """A queue with this number of awaited loads of each caller."""
    queue: FairQueue[Turn] = FairQueue()
    for caller, number in callers.items():
        for n in range(number):
            queue.add(Turn(f"{caller}{n}", -inf), caller, awaited=True)
    return queue


def drain(queue: FairQueue[Turn], number: int = 1000) -> list[str]:
    """Take turns; returns the callers' names."""
    taken = []
    while len(taken) < number and (turn := queue.pop()) is not None:
        taken.append(str(turn[0]))
    return taken


def test_callers_take_turns_whatever_they_queued_first() -> None:
    assert drain(filled(a=5, b=2, c=1)) == list("abcabaaa")


def test_newcomer_goes_before_the_caller_of_the_last_turn() -> None:
    queue = filled(a=3)
    assert drain(queue, 1) == ["a"]
    queue.add(Turn("b", -inf), "b", awaited=True)

    assert drain(queue) == ["b", "a", "a"]


def test_never_loaded_comes_first_then_the_oldest_copy() -> None:
    queue: FairQueue[Turn] = FairQueue()
    for key, loaded in (("young", 9.0), ("first", -inf), ("old", 3.0), ("second", -inf)):
        queue.add(Turn(key, loaded), "a", awaited=True)

    keys = [turn[1].key for turn in iter(queue.pop, None)]

    assert keys == ["first", "second", "old", "young"]


def test_refreshes_come_last_and_never_starve() -> None:
    queue = filled(a=10, b=10)
    for n in range(3):
        queue.add(Turn(f"refresh{n}", 1.0), "c", awaited=False)

    taken = drain(queue)

    assert taken[: 2 * REFRESH_EVERY] == list("abacbabc")
    assert taken.count("c") == 3
    assert taken[-1] == "b"


def test_own_refreshes_get_a_part_of_a_callers_turns() -> None:
    queue = filled(a=6)
    for n in range(2):
        queue.add(Turn(f"refresh{n}", 1.0), "a", awaited=False)

    keys = [turn[1].key for turn in iter(queue.pop, None)]

    assert keys == ["a0", "a1", "a2", "refresh0", "a3", "a4", "a5", "refresh1"]


def test_refresh_becomes_awaited_when_a_request_waits() -> None:
    queue = filled(a=2)
    turn = Turn("b", 1.0)
    queue.add(turn, "b", awaited=False)
    queue.add(turn, "b", awaited=True)

    assert drain(queue) == ["a", "b", "a"]
    assert len(queue) == 0


def test_load_of_two_callers_goes_in_the_first_turn_of_either() -> None:
    queue = filled(a=9)
    shared = Turn("shared", 5.0)
    queue.add(shared, "a", awaited=True)
    queue.add(shared, "b", awaited=True)

    assert queue.ahead(shared) == 1
    assert drain(queue, 3) == ["a", "b", "a"]
    assert shared not in queue


def test_turns_of_one_caller_are_bounded() -> None:
    queue: FairQueue[Turn] = FairQueue()
    refresh, first, second, third = (Turn(n, 0.0) for n in range(4))

    assert queue.add(refresh, "a", awaited=False, most=2) is None
    assert queue.add(first, "a", awaited=True, most=2) is None
    assert queue.add(second, "a", awaited=True, most=2) is refresh, "a refresh leaves first"
    assert queue.add(third, "a", awaited=True, most=2) is third
    assert queue.add(Turn("b", 0.0), "b", awaited=True, most=2) is None


def test_full_queue_takes_from_the_caller_with_most() -> None:
    queue: FairQueue[Turn] = FairQueue(max_turns=4)
    turns = [Turn(n, float(n)) for n in range(4)]
    for turn in turns:
        queue.add(turn, "a", awaited=True)

    newcomer, other = Turn("b", 0.0), Turn("more", 0.0)
    assert queue.add(newcomer, "b", awaited=True) is turns[-1]
    assert newcomer in queue
    assert queue.add(other, "a", awaited=True) is other, "the caller with most gets no more"
    assert len(queue) == 4


def test_caller_that_may_not_start_is_passed_over() -> None:
    queue = filled(a=2, b=1)

    assert queue.pop(lambda caller: caller != "a") is not None
    assert queue.pop(lambda caller: caller != "a") is None
    assert drain(queue) == ["a", "a"]


def test_denied_turn_is_the_next_one_again() -> None:
    queue = filled(a=2, b=2)
    taken = queue.pop()
    assert taken is not None
    caller, turn = taken
    turn.denied = True
    queue.put_back(turn, caller)

    assert queue.pop() == (caller, turn)
    queue.put_back(turn, caller)
    new = queue.pop(new=True)
    assert new is not None
    assert new[1] is not turn, "another replica may have the copy of one that was not denied"


def test_denied_caller_keeps_its_place_among_others() -> None:
    queue = filled(a=1, b=1, c=1)
    for _ in range(2):
        taken = queue.pop(new=True)
        assert taken is not None
        caller, turn = taken
        turn.denied = True
        queue.put_back(turn, caller)

    assert drain(queue) == ["a", "b", "c"], "a newer request passes nobody"


def test_load_of_two_callers_is_put_back_for_both() -> None:
    queue, shared = filled(a=1, b=2), Turn("shared", -inf)
    shared.urgent = True
    for caller in ("a", "b"):
        queue.add(shared, caller, awaited=True)
    taken = queue.pop()
    assert taken == ("a", shared)
    queue.put_back(shared, "a")

    queue.pop(lambda caller: caller == "b")

    assert shared not in queue, "the turn of either serves both"


def test_load_that_a_request_waits_for_alone_goes_first() -> None:
    queue = filled(a=3, b=1)
    urgent = Turn("urgent", -inf)
    urgent.urgent = True
    queue.add(urgent, "a", awaited=True)

    assert queue.ahead(urgent) == 0
    taken = queue.pop()
    assert taken == ("a", urgent)
    assert drain(queue) == list("baaa")


def test_urgent_loads_do_not_starve_the_callers_others() -> None:
    queue = filled(a=1)
    waited = 0
    for number in range(2 * MAX_TURNS):
        turn = Turn(f"urgent{number}", -inf)
        turn.urgent = True
        queue.add(turn, "a", awaited=True)
        taken = queue.pop()
        assert taken is not None
        if taken[1].key == "a0":
            break
        waited += 1

    assert waited <= MAX_TURNS


def test_removed_turn_leaves_all_its_callers() -> None:
    queue = filled(a=1)
    shared = Turn("shared", 0.0)
    for caller in ("a", "b"):
        queue.add(shared, caller, awaited=True)

    queue.remove(shared)

    assert drain(queue) == ["a"]
    assert queue.clear() == []


_NUMBERS = st.tuples(st.integers(0, 30), st.integers(0, 30))
"""How many awaited loads and refreshes a caller has."""


@given(st.dictionaries(st.sampled_from("abcdef"), _NUMBERS, min_size=2))
def test_no_caller_takes_more_than_half_while_others_wait(
    callers: dict[str, tuple[int, int]],
) -> None:
    queue = filled(**{caller: awaited for caller, (awaited, _) in callers.items()})
    for caller, (_, refreshes) in callers.items():
        for n in range(refreshes):
            queue.add(Turn(f"{caller}-refresh{n}", 1.0), caller, awaited=False)
    left = {caller: sum(numbers) for caller, numbers in callers.items()}
    taken: dict[str, int] = dict.fromkeys(callers, 0)
    while sum(number > 0 for number in left.values()) > 1:
        (caller,) = drain(queue, 1)
        taken[caller] += 1
        left[caller] -= 1
        assert taken[caller] <= sum(taken.values()) / 2 + 1


@given(st.dictionaries(st.sampled_from("abcdef"), _NUMBERS, min_size=2))
def test_callers_take_turns_whatever_they_load(callers: dict[str, tuple[int, int]]) -> None:
    queue = filled(**{caller: awaited for caller, (awaited, _) in callers.items()})
    for caller, (_, refreshes) in callers.items():
        for n in range(refreshes):
            queue.add(Turn(f"{caller}-refresh{n}", 1.0), caller, awaited=False)
    awaited = {caller: awaited for caller, (awaited, _) in callers.items() if awaited}
    since: dict[str, list[str]] = {caller: [] for caller in awaited}
    for name, turn in iter(queue.pop, None):
        caller = str(name)
        for others in since.values():
            others.append(caller)
        if caller in since:
            since[caller].clear()
            awaited[caller] -= turn.awaited
            if not awaited[caller]:
                del since[caller]
        for others in since.values():
            assert len(set(others)) == len(others), "nobody has two turns before one who waits"


def test_refresh_that_a_request_waits_for_counts_once() -> None:
    queue: FairQueue[Turn] = FairQueue()
    turn, other = Turn("was-refresh", 1.0), Turn("other", 1.0)
    queue.add(turn, "a", awaited=False, most=2)
    queue.add(turn, "a", awaited=True, most=2)

    assert queue.add(other, "a", awaited=True, most=2) is None, "it counts once"
    assert queue.add(Turn("third", 1.0), "a", awaited=True, most=2) is not turn, (
        "a request waits for it"
    )


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1), st.integers(0, 9)
)
def test_expected_turn_is_the_real_one(callers: dict[str, int], taken: int) -> None:
    queue = filled(**callers)
    drain(queue, taken)
    turns = list(queue._turns.values())
    ahead = {turn.key: queue.ahead(turn) for turn in turns}

    for number, (_, turn) in enumerate(iter(queue.pop, None)):
        assert number == ahead[turn.key]


@given(st.dictionaries(st.sampled_from("abcdef"), _NUMBERS, min_size=1))
def test_expected_turn_comes_in_time_in_spite_of_refreshes(
    callers: dict[str, tuple[int, int]],
) -> None:
    queue = filled(**{caller: awaited for caller, (awaited, _) in callers.items()})
    turns = list(queue._turns.values())
    for caller, (_, refreshes) in callers.items():
        for n in range(refreshes):
            queue.add(Turn(f"{caller}-refresh{n}", 1.0), caller, awaited=False)
    ahead = {turn.key: queue.ahead(turn) for turn in turns}

    for number, (_, turn) in enumerate(iter(queue.pop, None)):
        assert number <= ahead.get(turn.key, inf) + 1


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(0, 3))
def test_turn_at_once_counts_as_a_turn_in_the_queue(callers: list[str], more: int) -> None:
    queues: list[FairQueue[Turn]] = [FairQueue(), FairQueue()]
    for number, caller in enumerate(callers):
        at_once, queued = Turn(number, -inf), Turn(number, -inf)
        queues[0].pass_by(at_once, caller)
        queues[1].add(queued, caller, awaited=True)
        assert queues[1].pop() == (caller, queued)
        assert (at_once.callers, at_once.awaited) == (queued.callers, queued.awaited)
    for queue in queues:
        for number in range(more):
            for caller in "abc":
                queue.add(Turn(f"{caller}{number}", -inf), caller, awaited=True)

    assert drain(queues[0]) == drain(queues[1])


def test_entries_that_are_skipped_do_not_pile_up() -> None:
    """The first turn stays, so no `pop` finds the entries behind it."""
    queue = filled(a=1)
    for number in range(1000):
        turn = Turn(number, 1.0)
        queue.add(turn, "a", awaited=True)
        queue.remove(turn)

    assert len(queue._callers["a"]._order[True]) <= 2 * len(queue) + _SKIPPED


def test_load_that_becomes_urgent_comes_first_for_each_caller() -> None:
    queue, shared = filled(a=3, b=3), Turn("shared", -inf)
    for caller in "ab":
        queue.add(shared, caller, awaited=True)
    shared.urgent = True
    queue.add(shared, "a", awaited=True)

    for caller in "ab":
        assert queue._callers[caller].next(new=False) is shared


@given(st.data())
def test_heap_has_the_order_of_the_ranks(data: st.DataObject) -> None:
    """Whatever is queued, joined, urgent, removed or put back."""
    queue: FairQueue[Turn] = FairQueue(max_turns=12)
    turns = [Turn(number, data.draw(st.sampled_from([-inf, 1.0, 2.0]))) for number in range(8)]
    for _ in range(data.draw(st.integers(1, 40))):
        turn, caller = data.draw(st.sampled_from(turns)), data.draw(st.sampled_from("abc"))
        match data.draw(st.sampled_from(["await", "await", "refresh", "urgent", "remove", "pop"])):
            case "await":
                queue.add(turn, caller, awaited=True, most=4)
            case "refresh" if turn not in queue:
                queue.add(turn, caller, awaited=False, most=4)
            case "urgent":
                turn.urgent = True
                queue.add(turn, caller, awaited=True, most=4)
            case "remove":
                queue.remove(turn)
            case "pop" if taken := queue.pop():
                queue.put_back(taken[1], taken[0])
        for mine in queue._callers.values():
            loads = [one for loads in mine.loads for one in loads.values()]
            passed, first = mine.passed, mine.next(new=False)
            mine.passed = passed
            same = mine.loads[first.key in mine.loads[True]].values()
            assert first.rank == min(turn.rank for turn in same)
            assert first in loads


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=1))
def test_expected_turn_of_a_shared_load_comes_in_time(requests: list[tuple[str, int]]) -> None:
    queue: FairQueue[Turn] = FairQueue()
    turns = {key: Turn(key, -inf) for _, key in requests}
    for caller, key in requests:
        queue.add(turns[key], caller, awaited=True)
    ahead = {key: queue.ahead(turn) for key, turn in turns.items()}

    for number, (_, turn) in enumerate(iter(queue.pop, None)):
        assert number <= ahead[turn.key] + 1


def test_expected_turn_costs_one_look_at_the_callers() -> None:
    """A page asks about each of its sessions, and a thousand browsers may wait for each."""
    queue, turns, callers = FairQueue[Turn](), [Turn(n, -inf) for n in range(20)], 300
    for turn in turns:
        for number in range(callers):
            queue.add(turn, number, awaited=True)

    assert calls_of(lambda: queue.ahead(turns[0])) < 10 * callers
    assert calls_of(lambda: [queue.ahead(turn) for turn in turns]) < 100 * len(turns)


def test_search_for_a_new_turn_costs_nothing_if_all_were_denied() -> None:
    queue, callers = filled(), 300
    for number in range(callers):
        turn = Turn(number, -inf)
        turn.denied = True
        queue.add(turn, number, awaited=True)

    assert calls_of(lambda: queue.pop(new=True)) < callers
    queue.add(Turn("new", -inf), "new", awaited=True)
    taken = queue.pop(new=True)
    assert taken is not None
    assert taken[0] == "new"
    assert queue.pop(new=True) is None
