"""Every setting, declared once.

A field made by `setting` declares everything about its setting: the variable (also the key in the
file), type, reader, default and documentation, and whether `NAME_FILE` works. The variable is
``BFF_`` and the field in upper case, unless the declaration gives its name. A reload cannot change
a field made by `fixed`. `bff.config.reader` fills these classes. `bff.config.token_sources`
declares the keys of a token source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from bff.config import token_values, values
from bff.config.chat_settings import ChatSettings
from bff.config.declaration import SettingReport, declared, fixed, setting
from bff.config.live_settings import LiveSettings
from bff.config.token_sources import SourceSettings
from bff.config.typed import Secret
from bff.config.values import Rate
from bff.replicas.valkey import StoreAddress
from bff.sessions.policy import DEFAULT_FIELDS, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """One Trigger.dev environment."""

    name: str
    secret_keys: tuple[Secret, ...] = setting(
        token_values.secret_keys,
        "the key of the Trigger.dev environment, which the gateway sends upstream. Prefer a "
        "restricted key (`tr_*_sk_*` with `read:sessions`). After the current key you may list the "
        "next one: the gateway tries it once when upstream rejects the current key",
        required=True,
        secret=True,
        name="TRIGGER_SECRET_KEY",
    )
    api_url: str = setting(
        values.api_url,
        "the address of the Trigger.dev API; beyond loopback it must be https, unless "
        "`BFF_ALLOW_HTTP_API_URL` is `true`",
        default="https://api.trigger.dev",
        name="TRIGGER_API_URL",
    )
    signing_keys: tuple[Secret, ...] = setting(
        token_values.signing_keys,
        "the keys that verify tokens: the current key first, then keys that are being rotated out",
        derived="the secret key, if it is a root key",
        secret=True,
    )
    id: str | None = setting(
        values.environment_id,
        "the environment's id, which tokens must have as `sub`, unless a key of your own signed "
        "them with `sub: bff`. If it is set, the gateway compares it with the id that upstream "
        "returns for the secret key, and does not start if they differ. If it is not set and the "
        "gateway needs it, the gateway fetches it from upstream",
        name="BFF_ENVIRONMENT_ID",
    )
    verify: tuple[str, ...] = setting(
        token_values.verify,
        "where Trigger.dev's tokens are verified: `local` (by the signing keys), `upstream`, or "
        "`local,upstream`",
        derived="`local` if there is a signing key, else `upstream`",
    )
    branch: str | None = setting(
        values.branch, "the branch of a preview environment, sent upstream as `x-trigger-branch`"
    )
    upstream_budget: Rate | None = setting(
        values.rate,
        "requests that the gateway may send upstream, out of the environment's shared rate limit; "
        "`off` for no bound",
        default="10/second",
    )
    learn: bool
    """Whether the gateway must get the id from upstream: tokens need it, and it is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Parts of a session that browsers see, for one session type or for all others."""

    fields: tuple[str, ...] = setting(
        values.shown,
        "top-level fields of a session that browsers see",
        default=",".join(DEFAULT_FIELDS),
        name="BFF_EXPOSE_FIELDS",
    )
    metadata: tuple[str, ...] = setting(
        values.shown,
        "paths below `metadata` that browsers see, such as `plan` or `steps.*.title`",
        default="",
        name="BFF_EXPOSE_METADATA",
    )
    tags: tuple[str, ...] = setting(
        values.shown,
        "patterns of tags that browsers see, such as `public:*`",
        default="",
        name="BFF_EXPOSE_TAGS",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Times are seconds, sizes are bytes, a `Rate` of None is `off`."""

    allow_http_api_url: bool = setting(
        values.flag,
        "`true` allows http in `TRIGGER_API_URL` beyond loopback: the secret key is then sent "
        "unencrypted",
        default="false",
    )
    allowed_origins: tuple[str, ...] = setting(
        values.origins,
        "the origins whose pages may read responses, or `*` for every origin; credentials are "
        "never allowed",
        default="",
    )
    host: str = fixed(
        values.host, "the address that the browser port listens on", default="127.0.0.1"
    )
    port: int = fixed(values.port, "the browser port", default="8787")
    ops_host: str = fixed(
        values.host,
        "the address that the ops port listens on; beyond loopback, let only your monitoring "
        "reach it",
        default="127.0.0.1",
    )
    ops_port: int = fixed(values.port, "the ops port", default="9787")
    ops_names: tuple[str, ...] = fixed(
        values.host_names,
        "the host names that the ops port accepts in `Host`, beside addresses and `localhost`",
        default="",
    )
    token_cookie: str | None = setting(
        token_values.cookie,
        "a `__Host-` cookie that may hold the token, for pages on the gateway's own origin",
    )
    tracing: bool = fixed(
        values.flag,
        "`true` exports OpenTelemetry spans; the standard `OTEL_*` variables say where",
        default="false",
    )
    log_level: int = setting(
        values.log_level,
        "the least severe lines of the log: `info`, `warning` or `error`",
        default="info",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = setting(
        values.networks,
        "addresses or CIDRs of proxies whose `X-Forwarded-For` is trusted, read from the right",
        default="",
    )
    rate_limit: Rate | None = setting(
        values.rate, "requests per caller, or `off`", default="300/minute"
    )
    ip_rate_limit: Rate | None = setting(
        values.rate, "requests per IPv4 address or IPv6 /64, or `off`", default="3000/minute"
    )
    bad_token_limit: Rate | None = setting(
        values.rate, "bad tokens per IPv4 address or IPv6 /64, or `off`", default="60/minute"
    )
    cache_ttl: float = setting(
        values.seconds, "seconds for which the copy of an open session is fresh", default="2"
    )
    cache_closed_ttl: float = setting(
        values.seconds, "seconds for which the copy of a closed session is fresh", default="30"
    )
    cache_stale_while_revalidate: float = setting(
        values.seconds,
        "seconds after freshness ends in which the copy is still served while the gateway "
        "refreshes it",
        default="5",
    )
    cache_stale_if_error: float = setting(
        values.seconds,
        "seconds after freshness ends in which the copy is served if a load fails",
        default="60",
    )
    cache_negative_ttl: float = setting(
        values.seconds,
        "seconds for which a 404 is cached; other errors are never cached",
        default="1",
    )
    cache_max_stretch: float = setting(
        values.seconds,
        "the most seconds for which a copy counts as fresh, while a caller requests more sessions "
        "than its part of the upstream budget can load",
        default="60",
    )
    cache_max_bytes: int = setting(
        values.size,
        "bytes of memory for copies; the least recently read copy is evicted first",
        default="67108864",
    )
    store_url: StoreAddress | None = fixed(
        values.store,
        "`valkey://…`, through which replicas share copies, limits and budget (docs/FLEET.md)",
        secret=True,
    )
    store_optional: bool = fixed(
        values.flag, "`true` lets the gateway start while the store is unavailable", default="false"
    )
    store_timeout: float = fixed(
        values.timeout, "seconds for which a request waits for the store", default="0.05"
    )
    fast_path: bool = fixed(
        values.flag,
        "`true` serves sessions without ASGI, which allows several times as many hits a second; "
        "`false` serves every request through ASGI",
        default="true",
    )
    max_connections: int = fixed(
        values.count,
        "browser connections of each worker, including those of listeners; the worker closes "
        "further ones at once",
        default="16000",
    )
    max_connections_per_address: int = fixed(
        values.count,
        "browser connections of each worker per IPv4 address or IPv6 /64, except trusted proxies",
        default="1000",
    )
    max_buffered_bytes: int = fixed(
        values.count,
        "bytes in memory of each worker for unanswered requests and unread responses; one address "
        "may hold a quarter, and more gets 503",
        default="67108864",
    )
    max_head_bytes: int = fixed(
        values.count,
        "bytes of a request's line and headers, or of its body's framing; more get 431",
        default="65536",
    )
    max_headers: int = fixed(values.count, "headers of a request; more get 431", default="100")
    request_timeout: float = fixed(
        values.timeout, "seconds in which a browser must send a request", default="10"
    )
    idle_timeout: float = fixed(
        values.positive_seconds,
        "seconds after which the gateway closes an idle connection (no request), and that of a "
        "slow reader (an unread response); the idle timeout of a proxy in front must be shorter",
        default="75",
    )
    upstream_connect_timeout: float = fixed(
        values.timeout, "seconds to connect to upstream", default="1"
    )
    upstream_ca_file: str | None = fixed(
        values.ca_file,
        "a file with certificates (PEM) of authorities that the gateway trusts beside the "
        "system's, such as your own authority for an upstream or a server of keys",
    )
    upstream_timeout: float = fixed(
        values.timeout, "seconds for a complete response from upstream", default="5"
    )
    chat: ChatSettings
    live: LiveSettings
    environments: tuple[EnvironmentSettings, ...]
    token_sources: tuple[SourceSettings, ...]
    default_policy: Policy
    policies: Mapping[str, Policy]
    """By session type."""
    reports: tuple[SettingReport, ...] = field(compare=False)
    files: tuple[str, ...] = field(compare=False)
    """The files that were read; a change of one causes a reload."""


CLASSES = (EnvironmentSettings, Settings, PolicySettings, ChatSettings, LiveSettings)
"""The classes that declare environment variables, which are keys at the top of the file too."""
SETTINGS = {
    row.name: row for settings_class in CLASSES for row in declared(settings_class).values()
}
"""Every environment variable but ``BFF_CONFIG``, by name."""
FIXED = {name: row.name for name, row in declared(Settings).items() if not row.reloadable}
"""Settings that a reload cannot change, because sockets and connections depend on them: the
variable by the field of `Settings`."""
RENAMED = {"BFF_FAST_LANE": "BFF_FAST_PATH (true or false)"}
"""Names that earlier versions read, each with its replacement."""


class SettingsError(Exception):
    """The settings cannot be used.

    Args:
        problems: all of them, each with the name of its setting and a remedy.
        reports: the settings as they were read.
    """

    def __init__(self, problems: list[str], reports: Iterable[SettingReport] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.reports = tuple(reports)
