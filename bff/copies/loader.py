"""Brings sessions from upstream, or from the replica that did: one load each, whoever waits.

A load spends from the budget, asks, validates, projects, encodes and hashes once; what a browser
must not see is gone before anything is kept. It ends in a copy or a refusal and never raises, for
many may wait for it.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bff.config.runtime import Environment, RuntimeConfig
from bff.copies.cache import Cache
from bff.errors import Refusal, Refused, UpstreamError, UpstreamInvalid
from bff.limits.budget import Budget
from bff.limits.rate import Window
from bff.replicas.sharing import LoadRequest, Sharing
from bff.sessions import document, fields, ids
from bff.sessions.copy import Copy, make_copy
from bff.telemetry import Telemetry
from bff.tokens.caller import Caller
from bff.tokens.introspected import (
    ACCEPTED_SECONDS,
    AUTHENTIC,
    OK,
    Introspection,
    Introspections,
    refusal_seconds,
)
from bff.tokens.scopes import Grant
from bff.upstream.client import cause

RETRY_SECONDS = 1.0
"""After a failed load, a usable copy is answered this long before the next attempt."""


PROBE_ID = "session_readiness_probe"
"""Asked for to learn whether the key works; upstream answers that there is no such session."""


PROBE_SECONDS = 2.0
"""Between two such questions."""


REJECTED = "check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview environment"
"""What to do when upstream rejects the secret key."""


class Loader:
    """Starts loads, keeps what they bring, and learns from them how upstream is.

    Args:
        config: to begin with; see `apply`.
        clock: the two times: one that never jumps, and Unix seconds.
        sharing: the other replicas; None without a store.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        cache: "Cache[Copy | Refusal]",
        introspections: "Introspections[Copy | Refusal | None]",
        telemetry: Telemetry,
        clock: Callable[[], tuple[float, float]],
        sharing: Sharing | None,
    ) -> None:
        self._cache = cache
        self._introspections = introspections
        self._telemetry = telemetry
        self._clock = clock
        self._sharing = sharing
        self._config = config

    def apply(self, config: RuntimeConfig) -> None:
        """Go on by *config*: what is being loaded is projected by the new policy."""
        self._config = config

    def wait(self, budget: Budget, now: float) -> float:
        """Seconds until a load may start; where replicas share a budget, the load itself asks."""
        if self._sharing is not None:
            if self._sharing.up:
                return 0.0
            budget.replicas = self._sharing.replicas
        return budget.wait(now)

    def start(
        self, environment: Environment, id_: str, known: Copy | None, now: float
    ) -> "asyncio.Task[Copy | Refusal]":
        """Start the one load of a session; ask `wait` before. *known* is the copy there is."""
        spent = self._sharing is None or not self._sharing.up
        if spent:
            environment.budget.spend(now)
        load = self._fetch(environment, id_, known, spent=spent)
        return self._cache.fly(environment.name, id_, load)

    async def _fetch(
        self, environment: Environment, id_: str, known: Copy | None, *, spent: bool
    ) -> Copy | Refusal:
        """One load, by this process or another: keep what it brings. Never raises."""
        ask = partial(self._ask, environment, id_, known, spent=spent)
        if self._sharing is None:
            return await ask(0.0)
        if id_ == PROBE_ID:
            return await ask(self._sharing.timeout)
        while True:
            config, mark = self._config, self._cache.mark
            outcome, ours = await self._sharing.load(
                LoadRequest(
                    environment=environment.name,
                    id=id_,
                    ask=ask,
                    fresh=partial(self._is_fresh, environment.budget),
                    lifetime=partial(self._lifetime, environment.budget),
                )
            )
            if ours:
                return outcome
            if config is self._config:
                if isinstance(outcome, Copy):
                    self._cache.put(outcome, mark)
                return outcome
            # What another replica projected, it did by the former rules: look by the new ones.

    def _is_fresh(self, budget: Budget, copy: Copy, now: float) -> bool:
        return self._cache.ages.fresh(copy, now, budget.stretched)

    def _lifetime(self, budget: Budget, copy: Copy) -> float:
        """Seconds after its load for which a copy may be of use to any replica."""
        ages = self._cache.ages
        fresh = max(ages.closed_ttl if copy.closed else ages.ttl, budget.stretched)
        return fresh + max(ages.stale_while_revalidate, ages.stale_if_error)

    async def _ask(
        self, environment: Environment, id_: str, known: Copy | None, timeout: float, *, spent: bool
    ) -> Copy | Refusal:
        """Ask upstream: fetch, validate, project, encode and hash once. Never raises."""
        wait = 0.0 if spent else await self._spend(environment, timeout)

        async def again() -> None:
            nonlocal wait
            wait = await self._spend(environment, self._sharing.timeout if self._sharing else 0.0)
            if wait > 0:
                raise Refused("over_budget", retry_after=wait)

        started, _ = self._clock()
        mark = self._cache.mark
        if wait <= 0:
            get = partial(environment.upstream.get, again=again)
            outcome, why = await self._fetch_once(environment, id_, get)
        if wait > 0:
            if known is not None:
                known.retry = self._clock()[0] + min(wait, RETRY_SECONDS)
            return Refusal("over_budget", retry_after=wait)
        ended, _ = self._clock()
        if isinstance(outcome, Refusal) and outcome.code == "not_found":
            self._cache.put_missing(environment.name, id_, ended, mark)
        return self._learn(environment, outcome, why, known, ended, ended - started)

    async def _spend(self, environment: Environment, timeout: float) -> float:
        """Spend one call upstream; returns the seconds to wait instead, or 0 if it may be made.

        *timeout* is how many seconds the store may take to say so.
        """
        budget = environment.budget
        if self._sharing is not None:
            return await self._sharing.spend(environment.name, budget, timeout=timeout)
        now, _ = self._clock()
        wait = budget.wait(now)
        if wait <= 0:
            budget.spend(now)
        return wait

    async def _fetch_once(
        self, environment: Environment, id_: str, get: Callable[[str], Awaitable[bytes]]
    ) -> tuple[Copy | Refusal, str | None]:
        """Fetch a session and keep its copy.

        Returns:
            What everyone who waits is told, and what the system said beneath an error.
        """
        started, _ = self._clock()
        mark = self._cache.mark
        try:
            body = await get(ids.path(id_))
            copy = self._project(
                environment.name, document.parse_document(body, asked=id_), started
            )
            known = self._cache.find(environment.name, id_, started)
            if not (isinstance(known, Copy) and known.loaded > started):
                self._cache.put(copy, mark)  # not over what was asked for later, and came sooner
        except UpstreamError as error:
            return Refusal(error.code, retry_after=error.retry_after), cause(error)
        except Refused as refused:  # the budget, for the second call
            return refused.refusal, None
        except Exception as exc:  # noqa: BLE001  many wait for this outcome: it has to have one
            self._telemetry.exception("load_failed", exc)
            return Refusal("internal"), None
        return copy, None

    def _project(self, environment: str, document: dict[str, object], loaded: float) -> Copy:
        """Make the copy; whatever a browser must not see ends here."""
        policy = self._config.policies.get(str(document["type"]), self._config.default_policy)
        self._telemetry.unknown_fields(document.keys() - fields.FIELDS - set(policy.fields))
        shown = policy.project(document)
        try:
            body = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            encoded = body.encode()
        except ValueError:  # a lone surrogate, or a number beyond the floats
            raise UpstreamInvalid from None
        return make_copy(
            environment,
            str(document["id"]),
            document["externalId"],  # type: ignore[arg-type]  # validated
            encoded,
            document["closedAt"] is not None,
            loaded,
        )

    def _learn(
        self,
        environment: Environment,
        outcome: Copy | Refusal,
        why: str | None,
        known: Copy | None,
        now: float,
        seconds: float,
    ) -> Copy | Refusal:
        """Draw the conclusions from a load for the next ones; returns what waiters are told."""
        code = "ok" if isinstance(outcome, Copy) else outcome.code
        self._telemetry.count("bff_loads", code)
        self._telemetry.observe("bff_load_seconds", seconds)
        if isinstance(outcome, Refusal):
            if code != "not_found" and known is not None:
                known.retry = now + RETRY_SECONDS
            if code == "over_budget":
                environment.budget.pause(now, outcome.retry_after or RETRY_SECONDS)
                if self._sharing is not None:
                    self._sharing.pause(environment.name, environment.budget.wait(now))
                outcome = replace(outcome, retry_after=environment.budget.wait(now))
        healthy = code in ("ok", "not_found", "over_budget")
        health = "ok" if healthy else code
        fields: Any = {
            "environment": environment.name,
            "outcome": code,
            "seconds": round(seconds, 4),
        }
        if health == environment.health or (healthy and environment.health is None):
            self._telemetry.often("load_finished", now, **fields)
        elif healthy:
            self._telemetry.log.warning("upstream_recovered", **fields)
        elif code == "upstream_rejected_credentials":
            self._telemetry.log.error("upstream_rejects_our_key", remedy=REJECTED, **fields)
        else:
            self._telemetry.log.warning("upstream_failing", why=why, **fields)
        environment.health, environment.checked = health, now
        return outcome

    async def readiness(self) -> dict[str, tuple[bool, str]]:
        """Whether each environment can serve, and why; asks upstream where that is not known."""
        now, _ = self._clock()
        loads = [
            self._cache.flight(environment.name, PROBE_ID)
            or self.start(environment, PROBE_ID, None, now)
            for environment in self._config.environments.values()
            if environment.health != "ok" and now - environment.checked >= PROBE_SECONDS
            if environment.budget.wait(now) <= 0
        ]
        if loads:
            await asyncio.wait(loads)
        return {name: self.ready(env) for name, env in self._config.environments.items()}

    def ready(self, environment: Environment) -> tuple[bool, str]:
        """Whether *environment* can serve, as far as is known, and why."""
        now, _ = self._clock()
        if environment.name in self._config.verifier.pending:
            return False, (
                "the environment's id is not known yet, so no token can be told to be its own: "
                "if the secret key cannot tell it, set BFF_ENVIRONMENT_ID"
            )
        if environment.health == "ok":
            return True, "the upstream answers and accepts the key"
        if environment.health == "upstream_rejected_credentials":
            return (
                False,
                f"the upstream rejects the secret key, or it may not read sessions: {REJECTED}",
            )
        trouble = "the upstream was not asked yet"
        if environment.health:
            trouble = f"the upstream fails ({environment.health})"
        if self._cache.usable(environment.name, now):
            return True, f"{trouble}; copies are served meanwhile"
        return False, f"{trouble}, and there is no copy to serve"

    async def test(
        self,
        environment: Environment,
        id_: str,
        caller: Caller[Grant],
        token: bytes,
        mark: Window | None,
    ) -> Copy | Refusal | None:
        """One load that is a test of a token too, by this process or another. Never raises.

        None if it was another that was told the token is good: of the session nothing came here.
        The token's `sub` is this environment's id and upstream has verified it, so what comes is
        of this environment: it fills the shared copy as any load does. Health and budget are the
        secret key's and learn nothing here. *mark* is where the token was counted as a bad one in
        advance; it is given back when it was none, whoever still waits.
        """
        digest, config = caller.digest or b"", self._config
        outcome: Copy | Refusal | None = None

        async def ask() -> Introspection:
            nonlocal outcome
            _, wall = self._clock()
            outcome, _ = await self._fetch_once(
                environment, id_, lambda path: environment.upstream.get_as(token, path, wall)
            )
            spoken, wall = self._clock()
            if isinstance(outcome, Refusal):
                seconds = refusal_seconds(outcome.code, outcome.retry_after)
                introspection = Introspection(outcome.code, (id_,), spoken, seconds)
            else:
                ids = dict.fromkeys((id_, outcome.id, outcome.external_id or outcome.id))
                seconds = min(caller.expires - wall, ACCEPTED_SECONDS)
                introspection = Introspection(OK, tuple(ids), spoken, seconds)
            self._telemetry.count("bff_token_tests", introspection.code)
            return introspection

        if self._sharing is None:
            introspection = await ask()
        else:
            introspection = await self._sharing.introspect(environment.name, digest, id_, ask)
        now, wall = self._clock()
        if outcome is None and introspection.code != OK:  # another's
            rest = introspection.until - now if introspection.code == "over_budget" else None
            outcome = Refusal(introspection.code, retry_after=rest)
        if mark is not None and introspection.code in (OK, *AUTHENTIC):
            mark.refund()
        current = self._config
        if (current.verifier, current.origins) != (config.verifier, config.origins):
            return outcome  # other keys or another upstream by now: it is to be asked again
        if introspection.code == OK:
            seconds = caller.expires - wall + now - introspection.spoken
            self._introspections.accept(digest, introspection.ids, introspection.spoken, seconds)
            config.verifier.remember(token, caller)
        else:
            self._introspections.refuse(
                digest, id_, introspection.spoken, introspection.code, introspection.seconds
            )
        return outcome
