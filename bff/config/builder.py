"""Builds a `RuntimeConfig` from the settings, in place of the former one.

The builder keeps what the new settings do not change: the counts of limits and budgets, fetched
keys, verified tokens.
"""

import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bff import __version__
from bff.chat.config import ChatConfig
from bff.chat.identity import Signer
from bff.chat.messages import MessagePolicy
from bff.clock import Clock
from bff.config.live_settings import LiveSettings
from bff.config.runtime import Environment, Limits, RuntimeConfig
from bff.config.settings import EnvironmentSettings, Settings
from bff.config.token_sources import SourceSettings
from bff.config.values import Rate
from bff.digests import fingerprint
from bff.limits.budget import Budget
from bff.limits.rate import Limiter, QuotaProvider, Unlimited
from bff.replicas.alone import AnySharing
from bff.replicas.codec import Namespace
from bff.response import ResponseBuilder
from bff.sessions import ids, openapi
from bff.sessions.copy import Ages
from bff.stream_registry import Bounds
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet, read_jwks, shared_key
from bff.tokens.verify import Issuer, Verifier
from bff.upstream.api import Quota, Upstream
from bff.upstream.chats import ChatUpstream
from bff.upstream.credentials import Credentials
from bff.upstream.pool import Transport

STOPS = Rate(60, 60)
"""Stops of one caller. A person presses the button less often than once a second."""
MAX_DRAIN_SECONDS = 8.0
"""Seconds over which the ends of streams are spread at most: a stop takes at most ten."""


def _pages(settings: Settings, description: object) -> dict[bytes, bytes]:
    """Make the public JSON by path."""
    chats = [f"POST {openapi.CHAT_IN}", f"GET {openapi.CHAT_OUT}"] if settings.chat.enabled else []
    about = {
        "name": "bff",
        "version": __version__,
        "description": "The browser-facing gateway of Trigger.dev sessions",
        "routes": [
            "GET /api/v1/sessions",
            "GET /api/v1/sessions/{session}",
            *chats,
            "GET /openapi.json",
            "GET /healthz",
        ],
    }
    return {
        b"/": json.dumps(about).encode(),
        b"/healthz": b'{"status": "ok"}',
        b"/openapi.json": json.dumps(description).encode(),
    }


