"""The findings of `bff check`: the settings in force, and notes on those that are risky.

With ``--probe``, `bff.ops.check_upstream` tests the upstream API and the store, and
`bff.ops.check_gateway` a running gateway. These modules do not print, and no finding holds a key, a
token or a part of a document.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, StrEnum, auto
from functools import partial
from typing import Final

from bff.clock import Clock
from bff.config.declaration import DEFAULT, SettingReport
from bff.config.settings import Settings
from bff.errors import UpstreamError
from bff.server import fast_path
from bff.upstream.connection import Answer
from bff.upstream.pool import cause, is_untrusted

MAX_SKEW: Final = 5.0
"""Seconds by which two clocks may differ. The app's server writes a token's times by its own clock,
and the gateway compares them with another."""
LONG_TTL: Final = 60.0
"""Seconds; a longer `BFF_CACHE_TTL` may have been meant in milliseconds."""
_VALUE_WIDTH: Final = 48
"""Characters; a longer value moves its source to the right instead of widening the column."""


class Result(Enum):
    """The outcome of one test."""

    OK = auto()
    PROBLEM = auto()
    UNSURE = auto()
    """The test was not possible; the text says why."""


class Page(StrEnum):
    """The section of the documentation for a problem."""

    BUDGET = "docs/TROUBLESHOOTING.md#503-over_budget"
    BUFFERING = "docs/OPERATIONS.md#behind-a-proxy-or-cdn"
    CODES = "docs/OPERATIONS.md#error-codes"
    ENVIRONMENT_ID = "docs/TOKENS.md#the-environments-id"
    LIMITS = "docs/TROUBLESHOOTING.md#429-for-everybody"
    NOT_READY = "docs/TROUBLESHOOTING.md#503-not_ready"
    PROXY = "docs/TROUBLESHOOTING.md#a-proxy-changes-answers"
    SETTINGS = "docs/TROUBLESHOOTING.md#it-does-not-start"
    STORE = "docs/TROUBLESHOOTING.md#the-store-is-down"
    TOKENS = "docs/TROUBLESHOOTING.md#401-every-time"
    UPSTREAM = "docs/TROUBLESHOOTING.md#502-for-every-session"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one test, with a text for the operator."""

    result: Result
    text: str
    """The observation and, for a problem, its remedy."""
    page: Page | None = None
    """The section for a problem; None for the usual section of its checker."""


ok: Final = partial(Finding, Result.OK)
problem: Final = partial(Finding, Result.PROBLEM)
unsure: Final = partial(Finding, Result.UNSURE)


def expect(
    condition: bool,  # noqa: FBT001  reads as assert
    text: str,
    otherwise: str,
    page: Page | None = None,
) -> Finding:
    """Make a finding: *text* if *condition* holds, else the problem *otherwise*."""
    return ok(text) if condition else problem(otherwise, page)


def lines(finding: Finding, page: Page) -> str:
    """Format a finding for the operator; a problem names its section, or else *page*."""
    text = f"  {finding.result.name:<7}  {finding.text}"
    if finding.result is not Result.PROBLEM:
        return text
    return f"{text}\n           See {finding.page or page}"


def report(settings: tuple[SettingReport, ...]) -> str:
    """Format settings in columns (name, value, source); the ones that are set come first."""
    changed = [one for one in settings if one.source != DEFAULT]
    names = max((len(one.name) for one in settings), default=0)
    values = min(_VALUE_WIDTH, max((len(_plain(one)) for one in changed), default=0))
    lines: list[str] = []
    for section in dict.fromkeys(one.section for one in settings):
        for title, is_default in (("Set", False), ("Defaults", True)):
            rows = [
                one
                for one in settings
                if one.section == section and (one.source == DEFAULT) is is_default
            ]
            if rows:
                lines += [""] if lines else []
                lines.append(f"{title} for {section}" if section else title)
            for one in rows:
                source = "" if is_default else f"  {one.source}"
                lines.append(f"  {one.name:<{names}}  {_plain(one):<{values}}{source}".rstrip())
    return "\n".join(lines)


