"""A gateway without a store: the methods of `sharing.Sharing`, which share nothing."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from bff.clock import Clock
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.live.answering import Peek
from bff.replicas.codec import Namespace
from bff.replicas.lookups import LoadRequest
from bff.replicas.sharing import Sharing
from bff.sessions.copy import Copy
from bff.tokens.introspected import Introspection


class OwnLimits:
    """The budget of one gateway: the methods of `shared_limits.SharedLimits`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wait(self, environment: str, budget: Budget, now: float, ahead: int = 0) -> float:  # noqa: ARG002
        """Return the seconds until one more load may start, after *ahead* others; 0 for now."""
        return budget.wait(now, ahead)

    async def spend(self, environment: str, budget: Budget, *, timeout: float) -> float:  # noqa: ARG002
        """Spend one call upstream. Returns 0, or the seconds to wait if the budget has no call."""
        now, _ = self._clock()
        wait = budget.wait(now)
        if wait <= 0:
            budget.spend(now)
        return wait

    def observe(self, environment: str, *, limit: int, remaining: int, reset: float) -> None:
        """Share nothing about upstream's bucket."""

    def pause(self, environment: str, seconds: float) -> None:
        """Share nothing about upstream's 429."""


class Alone:
    """One gateway without replicas.

    Args:
        clock: reads the two clocks.
        announce: announces news to the other workers; see `News`.
    """

    up = False
    replicas = 1
    timeout = 0.0

    def __init__(self, clock: Clock, announce: Callable[..., None] = lambda *_: None) -> None:
        self.limits = OwnLimits(clock)
        self.announce = announce

    async def load(self, request: LoadRequest) -> tuple[Copy | Refusal, bool]:
        """Load a session from upstream."""
        return await request.ask(None, 0.0), True

    async def introspect(
        self,
        environment: str,  # noqa: ARG002
        digest: bytes,  # noqa: ARG002
        id_: str,  # noqa: ARG002
        ask: Callable[[], Awaitable[Introspection]],
    ) -> Introspection:
        """Ask upstream about a token."""
        return await ask()

    async def peek(
        self,
        environment: str,
        id_: str,  # noqa: ARG002
        budget: Budget,
        ttl: float,  # noqa: ARG002
        ask: Callable[[], Awaitable[Peek]],
    ) -> Peek | None:
        """Ask upstream, if the *budget* allows it; None if it is spent."""
        wait = await self.limits.spend(environment, budget, timeout=0.0)
        return await ask() if wait <= 0 else None

    def check(self) -> None:
        """Do nothing: there is no store that could be down."""

    async def start(self) -> None:
        """Connect to nothing."""

    def apply(
        self, namespaces: Mapping[str, Namespace], negative_ttl: float, secrets: Sequence[bytes]
    ) -> None:
        """Change nothing."""

    async def stop(self) -> None:
        """Disconnect from nothing."""


AnySharing = Sharing | Alone
"""The sharing of a gateway with a store, or of one without."""
