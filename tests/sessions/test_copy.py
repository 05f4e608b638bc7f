"""Copies of sessions: their keys, and their use by age."""

from dataclasses import replace

import pytest

from bff.sessions.copy import Ages, Copy, NegativeEntry, State

AGES = Ages(ttl=2, closed_ttl=30, stale_while_revalidate=5, stale_if_error=60, negative_ttl=1)


def copy(*, closed: bool = False, external_id: str | None = None) -> Copy:
    return Copy("e", "session_1", external_id, b"{}", closed, 0.0)


@pytest.mark.parametrize(
    ("age", "closed", "stretched", "state"),
    [
        (0, False, 0, State.FRESH),
        (1.99, False, 0, State.FRESH),
        (2, False, 0, State.STALE),
        (6.99, False, 0, State.STALE),
        (7, False, 0, State.STALE_IF_ERROR),
        (61.99, False, 0, State.STALE_IF_ERROR),
        (62, False, 0, State.EXPIRED),
        (29.99, True, 0, State.FRESH),
        (30, True, 0, State.STALE),
        (9.99, False, 10, State.FRESH),
        (10, False, 10, State.STALE),
        (29.99, True, 10, State.FRESH),
    ],
)
def test_age_of_a_copy_decides_its_use(
    age: float, closed: bool, stretched: float, state: State
) -> None:
    one = copy(closed=closed)

    assert AGES.state(one, age, stretched) is state
    assert AGES.fresh(one, age, stretched) is (state is State.FRESH)


def test_stretch_is_bounded() -> None:
    ages = replace(AGES, max_stretch=10.0)

    assert ages.fresh(copy(), 9.9, 300.0)
    assert not ages.fresh(copy(), 10.0, 300.0)
    assert ages.state(copy(), 10.0, 300.0) is State.STALE
    assert ages.fresh(copy(closed=True), 29.9, 300.0), "it bounds no TTL"
    assert ages.lifetime(copy(), 300.0) == 70.0


def test_copy_has_a_key_for_each_id() -> None:
    missing = NegativeEntry(environment="e", id="chat", until=1.0)

    assert copy().keys == (("e", "session_1"),)
    assert copy(external_id="chat").keys == (("e", "session_1"), ("e", "chat"))
    assert missing.keys == (("e", "chat"),)


def test_copy_has_the_tag_of_its_body() -> None:
    one, other = copy(), Copy("e", "session_2", None, b"[]", closed=False, loaded=0.0)

    assert one.etag == copy(closed=True).etag != other.etag
    assert one.etag in one.head
