"""News for listeners: announcements that only save time, so losing one does no harm."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bff.clock import Clock
from bff.replicas.codec import Namespace, conceal, reveal
from bff.replicas.store import Store
from bff.replicas.valkey import if_available

USEFUL_SECONDS: Final = 60.0
"""Seconds after which news are ignored: a replica that starts reads old announcements."""


@dataclass(eq=False)
class SharedNews:
    """Announces news of an environment to all replicas, and receives those of others.

    Args:
        store: carries them, concealed.
        namespaces: by environment name; an environment without one shares nothing.
        clock: reads the two clocks.
        spawn: runs a coroutine to its end in a task of its own.
        received: gets the environment and the values of each `announce`, of this replica's too.
    """

    store: Store
    namespaces: Callable[[], Mapping[str, Namespace]]
    clock: Clock
    spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
    received: Callable[..., None]

    def announce(self, environment: str, *news: Any) -> None:
        """Announce *news*, values that JSON can hold, to all replicas; nobody waits for it."""
        namespace = self.namespaces().get(environment)
        if namespace is not None and self.store.up:
            _, wall = self.clock()
            text = conceal(self.store.key.agreed, json.dumps([wall, *news])).decode()
            self.spawn(self._publish(namespace.origin, text))

    async def _publish(self, origin: str, text: str) -> None:
        await if_available(self.store.publish("news", origin=origin, news=text))

    def receive(self, origin: str, text: str) -> None:
        """Pass on an announcement.

        Raises:
            ValueError: no gateway wrote it.
        """
        sent, *news = json.loads(reveal(self.store.key.agreed, text.encode()))
        if abs(self.clock()[1] - sent) > USEFUL_SECONDS:
            return
        for environment, namespace in self.namespaces().items():
            if namespace.origin == origin:
                self.received(environment, *news)
