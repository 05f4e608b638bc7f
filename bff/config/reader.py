"""Reads every setting from the environment and from the file that BFF_CONFIG names."""

import re
import tomllib
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bff.config.settings import (
    ENVIRONMENT_SETTINGS,
    GLOBAL_SETTINGS,
    POLICY_SETTINGS,
    SETTINGS,
    SOURCE_SETTINGS,
    EnvironmentSettings,
    Setting,
    Settings,
    SettingsError,
    SourceSettings,
    Told,
)
from bff.config.values import ROOT_KEY, ProblemError, Secret, is_loopback, texts
from bff.sessions.policy import Policy, PolicyError
from bff.tokens.jwks import SHARED_ALGORITHM, read_jwks
from bff.tokens.verify import ISSUER


class _Reader:
    """Reads tables of raw values, and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self.told: list[Told] = []
        self.files: list[str] = []
        self._environ = environ

    def values(
        self, table: Mapping[str, Setting], raw: Mapping[str, object], where: str
    ) -> dict[str, Any]:
        """Value of each row of *table*: None where it is absent or wrong."""
        return {name: self._value(name, row, raw, where) for name, row in table.items()}

    def _value(self, name: str, row: Setting, raw: Mapping[str, object], where: str) -> Any:
        before = len(self.problems)
        text = self._raw_text(name, row, raw, where)
        value = None
        if text is not None:
            try:
                value = row.read(text)
            except ProblemError as problem:
                self.problems.append(f"{where}{name} {problem}")
        usable = len(self.problems) == before
        self.told.append(Told(where, name, _shown(row, text, usable), self._source(name, raw)))
        return value

    def _source(self, name: str, raw: Mapping[str, object]) -> str:
        if file := raw.get(f"{name}_FILE"):
            return str(file)
        if not raw.get(name):
            return "default"
        # What stands in both is the environment's, and then the very same object.
        return "environment" if raw[name] is self._environ.get(name) else "BFF_CONFIG"

    def _raw_text(
        self, name: str, row: Setting, raw: Mapping[str, object], where: str
    ) -> str | None:
        text = _as_text(raw.get(name))
        file = _as_text(raw.get(f"{name}_FILE")) if row.secret else None
        if file:
            if text:
                self.problems.append(f"{where}{name} and {name}_FILE are both set; keep one")
                return None
            text = self.file(f"{where}{name}_FILE", file)
            if text is None:
                return None
            if not text.strip():
                self.problems.append(f"{where}{name}_FILE names an empty file; write the key there")
                return None
        if text is None or not text.strip():
            if row.required:
                either = f"{name} or {name}_FILE" if row.secret else name
                meaning = row.meaning.partition(". ")[0]
                self.problems.append(f"{where}{name} is not set; set {either}: {meaning}")
            return row.default
        return text.strip()

    def file(self, name: str, path: str) -> str | None:
        """Text of a file that the setting *name* names."""
        self.files.append(path)
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
            self.problems.append(f"{name} names a file that cannot be read ({reason}): {path}")
            return None

    def unknown(self, names: list[str], known: set[str], where: str) -> None:
        """Report names that mean nothing: a misspelt limit would be no limit."""
        for name in sorted(set(names) - known):
            hint = "is not a setting; docs/SETTINGS.md has all there are"
            if name in SETTINGS:
                hint = "is not a setting here; it belongs at the top level"
            elif close := _closest(name, known):
                hint = f"is not a setting; did you mean {close}?"
            self.problems.append(f"{where}{name} {hint}")


def _shown(row: Setting, text: str | None, usable: bool) -> str:  # noqa: FBT001
    if not usable:
        return "(cannot be used)"  # and not quoted: who knows what was put there by mistake
    if text is None or text == row.default:
        return row.shown
    if row.secret:
        count = len(texts(text))
        return "set" if count == 1 else f"set, {count} of them"
    return text.replace("\n", ",")


def _as_text(value: object) -> str | None:
    """A TOML value as the environment would hold it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value)


