"""Browsers that poll lists and sessions of a World, and what they are shown; for virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from support.virtual_time import VirtualClock
from support.world import ORIGIN, PATH, World, read

from bff.demo.upstream import Answer as UpstreamAnswer
from bff.demo.upstream import Seen, session
from bff.gateway.pending import Pending, PendingLoad
from bff.request import RequestHead
from bff.response import Response

LIST = PATH.rstrip("/")
NO_LIMITS = {"BFF_RATE_LIMIT": "off", "BFF_IP_RATE_LIMIT": "off"}


@dataclass(frozen=True)
class Answer:
    """The answer to one request. Times are seconds of the loop.

    Attributes:
        ages: seconds since each shown session was read upstream, by id.
        next: the cursor of the next page.
    """

    began: float
    ended: float
    status: int
    shown: list[str]
    late: list[str]
    broken: list[str]
    ages: dict[str, float]
    next: str | None
    headers: dict[str, str]

    @property
    def took(self) -> float:
        return self.ended - self.began


@dataclass
class PolledWorld:
    """A World in virtual time, and the calls that upstream received.

    Attributes:
        delays: draws the seconds that upstream takes.
        read_at: by session, when upstream read it.
        reads: the time and session of each call.
        fast_path: whether requests wait for a load without a task.
    """

    world: World
    delays: Callable[[], float] = lambda: 0.05
    broken: set[str] = field(default_factory=set)
    reads: list[tuple[float, str]] = field(default_factory=list)
    numbers: int = 10_000
    fast_path: bool = True

    async def answer(self, seen: Seen) -> Any:
        id_ = seen.raw_path.rpartition("/")[2]
        now = asyncio.get_running_loop().time()
        self.reads.append((now, id_))
        if (document := self.world.upstream.environments[0].find(id_)) is not None:
            # The document carries the time at which upstream read it.
            document["currentRunId"] = f"run_{now:.6f}"
        await asyncio.sleep(self.delays())
        return UpstreamAnswer(500, {"error": "broken"}) if id_ in self.broken else None

    def add(self, *names: str) -> list[str]:
        for name in names:
            self.numbers += 1
            self.world.upstream.environments[0].add(session(self.numbers, name))
        return list(names)

    def token(self, person: str, names: list[str]) -> str:
        return self.world.token(
            *read(*names), act={"sub": person}, exp=int(self.world.clock.wall) + 100_000
        )

    async def page(self, token: str, **query: object) -> Answer:
        """Ask for one page of a list; ``page_size`` stands for ``page[size]``."""
        sent = {f"page[{name.removeprefix('page_')}]": text for name, text in query.items()}
        return await self._ask(LIST, urlencode(sent), token)

    async def walk(self, token: str, **query: object) -> list[Answer]:
        """Follow ``pagination.next`` to the end."""
        pages = [await self.page(token, **query)]
        while pages[-1].next is not None:
            pages.append(await self.page(token, page_after=pages[-1].next, **query))
            assert len(pages) < 500, "the cursor advances"
        return pages

    async def get(self, token: str, id_: str) -> Answer:
        return await self._ask(PATH + id_, "", token)

    def decide(self, token: str, path: str, query: str = "") -> Response | Pending:
        """Let the gateway decide a request, and wait for nothing."""
        headers = [(b"origin", ORIGIN.encode()), (b"authorization", b"Bearer " + token.encode())]
        head = RequestHead.read("GET", path.encode(), query.encode(), headers, "192.0.2.1")
        return self.world.service.gateway.decide(head, *self.world.clock())

    async def _ask(self, path: str, query: str, token: str) -> Answer:
        """Ask the gateway's heart, without an HTTP client's cost."""
        loop, gateway = asyncio.get_running_loop(), self.world.service.gateway
        began = loop.time()
        answer = self.decide(token, path, query)
        if self.fast_path and isinstance(answer, PendingLoad):
            called: asyncio.Future[Response] = loop.create_future()
            leave = gateway.call_back(answer, called.set_result, _no_task)
            try:
                answer = await called
            except asyncio.CancelledError:
                leave()
                raise
        response = await gateway.finish(answer)
        body, ended = json.loads(response.body), loop.time()
        shown = body.get("data", [body] if response.status == 200 else [])
        unavailable = body.get("unavailable", [])
        return Answer(
            began=began,
            ended=ended,
            status=response.status,
            shown=[one["externalId"] for one in shown],
            late=[one["id"] for one in unavailable if one["code"] == "over_budget"],
            broken=[one["id"] for one in unavailable if one["code"] != "over_budget"],
            ages={
                one["externalId"]: ended - float(one["currentRunId"].removeprefix("run_"))
                for one in shown
            },
            next=body.get("pagination", {}).get("next"),
            headers={name.decode(): text.decode() for name, text in response.headers()},
        )


def _no_task(_: object) -> None:
    raise AssertionError("it waits for a call upstream only")


@asynccontextmanager
async def polled_world(**changes: str) -> AsyncIterator[PolledWorld]:
    """A World in virtual time, without rate limits."""
    async with World(VirtualClock(), **NO_LIMITS | changes) as world:  # type: ignore[arg-type]
        made = PolledWorld(world)
        world.upstream.override = made.answer
        yield made


async def every(seconds: float, times: int, poll: Any) -> list[Answer]:
    """Poll a number of times, at a fixed interval like a page."""
    loop = asyncio.get_running_loop()
    answers, began = [], loop.time()
    for number in range(times):
        await asyncio.sleep(began + number * seconds - loop.time())
        answers.append(await poll())
    return answers
