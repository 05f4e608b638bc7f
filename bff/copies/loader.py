"""Loads sessions: one load for each session, however many requests and replicas wait for it.

A load spends from the budget, fetches, validates, projects, encodes and hashes once. It
drops hidden fields before it keeps anything. A load ends in a copy or a refusal and
never raises, because many may wait for it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from bff import metrics
from bff.clock import Clock
from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.cache import Cache
from bff.copies.pairs import Pairs
from bff.errors import Refusal, Refused, UpstreamError, UpstreamInvalid
from bff.limits.budget import Budget
from bff.replicas.alone import AnySharing
from bff.replicas.lookups import LoadRequest
from bff.sessions import fields, ids
from bff.sessions.copy import Copy, make_copy
from bff.sessions.document import parse_document
from bff.telemetry import Telemetry
from bff.upstream.pool import cause

RETRY_SECONDS: Final = 1.0
"""Seconds after a failed load in which the gateway serves the old copy and does not load again."""
REJECTED: Final = "check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview environment"
"""The remedy when upstream rejects the secret key."""


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
"""Made once: `json.dumps` makes one for each call with arguments."""


class Get(Protocol):
    """Gets a session from upstream: `Upstream.get`, or `Upstream.get_as` with a token."""

    def __call__(
        self, path: str, *, read: Callable[[bytes], dict[str, Any]]
    ) -> Awaitable[dict[str, Any]]:
        """GET *path* and read the body of a 200."""


class Loader:
    """Starts loads, keeps the copies, and learns from each load about upstream.

    Args:
        config: what the settings decide; `apply` changes it.
        clock: reads the two clocks.
        sharing: the other replicas.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        cache: "Cache[Copy | Refusal]",
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
        """The ids of the sessions that loads brought."""

    def apply(self, config: RuntimeConfig) -> None:
        """Use *config* from now on: a load in flight is projected by its policy."""
        if config.origins != self.config.origins:
            self.pairs.forget()
        self.config = config

    def in_flight(self, environment: str, id_: str) -> "asyncio.Task[Copy | Refusal] | None":
        """Get the load in flight for a session, which may have begun under its other id."""
        loads = self._cache.loads
        task = loads.get((environment, id_))
        if task is None and len(loads):
            other = self.pairs.other(environment, id_)
            task = None if other is None else loads.get((environment, other))
        return task

    def delay(self, budget: Budget, now: float) -> float:
        """Seconds until a load may start; the load itself spends from a shared budget."""
        if self._sharing.up:
            return 0.0
        budget.replicas = self._sharing.replicas
        return budget.wait(now)

    def start(
        self, environment: Environment, id_: str, copy: Copy | None, now: float
    ) -> "asyncio.Task[Copy | Refusal]":
        """Start the load of a session, after `delay`; *copy* is the one that it replaces."""
        spent = not self._sharing.up
        if spent:
            environment.budget.spend(now)
        load = self._load(environment, id_, copy, spent=spent)
        return self._cache.loads.start((environment.name, id_), load)

    async def _load(
        self, environment: Environment, id_: str, copy: Copy | None, *, spent: bool
    ) -> Copy | Refusal:
        """Load a session from upstream, or take the copy that another replica loaded."""
        ask = partial(self._ask, environment, id_, copy, spent=spent)
        while True:
            config, generation = self.config, self._cache.purge_generation
            outcome, loaded = await self._sharing.load(
                LoadRequest(
                    environment=environment.name,
                    id=id_,
                    ask=ask,
                    fresh=partial(self._is_fresh, environment.budget),
                    lifetime=partial(self._lifetime, environment.budget),
                )
            )
            if loaded:
                return outcome
            if config is self.config:
                if isinstance(outcome, Copy):
                    self._keep(outcome, generation)
                return outcome
            # The other replica projected by the former policy, so look again by the new one.

    def _is_fresh(self, budget: Budget, copy: Copy, now: float) -> bool:
        return self._cache.ages.fresh(copy, now, budget.stretched)

    def _lifetime(self, budget: Budget, copy: Copy) -> float:
        """Seconds after its load for which a copy may be of use to any replica."""
        ages = self._cache.ages
        fresh = max(ages.closed_ttl if copy.closed else ages.ttl, budget.stretched)
        return fresh + max(ages.stale_while_revalidate, ages.stale_if_error)

    async def _ask(
        self, environment: Environment, id_: str, copy: Copy | None, timeout: float, *, spent: bool
    ) -> Copy | Refusal:
        """Spend one call and ask upstream; *timeout* bounds the wait for the store, in seconds."""
        wait = 0.0 if spent else await self._spend(environment, timeout)

        async def spend_again() -> None:
            nonlocal wait
            wait = await self._spend(environment, self._sharing.timeout)
            if wait > 0:
                raise Refused("over_budget", retry_after=wait)

        started, _ = self._clock()
        generation = self._cache.purge_generation
        if wait <= 0:
            get = partial(environment.upstream.get, again=spend_again)
            outcome, why = await self.fetch(environment, id_, get)
        if wait > 0:
            if copy is not None:
                copy.retry = self._clock()[0] + min(wait, RETRY_SECONDS)
            return Refusal("over_budget", retry_after=wait)
        ended, _ = self._clock()
        if isinstance(outcome, Refusal) and outcome.code == "not_found":
            self._cache.put_negative(environment.name, id_, ended, generation)
        return self._learn(environment, outcome, why, copy, ended, ended - started)

    async def _spend(self, environment: Environment, timeout: float) -> float:
        """Spend one call upstream; returns the seconds to wait instead, or 0 if it may be made."""
        return await self._sharing.spend(environment.name, environment.budget, timeout=timeout)

    async def fetch(
        self, environment: Environment, id_: str, get: Get
    ) -> tuple[Copy | Refusal, str | None]:
        """Fetch a session with *get* and keep its copy. Never raises.

        Returns:
            The outcome for all who wait, and what the operating system said beneath an error.
        """
        started, _ = self._clock()
        generation = self._cache.purge_generation
        try:
            document = await get(ids.path(id_), read=partial(parse_document, requested_id=id_))
            copy = self._project(environment.name, document, started)
            copy.generation = generation
        except UpstreamError as error:
            return Refusal(error.code, retry_after=error.retry_after), cause(error)
        except Refused as refused:  # the budget, for a second call
            return refused.refusal, None
        except Exception as exc:  # noqa: BLE001  many wait for this outcome, so there must be one
            self._telemetry.exception("load_failed", exc)
            return Refusal("internal"), None
        entry = self._cache.find(environment.name, id_, started)
        if not (isinstance(entry, Copy) and entry.loaded > started):  # a later load was faster
            self._keep(copy, generation)
        return copy, None

    def _keep(self, copy: Copy, generation: int) -> None:
        self.pairs.learn(copy.environment, copy.id, copy.external_id)
        self._cache.put(copy, generation)

    def _project(self, environment: str, document: dict[str, object], loaded: float) -> Copy:
        """Make the copy, without the fields that the policy hides."""
        policy = self.config.policies.get(str(document["type"]), self.config.default_policy)
        self._telemetry.unknown_fields(document.keys() - fields.FIELDS - set(policy.fields))
        shown = policy.project(document)
        try:
            body = _ENCODER.encode(shown).encode()
        except ValueError:  # a lone surrogate, or a number beyond the floats
            raise UpstreamInvalid from None
        return make_copy(
            environment,
            str(document["id"]),
            document["externalId"],  # type: ignore[arg-type]  # validated
            body,
            # If the policy hides that a session is closed, the age of its answers must not tell it.
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
        """Learn from a load for the next ones; returns the outcome for all who wait."""
        code = "ok" if isinstance(outcome, Copy) else outcome.code
        self._telemetry.count(metrics.LOADS, environment.name, code)
        self._telemetry.observe(metrics.LOAD_SECONDS, seconds)
        if isinstance(outcome, Refusal):
            if code != "not_found" and copy is not None:
                copy.retry = now + RETRY_SECONDS
            if code == "over_budget":
                environment.budget.pause(now, outcome.retry_after or RETRY_SECONDS)
                wait = environment.budget.wait(now)
                self._sharing.pause(environment.name, wait)
                outcome = replace(outcome, retry_after=wait)
        healthy = code in ("ok", "not_found", "over_budget")
        health = "ok" if healthy else code
        line: dict[str, Any] = {
            "environment": environment.name,
            "outcome": code,
            "seconds": round(seconds, 4),
        }
        if health == environment.last_load or (healthy and environment.last_load is None):
            self._telemetry.often("load_finished", now, **line)
        elif healthy:
            self._telemetry.log.warning("upstream_recovered", **line)
        elif code == "upstream_rejected_credentials":
            self._telemetry.log.error("upstream_rejects_our_key", remedy=REJECTED, **line)
        else:
            self._telemetry.log.warning("upstream_failing", why=why, **line)
        environment.last_load = health
        return outcome
