"""A store without a server, whose time is a clock that tests move.

A real Valkey keeps its own time, which no test can move, and a state machine lets minutes pass in a
step. So this stands in for `bff.store.Store` there, and there only; `test_standin.py` holds it to
the real one, command by command.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from bff.replicas.valkey import StoreUnavailable


class Shared:
    """What all replicas see.

    Args:
        now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.stores: list[StandIn] = []
        self.told: list[dict[str, str]] = []
        self._kept: dict[str, tuple[Any, float]] = {}

    def microseconds(self) -> int:
        """The time as a store tells it."""
        return round(self.now() * 1_000_000)

    def empty(self) -> None:
        """Begin anew, as a server that kept nothing."""
        self._kept.clear()

    def get(self, key: str) -> Any:
        value, ends = self._kept.get(key, (None, 0.0))
        return value if ends > self.now() else None

    def left(self, key: str) -> float:
        """Seconds until it ends; negative if it is not there."""
        return -0.002 if self.get(key) is None else self._kept[key][1] - self.now()

    def set(self, key: str, value: Any, seconds: float) -> None:
        self._kept[key] = value, self.now() + seconds

    def change(self, key: str, value: Any) -> None:
        """Another value, until the same moment."""
        self._kept[key] = value, self._kept[key][1]

    def drop(self, key: str) -> Any:
        value = self.get(key)
        self._kept.pop(key, None)
        return value


class StandIn:
    """One replica's way to it; `link` says whether there is one."""

    def __init__(self, shared: Shared, *, timeout: float, **_: Any) -> None:
        self.shared = shared
        self.timeout = timeout
        self.link = True
        self.reason: str | None = None
        self._heard: Callable[[dict[str, str]], None] | None = None
        self._read_to = len(shared.told)

    @property
    def up(self) -> bool:
        return self.link and self._heard is not None

    @property
    def replicas(self) -> int:
        return max(1, len(self.shared.stores))

    async def open(self, heard: Callable[[dict[str, str]], None]) -> None:
        self._heard = heard
        self.shared.stores.append(self)
        for message in self.shared.told:  # revocations are heard from the first, purges are not
            if "revocation" in message:
                heard(message)
        self._read_to = len(self.shared.told)

    async def close(self) -> None:
        self._heard = None
        self.shared.stores.remove(self)

    def hear(self) -> None:
        """Be told what was said since, if there is a way."""
        while self.up and self._read_to < len(self.shared.told):
            self._read_to += 1
            self._heard(self.shared.told[self._read_to - 1])

    def mark_down(self) -> None:
        pass

    def _there(self) -> Shared:
        if not self.up:
            raise StoreUnavailable
        return self.shared

    async def take(
        self, key: str, *, limit: int, want: int, seconds: float, timeout: float
    ) -> tuple[int, int, float]:
        shared = self._there()
        used = shared.get(key) or 0
        given = max(0, min(want, limit - used))
        if shared.left(key) < 0:
            shared.set(key, used + given, seconds)
        else:
            shared.change(key, used + given)
        return given, max(0, limit - used - given), shared.left(key)

    async def spend(self, key: str, *, limit: int | None, seconds: float, timeout: float) -> float:
        shared = self._there()
        spent, allowance, pause = (f"{key}:{what}" for what in ("spent", "allowance", "pause"))
        if (wait := shared.left(pause)) > 0:
            return wait
        allowed = shared.get(allowance)
        if allowed is not None and allowed < 1:
            return shared.left(allowance)
        if limit:
            times = shared.get(spent) or ()
            if len(times) >= limit and (wait := times[-limit] + seconds - shared.now()) > 0:
                return wait
            shared.set(spent, (*times, shared.now())[-limit:], seconds)
        if allowed is not None:
            shared.change(allowance, allowed - 1)
        return 0.0

    def allow(self, key: str, allowance: int, seconds: float) -> None:
        if self.up:
            self.shared.set(f"{key}:allowance", allowance, max(0.001, seconds))

    def pause(self, key: str, seconds: float) -> None:
        if self.up:
            self.shared.set(f"{key}:pause", 1, max(0.001, seconds))

    async def read(self, namespace: str, id_: str, *, timeout: float) -> tuple[bytes | None, float]:
        shared, key = self._there(), f"{namespace}:{id_}"
        return shared.get(key), shared.left(key)

    async def claim(
        self, namespace: str, id_: str, token: str, seconds: float, *, timeout: float
    ) -> tuple[bool, bytes | None, float, int]:
        shared, key = self._there(), f"{namespace}:{id_}"
        held = shared.get(f"{key}:load") is None
        if held:
            shared.set(f"{key}:load", token, seconds)
        return held, shared.get(key), shared.left(key), shared.microseconds()

    def renew(self, namespace: str, id_: str, token: str, seconds: float) -> None:
        key = f"{namespace}:{id_}:load"
        if self.up and self.shared.get(key) == token:
            self.shared.set(key, token, seconds)

    def release(self, namespace: str, id_: str, token: str) -> None:
        self.renew(namespace, id_, token, 0.0)

    async def keep(
        self,
        namespace: str,
        ids: Sequence[str],
        value: bytes,
        *,
        token: str,
        claimed: int,
        until: float,
    ) -> str:
        shared, keys = self._there(), [f"{namespace}:{id_}" for id_ in ids]
        purges = [shared.get(f"{key}:purged") for key in keys]
        if any(purged is not None and purged >= claimed for purged in purges):
            return "purged"
        kept = []
        for key in keys:
            there = re.match(rb"bff1 (\d+) ", shared.get(key) or b"")
            lost = key == keys[0] and shared.get(f"{key}:load") != token
            if not lost and not (there and int(there[1]) > claimed):
                shared.set(key, value, until - shared.now())
                kept.append(key)
        if len(kept) == len(keys):
            return "kept"
        for key in kept:
            shared.drop(key)
        return "superseded"

    async def purge(self, namespace: str, id_: str, *, remembered: float) -> bytes | None:
        shared, key = self._there(), f"{namespace}:{id_}"
        shared.set(f"{key}:purged", shared.microseconds(), remembered)
        return shared.drop(key)

    def drop(self, namespace: str, id_: str) -> None:
        if self.up:
            self.shared.drop(f"{namespace}:{id_}")

    async def publish(self, _: str, **fields: str) -> None:
        self._there().told.append(fields)
        for store in self.shared.stores:
            store.hear()
