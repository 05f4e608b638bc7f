"""Loads sessions: one load for each session, however many requests and replicas wait for it.

A load spends from the budget, fetches, validates, projects, encodes and hashes once. It drops
hidden fields before it keeps anything. It ends in a copy or a refusal and never raises, because
many requests may wait for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from bff import metrics, strict_json
from bff.clock import Clock
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.load_queue import TURN_SECONDS, LoadQueue, QueuedLoad
from bff.copies.pairs import Pairs
from bff.errors import Refusal, Refused, UpstreamError, UpstreamInvalid
from bff.replicas.alone import AnySharing
from bff.replicas.lookups import LoadRequest
from bff.sessions import ids
from bff.sessions.copy import Copy, NegativeEntry
from bff.sessions.document import parse_document
from bff.telemetry import Telemetry
from bff.upstream.pool import cause

RETRY_SECONDS: Final = 1.0
"""Seconds after a failed load in which the gateway serves the old copy and does not load again."""
KEY_REMEDY: Final = "check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview environment"
"""The remedy when upstream rejects the secret key."""


class Get(Protocol):
    """Gets a session from upstream: `Upstream.get`, or `Upstream.get_as` with a token."""

    def __call__(
        self, path: str, *, read: Callable[[bytes], dict[str, Any]]
    ) -> Awaitable[dict[str, Any]]:
        """GET *path* and read the body of a 200."""


class Loader:
    """Starts loads, keeps the copies, and learns from each load about upstream.

    Args:
        config: the settings in force; `apply` replaces them.
        clock: reads the two clocks.
        sharing: shares loads and budget with other replicas.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        cache: Cache,
        telemetry: Telemetry,
        clock: Clock,
        sharing: AnySharing,
    ) -> None:
        self.config = config
        self._cache = cache
        self._telemetry = telemetry
        self._clock = clock
        self._sharing = sharing
        self.pairs = Pairs()
        """The two ids of each session that a load has fetched."""
        self._queues: dict[str, LoadQueue] = {}

    def apply(self, config: RuntimeConfig) -> None:
        """Use *config* from now on, also to project the documents of loads in flight."""
        if config.origins != self.config.origins:
            self.pairs.forget()
        self.config = config
        for name in self._queues.keys() - config.environments.keys():
            self._queues.pop(name).stop()

    def _find(self, queue: LoadQueue, environment: str, id_: str) -> QueuedLoad | None:
        """Get the queued or running load of a session, requested by either of its ids."""
        load = queue.get(id_)
        if load is None and queue.busy:
            other = self.pairs.other(environment, id_)
            load = None if other is None else queue.get(other)
        return load

    def stop(self) -> None:
        """Start no more loads."""
        for queue in self._queues.values():
            queue.stop()

    def queue(self, environment: str) -> LoadQueue:
        """Return the queue in which loads of *environment* wait for their turn."""
        queue = self._queues.get(environment)
        if queue is None:
            queue = self._queues[environment] = LoadQueue(
                environment,
                clock=self._clock,
                sharing=self._sharing,
                budget=lambda: self.config.environments[environment].budget,
                load=partial(self._start, environment),
                recent=partial(self._recent, environment),
                in_flight=lambda id_: self._cache.loads.get((environment, id_)),
            )
        return queue

    def request(
        self,
        environment: Environment,
        id_: str,
        copy: Copy | None,
        caller: Hashable,
        *,
        alone: bool,
    ) -> tuple[QueuedLoad | None, bool]:
        """Join or queue the load that *caller* waits for; *alone*: the request is for it alone.

        Returns the load, or None if the queue is full; and whether another request had queued it.
        """
        stretch = environment.budget.hot.stretch_of(caller) if copy is None else copy.share.stretch
        queue = self.queue(environment.name)
        in_queue = self._find(queue, environment.name, id_)
        key = id_ if in_queue is None else in_queue.id
        return queue.request(key, copy, caller, stretch=stretch, alone=alone), in_queue is not None

    def refresh(self, environment: Environment, id_: str, copy: Copy, caller: Hashable) -> None:
        """Queue the load that replaces *copy*; nobody waits for it."""
        queue = self.queue(environment.name)
        load = self._find(queue, environment.name, id_)
        key = id_ if load is None else load.id
        queue.refresh(key, copy, caller, stretch=copy.share.stretch)

    def _recent(self, environment: str, load: QueuedLoad, now: float) -> Copy | Refusal | None:
        """Return what the cache has, if it makes *load* needless: another load may have kept it."""
        entry = self._cache.find(environment, load.id, now)
        if isinstance(entry, Copy):
            return entry if self._cache.ages.fresh(entry, now, load.stretch) else None
        return Refusal("not_found") if isinstance(entry, NegativeEntry) else None

    def _start(self, environment: str, load: QueuedLoad) -> "asyncio.Task[Copy | Refusal]":
        work = self._load(self.config.environments[environment], load)
        return self._cache.loads.start((environment, load.id), work)

    async def _load(self, environment: Environment, load: QueuedLoad) -> Copy | Refusal:
        """Load a session from upstream, or take the copy that another replica loaded."""
        while True:
            config, generation = self.config, self._cache.purge_generation
            outcome, loaded = await self._sharing.load(
                LoadRequest(
                    environment=environment.name,
                    id=load.id,
                    budget=environment.budget,
                    ask=partial(self._ask, environment, load),
                    fresh=lambda copy, now: self._cache.ages.fresh(copy, now, load.stretch),
                    fresh_for=self._cache.ages.longest_fresh(load.stretch),
                    lifetime=lambda copy: self._cache.ages.lifetime(
                        copy, environment.budget.hot.stretch
                    ),
                )
            )
            if loaded:
                return outcome
            if config is self.config:
                if isinstance(outcome, Copy):
                    outcome.generation = generation
                    self._keep(outcome)
                return outcome
            # A reload changed the policy, so this copy of another replica may be wrong: look again.

    async def _ask(
        self, environment: Environment, load: QueuedLoad, wait: float | None, timeout: float
    ) -> Copy | Refusal:
        """Spend one call, unless the queue has spent it for *load*, and ask upstream.

        The store may have answered already: *wait* is then 0 if it has spent the call, and the
        seconds to wait if it denied one. *timeout* bounds the wait for the store, in seconds.
        """
        copy = load.copy
        wait = 0.0 if load.spent else await self._pay(environment, load, wait, timeout)
        if wait > 0:
            return _deny(copy, wait, self._clock()[0])

        async def spend_again() -> None:
            nonlocal wait
            wait = await self._spend(environment, self._sharing.timeout)
            if wait > 0:
                raise Refused("over_budget", retry_after=wait)

        started, _ = self._clock()
        generation = self._cache.purge_generation
        get = partial(environment.upstream.get, again=spend_again)
        outcome, why = await self.fetch(environment, load.id, get)
        if wait > 0:
            return _deny(copy, wait, self._clock()[0])
        ended, _ = self._clock()
        if isinstance(outcome, Refusal) and outcome.code == "not_found":
            self._cache.put_negative(environment.name, load.id, ended, generation)
        return self._learn(environment, outcome, why, copy, ended, ended - started)

    async def _pay(
        self, environment: Environment, load: QueuedLoad, wait: float | None, timeout: float
    ) -> float:
        """Spend one call for *load*, unless the store has spent it. Returns as `_spend` does."""
        if wait is None:
            wait = await self._spend(environment, timeout)
        elif wait <= 0:  # this replica counts it too, because the store may go down
            environment.budget.spend(self._clock()[0])
        if wait <= 0:
            load.queue.paid(load)
        return wait

    async def _spend(self, environment: Environment, timeout: float) -> float:
        """Spend one call upstream. Returns 0, or the seconds to wait if the budget has no call."""
        return await self._sharing.limits.spend(
            environment.name, environment.budget, timeout=timeout
        )

    async def fetch(
        self, environment: Environment, id_: str, get: Get
    ) -> tuple[Copy | Refusal, str | None]:
        """Fetch a session with *get* and keep its copy. Never raises.

        Returns:
            The outcome for every request that waits, and the cause of an error, if it has one.
        """
        started, _ = self._clock()
        generation = self._cache.purge_generation
        try:
            document = await get(ids.path(id_), read=partial(parse_document, requested_id=id_))
            copy = self._project(environment.name, document, started)
            copy.generation = generation
        except UpstreamError as error:
            return Refusal(error.code, retry_after=error.retry_after), cause(error)
        except Refused as refused:  # the budget has no call for a second try
            return refused.refusal, None
        except Exception as exc:  # noqa: BLE001  requests wait for an outcome, so there must be one
            self._telemetry.exception("load_failed", exc)
            return Refusal("internal"), None
        entry = self._cache.find(environment.name, id_, started)
        superseded = isinstance(entry, Copy) and entry.loaded > started
        if not superseded:
            self._keep(copy)
        return copy, None

    def _keep(self, copy: Copy) -> None:
        self.pairs.learn(copy.environment, copy.id, copy.external_id)
        self._cache.put(copy)

    def _project(self, environment: str, document: dict[str, object], loaded: float) -> Copy:
        """Make the copy, without the fields that the policy hides."""
        policy = self.config.policies.get(str(document["type"]), self.config.default_policy)
        if unknown := document.keys() - policy.field_names:
            self._telemetry.unknown_fields(unknown)
        shown = policy.project(document)
        try:
            body = strict_json.dumps(shown).encode()
        except ValueError:  # a lone surrogate, or a number beyond the floats
            raise UpstreamInvalid from None
        return Copy(
            environment,
            str(document["id"]),
            document["externalId"],  # type: ignore[arg-type]  # validated
            body,
            # A closed session stays fresh longer, and the Age header shows that. If the policy
            # hides `closedAt`, the copy counts as open.
            document["closedAt"] is not None and "closedAt" in policy.fields,
            loaded,
        )

    def _learn(
        self,
        environment: Environment,
        outcome: Copy | Refusal,
        why: str | None,
        copy: Copy | None,
        now: float,
        seconds: float,
    ) -> Copy | Refusal:
        """Learn from a load for later loads. Returns the outcome for every request that waits."""
        code = "ok" if isinstance(outcome, Copy) else outcome.code
        self._telemetry.count(metrics.LOADS, environment.name, code)
        self._telemetry.observe(metrics.LOAD_SECONDS, seconds)
        if isinstance(outcome, Refusal):
            if code != "not_found" and copy is not None:
                copy.retry_at = now + RETRY_SECONDS
            if code == "over_budget":
                environment.budget.pause(now, outcome.retry_after or RETRY_SECONDS)
                wait = environment.budget.wait(now)
                self._sharing.limits.pause(environment.name, wait)
                outcome = replace(outcome, retry_after=wait)
        _report(self._telemetry, environment, code, why, seconds=seconds, now=now)
        return outcome


