"""A store without a server, on a clock that tests move.

No test can move the clock of a real Valkey. Tests in which minutes pass in a step use this in place
of `bff.replicas.store.Store`.
`test_standin.py` compares it with the real store, command by command.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

from bff.replicas import keys
from bff.replicas.joint_commands import StoredLoad
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.valkey import StoreUnavailable


class Shared:
    """The data that all replicas share.

    Args:
        now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.stores: list[StandIn] = []
        self.announcements: list[tuple[str, dict[str, str]]] = []
        """Numbers and fields."""
        self._values: dict[str, tuple[Any, float]] = {}

    def microseconds(self) -> int:
        """The store's time."""
        return round(self.now() * 1_000_000)

    def empty(self) -> None:
        """Restart without data."""
        self._values.clear()

    def get(self, key: str) -> Any:
        value, ends = self._values.get(key, (None, 0.0))
        return value if ends > self.now() else None

    def left(self, key: str) -> float:
        """Seconds until a key expires; negative if it does not exist."""
        return -0.002 if self.get(key) is None else self._values[key][1] - self.now()

    def set(self, key: str, value: Any, seconds: float) -> None:
        self._values[key] = value, self.now() + seconds

    def change(self, key: str, value: Any) -> None:
        """Replace a value, but not when it expires."""
        self._values[key] = value, self._values[key][1]

    def drop(self, key: str) -> Any:
        value = self.get(key)
        self._values.pop(key, None)
        return value


class Key:
    """The store key that all replicas have agreed on."""

    value: bytes | None = b"the store key of the stand-in"
    agreed = b"the store key of the stand-in"
    secrets: Sequence[bytes] = ()

    async def agree(self) -> None:
        pass


class StandIn:
    """One replica's store; while `link` is false the replica cannot reach what is shared."""

    def __init__(self, shared: Shared, *, timeout: float, **_: Any) -> None:
        self.shared = shared
        self.timeout = timeout
        self.link = True
        self.reason: str | None = None
        self.key = Key()
        self.turns = asyncio.Semaphore(32)
        self._received: Callable[[str, dict[str, str]], None] | None = None
        self._position = len(shared.announcements)

    @property
    def up(self) -> bool:
        return self.link and self._received is not None

    @property
    def replicas(self) -> int:
        return max(1, len(self.shared.stores))

    async def open(self, received: Callable[[str, dict[str, str]], None]) -> None:
        self._received = received
        self.shared.stores.append(self)
        self._position = 0
        self.catch_up()

    async def close(self) -> None:
        self._received = None
        self.shared.stores.remove(self)

    def catch_up(self) -> None:
        """Receive what was announced since, if the link is up."""
        while self.up and self._position < len(self.shared.announcements):
            self._position += 1
            assert self._received is not None
            self._received(*self.shared.announcements[self._position - 1])

    def check(self) -> None:
        pass

    def _reach(self) -> Shared:
        if not self.up:
            raise StoreUnavailable
        return self.shared

    async def take(
        self, name: str, *, limit: int, want: int, seconds: float, timeout: float
    ) -> tuple[int, int, float]:
        shared = self._reach()
        used = shared.get(name) or 0
        granted = max(0, min(want, limit - used))
        if shared.left(name) < 0:
            shared.set(name, used + granted, seconds)
        else:
            shared.change(name, used + granted)
        return granted, max(0, limit - used - granted), shared.left(name)

    async def spend(self, budget: SharedBudget, *, timeout: float) -> float:
        return self._spend(budget)

    def _spend(self, budget: SharedBudget) -> float:
        shared, limit = self._reach(), budget.limit
        if limit == 0:
            return 0.0
        spent, allowance, pause = (
            f"{budget.origin}:{part}" for part in ("spent", "allowance", "pause")
        )
        if (wait := shared.left(pause)) > 0:
            return wait
        allowed = shared.get(allowance)
        if allowed is not None and allowed < 1:
            return shared.left(allowance)
        if limit:
            times = shared.get(spent) or ()
            if len(times) >= limit and (wait := times[-limit] + budget.seconds - shared.now()) > 0:
                return wait
            shared.set(spent, (*times, shared.now())[-limit:], budget.seconds)
        if allowed is not None:
            shared.change(allowance, allowed - 1)
        return 0.0

    def allow(self, origin: str, loads: int, seconds: float) -> None:
        if self.up:
            self.shared.set(f"{origin}:allowance", loads, max(0.001, seconds))

    def pause(self, origin: str, seconds: float) -> None:
        if self.up:
            self.shared.set(f"{origin}:pause", 1, max(0.001, seconds))

    async def read(self, name: str, *, timeout: float) -> tuple[bytes | None, float]:
        shared = self._reach()
        return shared.get(name), shared.left(name)

    async def load(
        self,
        name: str,
        token: str,
        seconds: float,
        *,
        fresh: float,
        budget: SharedBudget,
        timeout: float,
    ) -> StoredLoad | None:
        if not self.up:
            return None
        shared = self.shared
        value, left, time = shared.get(name), shared.left(name), shared.microseconds()
        claim = re.match(rb"bff1 (\d+) ", value or b"")
        age = (time - int(claim[1])) / 1e6 if claim else 0.0

        def result(*, claimed: bool = False, denied: float = 0.0) -> StoredLoad:
            return StoredLoad(claimed, denied, value, left, time, age)

        if (claim and age <= fresh) or shared.get(keys.claim(name)) is not None:
            return result()
        if not token:
            return result(denied=0.001)
        if wait := self._spend(budget):
            return result(denied=wait)
        shared.set(keys.claim(name), token, seconds)
        return result(claimed=True)

    def renew(self, name: str, token: str, seconds: float) -> None:
        claim = keys.claim(name)
        if self.up and self.shared.get(claim) == token:
            self.shared.set(claim, token, seconds)

    def release(self, name: str, token: str) -> None:
        self.renew(name, token, 0.0)

    def keep(
        self,
        names: Sequence[str],
        value: bytes,
        *,
        token: str,
        claimed: int,
        until: float,
        done: Callable[[str], None],
    ) -> None:
        if self.up:
            done(self._keep(names, value, token, claimed, until))

    def _keep(
        self, names: Sequence[str], value: bytes, token: str, claimed: int, until: float
    ) -> str:
        shared, claim = self.shared, keys.claim(names[0])
        if shared.get(claim) != token:
            return "superseded"
        shared.drop(claim)
        for name in names:
            earlier = re.match(rb"bff1 (\d+) ", shared.get(name) or b"")
            if earlier and int(earlier[1]) > claimed:
                return "superseded"
        for name in names:
            shared.set(name, value, until - shared.now())
        return "kept"

    def drop(self, name: str) -> None:
        if self.up:
            self.shared.drop(name)

    async def publish(self, _: str, **fields: str) -> str:
        shared = self._reach()
        number = f"{shared.microseconds() // 1000}-{len(shared.announcements)}"
        shared.announcements.append((number, fields))
        for store in self.shared.stores:
            store.catch_up()
        return number
