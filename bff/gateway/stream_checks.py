"""The streams that are open: two loops check that each may go on, and ask for loads.

An open stream has no task that could notice a change. So one loop compares all streams with the
tokens, settings and revocations of the moment, and the other one looks for sessions to load.
"""

import asyncio
from collections.abc import Callable, Iterator

from bff.chat.streams import Streams
from bff.clock import Clock
from bff.gateway.chats import Chats
from bff.gateway.live import Live
from bff.gateway.live_loads import TICK_SECONDS, LiveLoads
from bff.live.listeners import Listeners
from bff.stream_registry import CHECK_SECONDS


class StreamChecks:
    """Checks open streams by the configuration that was applied last.

    Args:
        streams: those of chats.
        listeners: those of session state.
        clock: reads the two clocks.
    """

    def __init__(self, streams: Streams, listeners: Listeners, clock: Clock) -> None:
        self._streams = streams
        self._listeners = listeners
        self._clock = clock
        self._chats: Chats
        self._live: Live
        self._loads: LiveLoads

    def apply(self, chats: Chats, live: Live, loads: LiveLoads) -> None:
        """Decide by these from now on."""
        self._chats, self._live, self._loads = chats, live, loads
        clock, listeners = self._clock, self._listeners
        listeners.prepared = lambda copy: live.prepared(copy, *clock())
        listeners.newest = lambda environment, name: live.newest(environment, name, clock()[0])
        listeners.version = lambda copy: live.version(copy, clock()[1])

    async def watch_streams(self, beat: Callable[[], None]) -> None:
        """Check all streams again and again."""
        while True:
            for _ in self.check():
                await asyncio.sleep(0)
            beat()
            await asyncio.sleep(CHECK_SECONDS)

    def check(self) -> Iterator[None]:
        """End each stream that is not allowed any more; yields between parts of the work."""
        yield from self._streams.check(lambda of: self._chats.why_ended(of, *self._clock()))
        yield from self._listeners.check(lambda of: self._live.why_ended(of, *self._clock()))
        yield from self._listeners.heartbeats(self._clock()[0])

    async def watch_listeners(self, beat: Callable[[], None]) -> None:
        """Ask for the loads that listeners need, again and again."""
        while True:
            for _ in self.look():
                await asyncio.sleep(0)
            beat()
            await asyncio.sleep(TICK_SECONDS)

    def look(self) -> Iterator[None]:
        """Ask for the loads that listeners need now; yields between parts of the work."""
        return self._loads.look(*self._clock())