@dataclass(eq=False)
class ConfigBuilder:
    """Builds configurations for one gateway.

    Args:
        transport: sends requests upstream.
        timeout: seconds for a whole answer of upstream.
        sharing: receives what upstream reports of its bucket, for other replicas.
        provider: grants limits that replicas share; None if the process counts alone.
        clock: reads the two clocks.
        trace: wraps an environment's API to make spans of its calls.
        on_key: called with an environment's name and the position of the secret key, from 1, that
            took over because upstream rejected the one before.
    """

    transport: Transport
    timeout: float
    sharing: AnySharing
    provider: QuotaProvider | None
    clock: Clock
    trace: Callable[[Upstream], Upstream]
    on_key: Callable[[str, int], None]
    _learned: dict[str, tuple[object, str]] = field(default_factory=dict)
    """By environment name: the settings that its id depends on, and the id from upstream."""

    def learn(self, environment: EnvironmentSettings, id_: str) -> None:
        """Remember the id that upstream returned for *environment*."""
        self._learned[environment.name] = (_depends_on(environment), id_)

    def id_of(self, environment: EnvironmentSettings) -> str | None:
        """The id in the settings, or the id that upstream returned for this key and address."""
        depends_on, id_ = self._learned.get(environment.name, (None, None))
        return environment.id or (id_ if depends_on == _depends_on(environment) else None)

    def differs(self, environment: EnvironmentSettings) -> bool:
        """Whether upstream returned another id for this key than the settings have."""
        depends_on, id_ = self._learned.get(environment.name, (None, None))
        return depends_on == _depends_on(environment) and environment.id not in (None, id_)

    def _verified_id(self, environment: EnvironmentSettings) -> str | None:
        """Return the id that tokens must have. An id only for the store changes no decision."""
        return self.id_of(environment) if environment.learn else environment.id

    def namespaces(self, settings: Settings) -> dict[str, Namespace]:
        """Return each environment's namespace; `Namespace` says which gateways share its parts.

        An environment whose id is not known yet has no namespace. Its secret key could not replace
        the id: while the key is rotated, replicas would share neither purges nor a budget.
        """
        policies = {type_: policy.fingerprint for type_, policy in settings.policies.items()}
        projection = fingerprint(
            __version__, settings.default_policy.fingerprint, sorted(policies.items())
        )
        return {
            e.name: Namespace(
                fingerprint(e.name, e.api_url, e.branch, id_), projection, _seal(e, id_)
            )
            for e in settings.environments
            if (id_ := self.id_of(e)) is not None
        }

    def build(
        self, settings: Settings, before: tuple[Settings, RuntimeConfig] | None = None
    ) -> RuntimeConfig:
        """Build a configuration; *before* are the settings in force and what was built of them."""
        settings_before, config = before or (None, None)
        environments = config.environments if config else {}
        limits = config.limits if config else Limits.before_settings()
        verifier = config.verifier if config else None
        built = config.verifier.sources if config else ()
        token_sources = sources(settings, settings_before, built)
        issuers = tuple(
            issuer(
                e,
                self._verified_id(e),
                pending=(e.learn and self.id_of(e) is None) or self.differs(e),
            )
            for e in settings.environments
        )
        if verifier is None or (verifier.issuers, verifier.sources) != (issuers, token_sources):
            verifier = Verifier(issuers, ids.grant, sources=token_sources, before=verifier)
        limiter = partial(_limiter, provider=self.provider)
        exact = partial(limiter, exact=True)
        chat, live = settings.chat, settings.live
        description = openapi.document(
            settings.default_policy,
            settings.policies,
            __version__,
            cookie=settings.token_cookie,
            chat=chat.enabled,
            any_message=chat.input == "any",
            live=live.enabled,
            answering=live.answering,
        )
        return RuntimeConfig(
            environments={
                e.name: self._environment(e, live, environments.get(e.name))
                for e in settings.environments
            },
            verifier=verifier,
            ages=Ages(
                ttl=settings.cache_ttl,
                closed_ttl=settings.cache_closed_ttl,
                stale_while_revalidate=settings.cache_stale_while_revalidate,
                stale_if_error=settings.cache_stale_if_error,
                negative_ttl=settings.cache_negative_ttl,
                max_stretch=settings.cache_max_stretch,
            ),
            max_bytes=settings.cache_max_bytes,
            limits=Limits(
                address=limiter(settings.ip_rate_limit, limits.address),
                page=limiter(settings.ip_rate_limit, limits.page),
                bad_token=limiter(settings.bad_token_limit, limits.bad_token),
                caller=limiter(settings.rate_limit, limits.caller),
                stream=limiter(chat.stream_limit, limits.stream),
                stop=limiter(STOPS, limits.stop),
                message=exact(chat.message_limit, limits.message),
                message_daily=exact(chat.message_daily_limit, limits.message_daily),
                message_total=exact(chat.message_total_limit, limits.message_total),
            ),
            trusted_proxies=settings.trusted_proxies,
            default_policy=settings.default_policy,
            policies=settings.policies,
            responses=ResponseBuilder(
                settings.allowed_origins,
                cookie=settings.token_cookie is not None,
                live=live.enabled,
            ),
            token_cookie=settings.token_cookie.encode() if settings.token_cookie else None,
            chat=_chat_config(settings),
            live=live,
            pages=_pages(settings, description),
        )

    def _environment(
        self, environment: EnvironmentSettings, live: LiveSettings, before: Environment | None
    ) -> Environment:
        origin = (environment.api_url, self._verified_id(environment), environment.branch)
        kept = before if before is not None and before.origin == origin else None
        budget = _budget(environment.upstream_budget, "spent", kept.budget if kept else None)
        peeks = _budget(live.answering_budget, "peeks", kept.peeks if kept else None)
        own_credentials = credentials(environment, partial(self.on_key, environment.name))
        upstream = Upstream(
            self.transport,
            credentials=own_credentials,
            timeout=self.timeout,
            observe=partial(self._observe, environment.name, budget),
            clock=self.clock,
        )
        chat = ChatUpstream(
            self.transport,
            credentials=own_credentials,
            timeout=self.timeout,
            clock=self.clock,
        )
        return Environment(environment.name, origin, self.trace(upstream), chat, budget, peeks)

    def _observe(self, name: str, budget: Budget, quota: Quota) -> None:
        """Use what upstream reports of its bucket, in this process and in other replicas."""
        now, wall = self.clock()
        limit, remaining, reset = quota.limit, quota.remaining, quota.reset - wall
        budget.observe(now, limit=limit, remaining=remaining, reset=reset)
        self.sharing.limits.observe(name, limit=limit, remaining=remaining, reset=reset)


