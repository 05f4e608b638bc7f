"""Loads that wait for their turn, and requests that wait for loads; in virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import uvloop
from support.cost import calls_of
from support.polls import PolledWorld, every, polled_world
from support.replicas import Replicas, until
from support.standin import Shared, StandIn
from support.virtual_time import VirtualClock, run
from support.world import OFF, PATH, read

from bff.copies import load_queue
from bff.copies.load_queue import (
    MAX_IN_FLIGHT,
    MAX_UNSPENT,
    TURN_SECONDS,
    UNBOUNDED_SECONDS,
    LoadQueue,
    QueuedLoad,
)
from bff.copies.readiness import READINESS_ID
from bff.demo.upstream import session
from bff.sessions.copy import Copy


def played(history: Callable[[PolledWorld], Awaitable[None]], **changes: str) -> None:
    """Play *history* in a world of virtual time."""

    async def whole() -> None:
        async with polled_world(**changes) as it:
            await history(it)

    run(whole)


def queue(it: PolledWorld) -> LoadQueue:
    return it.world.service.gateway.loader.queue("default")


@pytest.mark.parametrize("fast_path", [True, False])
def test_retrieve_waits_for_its_turn(fast_path: bool) -> None:
    async def history(it: PolledWorld) -> None:
        it.fast_path = fast_path
        names = it.add("a", "b", "c")
        token = it.token("ann", names)
        for name in names[:2]:
            await it.get(token, name)

        answer = await it.get(token, "c")

        assert answer.status == 200
        assert 0.8 < answer.took < TURN_SECONDS

    played(history, BFF_UPSTREAM_BUDGET="2/second")


@pytest.mark.parametrize("budget", ["1/second", "2/second", "4/second", "6/minute"])
def test_retry_after_of_a_late_retrieve_is_true(budget: str) -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add(*(f"chat-{n}" for n in range(9)))
        token = it.token("ann", names)

        async def retry(name: str) -> list[int]:
            statuses = []
            while (answer := await it.get(token, name)).status != 200:
                statuses.append(answer.status)
                await asyncio.sleep(int(answer.headers["retry-after"]))
            return statuses

        refused = await asyncio.gather(*map(retry, names))

        assert set(map(tuple, refused)) <= {(), (503,)}, "the second request finds the session"
        assert (503,) in map(tuple, refused)

    played(history, BFF_UPSTREAM_BUDGET=budget)


@pytest.mark.parametrize("fast_path", [True, False])
def test_load_that_nobody_waits_for_leaves_the_queue(fast_path: bool) -> None:
    async def history(it: PolledWorld) -> None:
        it.fast_path = fast_path
        names = it.add(*(f"chat-{n}" for n in range(4)))
        token, other = it.token("ann", names), it.token("bob", names)
        for name in names[:2]:
            await it.get(token, name)
        leavers = [asyncio.create_task(it.get(token, name)) for name in names[2:]]
        stayer = asyncio.create_task(it.get(other, names[2]))
        await asyncio.sleep(0.1)
        assert len(queue(it)) == 2

        for leaver in leavers:
            leaver.cancel()
        await asyncio.wait(leavers)

        assert len(queue(it)) == 1, "the other browser still waits for one of them"
        assert (await stayer).status == 200
        await asyncio.sleep(5)
        assert [id_ for _, id_ in it.reads] == names[:3]

    played(history, BFF_UPSTREAM_BUDGET="2/second")


@pytest.mark.parametrize("seed", range(8))
def test_no_request_is_counted_after_its_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random histories of lists, sessions and other ids; browsers leave, sessions are purged."""
    chance, loads = random.Random(seed), list[QueuedLoad]()
    made = QueuedLoad.__init__

    def record(load: QueuedLoad, *arguments: Any) -> None:
        made(load, *arguments)
        loads.append(load)

    monkeypatch.setattr(QueuedLoad, "__init__", record)

    async def history(it: PolledWorld) -> None:
        names = it.add(*(f"chat-{n}" for n in range(20)))
        sessions, gateway = it.world.upstream.environments[0], it.world.service.gateway
        ids = {name: (sessions.find(name) or {})["id"] for name in names}
        it.delays = lambda: chance.choice([0.01, 0.5, 3.0])
        tokens = [
            it.token(f"p{n}", [chance.choice([name, ids[name]]) for name in names[n * 5 :]])
            for n in range(3)
        ]
        requests = []
        for _ in range(120):
            match chance.randrange(10), chance.choice(names), chance.choice(tokens):
                case 0, _, _ if requests:
                    chance.choice(requests).cancel()
                case 1, name, _:
                    gateway.cache.purge("default", name)
                case 2, _, _:
                    gateway.loader.pairs.forget()
                case number, name, token:
                    asked = chance.choice([name, ids[name]])
                    wanted = it.page(token) if number < 5 else it.get(token, asked)
                    requests.append(asyncio.create_task(wanted))
            await asyncio.sleep(chance.choice([0.0, 0.1, 0.5, 3.0]))
        await asyncio.gather(*requests, return_exceptions=True)
        await asyncio.sleep(300)

        assert [(load.id, load.waiting) for load in loads if load.waiting] == []
        assert not queue(it).busy

    played(history, BFF_UPSTREAM_BUDGET=["2/second", "off", "30/minute", "10/second"][seed % 4])


