"""Which lists a new token makes outdated."""

from collections.abc import Iterable

from live.test_listener import Registry, listener

from bff.live.listener import Listener
from bff.live.lists import Lists


def outdated(lists: Lists, names: Iterable[str], issued: float = 9.0) -> list[Listener]:
    return list(lists.outdated("ann", names, issued))


def test_only_new_names_of_the_same_person_outdate_a_list() -> None:
    lists, one = Lists(lambda: 0.0), listener(Registry())
    lists.add(one, frozenset(("a", "b")), 5.0)

    assert outdated(lists, ("a",)) == []
    assert list(lists.outdated("ben", ("c",), 9.0)) == []
    assert outdated(lists, ("c",)) == [one]


def test_older_token_outdates_no_list() -> None:
    lists = Lists(lambda: 0.0)
    lists.add(listener(Registry()), frozenset("a"), 5.0)

    assert outdated(lists, ("b",), issued=4.0) == []


def test_different_lists_do_not_end_each_other_for_ever() -> None:
    lists, one, two = Lists(lambda: 0.0), listener(Registry()), listener(Registry())
    ends = 0
    lists.add(one, frozenset(("a", "b")), 1.0)
    for time in range(2, 20):
        names = frozenset(("a", "c")) if time % 2 else frozenset(("a", "b"))
        for old in outdated(lists, names, time):
            ends += 1
            lists.remove(old)
        lists.add(two if time % 2 else one, names, time)

    assert ends <= 1


def test_name_counts_once_although_no_list_has_it() -> None:
    lists, one = Lists(lambda: 0.0), listener(Registry())
    lists.add(one, frozenset("a"), 1.0)
    first = outdated(lists, ("c",), 2.0)
    lists.remove(one)
    lists.add(one, frozenset("a"), 3.0)

    assert first == [one]
    assert outdated(lists, ("c",), 4.0) == []


def test_nothing_stays_of_lists_that_ended() -> None:
    lists, one = Lists(lambda: 0.0), listener(Registry())
    lists.add(one, frozenset("a"), 5.0)
    lists.remove(one)
    lists.remove(one)

    assert len(lists) == 0
    assert outdated(lists, ("b",)) == []


def test_names_of_a_person_are_bounded() -> None:
    lists = Lists(lambda: 0.0)
    lists.add(listener(Registry()), frozenset("a"), 5.0)

    assert outdated(lists, (f"c{n}" for n in range(5_000))) == []
    assert outdated(lists, ("b",)) != []
