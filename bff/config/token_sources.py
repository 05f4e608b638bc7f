"""Reads the ``[[token_sources]]`` of the file: issuers of tokens beside Trigger.dev."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from bff.config import token_values, values
from bff.config.declaration import setting
from bff.config.table_reader import TableReader, keys_of
from bff.config.typed import Secret
from bff.tokens.algorithms import PUBLIC_ALGORITHMS, SHARED_ALGORITHM
from bff.tokens.jwks import read_jwks
from bff.tokens.verify import ISSUER


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One issuer of tokens beside Trigger.dev."""

    name: str = setting(values.text, "the name in logs and metrics", required=True, name="name")
    issuer: str = setting(
        values.text, "the `iss` of its tokens, compared exactly", required=True, name="issuer"
    )
    audiences: tuple[str, ...] = setting(
        values.names,
        "accepted values of `aud`; without one, tokens must have no `aud`",
        default="",
        name="audience",
    )
    algorithms: tuple[str, ...] = setting(
        token_values.algorithms,
        ", ".join(f"`{one.name}`" for one in PUBLIC_ALGORITHMS)
        + f"; or only `{SHARED_ALGORITHM.name}`",
        required=True,
        name="algorithms",
    )
    jwks_url: str | None = setting(
        token_values.jwks_url,
        "the address of its public keys; beyond loopback it must be https",
        name="jwks_url",
    )
    jwks: str | None = setting(
        values.text, "a file with its public keys, instead of `jwks_url`", name="jwks_file"
    )
    """The JWK set in that file, which has been parsed once without an error."""
    shared_keys: tuple[Secret, ...] = setting(
        token_values.shared_keys,
        f"the keys for `{SHARED_ALGORITHM.name}`, the current key first",
        secret=True,
        name="shared_keys",
    )
    keys_trusted: float = setting(
        values.positive_seconds,
        "seconds for which fetched keys stay trusted while `jwks_url` is unavailable",
        default="86400",
        name="keys_trusted",
    )
    """Infinite for keys that are not fetched."""
    scopes_path: tuple[str, ...] = setting(
        token_values.claim_path,
        "the claim that holds the scopes; a list is a path into nested claims",
        default="scopes",
        name="scopes_claim",
    )
    scopes_are_text: bool = setting(
        token_values.scopes_are_text,
        "`list`, or `text` for scopes separated by spaces",
        default="list",
        name="scopes_form",
    )
    environment: str = setting(
        values.text,
        "the environment whose sessions its tokens may read",
        derived="the only environment",
        name="environment",
    )
    required: Mapping[str, tuple[object, ...]]
    """Claims that a token must have, each with the accepted values."""


def read_token_sources(
    reader: TableReader, tables: object, environments: Sequence[str]
) -> list[SourceSettings]:
    """Read the token sources; each is for one of *environments*."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        reader.problems.append("BFF_CONFIG: write each token source under [[token_sources]]")
        return []
    sources = []
    for number, table in enumerate(tables, start=1):
        prefix = f"BFF_CONFIG: token source {table.get('name', number)!r}: "
        reader.report_unknown(table, keys_of(SourceSettings) | {"required"}, prefix)
        source = _source(reader, table, environments, prefix)
        if source is not None:
            sources.append(source)
    for key in ("name", "issuer"):
        if len({getattr(source, key) for source in sources}) < len(sources):
            reader.problems.append(
                f"BFF_CONFIG: two token sources have the same {key}; change one of them"
            )
    return sources


def _source(
    reader: TableReader, table: Mapping[str, object], environments: Sequence[str], prefix: str
) -> SourceSettings | None:
    problems_before = len(reader.problems)
    settings = reader.values(SourceSettings, table, prefix)
    path = settings["jwks"]
    settings["jwks"] = reader.file(f"{prefix}jwks_file", path) if path else None

    def problem(text: str) -> None:
        reader.problems.append(prefix + text)

    if settings["environment"] is None and len(environments) == 1:
        settings["environment"] = environments[0]
    if environments and settings["environment"] not in environments:
        problem(f"environment is not one of {', '.join(environments)}; write the name of one")
    if settings["issuer"] == ISSUER:
        problem(f"issuer is Trigger.dev ({ISSUER}), whose tokens need no source; remove this one")
    required = _required(table.get("required", {}))
    if required is None:
        problem("required is not a table of claims; give each a value or a list of values")
    elif not settings["audiences"] and not required:
        problem(
            "audience is not set; set it, or for an issuer without one (Clerk) require another "
            "claim, such as azp: otherwise tokens for other applications are accepted"
        )
    if len(reader.problems) == problems_before:
        _check_keys(settings, path, problem)
    if required is None or len(reader.problems) > problems_before:
        return None
    settings["shared_keys"] = settings["shared_keys"] or ()
    if not settings["jwks_url"]:
        settings["keys_trusted"] = inf
    return SourceSettings(**settings, required=required)


def _check_keys(
    settings: dict[str, Any], jwks_file: str | None, problem: Callable[[str], None]
) -> None:
    algorithms: tuple[str, ...] = settings["algorithms"]
    shared = algorithms == (SHARED_ALGORITHM.name,)
    origins = settings | {"jwks_file": jwks_file}
    given = [key for key in ("jwks_url", "jwks_file", "shared_keys") if origins[key]]
    if len(given) != 1 or (given == ["shared_keys"]) is not shared:
        needed = "shared_keys" if shared else "either jwks_url or jwks_file"
        problem(f"needs {needed}, and no other keys, for {', '.join(algorithms)}")
    elif settings["jwks"] is not None:
        try:
            read_jwks(settings["jwks"], algorithms)
        except ValueError as exc:
            problem(f'jwks_file {exc}; write the set that the issuer publishes: {{"keys": […]}}')


def _required(table: object) -> dict[str, tuple[object, ...]] | None:
    """Read the claims that a token must have, or return None if they are malformed."""
    if not isinstance(table, dict):
        return None
    required = {}
    for name, value in table.items():
        accepted = tuple(value) if isinstance(value, list) else (value,)
        if not accepted or not all(isinstance(one, str | int | bool) for one in accepted):
            return None
        required[name] = accepted
    return required
