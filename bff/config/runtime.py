"""The configuration that the gateway uses: everything that can change while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from bff.chat.config import ChatConfig
from bff.config.live_settings import LiveSettings
from bff.limits.budget import Budget
from bff.limits.client_address import Network
from bff.limits.rate import Limiter, Unlimited
from bff.response import ResponseBuilder
from bff.sessions.copy import Ages
from bff.sessions.policy import Policy
from bff.tokens.verify import Verifier
from bff.upstream.api import Upstream
from bff.upstream.chats import ChatUpstream


@dataclass(slots=True)
class Environment:
    """One Trigger.dev environment at run time.

    Attributes:
        origin: upstream's address, the environment's id and branch. If a reload changes any of
            them, the gateway drops all copies.
        peeks: pays for the requests that tell listeners whether an agent is answering.
        health: "ok" or the error code of the last readiness check; None before the first. Loads do
            not change it, because a browser chooses their ids.
        checked: when `health` was set, on the clock that never jumps.
        last_load: "ok" or the error code of the last load, for the log; None before the first.
    """

    name: str
    origin: tuple[str | None, ...]
    upstream: Upstream
    chat: ChatUpstream
    budget: Budget
    peeks: Budget
    health: str | None = None
    checked: float = float("-inf")
    last_load: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limiters: an `Unlimited` for each that is off. Without defaults, none is forgotten.

    `page` counts requests for public pages, by the browser's address.
    """

    address: Limiter
    page: Limiter
    bad_token: Limiter
    caller: Limiter
    stream: Limiter
    stop: Limiter
    """Counts stops, which no limit of messages counts."""
    message: Limiter
    message_daily: Limiter
    message_total: Limiter

    @classmethod
    def before_settings(cls) -> "Limits":
        """Make the limits that hold until the settings are read, when no request is answered.

        Their names are those of the limits that replace them: those of the fields, with hyphens.
        """
        names = {field.name: field.name.replace("_", "-") for field in fields(cls)}
        names["stream"] = "stream-open"
        return cls(**{field: Unlimited(name) for field, name in names.items()})


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """All configuration that a reload can change. A reload replaces the whole object.

    Args:
        environments: by name, as in `Caller.environment`.
        policies: by session type. Every other type has `default_policy`.
        pages: public JSON by path.
        token_cookie: the name of a cookie that may hold the token.
        chat: the settings of chats.
        live: the settings of event streams.
    """

    environments: Mapping[str, Environment]
    verifier: Verifier
    ages: Ages
    max_bytes: int
    limits: Limits
    trusted_proxies: Sequence[Network]
    default_policy: Policy
    policies: Mapping[str, Policy]
    responses: ResponseBuilder
    pages: Mapping[bytes, bytes]
    token_cookie: bytes | None
    chat: ChatConfig
    live: LiveSettings

    @cached_property
    def visible(self) -> frozenset[str]:
        """The fields that any policy shows."""
        policies = (self.default_policy, *self.policies.values())
        return frozenset().union(*(policy.visible for policy in policies))

    @property
    def projection(self) -> tuple[Policy, Mapping[str, Policy]]:
        """The policies, which decide how a copy looks."""
        return self.default_policy, self.policies

    @property
    def origins(self) -> dict[str, tuple[str | None, ...]]:
        """Each environment's origin, by name."""
        return {name: environment.origin for name, environment in self.environments.items()}
