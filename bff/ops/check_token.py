"""Explains a token with the settings of a gateway (`bff token --explain`)."""

from contextlib import aclosing

from bff.clock import system_clock
from bff.config.builder import issuer, sources
from bff.config.settings import Settings
from bff.errors import UpstreamError
from bff.ops.check_upstream import UpstreamChecker
from bff.sessions import ids
from bff.tokens.explain import Check, explain
from bff.tokens.issuers import Source
from bff.tokens.jwks import read_jwks
from bff.tokens.verify import read_unverified


async def explain_token(settings: Settings, token: str, wall: float) -> tuple[list[Check], str]:
    """Check *token* at *wall* (Unix seconds) as a gateway with *settings* would.

    Returns:
        The checks, and a text that names the sessions of its scopes.
    """
    own_sources = sources(settings)
    async with aclosing(UpstreamChecker(settings, system_clock)) as checker:
        environments = [await checker.with_id(one) for one in settings.environments]
        for source in own_sources:
            await _fetch_keys(checker, source, wall)
    issuers = [issuer(one, one.id, pending=one.learn) for one in environments]
    encoded = token.encode(errors="replace")
    checks = explain(encoded, issuers, own_sources, wall)
    if checks[0].passed is False:
        return checks, "none"
    claims = read_unverified(encoded)[1]
    scopes = claims.get("scopes")
    for source in own_sources:
        if source.issuer == claims.get("iss"):
            scopes = source.scopes(claims)
    granted = ids.grant(scopes if isinstance(scopes, list) else [])
    if granted.every:
        return checks, "all of the environment"
    return checks, ", ".join(sorted(granted.ids)) or "none"


async def _fetch_keys(checker: UpstreamChecker, source: Source, wall: float) -> None:
    """Fetch the keys of a source that has an address; without them its signature is UNSURE."""
    if source.keys.url is None:
        return
    try:
        document = await checker.fetch(source.keys.url)
        source.keys.replace(read_jwks(document, source.algorithms), wall)
    except (UpstreamError, ValueError):
        return
