"""Reads all settings from the environment and from the TOML file that ``BFF_CONFIG`` names.

A variable wins over the same key in the file. Only the file can hold ``[[environments]]``,
``[policies]`` and ``[[token_sources]]``. No report of a problem quotes a secret key.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from bff.config import chat_settings, live_settings
from bff.config.chat_settings import ChatSettings
from bff.config.declaration import declared
from bff.config.live_settings import LiveSettings
from bff.config.settings import (
    CLASSES,
    RENAMED,
    SETTINGS,
    EnvironmentSettings,
    PolicySettings,
    Settings,
    SettingsError,
)
from bff.config.table_reader import TableReader, keys_of, plain_name
from bff.config.token_sources import SourceSettings, read_token_sources
from bff.config.token_values import ROOT_KEY
from bff.config.typed import InvalidValue, Secret, is_loopback, mend
from bff.config.values import ca_file
from bff.sessions.policy import Policy, PolicyError

SECTIONS = {"environments", "policies", "token_sources"}
INHERITED = ("TRIGGER_API_URL", "BFF_UPSTREAM_BUDGET")
"""Settings that an ``[[environments]]`` section takes from the top level unless it sets them."""


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from *environ* and from the file that its ``BFF_CONFIG`` names.

    Raises:
        SettingsError: with every problem.
    """
    reader = TableReader(environ, settings=SETTINGS, renamed=RENAMED)
    file = _read_config(reader, environ.get("BFF_CONFIG", ""))
    allowed = set[str]().union(*map(keys_of, CLASSES))
    variables = {n: text for n, text in environ.items() if n.startswith(("BFF_", "TRIGGER_"))}
    # Trigger.dev's tools read other TRIGGER_ variables, which are not reported.
    variables_of_bff = [name for name in environ if _is_meant(name, allowed)]
    reader.report_unknown(variables_of_bff, allowed | {"BFF_CONFIG"}, "")
    reader.report_unknown(file, allowed | SECTIONS, "BFF_CONFIG: ")
    # An empty variable, as compose files write it, does not replace the file's value.
    top = {key: value for key, value in file.items() if key not in SECTIONS}
    top |= {name: text for name, text in variables.items() if text}
    settings = reader.values(Settings, top, "")
    chat = ChatSettings(**reader.values(ChatSettings, top, ""))
    live = LiveSettings(**reader.values(LiveSettings, top, ""))
    environments = _environments(reader, file.get("environments", []), top)
    default_policy, policies = _policies(reader, file.get("policies", {}), top)
    sources = read_token_sources(
        reader, file.get("token_sources", []), [e.name for e in environments]
    )
    _check_authorities(reader, environ)
    _check_ports(reader, settings)
    _check_distinct(reader, environments)
    for environment in environments:
        _check_http(reader, environment, allowed=bool(settings["allow_http_api_url"]))
        _check_verify(reader, environment, sources)
    if not reader.problems:
        reader.problems += _chat_problems(chat, environments, sources, settings)
        shown = [policy for policy in (default_policy, *policies.values()) if policy is not None]
        reader.problems += live_settings.problems(live, shown)
    if reader.problems or default_policy is None:
        raise SettingsError([reader.redact(text) for text in reader.problems], reader.reports)
    return Settings(
        **settings,
        chat=chat,
        live=live,
        environments=tuple(environments),
        token_sources=tuple(sources),
        default_policy=default_policy,
        policies=policies,
        reports=reader.reports,
        files=tuple(reader.files),
    )


def _is_meant(name: str, allowed: Collection[str]) -> bool:
    """Whether a variable is meant for the gateway, whatever a tool or a person made of its name."""
    plain = plain_name(name)
    return plain.startswith("BFF_") or plain in allowed or plain.removesuffix("_FILE") in allowed


def _read_config(reader: TableReader, path: str) -> dict[str, Any]:
    text = reader.file("BFF_CONFIG", path) if mend(path) else None
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        # Only the position in the parser's message is reported: the rest may quote a secret.
        position = re.search(r"line \d+, column \d+|end of document", str(exc))
        where = position[0] if position else "an unknown line"
        reader.problems.append(f"BFF_CONFIG is not valid TOML (at {where})")
    except (ValueError, RecursionError):
        reader.problems.append("BFF_CONFIG has too long a number or is nested too deeply")
    return {}


