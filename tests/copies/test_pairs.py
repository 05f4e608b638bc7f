"""Pairs of ids: remembered by either id, and bounded."""

import tracemalloc

from bff.copies.pairs import Pairs


def test_pair_is_remembered_by_either_id() -> None:
    pairs = Pairs()
    pairs.learn("default", "session_1", "chat-1")
    pairs.learn("default", "session_2", None)

    assert pairs.other("default", "session_1") == "chat-1"
    assert pairs.other("default", "chat-1") == "session_1"
    assert pairs.other("default", "session_2") is None
    assert [pairs.has("default", id_) for id_ in ("session_2", "session_3")] == [True, False]
    assert pairs.other("default", "session_3") is None


def test_pair_of_one_environment_holds_in_no_other() -> None:
    pairs = Pairs()
    pairs.learn("main", "session_1", "chat-1")

    assert not pairs.has("branch", "session_1")
    assert pairs.other("branch", "chat-1") is None


def test_forgotten_pairs_are_unknown() -> None:
    pairs = Pairs()
    pairs.learn("default", "session_1", "chat-1")

    pairs.forget()

    assert not pairs.has("default", "session_1")
    assert len(pairs) == 0


def test_pairs_take_bounded_memory() -> None:
    pairs = Pairs(max_bytes=1_000_000)
    tracemalloc.start()
    for number in range(20_000):
        pairs.learn("default", f"session_{number:022}", f"chat-{number:030}")
    measured, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert pairs.has("default", f"session_{19_999:022}")
    assert not pairs.has("default", f"session_{0:022}")
    assert 500_000 < measured < 2_500_000
