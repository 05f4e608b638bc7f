"""Commands that several callers share: the loads of one moment, and the results of loads.

A page that starts ten loads sends one command instead of ten. So the gateway and the store have
less to do for each of them.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from bff.limits.rate import MAX_RESET
from bff.replicas import keys, scripts
from bff.replicas.link import Command
from bff.replicas.shared_budget import SharedBudget

_MAX_CALLERS: Final = 32
"""Callers that share one command: the store answers nobody else while it runs a script."""
_LONGEST_SECONDS: Final = 1e9
"""Seconds: stands for an infinite time."""


class JointCommand(ABC):
    """A sequence of one command, which callers may join until it is sent.

    Attributes:
        receivers: for each caller, what gets its part of the answer.
    """

    _script: str

    def __init__(self) -> None:
        self.receivers: list[Any] = []
        self._keys: list[str] = []
        self._arguments: list[Any] = []

    @property
    def full(self) -> bool:
        """Whether no more callers may join it."""
        return len(self.receivers) >= _MAX_CALLERS

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Command]:
        yield ("EVAL", self._script, len(self._keys), *self._keys, *self._arguments)

    @abstractmethod
    def end(self, results: list[Any] | None) -> None:
        """Give each caller its part of the answer. *results* as for `Ended`."""


class StoredLoad(NamedTuple):
    """The result of `Store.load`.

    Attributes:
        claimed: whether the load is claimed and spent.
        denied: seconds until the budget may allow the load; 0 if it did not deny it.
        value: the stored value, whether or not it is an answer.
        left: seconds until the value expires.
        time: microseconds of the store's clock, which tell purges before the load from purges
            during it.
        age: seconds since the load of the value was claimed.
    """

    claimed: bool
    denied: float
    value: bytes | None
    left: float
    time: int
    age: float


class JointLoad(JointCommand):
    """Loads that one budget pays for. Each is claimed for *seconds*."""

    _script = scripts.LOAD

    def __init__(self, budget: SharedBudget, seconds: float) -> None:
        super().__init__()
        self._keys += budget_keys(budget)
        self._arguments += (*budget_arguments(budget), milliseconds(seconds))
        self._create_future = asyncio.get_running_loop().create_future

    def add(self, name: str, token: str, fresh: float) -> "asyncio.Future[StoredLoad | None]":
        """Add a load; see `Store.load`."""
        self._keys += (name, keys.claim(name))
        self._arguments += (token, round(1e6 * min(fresh, _LONGEST_SECONDS)))
        receiver = self._create_future()
        self.receivers.append(receiver)
        return receiver

    def end(self, results: list[Any] | None) -> None:
        """See `JointCommand.end`."""
        loads: list[StoredLoad | None]
        try:
            time, *parts = results[0] if results else (0,)
            loads = [
                StoredLoad(state == 0, max(0, state) / 1000, value, left / 1000, time, age / 1e6)
                for state, value, left, age in parts
            ]
        except (TypeError, ValueError):  # a server that is not Valkey
            loads = []
        loads += [None] * (len(self.receivers) - len(loads))
        for receiver, load in zip(self.receivers, loads, strict=False):
            if not receiver.done():  # the caller may have left
                receiver.set_result(load)


class JointKeep(JointCommand):
    """Results of loads that the store keeps. In a cluster, all their keys are on one *node*."""

    _script = scripts.KEEP

    def __init__(self, node: str) -> None:
        super().__init__()
        self.node = node

    def add(self, names: Sequence[str], *arguments: Any, done: Callable[[str], None]) -> None:
        """Add a result; *arguments* are those of the script after the number of its values."""
        self._keys += (keys.claim(names[0]), *names)
        self._arguments += (len(names), *arguments)
        self.receivers.append(done)

    def end(self, results: list[Any] | None) -> None:
        """See `JointCommand.end`."""
        if results is not None:
            for done, kept in zip(self.receivers, results[0], strict=True):
                done("kept" if kept else "superseded")


def milliseconds(seconds: float) -> int:
    """Convert *seconds* as the scripts want them."""
    return round(seconds * 1000)


def budget_keys(budget: SharedBudget) -> tuple[str, ...]:
    """Return the first KEYS of the script that spends."""
    origin = budget.origin
    return keys.spent(origin, budget.name), keys.allowance(origin), keys.pause(origin)


def budget_arguments(budget: SharedBudget) -> tuple[Any, ...]:
    """Return the first ARGV of the script that spends."""
    # The script takes an empty text for "spend nothing", and 0 for "no limit of the gateway".
    limit = "" if budget.limit == 0 else budget.limit or 0
    return limit, milliseconds(budget.seconds), milliseconds(MAX_RESET)