def _environments(
    reader: TableReader, tables: object, top: Mapping[str, object]
) -> list[EnvironmentSettings]:
    """Read the environment of each section, and that of the top level.

    Beside sections, the top level is an environment only if it has a secret key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        reader.problems.append("BFF_CONFIG: write each environment under [[environments]]")
        return []
    environments: list[EnvironmentSettings | None] = []
    several = bool(tables)
    if not several or "TRIGGER_SECRET_KEY" in top or "TRIGGER_SECRET_KEY_FILE" in top:
        environments.append(_environment(reader, top, "default", "", several=several))
    inherited = {name: top[name] for name in INHERITED if name in top}
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"environment-{number}")
        prefix = f"BFF_CONFIG: environment {name!r}: "
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
            reader.problems.append(
                f"{prefix}name is invalid; write up to 40 of a-z, 0-9, - and _, a letter or digit "
                "first"
            )
            continue
        reader.report_unknown(table, keys_of(EnvironmentSettings) | {"name"}, prefix)
        environments.append(_environment(reader, inherited | table, name, prefix, several=True))
    return [environment for environment in environments if environment is not None]


def _environment(
    reader: TableReader, table: Mapping[str, object], name: str, prefix: str, *, several: bool
) -> EnvironmentSettings | None:
    problems_before = len(reader.problems)
    settings = reader.values(EnvironmentSettings, table, prefix)
    secret_keys: tuple[Secret, ...] = settings["secret_keys"] or ()
    signing_keys: tuple[Secret, ...] = settings["signing_keys"] or ()
    verify: tuple[str, ...] | None = settings["verify"]
    if verify == ("upstream",) and signing_keys:
        reader.problems.append(
            f"{prefix}BFF_SIGNING_KEYS has no effect with BFF_VERIFY=upstream; remove one of them"
        )
    if len(reader.problems) > problems_before:
        return None
    if not signing_keys and verify != ("upstream",):
        signing_keys = tuple(key for key in secret_keys if ROOT_KEY.fullmatch(key.reveal()))
    verify = verify or (("local",) if signing_keys else ("upstream",))
    by_trigger = "upstream" in verify or any(k.reveal().startswith("tr_") for k in signing_keys)
    settings |= {"signing_keys": signing_keys, "verify": verify}
    return EnvironmentSettings(
        **settings,
        name=name,
        # Environments can share a signing key. Without the id, one would accept another's tokens.
        learn=settings["id"] is None and (by_trigger or several),
    )


def _check_verify(
    reader: TableReader, environment: EnvironmentSettings, sources: list[SourceSettings]
) -> None:
    has_source = any(source.environment == environment.name for source in sources)
    if "local" in environment.verify and not environment.signing_keys and not has_source:
        reader.problems.append(
            f"BFF_VERIFY of environment {environment.name!r} is local, but there is no key to "
            "verify with: set BFF_SIGNING_KEYS to the environment's root key or to a key of your "
            "own (an additional key, tr_…_sk_…, signs no tokens), add a token source, or set "
            "BFF_VERIFY=upstream"
        )


def _check_http(reader: TableReader, environment: EnvironmentSettings, *, allowed: bool) -> None:
    parts = urlsplit(environment.api_url)
    if parts.scheme == "http" and not allowed and not is_loopback(parts.hostname or ""):
        reader.problems.append(
            f"TRIGGER_API_URL of environment {environment.name!r} would send the secret key "
            "unencrypted; use https, or set BFF_ALLOW_HTTP_API_URL=true on a private network"
        )


def _chat_problems(
    chat: ChatSettings,
    environments: list[EnvironmentSettings],
    sources: list[SourceSettings],
    settings: Mapping[str, Any],
) -> list[str]:
    keys = [key for e in environments for key in (*e.signing_keys, *e.secret_keys)]
    return chat_settings.problems(
        chat,
        trigger_tokens=[
            e.name
            for e in environments
            if "upstream" in e.verify or any(k.reveal().startswith("tr_") for k in e.signing_keys)
        ],
        keys=[*keys, *(key for source in sources for key in source.shared_keys)],
        has_proxies=bool(settings["trusted_proxies"]),
    )


def _check_authorities(reader: TableReader, environ: Mapping[str, str]) -> None:
    """Check the standard variable: the client would fail on a bad file with a traceback."""
    if path := environ.get("SSL_CERT_FILE"):
        try:
            ca_file(path)
        except InvalidValue as exc:
            reader.problems.append(
                f"SSL_CERT_FILE {exc}; name a file with certificates (PEM), or unset it for those "
                "of the system"
            )


def _check_ports(reader: TableReader, settings: Mapping[str, Any]) -> None:
    browser = settings["host"], settings["port"]
    if settings["port"] and browser == (settings["ops_host"], settings["ops_port"]):
        reader.problems.append("BFF_PORT and BFF_OPS_PORT are the same; choose different ports")


def _check_distinct(reader: TableReader, environments: list[EnvironmentSettings]) -> None:
    ids = [environment.id for environment in environments if environment.id is not None]
    for key, values in (("name", [e.name for e in environments]), ("BFF_ENVIRONMENT_ID", ids)):
        if len(set(values)) < len(values):
            reader.problems.append(f"two environments have the same {key}; change one of them")


def _policies(
    reader: TableReader, tables: object, top: Mapping[str, object]
) -> tuple[Policy | None, dict[str, Policy]]:
    """Read the default policy and that of each session type."""
    default = _policy(reader, top, "")
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        reader.problems.append('BFF_CONFIG: write each policy under [policies."<session type>"]')
        return default, {}
    policies = {}
    inherited = {name: top[name] for name in keys_of(PolicySettings) if name in top}
    for type_, table in tables.items():
        prefix = f"BFF_CONFIG: policy {type_!r}: "
        reader.report_unknown(table, keys_of(PolicySettings), prefix)
        policy = _policy(reader, inherited | table, prefix)
        if policy is not None:
            policies[type_] = policy
    return default, policies


def _policy(reader: TableReader, table: Mapping[str, object], prefix: str) -> Policy | None:
    problems_before = len(reader.problems)
    settings = reader.values(PolicySettings, table, prefix)
    if len(reader.problems) > problems_before:
        return None
    try:
        return Policy(**settings)
    except PolicyError as exc:
        reader.problems.append(f"{prefix}{declared(PolicySettings)[exc.parameter].name}: {exc}")
        return None
