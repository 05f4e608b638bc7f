"""News of replicas: who announces, and what a replica does with news."""

from typing import Any

import pytest
from support.listening import listen
from support.world import World, read


class Sent:
    """In place of the store: the announcements of this replica."""

    def __init__(self, world: World) -> None:
        self.news: list[tuple[Any, ...]] = []
        world.service.sharing.announce = lambda *news: self.news.append(news)


def token(world: World, *names: str, age: float = 0.0, **claims: Any) -> str:
    issued = int(world.clock.wall - age)
    return world.token(*read(*names), **{"act": {"sub": "ann"}, "iat": issued} | claims)


@pytest.fixture
async def sent(world: World) -> Sent:
    await world.start()
    return Sent(world)


async def test_new_token_of_a_person_is_announced_once(world: World, sent: Sent) -> None:
    new = token(world, "chat-1")
    for _ in range(3):
        await world.get("chat-1", token=new)

    ((environment, kind, _, names, _),) = sent.news
    assert (environment, kind, names) == ("default", "token", ["chat-1"])


async def test_old_and_nameless_tokens_are_not_announced(world: World, sent: Sent) -> None:
    await world.get("chat-1", token=token(world, "chat-1", age=61))
    await world.get("chat-1", token=world.token("read:sessions", act={"sub": "ann"}))
    await world.get("chat-1", token=world.token(*read("chat-1")))

    assert sent.news == []


async def test_bad_token_announces_nothing(world: World, sent: Sent) -> None:
    page = await listen(world, token=token(world, "chat-1"))
    sent.news.clear()
    forged = token(world, "chat-1", "chat-2")[:-4] + "AAAA"
    await world.get("chat-2", token=forged)

    assert sent.news == []
    assert not page.finished


async def test_news_of_another_replica_end_a_list(world: World, sent: Sent) -> None:
    page = await listen(world, token=token(world, "chat-1"))
    _, _, key, _, issued = sent.news[-1]
    receive = world.service.gateway.news.receive
    receive("default", "token", "00" * 32, ["chat-2"], issued)
    receive("another", "token", key, ["chat-2"], issued)
    receive("default", "unknown to this version", 1, 2)
    before = page.finished
    receive("default", "token", key, ["chat-1", "chat-2"], issued)

    assert (before, page.finished) == (False, True)