def _closest(name: str, known: set[str]) -> str | None:
    import difflib  # noqa: PLC0415  costs milliseconds, and only a mistake needs it

    upper = {one.upper(): one for one in known}
    matches = difflib.get_close_matches(name.upper(), upper, n=1)
    return upper[matches[0]] if matches else None


def _with_files(table: Mapping[str, Setting]) -> set[str]:
    return set(table) | {f"{name}_FILE" for name, row in table.items() if row.secret}


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from *environ* and from the file that its ``BFF_CONFIG`` names.

    Raises:
        SettingsError: with every problem found.
    """
    reader = _Reader(environ)
    file = _read_config(reader, environ.get("BFF_CONFIG", ""))
    ours = {name: text for name, text in environ.items() if name.startswith(("BFF_", "TRIGGER_"))}
    known = _with_files(SETTINGS)
    # Trigger.dev's own tools read other TRIGGER_ names; only ours can be misspelt here.
    reader.unknown([n for n in ours if n.startswith("BFF_")], known | {"BFF_CONFIG"}, "")
    tables = {"environments", "policies", "token_sources"}
    reader.unknown(list(file), known | tables, "BFF_CONFIG: ")
    # An empty variable, as compose files write it, leaves the file's word standing.
    top = {k: v for k, v in file.items() if k not in tables} | {k: v for k, v in ours.items() if v}
    values = reader.values(GLOBAL_SETTINGS, top, "")
    environments = _environments(reader, file.get("environments", []), top)
    default_policy, policies = _policies(reader, file.get("policies", {}), top)
    for environment in environments:
        _check_http(reader, environment, allowed=bool(values["BFF_ALLOW_HTTP_API_URL"]))
    _check_distinct(reader, environments)
    ports = [(values[f"BFF_{of}HOST"], values[f"BFF_{of}PORT"]) for of in ("", "OPS_")]
    if values["BFF_PORT"] and ports[0] == ports[1]:
        reader.problems.append("BFF_PORT and BFF_OPS_PORT are the same; give each its own")
    sources = _sources(reader, file.get("token_sources", []), [e.name for e in environments])
    for environment in environments:
        _check_verify(reader, environment, sources)
    if reader.problems or default_policy is None:
        raise SettingsError(reader.problems, reader.told)
    named = {name.removeprefix("BFF_").lower(): value for name, value in values.items()}
    named.pop("allow_http_api_url")
    return Settings(
        environments=tuple(environments),
        token_sources=tuple(sources),
        default_policy=default_policy,
        policies=policies,
        told=tuple(reader.told),
        files=tuple(reader.files),
        **named,
    )


def _read_config(reader: _Reader, path: str) -> dict[str, Any]:
    text = reader.file("BFF_CONFIG", path) if path else None
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        # The message names a line and a column; the text around it may be a secret.
        at = re.search(r"line \d+, column \d+|end of document", str(exc))
        reader.problems.append(f"BFF_CONFIG is not valid TOML (at {at[0] if at else 'some line'})")
        return {}


def _environments(
    reader: _Reader, tables: object, top: Mapping[str, object]
) -> list[EnvironmentSettings]:
    """The environment of the top level, if it has a key or is the only one, and each table's."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        reader.problems.append("BFF_CONFIG: write each environment under [[environments]]")
        return []
    found: list[EnvironmentSettings | None] = []
    several = bool(tables)
    own = {"TRIGGER_SECRET_KEY", "TRIGGER_SECRET_KEY_FILE"}
    if not several or own & set(top):
        found.append(_environment(reader, top, "default", "", several=several))
    inherited = {n: top[n] for n in ("TRIGGER_API_URL", "BFF_UPSTREAM_BUDGET") if n in top}
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"environment-{number}")
        where = f"BFF_CONFIG: environment {name!r}: "
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
            reader.problems.append(f"{where}name may have a-z, 0-9, - and _, 40 at most")
            continue
        reader.unknown(list(table), _with_files(ENVIRONMENT_SETTINGS) | {"name"}, where)
        found.append(_environment(reader, inherited | table, name, where, several=True))
    return [environment for environment in found if environment is not None]


