"""News for listeners that replicas tell one another: new tokens, and turns of chats."""

from dataclasses import dataclass
from typing import Any, Final

from bff.clock import Clock
from bff.live.answering import Answering
from bff.live.listeners import Listeners
from bff.replicas.alone import AnySharing
from bff.tokens.caller import Caller

_RECENT_SECONDS: Final = 60.0
"""Seconds after its issue in which a token is announced: a page uses a new token at once."""


@dataclass(eq=False)
class News:
    """Uses and announces the news of this replica, and uses those of others.

    Args:
        listeners: their lists may become outdated.
        answering: the turns of chats.
        sharing: the other replicas.
        clock: reads the two clocks.
    """

    listeners: Listeners
    answering: Answering
    sharing: AnySharing
    clock: Clock

    def note_token(self, caller: Caller) -> None:
        """End the lists of all replicas that a new token makes outdated."""
        names = caller.granted.ids
        if not (caller.has_actor and names):
            return
        self.listeners.outdate((caller.environment, caller.key), names, caller.issued)
        if self.clock()[1] - caller.issued < _RECENT_SECONDS:
            news = caller.key.hex(), list(names), caller.issued
            self.sharing.announce(caller.environment, "token", *news)

    def receive(self, environment: str, kind: str, *news: Any) -> None:
        """Use what another replica, or this one, has announced."""
        if kind == "token":
            key, names, issued = news
            self.listeners.outdate((environment, bytes.fromhex(key)), names, issued)
        elif kind == "turn":
            ids, number, ended = news
            self.answering.learn(environment, tuple(ids), number, ended=ended)
