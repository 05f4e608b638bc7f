"""Tests of exchanges: which of them are late, and when."""

import asyncio

from support.virtual_time import run

from bff.replicas.exchanges import Deadlines, Exchange
from bff.replicas.heartbeat import GRACE_SECONDS


def exchange() -> Exchange:
    return Exchange((("PING",),), lambda one: one.results, lambda _: None)


def test_each_exchange_is_late_after_its_own_time() -> None:
    async def history() -> None:
        loop, late = asyncio.get_running_loop(), dict[Exchange, float]()

        def note(one: Exchange) -> None:
            late[one] = loop.time()

        deadlines = Deadlines(note)
        one, shorter, later, answered = (exchange() for _ in range(4))
        deadlines.add(one, 1.0)
        deadlines.add(shorter, 0.5)
        deadlines.add(answered, 0.5)
        await asyncio.sleep(0.25)
        deadlines.add(later, 1.0)
        deadlines.remove(answered)
        await asyncio.sleep(5.0)

        assert [round(late[it] - GRACE_SECONDS, 2) for it in (shorter, one, later)] == [
            *(0.5, 1.0, 1.25)
        ]
        assert answered not in late
        assert len(late) == 3, "each is late once"

    run(history)


def test_answer_that_arrived_in_a_busy_process_is_not_late() -> None:
    async def history() -> None:
        loop, late = asyncio.get_running_loop(), []
        deadlines = Deadlines(late.append)
        one = exchange()
        deadlines.add(one, 1.0)
        loop.call_at(1.0 + GRACE_SECONDS / 2, deadlines.remove, one)
        await asyncio.sleep(5.0)

        assert late == []

    run(history)


def test_late_exchange_may_send_again() -> None:
    async def history() -> None:
        late: list[Exchange] = []

        def again(one: Exchange) -> None:
            late.append(one)
            if len(late) < 3:
                deadlines.add(exchange(), 1.0)

        deadlines = Deadlines(again)
        deadlines.add(exchange(), 1.0)
        await asyncio.sleep(10.0)

        assert len(late) == 3

    run(history)