def _environment(
    reader: _Reader, raw: Mapping[str, object], name: str, where: str, *, several: bool
) -> EnvironmentSettings | None:
    before = len(reader.problems)
    values = reader.values(ENVIRONMENT_SETTINGS, raw, where)
    keys: tuple[Secret, ...] | None = values["TRIGGER_SECRET_KEY"]
    signing: tuple[Secret, ...] = values["BFF_SIGNING_KEYS"] or ()
    verify: tuple[str, ...] | None = values["BFF_VERIFY"]
    if verify == ("upstream",) and signing:
        reader.problems.append(
            f"{where}BFF_SIGNING_KEYS has no effect with BFF_VERIFY=upstream; leave one of them out"
        )
    if not signing and verify != ("upstream",):
        signing = tuple(key for key in keys or () if ROOT_KEY.fullmatch(key.reveal()))
    verify = verify or (("local",) if signing else ("upstream",))
    theirs = "upstream" in verify or any(k.reveal().startswith("tr_") for k in signing)
    if len(reader.problems) > before or not keys:
        return None
    return EnvironmentSettings(
        name=name,
        id=values["BFF_ENVIRONMENT_ID"],
        api_url=values["TRIGGER_API_URL"],
        secret_keys=keys,
        signing_keys=signing,
        branch=values["BFF_BRANCH"],
        upstream_budget=values["BFF_UPSTREAM_BUDGET"],
        verify=verify,
        # Without it a token of another branch or environment would be accepted.
        learn=values["BFF_ENVIRONMENT_ID"] is None and (theirs or several),
    )


def _check_verify(
    reader: _Reader, environment: EnvironmentSettings, sources: list["SourceSettings"]
) -> None:
    own = environment.signing_keys or any(s.environment == environment.name for s in sources)
    if "local" in environment.verify and not own:
        reader.problems.append(
            f"BFF_VERIFY of environment {environment.name!r} says local and there is no key here: "
            "set BFF_SIGNING_KEYS to the environment's root key or to a key of your own (an "
            "additional key, tr_…_sk_…, signs no tokens), name a token source, or say upstream"
        )


def _check_http(reader: _Reader, environment: EnvironmentSettings, *, allowed: bool) -> None:
    parts = urlsplit(environment.api_url)
    if parts.scheme == "http" and not allowed and not is_loopback(parts.hostname or ""):
        reader.problems.append(
            f"TRIGGER_API_URL of environment {environment.name!r} would send the secret key in the "
            "clear; use https, or set BFF_ALLOW_HTTP_API_URL=true if the network is yours alone"
        )


def _check_distinct(reader: _Reader, environments: list[EnvironmentSettings]) -> None:
    for what, values in (
        ("name", [e.name for e in environments]),
        ("BFF_ENVIRONMENT_ID", [e.id for e in environments if e.id is not None]),
    ):
        if len(set(values)) < len(values):
            reader.problems.append(f"two environments have the same {what}; give each its own")


def _policies(
    reader: _Reader, tables: object, top: Mapping[str, object]
) -> tuple[Policy | None, dict[str, Policy]]:
    default = _policy(reader, top, "")
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        reader.problems.append('BFF_CONFIG: write each policy under [policies."<session type>"]')
        return default, {}
    policies = {}
    for type_, table in tables.items():
        where = f"BFF_CONFIG: policy {type_!r}: "
        reader.unknown(list(table), set(POLICY_SETTINGS), where)
        inherited = {name: top[name] for name in POLICY_SETTINGS if name in top}
        policy = _policy(reader, inherited | table, where)
        if policy is not None:
            policies[type_] = policy
    return default, policies


