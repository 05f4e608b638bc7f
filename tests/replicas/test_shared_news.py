"""News that replicas announce: concealed in the store, passed on once, ignored when old."""

from typing import Any

import pytest
from support.replicas import Replicas, until
from support.world import World

from bff.replicas import keys
from bff.replicas.shared_news import USEFUL_SECONDS

IDS = ["session_secret", "chat-of-ann"]


def received(world: World) -> list[tuple[Any, ...]]:
    """The news that a replica receives from now on."""
    seen: list[tuple[Any, ...]] = []
    world.service.sharing._news.received = lambda *news: seen.append(news)
    return seen


async def test_news_reach_all_replicas_and_are_concealed(replicas: Replicas) -> None:
    one, two = await replicas.several(2)
    heard = [received(world) for world in (one, two)]
    one.service.sharing.announce("default", "turn", IDS, 7)

    await until(lambda: all(heard))
    assert heard == [[("default", "turn", IDS, 7)]] * 2
    with replicas.engine.client() as client:
        ((_, fields),) = client.xrange(keys.stream("news"))
    assert b"chat-of-ann" not in b"".join((*fields, *fields.values()))


async def test_old_and_foreign_news_are_ignored(replicas: Replicas) -> None:
    one = await replicas.add()
    heard = received(one)
    news = one.service.sharing._news
    texts: list[tuple[str, str]] = []

    async def keep(_: str, *, origin: str, news: str) -> str:
        texts.append((origin, news))
        return ""

    one.service.sharing.store.publish = keep
    news.announce("default", "turn", IDS, 7)
    news.announce("unknown", "turn", IDS, 7)
    await until(lambda: texts)
    ((origin, text),) = texts
    news.receive("another", text)
    now, wall = news.clock()
    news.clock = lambda: (now, wall + USEFUL_SECONDS + 1)
    news.receive(origin, text)
    with pytest.raises(ValueError, match="another key"):
        news.receive(origin, "AAAA" + text[4:])

    assert heard == []
