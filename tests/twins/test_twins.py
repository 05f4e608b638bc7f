"""Observers see the same in twin worlds: the short form of `make twins`."""

import asyncio
import time

import pytest
from twins import combinations
from twins.compare import differences
from twins.history import history
from twins.loop import VirtualLoop

ROWS = len(combinations.pairwise())
ROUNDS = 2
"""Histories of each row; every second round draws its settings instead."""
ABSENT = 110
"""A history in which an observer requests, under a token that does not name it, an id that upstream
has not and that another caller requested before. Few of the others do."""


@pytest.mark.parametrize("row", range(ROWS))
def test_observers_see_the_same_in_twin_worlds(row: int) -> None:
    for seed in (*range(row, ROUNDS * ROWS, ROWS), *[ABSENT][row:]):
        found = [f"{one.kind}\n    {one.text}" for one in differences(history(seed))]
        assert not found, f"SEED={seed} make twins\n" + "\n".join(found)


def test_histories_have_every_pair_of_settings() -> None:
    seen = {pair for seed in range(ROWS) for pair in combinations.pairs(history(seed).combination)}

    assert seen == combinations.all_pairs()


def test_history_depends_on_its_seed_alone() -> None:
    assert history(7) == history(7) != history(8)


def test_time_of_the_loop_passes_without_waiting() -> None:
    async def sleep() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(sleep()) == 3600
    assert time.monotonic() - began < 60
