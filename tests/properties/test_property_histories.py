"""Random histories of callers who poll lists and sessions. A test checks each answer when it comes.

The budget, the ages, the upstream's delays and the callers are drawn from a seed. Time is virtual,
so a history has one order of events and can be repeated. `make histories` runs 5,000 of them.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf
from random import Random

import pytest
from support.polls import Answer, PolledWorld, polled_world
from support.virtual_time import run

from bff.copies.load_queue import TURN_SECONDS, QueuedLoad
from bff.gateway.lists import LATE_SECONDS
from bff.gateway.pending import FALLBACK_SECONDS
from bff.limits.queue import REFRESH_EVERY, FairQueue, _Caller

HISTORIES = int(os.environ.get("HISTORIES", "24"))
FIRST = int(os.environ.get("SEED", "0"))
ACTIVE = 15.0
"""Seconds in which callers ask at random."""
QUIET = 15.0
"""Seconds between the polls after that, which must find everything."""
SLACK = 0.01
"""Seconds: what a comparison of sums of floats may differ by."""


@dataclass
class Setting:
    """The settings and callers of one history, drawn from its seed."""

    random: Random
    rate: int = 0
    ttl: float = 0.0
    stretch: float = 0.0
    if_error: float = 60.0
    delays: tuple[float, float] = (0.0, 0.0)
    lists: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = self.random
        self.rate = draw.choice((0, 1, 2, 4, 10, 10, 30))
        self.ttl = draw.choice((0.0, 0.5, 2.0, 2.0, 8.0))
        self.stretch = draw.choice((0.0, 5.0, 60.0))
        self.if_error = draw.choice((0.0, 20.0, 60.0))
        longest = draw.choice((0.0, 0.05, 0.5, 1.5))
        self.delays = (longest / 4, longest)
        shared = [f"shared-{n}" for n in range(draw.choice((0, 0, 3, 8)))]
        for number in range(draw.randint(1, 5)):
            size = draw.choice((1, 3, 10, 20, 40))
            own = [f"p{number}-{n:02}" for n in range(size)]
            names = own + draw.sample(shared, draw.randint(0, len(shared)))
            draw.shuffle(names)
            self.lists[f"p{number}"] = names

    @property
    def oldest(self) -> float:
        """Seconds after its load at which a copy may be shown at the latest."""
        return max(self.ttl, self.stretch) + max(5.0, self.if_error)

    def settings(self) -> dict[str, str]:
        return {
            "BFF_UPSTREAM_BUDGET": f"{self.rate}/second" if self.rate else "off",
            "BFF_CACHE_TTL": str(self.ttl),
            "BFF_CACHE_MAX_STRETCH": str(self.stretch),
            "BFF_CACHE_STALE_IF_ERROR": str(self.if_error),
        }


class WatchedQueue(FairQueue[QueuedLoad]):
    """Checks each turn: callers have turns one after another, whatever they load in them."""

    def __init__(self) -> None:
        super().__init__()
        self.since: dict[_Caller[QueuedLoad], Counter[Hashable]] = {}
        """The turns of other callers since the last turn of each caller whose requests wait."""
        self.turns = 0

    def pass_by(self, turn: QueuedLoad, caller: Hashable) -> None:
        assert not self, "nobody waits"
        self.turns += 1
        super().pass_by(turn, caller)

    def pop(
        self, may_start: Callable[[Hashable], bool] = lambda _: True, *, new: bool = False
    ) -> tuple[Hashable, QueuedLoad] | None:
        able = [one for one in self._callers.values() if may_start(one.name)]
        waiting = [one for one in able if one.has(awaited=True, new=new)]
        wanted = {one.name for one in able if one in waiting or one.has(awaited=False, new=new)}
        before, taken = self._last, super().pop(may_start, new=new)
        if taken is not None:
            self.turns += 1
            caller, _ = taken
            assert caller != before or wanted == {caller}, "two turns in a row"
            # A caller that leaves the queue and comes back is the last one again.
            self.since = {one: self.since.get(one, Counter()) for one in waiting}
            for waiter, turns in self.since.items():
                turns[caller] += 1
                if waiter.name == caller:
                    turns.clear()
                assert max(turns.values(), default=0) <= 1, "one caller took more than its part"
        return taken


@dataclass
class History:
    """One history: its callers, and the checks of their answers."""

    setting: Setting
    world: PolledWorld
    answers: int = 0

    def check(self, answer: Answer, longest: float) -> None:
        """Check one answer by the facts of its time."""
        self.answers += 1
        assert answer.status in (200, 503)
        assert answer.took <= longest + self.setting.delays[1] + SLACK, "bounded waiting"
        for id_, age in answer.ages.items():
            assert age <= self.setting.oldest + answer.took + SLACK, (id_, age)
        if answer.status == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert len(set(answer.shown)) == len(answer.shown)

    async def page(self, person: str, **query: object) -> Answer:
        answer = await self.world.page(self.tokens[person], **query)
        following = "page_after" in query
        self.check(answer, LATE_SECONDS if following else FALLBACK_SECONDS)
        return answer

    async def walk(self, person: str, size: int) -> None:
        """Follow the pages to their end: each session is shown once, or reported at last."""
        shown: Counter[str] = Counter()
        late: set[str] = set()
        query: dict[str, object] = {"page_size": size}
        for _ in range(500):
            answer = await self.page(person, **query)
            shown.update(answer.shown)
            late = (late | set(answer.late)) - set(shown)
            if answer.status == 503:
                await asyncio.sleep(int(answer.headers["retry-after"]))
            elif answer.next is None:
                break
            else:
                query["page_after"] = answer.next
        else:
            raise AssertionError("the cursor advances")
        names = self.setting.lists[person]
        assert set(shown) | late == set(names), "nothing is missing silently"
        assert set(shown.values()) <= {1}

    async def get(self, person: str) -> None:
        """Ask for one session until it comes, when the gateway says that it can."""
        id_ = self.setting.random.choice(self.setting.lists[person])
        for _ in range(self.patience()):
            answer = await self.world.get(self.tokens[person], id_)
            self.check(answer, TURN_SECONDS)
            if answer.status == 200:
                return
            await asyncio.sleep(int(answer.headers["retry-after"]))
        raise AssertionError("a retrieve starves")

    def patience(self) -> int:
        """How often a retrieve is refused, at most.

        All turns that are in the queue may come first, and as many that come meanwhile; each wait
        is a second at least.
        """
        everything = sum(map(len, self.setting.lists.values()))
        return 4 + 3 * everything // (self.setting.rate or 100)

    async def leave(self, person: str) -> None:
        """Ask for a page, and leave before it comes."""
        asking = asyncio.create_task(self.world.page(self.tokens[person]))
        await asyncio.sleep(self.setting.random.choice((0.0, 0.1, 0.7)))
        asking.cancel()
        await asyncio.wait([asking])

    async def caller(self, person: str, seed: int) -> None:
        draw, loop = Random(seed), asyncio.get_running_loop()
        habit = draw.choice(("poll", "walk", "get", "leave", "mixed"))
        pause = draw.choice((0.2, 2.0, 6.0, 15.0))
        await asyncio.sleep(draw.random() * 2)
        while loop.time() < ACTIVE:
            what = draw.choice(("poll", "walk", "get", "leave")) if habit == "mixed" else habit
            size = draw.choice((1, 7, 20, 100)) if draw.random() < 0.5 else 20
            if what == "poll":
                await self.page(person, page_size=size)
            elif what == "walk":
                await self.walk(person, max(size, 7))
            elif what == "get":
                await self.get(person)
            else:
                await self.leave(person)
            await asyncio.sleep(pause * (0.5 + draw.random()))

    async def play(self) -> None:
        setting, turns = self.setting, WatchedQueue()
        self.world.add(*{name for names in setting.lists.values() for name in names})
        self.tokens = {p: self.world.token(p, names) for p, names in setting.lists.items()}
        loads = self.world.world.service.gateway.loader.queue("default")
        loads._queue = turns
        seeds = {person: setting.random.getrandbits(32) for person in setting.lists}
        await asyncio.gather(*(self.caller(person, seed) for person, seed in seeds.items()))
        assert turns.turns, "the history has turns"
        self.check_budget()
        await self.quiet()
        assert len(loads) == 0
        assert loads._loads == {}
        assert (loads._total, loads._unspent, loads._running) == (0, 0, {})
        assert len(self.world.world.service.gateway.cache.loads) == 0

    async def quiet(self) -> None:
        """Poll slowly, until each list fits into the budget: then everything is shown."""
        names = {name for names in self.setting.lists.values() for name in names}
        drain = (len(names) * REFRESH_EVERY + 400) / (self.setting.rate or inf)
        await asyncio.sleep(min(drain, 500.0) + 2 * self.setting.delays[1])
        if self.setting.rate and len(names) > 0.8 * self.setting.rate * QUIET:
            return
        if max(self.setting.if_error, 5.0) + self.setting.ttl <= QUIET + 2 * TURN_SECONDS:
            return  # copies expire between two polls
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        for number in range(3):
            for position, (person, wanted) in enumerate(self.setting.lists.items()):
                at = number * QUIET + position * (FALLBACK_SECONDS + 2.0)
                await asyncio.sleep(began + at - loop.time())
                answer = await self.page(person, page_size=100)
                if number:
                    assert (sorted(answer.shown), answer.late) == (sorted(wanted), [])
        await asyncio.sleep(2 * QUIET)

    def check_budget(self) -> None:
        times, rate = [when for when, _ in self.world.reads], self.setting.rate
        for first, after in zip(times, times[rate:], strict=False):
            assert not rate or after - first >= 1.0 - SLACK, "the budget holds in each second"


@pytest.mark.parametrize("block", range(min(4, HISTORIES)))
def test_every_answer_of_a_random_history_is_right(block: int) -> None:
    answers = 0
    for seed in range(FIRST + block, FIRST + HISTORIES, 4):
        setting = Setting(Random(seed))

        async def history(setting: Setting = setting) -> int:
            async with polled_world(**setting.settings()) as world:
                world.delays = lambda: setting.random.uniform(*setting.delays)
                it = History(setting, world)
                await it.play()
                return it.answers

        try:
            answers += run(history)
        except BaseException as exc:
            exc.add_note(f"SEED={seed} HISTORIES=1")
            raise

    assert answers >= HISTORIES // 4, "the histories hold answers"
