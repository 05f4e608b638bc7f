"""Random histories of listeners: each page shows in the end what a poll shows, and in order.

Sessions change, expire, disappear and come back. Loads are slow or fail, copies leave memory, and
browsers read slowly or leave. Time is virtual, so a seed always gives the same history. `make
histories` runs 5,000 of them.
"""

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import urlencode

import pytest
from support.listening import LIST, Listening, listen, parse
from support.virtual_time import VirtualClock, run
from support.world import OFF, PATH, World, read

from bff.demo.upstream import Answer, Seen, session

HISTORIES = int(os.environ.get("HISTORIES", "6"))
FIRST = int(os.environ.get("SEED", "0"))
NAMES = [f"chat-{number}" for number in range(6)]
FILTERS = (
    *({}, {}, {"filter[status]": "ACTIVE"}, {"filter[status]": "EXPIRED,CLOSED"}),
    *({"filter[tags]": "a"}, {"filter[externalId]": NAMES[0]}),
)
QUIET = 90.0
"""Seconds without trouble at the end: longer than closed sessions and failed loads wait."""


@dataclass
class Page:
    """A browser that listens, and the poll with which it is compared."""

    listening: Listening
    token: str
    path: str
    query: str


@dataclass
class History:
    """One history. Each document of a session has a higher number than the one before."""

    world: World
    random: Random
    failing: set[str] = field(default_factory=set)
    removed: dict[str, Any] = field(default_factory=dict)
    pages: list[Page] = field(default_factory=list)
    number: int = 0
    persons: int = 0

    async def answer(self, seen: Seen) -> Answer | None:
        id_ = seen.raw_path.rpartition("/")[2]
        document = self.find(id_)
        await asyncio.sleep(self.random.choice((0.0, 0.05, 0.5)))
        names = {id_} if document is None else {document["id"], document["externalId"]}
        return Answer(503, b"") if names & self.failing else None

    def find(self, id_: str) -> Any:
        return self.world.upstream.environments[0].find(id_)

    def change(self, name: str) -> None:
        """Change a session, if there is one; make, remove or restore it."""
        sessions, draw = self.world.upstream.environments[0].sessions, self.random
        document, self.number = self.find(name), self.number + 1
        if document is None:
            made = self.removed.pop(name, None) or session(1000 + self.number, name)
            sessions[made["id"]] = made | {"taskIdentifier": f"{self.number:06}"}
        elif draw.random() < 0.15:
            self.removed[name] = sessions.pop(document["id"])
        else:
            date = datetime.fromtimestamp(self.world.clock.wall + draw.randint(0, 40), UTC)
            changes = ({"tags": ["a"]}, {"tags": []}, {"expiresAt": f"{date:%FT%TZ}"})
            closed = {"closedAt": f"{date:%FT%TZ}"} if draw.random() < 0.1 else {}
            document.update(draw.choice(changes) | closed, taskIdentifier=f"{self.number:06}")

    async def open(self) -> None:
        draw, names = self.random, self.random.sample(NAMES, self.random.randint(1, len(NAMES)))
        for name in list(names):
            if (document := self.find(name)) is not None and draw.random() < 0.3:
                names[names.index(name)] = document["id"]
        self.persons += 1  # nobody has two lists, so none becomes outdated
        actor, expires = f"person-{self.persons}", int(self.world.clock.wall) + 100_000
        token = self.world.token(*read(*names), act={"sub": actor}, exp=expires)
        single = draw.random() < 0.3
        query = "" if single else urlencode(draw.choice(FILTERS))
        listening = await listen(self.world, names[0] if single else None, token=token, query=query)
        if listening.response.status == 200:
            self.pages.append(Page(listening, token, PATH + names[0] if single else LIST, query))

    async def step(self) -> None:
        """Let one thing happen."""
        draw, name, cache = self.random, self.random.choice(NAMES), self.world.service.gateway.cache
        page = draw.choice(self.pages) if self.pages else None
        match draw.choice(("open", "change", "change", "fail", "memory", "page", "wait", "wait")):
            case "open":
                await self.open()
            case "change":
                self.change(name)
            case "fail":
                self.failing ^= {name}
            case "memory" if draw.random() < 0.5:
                cache.clear(loads=False)
            case "memory":
                cache.purge("default", name)
            case "wait":
                await asyncio.sleep(draw.choice((0.0, 0.3, 0.3, 2.5, 2.5, 10.0, 70.0)))
            case "page" if page is not None and draw.random() < 0.2:
                self.pages.remove(page)
                page.listening.leave()
            case "page" if page is not None and page.listening.paused:
                page.listening.read()
            case "page" if page is not None:
                page.listening.paused = True

    async def check(self, page: Page) -> None:
        """Compare what a page shows with a poll."""
        shown: dict[str, Any] = {}
        for event in parse(page.listening.received.decode()):
            if event.event == "sessions":
                shown = {one["id"]: one for one in event.data["data"]}
            elif event.event == "session":
                before = shown.get(event.data["id"], {"taskIdentifier": ""})
                assert before["taskIdentifier"] < event.data["taskIdentifier"], "no step back"
                shown[event.data["id"]] = event.data
            elif event.event == "gone":
                gone = [o["id"] for o in shown.values() if event.data["id"] in o.values()]
                for id_ in gone:
                    del shown[id_]
        size = {"page[size]": 100} if page.path == LIST else {}
        query = "&".join(filter(None, (page.query, urlencode(size))))
        sent = {"authorization": f"Bearer {page.token}"}
        polled = await self.world.browser.get(f"{page.path}?{query}", headers=sent)
        documents = polled.json().get("data", [polled.json()] if polled.is_success else [])

        assert not page.listening.finished
        assert shown == {document["id"]: document for document in documents}


async def history(seed: int) -> int:
    """Play one history; return how many pages it compared."""
    draw = Random(seed)
    settings = {
        "BFF_CACHE_TTL": draw.choice(("0.5", "2", "5")),
        "BFF_CACHE_STALE_IF_ERROR": draw.choice(("0", "20", "60")),
        "BFF_UPSTREAM_BUDGET": draw.choice(("off", "2/second", "10/second")),
    }
    async with World(VirtualClock(), **OFF | settings | {"BFF_EXPOSE_TAGS": "*"}) as world:  # type: ignore[arg-type]
        it = History(world, draw)
        world.upstream.override = it.answer
        for name in NAMES[:4]:
            it.change(name)
        for _ in range(draw.randint(10, 60)):
            await it.step()
        it.failing.clear()
        for page in it.pages:
            page.listening.read()
        await asyncio.sleep(QUIET)
        for page in it.pages:
            await it.check(page)
        return len(it.pages)


@pytest.mark.parametrize("block", range(min(4, HISTORIES)))
def test_listeners_show_what_polls_show_after_any_history(block: int) -> None:
    compared = 0
    for seed in range(FIRST + block, FIRST + HISTORIES, 4):
        try:
            compared += run(lambda seed=seed: history(seed))
        except BaseException as exc:
            exc.add_note(f"SEED={seed} HISTORIES=1")
            raise

    assert compared >= HISTORIES // 8, "pages were open at the end"
