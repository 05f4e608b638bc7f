"""Eviction, two ids for one copy, one load for many; the clock is a number."""

import asyncio
import gc
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.copies.cache import Cache
from bff.sessions.copy import Ages, Copy, NegativeEntry

AGES = Ages(ttl=2, closed_ttl=30, stale_while_revalidate=5, stale_if_error=60, negative_ttl=1)


def copy(number: int = 1, *, external: str | None = None, size: int = 100, **changes) -> Copy:
    fields = {
        "environment": "e",
        "id": f"session_{number}",
        "external_id": external,
        "body": b"x" * size,
        "closed": False,
        "loaded": 0.0,
    }
    return Copy(**(fields | changes))


def cache(max_bytes: int = 1_000_000, **kwargs) -> Cache:
    kwargs = {"on_mismatch": lambda: None, "on_copy": lambda _: None} | kwargs
    return Cache(AGES, max_bytes=max_bytes, spawn=asyncio.ensure_future, **kwargs)


def test_copy_is_found_by_both_ids_in_its_environment() -> None:
    kept = cache()
    one = copy(1, external="chat")
    kept.put(one)

    assert kept.find("e", "session_1", 0) is one
    assert kept.find("e", "chat", 0) is one
    assert kept.find("other", "chat", 0) is None
    assert kept.find("e", "session_2", 0) is None
    assert len(kept) == 1


@pytest.mark.parametrize("id_", ["session_1", "chat"])
def test_drop_by_either_id_drops_both(id_: str) -> None:
    kept = cache()
    kept.put(copy(1, external="chat"))
    kept.drop("e", id_)

    assert kept.find("e", "session_1", 0) is None
    assert kept.find("e", "chat", 0) is None
    assert kept.bytes == 0


def test_negative_entry_replaces_a_copy_for_its_time() -> None:
    kept = cache()
    kept.put(copy(1, external="chat"))
    kept.put_negative("e", "chat", 10, kept.purge_generation)

    assert isinstance(kept.find("e", "chat", 10.9), NegativeEntry)
    assert kept.find("e", "session_1", 10.9) is None
    assert kept.find("e", "chat", 11) is None
    assert kept.bytes == 0


def test_similar_ids_never_share_a_copy() -> None:
    kept = cache()
    names = ["\u00e9", "e\u0301", "Chat", "chat", "chat ", " chat", "a:b", "a/b", "a", "a\u200b"]
    for number, name in enumerate(names):
        kept.put(copy(number, external=name))

    found = [kept.find("e", name, 0).id for name in names]

    assert found == [f"session_{number}" for number in range(len(names))]


def test_copy_under_a_foreign_key_is_dropped_and_counted() -> None:
    mismatches = []
    kept = cache(on_mismatch=lambda: mismatches.append(1))
    one = copy(1, external="chat")
    kept.put(one)
    one.external_id = "another"

    assert kept.find("e", "chat", 0) is None
    assert kept.find("e", "session_1", 0) is None
    assert mismatches == [1]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000), st.booleans()), max_size=80))
def test_byte_bound_holds_and_the_sum_is_right(steps) -> None:
    kept = cache(max_bytes=10_000)
    for number, size, read in steps:
        if read:
            kept.find("e", f"chat-{number}", 0)
        else:
            kept.put(copy(number, external=f"chat-{number}", size=size))
        assert kept.bytes <= 10_000
        assert kept.bytes == sum(known.size for known in kept._ring)
        assert set(kept._entries.values()) == set(kept._ring)


def test_entry_that_was_read_survives_eviction() -> None:
    kept = cache(max_bytes=10 * copy(1).size)
    for number in range(10):
        kept.put(copy(number))
    for number in range(10, 30):
        kept.find("e", "session_3", 0)
        kept.put(copy(number))

    assert kept.find("e", "session_3", 0) is not None
    assert kept.find("e", "session_4", 0) is None


def test_copy_beyond_the_bound_is_not_kept() -> None:
    kept = cache(max_bytes=2000)
    kept.put(copy(1))
    kept.put(copy(2, size=5000))

    assert kept.find("e", "session_1", 0) is not None
    assert kept.find("e", "session_2", 0) is None


def test_estimated_size_of_a_copy_is_its_real_size() -> None:
    kept = cache(max_bytes=10**9)
    gc.collect()
    tracemalloc.start()
    for number in range(5000):
        external = f"chat-{number:030d}"
        kept.put(copy(number, external=external, body=bytes(300)))
    measured, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0.8 < measured / kept.bytes < 1.2, (measured / 5000, kept.bytes / 5000, sys.version)


def test_environment_is_usable_while_a_copy_may_be_served() -> None:
    kept = cache()
    assert not kept.has_usable("e", 0)
    kept.put(copy(1))

    assert kept.has_usable("e", 61)
    assert not kept.has_usable("e", 62)
    assert not kept.has_usable("other", 0)