def _deny(copy: Copy | None, wait: float, now: float) -> Refusal:
    """Refuse a load, or its second try, for which the budget has no call for *wait* seconds."""
    if copy is not None and wait > TURN_SECONDS:
        copy.retry_at = now + RETRY_SECONDS
    return Refusal("over_budget", retry_after=wait)


def _report(
    telemetry: Telemetry,
    environment: Environment,
    code: str,
    why: str | None,
    *,
    seconds: float,
    now: float,
) -> None:
    """Log a load: always if it shows that upstream has failed or recovered, else now and then."""
    healthy = code in ("ok", "not_found", "over_budget")
    health, before = "ok" if healthy else code, environment.last_load
    environment.last_load = health
    usual = health == before or (healthy and before is None)
    if usual and not telemetry.may_log("load_finished", now):
        return
    line: dict[str, Any] = {
        "environment": environment.name,
        "outcome": code,
        "seconds": round(seconds, 4),
    }
    if usual:
        telemetry.log.info("load_finished", **line)
    elif healthy:
        telemetry.log.warning("upstream_recovered", **line)
    elif code == "upstream_rejected_credentials":
        telemetry.log.error("upstream_rejects_our_key", remedy=KEY_REMEDY, **line)
    else:
        telemetry.log.warning("upstream_failing", why=why, **line)