def test_joined_load_has_the_least_stretch() -> None:
    async def history(it: PolledWorld) -> None:
        name = it.add("chat")[0]
        await it.get(it.token("ann", [name]), name)
        await asyncio.sleep(0.2)
        loads = queue(it)
        with loads.hold():
            load = loads.request(name, None, "busy", stretch=60.0)
            assert loads.request(name, None, "ann", stretch=0.1) is load
            await asyncio.sleep(3)

        assert load is not None
        brought = await load.outcome
        assert isinstance(brought, Copy)
        assert it.world.clock.now - brought.loaded < 1, "it is as fresh as ann needs it"
        for _ in range(2):
            load.leave(again=False)

    played(history)


def test_loads_of_a_caller_who_left_leave_the_queue() -> None:
    async def history(it: PolledWorld) -> None:
        names, hot = it.add(*(f"chat-{n:02}" for n in range(90))), it.add("hot")
        leaver, reader = it.token("ann", names), it.token("bob", hot)
        await it.page(leaver, page_size=100)
        assert len(queue(it)) > 80, "late members wait for the next request"

        answers = await every(5.0, 8, lambda: it.get(reader, "hot"))

        assert len(queue(it)) <= 1, "nobody came for them within half a minute"
        made = len(it.reads)
        assert made < 60
        assert {answer.status for answer in answers} == {200}
        await it.get(leaver, names[-1])
        assert it.reads[-1][1] == names[-1], "a load that left can be requested again"

    played(history, BFF_UPSTREAM_BUDGET="1/second")


def test_refresh_stays_queued_while_its_copy_is_read() -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add("a", "b", "c")
        token = it.token("ann", names)
        await it.page(token)
        await asyncio.sleep(3)

        answers = await every(20.0, 5, lambda: it.page(token))

        assert [answer.shown for answer in answers] == [names] * 5
        again = [id_ for _, id_ in it.reads if id_ in names][3:]
        assert sorted(again) == names, "each waited for its turn, longer than half a minute"

    played(
        history,
        BFF_UPSTREAM_BUDGET="3/minute",
        BFF_CACHE_MAX_STRETCH="0",
        BFF_CACHE_STALE_WHILE_REVALIDATE="300",
    )


def test_retrieve_goes_before_the_callers_own_list() -> None:
    async def history(it: PolledWorld) -> None:
        names, single = it.add(*(f"chat-{n:02}" for n in range(40))), it.add("single")
        token = it.token("ann", [*names, *single])
        await it.page(token, page_size=40)
        assert len(queue(it)) > 30

        answer = await it.get(token, "single")

        assert (answer.status, answer.took <= TURN_SECONDS) == (200, True)

    played(history, BFF_UPSTREAM_BUDGET="2/second")


def test_load_of_a_refused_request_is_made_in_its_turn() -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add(*(f"chat-{n}" for n in range(7)))
        token = it.token("ann", names)
        for name in names[:6]:
            await it.get(token, name)

        refused = await it.get(token, names[6])
        await asyncio.sleep(int(refused.headers["retry-after"]))
        again = await it.get(token, names[6])

        assert (refused.status, refused.took) == (503, 0.0), "its turn is not near"
        assert int(refused.headers["retry-after"]) == 60
        assert again.status == 200
        await asyncio.sleep(60)
        loads = [id_ for _, id_ in it.reads if id_ != READINESS_ID]
        assert loads == names, "its load was made once"

    played(history, BFF_UPSTREAM_BUDGET="6/minute", BFF_CACHE_TTL="60")