def _policy(reader: _Reader, raw: Mapping[str, object], where: str) -> Policy | None:
    values = reader.values(POLICY_SETTINGS, raw, where)
    try:
        return Policy(
            fields=values["BFF_EXPOSE_FIELDS"],
            metadata=values["BFF_EXPOSE_METADATA"],
            tags=values["BFF_EXPOSE_TAGS"],
        )
    except PolicyError as exc:
        reader.problems.append(f"{where}BFF_EXPOSE_{exc.parameter.upper()}: {exc}")
        return None


def _sources(reader: _Reader, tables: object, environments: list[str]) -> list[SourceSettings]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        reader.problems.append("BFF_CONFIG: write each token source under [[token_sources]]")
        return []
    found = []
    for number, table in enumerate(tables, start=1):
        where = f"BFF_CONFIG: token source {table.get('name', number)!r}: "
        reader.unknown(list(table), _with_files(SOURCE_SETTINGS) | {"required"}, where)
        source = _source(reader, table, environments, where)
        if source is not None:
            found.append(source)
    for what, values in (
        ("name", [s.name for s in found]),
        ("issuer", [s.issuer for s in found]),
    ):
        if len(set(values)) < len(values):
            reader.problems.append(
                f"BFF_CONFIG: two token sources have the same {what}; give each its own"
            )
    return found


def _source(
    reader: _Reader, table: Mapping[str, object], environments: list[str], where: str
) -> SourceSettings | None:
    before = len(reader.problems)
    told = reader.values(SOURCE_SETTINGS, table, where)

    def problem(text: str) -> None:
        reader.problems.append(where + text)

    environment = told["environment"] or (environments[0] if len(environments) == 1 else None)
    required = _required(table.get("required", {}))
    path = table.get("jwks_file")
    jwks = reader.file(where + "jwks_file", path) if isinstance(path, str) and path else None
    if environment not in environments:
        problem(f"environment is to be one of {', '.join(environments)}")
    if told["issuer"] == ISSUER:
        problem(f"issuer is Trigger.dev's own ({ISSUER}), which is verified without a source")
    if required is None:
        problem("required is to be a table of claims, each with a value or a list of values")
    elif not told["audience"] and not required:
        problem(
            "audience is not set; set it, or for an issuer that names none (Clerk) require another "
            "claim, such as azp: else a token meant for another application is accepted"
        )
    if told["algorithms"]:
        _check_keys(told, jwks, problem)
    if len(reader.problems) > before or environment is None or required is None:
        return None
    return SourceSettings(
        name=told["name"],
        environment=environment,
        issuer=told["issuer"],
        audiences=told["audience"],
        algorithms=told["algorithms"],
        jwks_url=told["jwks_url"],
        jwks=jwks,
        shared_keys=told["shared_keys"] or (),
        # Keys that stand here are trusted for as long as they do.
        keys_trusted=told["keys_trusted"] if told["jwks_url"] else inf,
        scopes_path=told["scopes_claim"],
        scopes_are_text=told["scopes_form"] == "text",
        required=required,
    )


def _check_keys(told: Mapping[str, Any], jwks: str | None, problem: Callable[[str], None]) -> None:
    algorithms: tuple[str, ...] = told["algorithms"]
    shared = algorithms == (SHARED_ALGORITHM,)
    given = [n for n in ("jwks_url", "jwks_file", "shared_keys") if told[n]]
    if len(given) != 1 or (given == ["shared_keys"]) is not shared:
        wanted = "shared_keys" if shared else "either jwks_url or jwks_file"
        problem(f"for {', '.join(algorithms)} there has to be {wanted}, and nothing else")
    elif jwks is not None:
        try:
            read_jwks(jwks, algorithms)
        except ValueError as exc:
            problem(f"jwks_file {exc}")


def _required(table: object) -> dict[str, tuple[object, ...]] | None:
    if not isinstance(table, dict):
        return None
    required = {}
    for name, value in table.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values or not all(isinstance(v, str | int | bool) for v in values):
            return None
        required[name] = values
    return required