def _plain(setting: SettingReport) -> str:
    return setting.shown.replace("`", "")


def policy_lines(settings: Settings) -> list[str]:
    """List what browsers see of a session, by session type."""
    others = "every other type" if settings.policies else "every type"
    lines = []
    for type_, policy in {**settings.policies, others: settings.default_policy}.items():
        shown = [*policy.fields, *(f"metadata.{path}" for path in policy.metadata)]
        shown += [f"tags like {glob}" for glob in policy.tags]
        lines.append(f"  {type_}: {', '.join(shown)}")
    return lines


def notes(settings: Settings) -> list[str]:
    """List valid settings that may not be what the operator meant."""
    off = fast_path.why_off(enabled=settings.fast_path, tracing=settings.tracing)
    applies = {
        "BFF_ALLOWED_ORIGINS is empty, so only pages of the gateway's own origin can read answers; "
        "this is right if a proxy serves the app and the gateway under one "
        "origin": not settings.allowed_origins,
        "BFF_ALLOWED_ORIGINS is *: a page of any origin can read answers if it holds a token": "*"
        in settings.allowed_origins,
        "BFF_OPS_HOST is not loopback: every client that reaches the ops port can read the "
        "metrics, purge copies and revoke tokens; let a network policy or a firewall admit "
        "your monitoring only": settings.ops_host not in ("127.0.0.1", "::1", "localhost"),
        "BFF_TRUSTED_PROXIES is empty: behind a proxy, all browsers share the proxy's address "
        "and its address limit": not settings.trusted_proxies,
        f"the fast path is off ({off}): answers are the same, but a hit costs three to four "
        "times as much CPU": off is not None,
        f"BFF_CACHE_TTL is {settings.cache_ttl:g} seconds: browsers may see an open session as "
        "it was that long ago": settings.cache_ttl > LONG_TTL,
        "BFF_CHAT is on: the secret key needs write:sessions besides read:sessions, which no "
        "check can prove without sending a message; proxies must route /realtime/v1/sessions "
        "and buffer no stream": settings.chat.enabled,
    }
    return [text for text, is_so in applies.items() if is_so] + [
        f"environment {environment.name!r} sends a root key upstream: a restricted key (tr_…_sk_… "
        "with read:sessions) in TRIGGER_SECRET_KEY can do less harm; move the root key to "
        "BFF_SIGNING_KEYS"
        for environment in settings.environments
        if not all("_sk_" in key.reveal() for key in environment.secret_keys)
    ]


class Checker:
    """Holds what the checks of upstream and of a gateway share.

    Args:
        settings: those of the gateway.
        clock: the two times.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    def _compare_clocks(self, name: str, answer: Answer) -> Finding:
        try:
            date = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except ValueError:
            return unsure(f"{name} sends no Date header to compare its clock by")
        skew = date - self._clock()[1]
        return expect(
            -MAX_SKEW - 1 <= skew <= MAX_SKEW,  # a Date header is cut off to whole seconds
            f"the clock of {name} agrees with this machine's",
            f"the clock of {name} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this "
            "machine's: synchronise both with NTP",
            Page.TOKENS,
        )


async def until_unreachable(
    findings: AsyncIterator[Finding], url: str, page: Page
) -> AsyncIterator[Finding]:
    """Yield *findings*; if *url* cannot be reached, end with that as a problem."""
    async with aclosing(findings) as source:  # type: ignore[type-var]
        try:
            async for finding in source:
                yield finding
        except UpstreamError as error:
            reasons = filter(None, (error.code.removeprefix("upstream_"), cause(error)))
            remedy = "check the address and the network between"
            if is_untrusted(error):
                remedy = (
                    "if you run its certificate authority, set BFF_UPSTREAM_CA_FILE to that "
                    "authority's certificate; otherwise check the address"
                )
            text = f"{url} does not answer ({': '.join(reasons)}): {remedy}"
            yield problem(text, page)