def test_refreshes_go_on_while_others_wait() -> None:
    async def history(it: PolledWorld) -> None:
        cold = it.add(*(f"cold-{n:03}" for n in range(150)))
        hot = it.add("hot")
        busy, token = it.token("busy", cold), it.token("ann", hot)
        await it.get(token, "hot")
        flood = [asyncio.create_task(it.page(busy, page_size=100)) for _ in range(2)]

        answers = await every(1.0, 25, lambda: it.get(token, "hot"))

        assert max(answer.ages["hot"] for answer in answers) <= 7.0
        assert max(answer.took for answer in answers) <= 0.1, "a stale copy needs no wait"
        await asyncio.gather(*flood)

    played(history, BFF_UPSTREAM_BUDGET="4/second", BFF_CACHE_STALE_WHILE_REVALIDATE="30")


def test_slow_loads_of_one_caller_leave_room_for_others() -> None:
    async def history(it: PolledWorld) -> None:
        slow, quick = it.add(*(f"slow-{n:03}" for n in range(200))), it.add("quick")
        it.delays = lambda: 3.0
        token = it.token("busy", slow)
        pages = [asyncio.create_task(it.page(token, page_size=100)) for _ in range(2)]
        pages.append(asyncio.create_task(it.page(it.token("busy", slow[100:]), page_size=100)))
        await asyncio.sleep(0.1)
        it.delays = lambda: 0.01

        single = await it.get(it.token("ann", quick), "quick")

        assert (single.status, single.took < 0.1) == (200, True)
        assert len(it.world.service.gateway.cache.loads) <= MAX_IN_FLIGHT
        await asyncio.gather(*pages)

    played(history, BFF_UPSTREAM_BUDGET="off")


def test_load_is_not_made_if_the_copy_came_meanwhile() -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add("a", "b")
        token = it.token("ann", names)
        await it.get(token, "a")
        waiting = asyncio.create_task(it.get(token, "b"))
        await asyncio.sleep(0.5)
        gateway = it.world.service.gateway
        document = it.world.upstream.environments[0].find("b") or {}
        document["currentRunId"] = "run_0.5"
        gateway.cache.put(gateway.loader._project("default", document, it.world.clock.now))

        assert (await waiting).status == 200
        assert [id_ for _, id_ in it.reads] == ["a"]

    played(history, BFF_UPSTREAM_BUDGET="1/second")


def test_purge_of_a_queued_session_leaves_one_load() -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add("a", "b")
        token = it.token("ann", names)
        await it.get(token, "a")
        waiting = asyncio.create_task(it.get(token, "b"))
        await asyncio.sleep(0.5)
        it.world.service.gateway.cache.purge("default", "b")

        assert (await it.get(token, "b")).status == (await waiting).status == 200
        assert [id_ for _, id_ in it.reads] == names

    played(history, BFF_UPSTREAM_BUDGET="1/second")


def test_stopping_gateway_refuses_those_who_wait() -> None:
    async def history(it: PolledWorld) -> None:
        names = it.add("a", "b")
        token = it.token("ann", names)
        await it.get(token, "a")
        waiting = asyncio.create_task(it.get(token, "b"))
        await asyncio.sleep(0.1)

        it.world.service.gateway.loader.stop()

        assert (await waiting).status == 503
        assert len(queue(it)) == 0

    played(history, BFF_UPSTREAM_BUDGET="1/second")


def test_full_queue_refuses_and_tells_when_to_come_again() -> None:
    @patch.object(load_queue, "MAX_OF_CALLER", 2)
    async def history(it: PolledWorld) -> None:
        names = it.add(*(f"chat-{n}" for n in range(6)))
        token = it.token("ann", names)

        page = await it.page(token)

        assert len(page.shown) == 5, "three started at once, and two found room in the queue"
        assert len(page.late) == 1
        assert page.next is not None

    played(history, BFF_UPSTREAM_BUDGET="3/second")


@pytest.mark.parametrize("people", [1, 50])
def test_burst_without_a_budget_waits_for_a_slow_upstream(people: int) -> None:
    """Only upstream makes the loads wait, so their number and its slowness refuse nobody."""

    async def history(it: PolledWorld) -> None:
        it.delays = lambda: 1.0
        it.world.upstream.environments[0].bucket.limit = 10_000
        names = it.add(*(f"chat-{n}" for n in range(400)))
        tokens = [it.world.token("read:sessions", act={"sub": f"p{n}"}) for n in range(people)]

        answers = await asyncio.gather(
            *(it.get(tokens[n % people], name) for n, name in enumerate(names))
        )

        assert {answer.status for answer in answers} == {200}
        assert len(it.reads) == len(names)

    played(history, BFF_UPSTREAM_BUDGET="off")


