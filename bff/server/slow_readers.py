"""Slow readers: browsers that leave answers unread.

Unread answers of all connections together are bounded in bytes, and each in time
(`Bounds.unread_seconds`). Requests that wait for their answers count too.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from bff.errors import Refusal
from bff.limits.client_address import browser_address
from bff.request import HeaderFields
from bff.response import Response
from bff.server.asgi import ADMIT
from bff.server.bounds import Bounds, ConnectionLimiter
from bff.server.buffers import Holding
from bff.server.timers import Deadline
from bff.server.uvicorn_adapter import UvicornProtocol

LARGE_ANSWER: Final = 32 * 1024
"""An answer with a body of this many bytes needs room before it is written. A smaller one counts
only if it stays in the buffer of the connection."""
_UNREAD_BYTES: Final = 8192
"""Bytes that a browser may leave unread before they count."""
Refuse = Callable[[Refusal, str, bytes | None], Response]
"""Renders a refusal for a peer's address and an ``Origin``."""


class SlowReaderProtocol(UvicornProtocol):
    """One connection, which waits for its browser to read: for a time, and with bounded memory.

    Args:
        bounds: the bounds.
        connections: the limiter that all connections share.
        refuse: renders the answer to a refused request.
        arguments: those of uvicorn.
    """

    def __init__(
        self, *, bounds: Bounds, connections: ConnectionLimiter, refuse: Refuse, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._bounds = bounds
        self._connections = connections
        self._render = refuse
        self._unread = Deadline(self.loop)
        """Set while the browser leaves answers unread on a connection that stays open."""
        self._deadline = Deadline(self.loop)
        """Set until the request is complete, and from the last answer on."""
        self._waiting_bytes = 0
        """Bytes of complete requests that wait for their answers."""
        self._holding = Holding(connections.buffers, self.peer)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to count."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(_UNREAD_BYTES)
        self._holding = Holding(self._connections.buffers, self.peer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release all bytes."""
        self._holding.close()
        self._unread.cancel()
        self._deadline.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the browser a bounded time to read the answers."""
        super().pause_writing()
        room = self._holding.unread(self.transport.get_write_buffer_size())
        if not room and not (self.stream is not None and self.stream.reserves):
            self._connections.count("buffers_full")
            self.transport.abort()
            return
        self._unread.set(self._bounds.unread_seconds, self._close_unread)

    def resume_writing(self) -> None:
        """End that time: the browser reads again."""
        super().resume_writing()
        self._holding.unread(0)
        self._unread.cancel()

    def hand_over(self, extensions: dict[str, object] | None = None) -> None:
        """Give the request to the application, and count it until it is answered."""
        self._waiting_bytes += len(self.url) + sum(len(n) + len(v) for n, v in self.headers)
        super().hand_over({ADMIT: self.admit} | (extensions or {}))

    def on_response_complete(self) -> None:
        """Release the answer: it is written."""
        super().on_response_complete()
        self._holding.answered()

    def hold_requests(self, head: int) -> bool:
        """Count what is read and not answered; False if there is no room.

        *head* is the number of bytes of an incomplete head.
        """
        if not self.unanswered():
            self._waiting_bytes = 0
        return self._holding.requests(self._waiting_bytes + self.body_bytes() + head)

    def admit(self, response: Response, fields: HeaderFields) -> Response:
        """Return *response* if there is room for it in memory, else a refusal."""
        size = len(response.body)
        if size < LARGE_ANSWER:
            return response
        address = browser_address(self.peer, fields.forwarded, self._connections.trusted)
        if self._holding.answer(size, address):
            return response
        self._connections.count("buffers_full")
        return self._render(Refusal("overloaded", retry_after=1.0), self.peer, fields.origin)

    def limit_last_answer(self) -> None:
        """Close the connection even if the browser never reads its last answer."""
        self._deadline.set(self._bounds.unread_seconds, self._close_unread)

    def _close_unread(self) -> None:
        self._connections.count("unread_answer")
        self.transport.abort()