def _budget(rate: Rate | None, name: str, before: Budget | None) -> Budget:
    """Make a budget; one that has the same rate is kept, with what it has counted."""
    limit, seconds = (rate.limit, rate.seconds) if rate else (None, 1)
    if before is not None and (before.limit, before.seconds) == (limit, seconds):
        return before
    return Budget(limit, seconds, name=name)


def _limiter(
    rate: Rate | None, before: Limiter, *, provider: QuotaProvider | None, exact: bool = False
) -> Limiter:
    if rate is None:
        return Unlimited(before.name)
    if (before.limit, before.seconds) == (rate.limit, rate.seconds):
        return before
    return Limiter(before.name, rate.limit, rate.seconds, provider=provider, exact=exact)


def _chat_config(settings: Settings) -> ChatConfig:
    chat = settings.chat
    policies = (settings.default_policy, *settings.policies.values())
    return ChatConfig(
        enabled=chat.enabled,
        messages=None
        if chat.input == "any"
        else MessagePolicy(fields=frozenset(chat.input_fields), identity_field=chat.identity_field),
        signer=Signer(chat.identity_key.reveal()) if chat.identity_key else None,
        identity_headers=[name.encode() for name in chat.identity_headers],
        bounds=Bounds(streams=chat.max_streams, streams_per_caller=chat.max_streams_per_caller),
        max_message_bytes=chat.max_message_bytes,
        # The type of a session is not known when its stream is opened.
        shows_reason=all("closedReason" in policy.visible for policy in policies),
        drain_seconds=min(chat.drain_seconds, MAX_DRAIN_SECONDS),
    )


def credentials(
    environment: EnvironmentSettings, on_key: Callable[[int], None] = lambda _: None
) -> Credentials:
    """Make the credentials of the gateway for an environment; *on_key* gets each change of key."""
    return Credentials(
        url=environment.api_url,
        secret_keys=[key.reveal() for key in environment.secret_keys],
        branch=environment.branch,
        user_agent=f"bff/{__version__}",
        on_key=on_key,
    )


def issuer(environment: EnvironmentSettings, id_: str | None, *, pending: bool) -> Issuer:
    """Make the issuer of an environment's own tokens, which must have the id *id_*."""
    keys = tuple(key.reveal() for key in environment.signing_keys)
    upstream = "upstream" in environment.verify
    return Issuer(environment.name, id_, keys, upstream=upstream, pending=pending)


def _seal(environment: EnvironmentSettings, id_: str) -> bytes:
    """Make the key that seals introspections; it differs between upstreams and sets of keys."""
    e = environment
    signing_keys = [key.reveal() for key in e.signing_keys]
    parts = [__version__, e.name, e.api_url, e.branch, id_, e.verify, signing_keys]
    key = b"bff verdicts " + e.secret_keys[0].reveal().encode()
    return hmac.digest(key, json.dumps(parts).encode(), "sha256")


def same_environment(one: EnvironmentSettings, other: EnvironmentSettings) -> bool:
    """Whether an id of *one*, set or learned, is valid for *other* too."""
    return (one.id, _depends_on(one)) == (other.id, _depends_on(other))


def _depends_on(environment: EnvironmentSettings) -> object:
    """The settings on which the id that upstream returns depends."""
    return environment.api_url, environment.branch, environment.secret_keys


def sources(
    settings: Settings, before: Settings | None = None, built: tuple[Source, ...] = ()
) -> tuple[Source, ...]:
    """Make the token sources; *built* are those of the settings *before*, in their order.

    A source whose settings did not change is kept, and so are keys that would be fetched from the
    same place.
    """
    former = list(zip(before.token_sources, built, strict=False)) if before else []

    def source(new: SourceSettings) -> Source:
        keys = None
        for old, one in former:
            if old == new:
                return one
            if new.jwks_url and _fetched_from(old) == _fetched_from(new):
                keys = one.keys
        if keys is None:
            static = [shared_key(key.reveal()) for key in new.shared_keys]
            if new.jwks is not None:
                static = list(read_jwks(new.jwks, new.algorithms))
            keys = KeySet(static, url=new.jwks_url, trusted_seconds=new.keys_trusted)
        return Source(
            name=new.name,
            environment=new.environment,
            issuer=new.issuer,
            audiences=new.audiences,
            algorithms=new.algorithms,
            keys=keys,
            scopes_path=new.scopes_path,
            scopes_are_text=new.scopes_are_text,
            required=new.required,
        )

    return tuple(map(source, settings.token_sources))


def _fetched_from(source: SourceSettings) -> object:
    return source.jwks_url, source.algorithms, source.keys_trusted