@pytest.mark.parametrize(
    ("budget", "patience"), [("off", UNBOUNDED_SECONDS), ("1000/second", TURN_SECONDS)]
)
def test_request_waits_no_longer_than_it_promises(budget: str, patience: float) -> None:
    async def history(it: PolledWorld) -> None:
        it.delays = lambda: 60.0
        names = it.add(*(f"chat-{n}" for n in range(150)))
        tokens = [it.token(f"p{n}", [name]) for n, name in enumerate(names)]

        answers = await asyncio.gather(*(it.get(*one) for one in zip(tokens, names, strict=True)))

        late = [answer for answer in answers if answer.status == 503]
        assert len(late) == 150 - MAX_IN_FLIGHT
        assert {round(answer.took, 2) for answer in late} == {patience}

    played(history, BFF_UPSTREAM_BUDGET=budget, BFF_UPSTREAM_TIMEOUT="30")


# -- replicas


def test_denied_loads_get_their_turn_at_a_store() -> None:
    """Each replica waits as long as the store says, and refuses nobody for it."""

    async def history() -> None:
        settings = {"BFF_UPSTREAM_BUDGET": "6/second", "BFF_STORE_URL": "valkey://127.0.0.1:1"}
        async with polled_world(**settings) as one, polled_world(**settings) as two:
            worlds, ids = (one, two), [f"chat-{n:02}" for n in range(12)]
            for it in worlds:
                it.add(*ids)
            await asyncio.sleep(1)

            answers = await asyncio.gather(
                *(
                    worlds[n % 2].get(worlds[n % 2].token(f"p{n}", [id_]), id_)
                    for n, id_ in enumerate(ids)
                )
            )

            assert [answer.status for answer in answers] == [200] * 12
            times = sorted(at for it in worlds for at, id_ in it.reads if id_ in ids)
            assert len(times) == 12
            assert all(after - at >= 0.99 for at, after in zip(times, times[6:], strict=False))
            for loads in map(queue, worlds):
                assert (len(loads), loads._total, loads._unspent) == (0, 0, 0)

    with patch("bff.app.Store", partial(_stand_in, Shared(lambda: VirtualClock().now))):
        run(history)


def test_denied_requests_wait_no_longer_than_others() -> None:
    """The load was in flight when they began to wait, and the store sent it back to the queue."""

    async def history() -> None:
        settings = {"BFF_UPSTREAM_BUDGET": "2/second", "BFF_STORE_URL": "valkey://127.0.0.1:1"}
        async with polled_world(**settings) as it:
            ids = it.add(*(f"chat-{n:02}" for n in range(8)))
            await asyncio.sleep(1)

            answers = await asyncio.gather(
                *(it.get(it.token(f"p{id_}", [id_]), id_) for id_ in ids)
            )

            assert sorted(answer.status for answer in answers) == [200] * 4 + [503] * 4
            assert all(answer.took <= TURN_SECONDS + 0.01 for answer in answers)

    with patch("bff.app.Store", partial(_stand_in, Shared(lambda: VirtualClock().now))):
        run(history)


def test_slow_poller_gets_its_turn_from_a_store_that_denies() -> None:
    async def history(it: PolledWorld) -> None:
        slow, fast = it.add("slow"), it.add(*(f"fast-{n:03}" for n in range(480)))
        token, busy = it.token("slow", slow), it.token("fast", fast)

        chats = iter(fast)
        polls = asyncio.create_task(every(0.5, 480, lambda: it.get(busy, next(chats))))
        await asyncio.sleep(21)  # the budget of the first minute is spent
        statuses = []
        for _ in range(3):
            answer = await it.get(token, "slow")
            statuses.append(answer.status)
            await asyncio.sleep(int(answer.headers.get("retry-after", "0")))
        await polls

        assert statuses[0] == 503
        assert 200 in statuses, "the load of the refused request had its turn meanwhile"

    with patch("bff.app.Store", partial(_stand_in, Shared(lambda: VirtualClock().now))):
        played(
            history,
            BFF_UPSTREAM_BUDGET="2/minute",
            BFF_STORE_URL="valkey://127.0.0.1:1",
            BFF_CACHE_TTL="60",
        )


