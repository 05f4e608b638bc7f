"""One piece of work for all who wait."""

import asyncio

from bff.copies.cache import Cache
from bff.sessions.copy import Ages

AGES = Ages(ttl=2, closed_ttl=30, stale_while_revalidate=5, stale_if_error=60, negative_ttl=1)


def cache(max_bytes: int = 1_000_000, **kwargs) -> Cache:
    return Cache(AGES, max_bytes=max_bytes, spawn=asyncio.ensure_future, **kwargs)


async def test_one_load_serves_all_and_leaves_nothing() -> None:
    kept = cache()
    gate = asyncio.Event()
    started = []

    async def load() -> str:
        started.append(1)
        await gate.wait()
        return "done"

    flight = kept.loads.start(("e", "chat"), load())
    assert kept.loads.get(("e", "chat")) is flight
    assert kept.loads.get(("other", "chat")) is None
    leaver = asyncio.ensure_future(asyncio.shield(flight))
    await asyncio.sleep(0)
    leaver.cancel()
    gate.set()

    assert await flight == "done"
    await asyncio.sleep(0)
    assert len(kept.loads) == 0
    assert started == [1]
