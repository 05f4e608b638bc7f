"""Every knob: read once, checked all together, with a remedy for each problem.

`SETTINGS` is the table; a row gives a name, a default, how its text is read, and what it means.
The same names are keys of the TOML file that ``BFF_CONFIG`` names, where ``[[environments]]`` and
``[policies."<session type>"]`` hold what a flat environment cannot. The environment wins over the
file. Nothing here prints, and no problem quotes a secret.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from bff.config import values
from bff.config.values import Rate, Secret
from bff.replicas.valkey import StoreAddress
from bff.sessions.policy import DEFAULT_FIELDS, Policy


@dataclass(frozen=True, slots=True)
class Told:
    """One setting as it was found, for people to read."""

    where: str
    """Empty for the top level, else the table of the file."""
    name: str
    shown: str
    """The value; of a secret only that it is set."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """One Trigger.dev environment."""

    name: str
    id: str | None
    api_url: str
    secret_keys: tuple[Secret, ...]
    """The current one first; the others are tried once when upstream rejects it."""
    signing_keys: tuple[Secret, ...]
    branch: str | None
    upstream_budget: Rate | None
    verify: tuple[str, ...]
    """Who verifies Trigger.dev's tokens, in the order tried: ``local``, ``upstream``."""
    learn: bool
    """The id is not told, and tokens cannot do without: upstream is asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One issuer of tokens beside Trigger.dev. Times are seconds."""

    name: str
    environment: str
    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    jwks_url: str | None
    jwks: str | None
    """A JWK set that has been read from a file, and can be."""
    shared_keys: tuple[Secret, ...]
    keys_trusted: float
    scopes_path: tuple[str, ...]
    scopes_are_text: bool
    required: Mapping[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the gateway was told. Times are seconds, sizes are bytes, None is `off`."""

    environments: tuple[EnvironmentSettings, ...]
    token_sources: tuple[SourceSettings, ...]
    token_cookie: str | None
    allowed_origins: tuple[str, ...]
    host: str
    port: int
    ops_host: str
    ops_port: int
    ops_names: tuple[str, ...]
    tracing: bool
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    rate_limit: Rate | None
    ip_rate_limit: Rate | None
    bad_token_limit: Rate | None
    cache_ttl: float
    cache_closed_ttl: float
    cache_stale_while_revalidate: float
    cache_stale_if_error: float
    cache_negative_ttl: float
    cache_max_bytes: int
    store_url: StoreAddress | None
    store_optional: bool
    store_timeout: float
    fast_lane: bool
    max_connections: int
    max_connections_per_address: int
    max_head_bytes: int
    max_headers: int
    request_timeout: float
    idle_timeout: float
    upstream_connect_timeout: float
    upstream_timeout: float
    default_policy: Policy
    policies: Mapping[str, Policy]
    told: tuple[Told, ...] = field(compare=False)
    files: tuple[str, ...] = field(compare=False)
    """What was read: a change of one of these is a change of settings."""


class SettingsError(Exception):
    """The settings cannot be used.

    Args:
        problems: every one of them, each with the name of its setting and a remedy.
        told: what was found all the same.
    """

    def __init__(self, problems: list[str], told: Iterable[Told] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.told = tuple(told)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: `shown` is the default as the documentation writes it."""

    read: Callable[[str], Any]
    default: str | None
    shown: str
    meaning: str
    secret: bool = False
    required: bool = False


_FIELDS_TEXT = ",".join(DEFAULT_FIELDS)
ENVIRONMENT_SETTINGS: dict[str, Setting] = {
    "TRIGGER_SECRET_KEY": Setting(
        values.secret_keys,
        None,
        "required",
        "a key of the Trigger.dev environment, sent upstream; best a restricted one (`tr_*_sk_*` "
        "with `read:sessions`). Several: the current key first, then the next, tried once when "
        "upstream rejects it",
        secret=True,
        required=True,
    ),
    "TRIGGER_API_URL": Setting(
        values.url,
        "https://api.trigger.dev",
        "`https://api.trigger.dev`",
        "the API; http only for loopback, unless `BFF_ALLOW_HTTP_API_URL`",
    ),
    "BFF_SIGNING_KEYS": Setting(
        values.signing_keys,
        None,
        "the secret key, if it is a root key",
        "what verifies tokens: the current key first, then those being rotated out",
        secret=True,
    ),
    "BFF_ENVIRONMENT_ID": Setting(
        values.text,
        None,
        "—",
        "the `sub` accepted; asked for upstream if it is needed, which a restricted key may not",
    ),
    "BFF_VERIFY": Setting(
        values.verify,
        None,
        "local if there is a signing key, else upstream",
        "who verifies Trigger.dev's tokens: `local`, `upstream`, or `local,upstream`",
    ),
    "BFF_BRANCH": Setting(
        values.text, None, "—", "sent as `x-trigger-branch`; preview environments need it"
    ),
    "BFF_UPSTREAM_BUDGET": Setting(
        values.rate,
        "10/second",
        "`10/second`",
        "what may be spent of the environment's shared upstream bucket; `off`",
    ),
}
POLICY_SETTINGS: dict[str, Setting] = {
    "BFF_EXPOSE_FIELDS": Setting(
        values.texts, _FIELDS_TEXT, f"`{_FIELDS_TEXT}`", "top-level fields that browsers see"
    ),
    "BFF_EXPOSE_METADATA": Setting(
        values.texts,
        "",
        "none",
        "paths below `metadata` that browsers see: `plan`, `steps.*.title`",
    ),
    "BFF_EXPOSE_TAGS": Setting(
        values.texts, "", "none", "globs of tags that browsers see: `public:*`"
    ),
}
GLOBAL_SETTINGS: dict[str, Setting] = {
    "BFF_ALLOW_HTTP_API_URL": Setting(
        values.flag,
        "false",
        "`false`",
        "`true` sends the secret key over plain http beyond loopback",
    ),
    "BFF_ALLOWED_ORIGINS": Setting(
        values.origins, "", "none", "exact origins, or `*`; never with credentials"
    ),
    "BFF_HOST": Setting(values.host, "127.0.0.1", "`127.0.0.1`", "the address of the browser port"),
    "BFF_PORT": Setting(values.port, "8787", "`8787`", "the browser port"),
    "BFF_OPS_HOST": Setting(
        values.host,
        "127.0.0.1",
        "`127.0.0.1`",
        "the address of the ops port; beyond loopback, let only your own monitoring reach it",
    ),
    "BFF_OPS_PORT": Setting(values.port, "9787", "`9787`", "the ops port"),
    "BFF_OPS_NAMES": Setting(
        values.host_names,
        "",
        "none",
        "host names by which the ops port may be asked for, beside addresses and `localhost`",
    ),
    "BFF_TOKEN_COOKIE": Setting(
        values.cookie,
        None,
        "none",
        "a `__Host-` cookie that may hold the token, for pages of the gateway's own origin",
    ),
    "BFF_TRACING": Setting(
        values.flag,
        "false",
        "`false`",
        "`true` sends OpenTelemetry spans where the standard `OTEL_*` variables say",
    ),
    "BFF_TRUSTED_PROXIES": Setting(
        values.networks, "", "none", "CIDRs whose `X-Forwarded-For` is walked from the right"
    ),
    "BFF_RATE_LIMIT": Setting(values.rate, "300/minute", "`300/minute`", "per caller; `off`"),
    "BFF_IP_RATE_LIMIT": Setting(
        values.rate, "3000/minute", "`3000/minute`", "per IPv4 address or IPv6 /64; `off`"
    ),
    "BFF_BAD_TOKEN_LIMIT": Setting(
        values.rate,
        "60/minute",
        "`60/minute`",
        "bad tokens and probed ids, per IPv4 address or IPv6 /64; `off`",
    ),
    "BFF_CACHE_TTL": Setting(values.seconds, "2", "`2`", "seconds an open session is fresh"),
    "BFF_CACHE_CLOSED_TTL": Setting(
        values.seconds, "30", "`30`", "the same once `closedAt` is set"
    ),
    "BFF_CACHE_STALE_WHILE_REVALIDATE": Setting(
        values.seconds,
        "5",
        "`5`",
        "seconds beyond that in which it is answered and refreshed behind",
    ),
    "BFF_CACHE_STALE_IF_ERROR": Setting(
        values.seconds, "60", "`60`", "seconds beyond that in which it is answered if loading fails"
    ),
    "BFF_CACHE_NEGATIVE_TTL": Setting(
        values.seconds, "1", "`1`", "seconds a 404 is remembered; other errors never are"
    ),
    "BFF_CACHE_MAX_BYTES": Setting(
        values.size, "67108864", "`67108864`", "memory for copies; the least recently read go first"
    ),
    "BFF_STORE_URL": Setting(
        values.store,
        None,
        "—",
        "`valkey://…`: shared copies, limits and budget of several replicas (docs/FLEET.md)",
        secret=True,
    ),
    "BFF_STORE_OPTIONAL": Setting(
        values.flag, "false", "`false`", "`true` starts without the store when it cannot be reached"
    ),
    "BFF_STORE_TIMEOUT": Setting(
        values.wait, "0.05", "`0.05`", "seconds that a request may wait for the store"
    ),
    "BFF_FAST_LANE": Setting(
        values.switch,
        "on",
        "`on`",
        "answers from memory skip ASGI, for several times the requests a second; `off`",
    ),
    "BFF_MAX_CONNECTIONS": Setting(
        values.count,
        "10000",
        "`10000`",
        "connections of browsers, in each worker; more are closed at once",
    ),
    "BFF_MAX_CONNECTIONS_PER_ADDRESS": Setting(
        values.count,
        "1000",
        "`1000`",
        "the same per IPv4 address or IPv6 /64 that is not a trusted proxy",
    ),
    "BFF_MAX_HEAD_BYTES": Setting(
        values.count,
        "65536",
        "`65536`",
        "bytes of a request's line and headers, or of what frames its body; more is a 431",
    ),
    "BFF_MAX_HEADERS": Setting(values.count, "100", "`100`", "headers of a request; more is a 431"),
    "BFF_REQUEST_TIMEOUT": Setting(
        values.wait, "10", "`10`", "seconds a browser has to send a request"
    ),
    "BFF_IDLE_TIMEOUT": Setting(
        values.positive_seconds,
        "75",
        "`75`",
        "seconds a connection may be without a request, or leave an answer unread; longer than the "
        "proxy in front keeps its own",
    ),
    "BFF_UPSTREAM_CONNECT_TIMEOUT": Setting(values.wait, "1", "`1`", "seconds to connect upstream"),
    "BFF_UPSTREAM_TIMEOUT": Setting(
        values.wait, "5", "`5`", "seconds for a whole answer from upstream"
    ),
}
SETTINGS: dict[str, Setting] = ENVIRONMENT_SETTINGS | GLOBAL_SETTINGS | POLICY_SETTINGS
SOURCE_SETTINGS: dict[str, Setting] = {
    "name": Setting(values.text, None, "required", "what logs and metrics call it", required=True),
    "issuer": Setting(
        values.text, None, "required", "the `iss` of its tokens, to the letter", required=True
    ),
    "audience": Setting(
        values.texts, "", "none", "the `aud` accepted, any of them; none: tokens must not have one"
    ),
    "algorithms": Setting(
        values.algorithms,
        None,
        "required",
        "`RS256`, `ES256`, `EdDSA`; or `HS256` alone",
        required=True,
    ),
    "jwks_url": Setting(
        values.jwks_url,
        None,
        "—",
        "where its public keys are fetched; https, http only for loopback",
    ),
    "jwks_file": Setting(values.text, None, "—", "a file that holds them, in place of the address"),
    "shared_keys": Setting(
        values.shared_keys,
        None,
        "—",
        "for `HS256`: the current key first; or `shared_keys_FILE`",
        secret=True,
    ),
    "keys_trusted": Setting(
        values.positive_seconds,
        "86400",
        "`86400`",
        "seconds that fetched keys are trusted while their server is away",
    ),
    "scopes_claim": Setting(
        values.claim_path,
        "scopes",
        "`scopes`",
        "the claim that holds scopes; a list is a path down",
    ),
    "scopes_form": Setting(
        values.scopes_form, "list", "`list`", "`list`, or `text` with spaces between the scopes"
    ),
    "environment": Setting(
        values.text, None, "the only one", "the environment that its tokens speak for, and no other"
    ),
}