def test_load_that_the_store_denies_for_long_refuses_at_once() -> None:
    async def history(it: PolledWorld) -> None:
        token = it.token("ann", it.add("one", "two", "three"))
        statuses = [(await it.get(token, id_)).status for id_ in ("one", "two")]
        now = asyncio.get_running_loop().time
        began = now()

        refused = await it.get(token, "three")
        took = now() - began
        await asyncio.sleep(int(refused.headers["retry-after"]))
        again = await it.get(token, "three")

        assert statuses == [200, 200]
        assert (refused.status, took < 1) == (503, True), "its turn is a minute away"
        assert again.status == 200

    with patch("bff.app.Store", partial(_stand_in, Shared(lambda: VirtualClock().now))):
        played(
            history,
            BFF_UPSTREAM_BUDGET="2/minute",
            BFF_STORE_URL="valkey://127.0.0.1:1",
            BFF_CACHE_TTL="120",
        )


def _stand_in(shared: Shared, _: object, **arguments: Any) -> StandIn:
    return StandIn(shared, **arguments)


async def test_copy_of_another_replica_needs_no_turn(replicas: Replicas) -> None:
    one, two = await replicas.several(2, **OFF | {"BFF_UPSTREAM_BUDGET": "3/minute"})
    for id_ in ("chat-1", "chat-2", "chat-closed"):
        await one.get(id_)
    late = await two.get("a/b: c%?#ü")
    await until(lambda: one.telemetry.counts["bff_shared_copies", "kept"] == 3)

    found = [await two.get(id_) for id_ in ("chat-1", "chat-2")]

    assert (late.status_code, late.json()["code"]) == (503, "over_budget")
    assert [answer.status_code for answer in found] == [200, 200]


async def test_page_asks_the_store_for_few_loads_at_once(replicas: Replicas) -> None:
    (world,) = await replicas.several(1, **OFF)
    ids = [f"many-{n}" for n in range(100)]
    for number, id_ in enumerate(ids, start=100):
        replicas.upstream.environments[0].add(session(number, id_))
    sharing, most, now = world.service.sharing, 0, 0
    load = sharing.load

    async def counted(request: Any) -> Any:
        nonlocal most, now
        ask = request.ask
        now += 1
        most = max(most, now)

        async def pay_and_ask(wait: float | None, timeout: float) -> Any:
            nonlocal now
            now -= 1
            return await ask(wait, timeout)

        return await load(request._replace(ask=pay_and_ask))

    sharing.load = counted
    token = world.token(*read(*ids))
    sent = {"authorization": f"Bearer {token}"}
    response = await world.browser.get("/api/v1/sessions?page[size]=100", headers=sent)

    shown, late = response.json()["data"], response.json().get("unavailable", [])
    assert len(shown) + len(late) == 100, "on a busy machine some may be late"
    assert most <= 2 * MAX_UNSPENT, "some of them have paid meanwhile"


def test_timer_that_is_due_at_once_works_in_uvloop() -> None:
    """There the handle of such a timer does not tell its time, as the loop of the tests does."""
    nothing: Any = None
    made = LoadQueue(
        "default", clock=nothing, sharing=nothing, budget=nothing, load=nothing, recent=nothing,
        in_flight=nothing,
    )  # fmt: skip

    async def wake() -> None:
        for seconds in (0.0001, 0.0002, 0.00005):
            made._alarm.set(seconds)
        await asyncio.sleep(0.05)

    uvloop.run(wake())
    assert made._alarm._timer is None


def test_viewers_of_one_session_that_wait_cost_little_each() -> None:
    """All of them wait for one load; a page also asks when each of its sessions has its turn."""
    viewers = 120

    async def history(it: PolledWorld) -> None:
        names = it.add("before", "shared", *map(str, range(20)))
        await it.get(it.token("first", names), "before")
        tokens = [it.token(f"viewer-{number}", names[1:]) for number in range(viewers)]
        waiting = [asyncio.create_task(it.get(token, "shared")) for token in tokens]
        waiting += [asyncio.create_task(it.page(token)) for token in tokens[: viewers // 2]]
        await asyncio.sleep(0.01)  # all of them have been decided once

        asks = queue(it).get("shared")
        assert asks is not None
        assert asks.waiting == viewers + viewers // 2
        calls = calls_of(lambda: it.decide(it.token("last", names[1:]), f"{PATH}shared"))
        assert calls < 20 * viewers
        answers = await asyncio.gather(*waiting)
        assert [answer.status for answer in answers[:viewers]] == [200] * viewers

    played(history, BFF_UPSTREAM_BUDGET="1/second")
