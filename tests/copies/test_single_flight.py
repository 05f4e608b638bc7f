"""One piece of work for all who wait."""

import asyncio

from bff.copies.single_flight import SingleFlight


async def test_one_load_serves_all_and_leaves_nothing() -> None:
    loads: SingleFlight[tuple[str, str], str] = SingleFlight(asyncio.create_task)
    gate = asyncio.Event()
    started = []

    async def load() -> str:
        started.append(1)
        await gate.wait()
        return "done"

    flight = loads.start(("e", "chat"), load())
    assert loads.get(("e", "chat")) is flight
    assert loads.get(("other", "chat")) is None
    leaver = asyncio.ensure_future(asyncio.shield(flight))
    await asyncio.sleep(0)
    leaver.cancel()
    gate.set()

    assert await flight == "done"
    await asyncio.sleep(0)
    assert len(loads) == 0
    assert started == [1]
