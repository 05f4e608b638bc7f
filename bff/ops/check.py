"""``bff check``: what the gateway was told, and whether that works in the world it stands in.

`report` puts the settings in a table; `upstream_findings` asks upstream with the secret key;
`gateway_findings` asks a running gateway, by the address that browsers use, as two made-up
browsers. Nothing here prints, and no finding holds a key, a token or anything of a document.
"""

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

from bff import __version__
from bff.clock import Clock
from bff.config.declaration import SettingReport
from bff.config.settings import EnvironmentSettings, Settings
from bff.errors import REFUSALS, UpstreamError
from bff.metrics import REQUESTS
from bff.replicas.valkey import Store, StoreError
from bff.server import fast_path
from bff.sessions import ids
from bff.tokens.mint import mint
from bff.upstream.api import CLAIMS_PATH, Upstream, read_quota
from bff.upstream.client import Answer, Client, Transport, cause

MAX_SKEW = 5.0
"""Seconds that two clocks may differ: tokens are judged by the gateway's, minted by another's."""
LONG_TTL = 60.0
"""Seconds; what is longer was perhaps meant in milliseconds."""
TOKEN_SECONDS = 120
NEWEST = "/api/v1/sessions?page[size]=1"
"""Upstream, for who may list sessions: the newest one."""
FOREIGN_ORIGIN = "https://bff-check.invalid"


class Result(Enum):
    """How one thing was found to be."""

    OK = auto()
    PROBLEM = auto()
    UNSURE = auto()
    """It could not be told; the text says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    result: Result
    text: str
    """What was found and, unless it is well, what to do."""


def report(told: tuple[SettingReport, ...]) -> str:
    """Lay out settings in columns: name, value, and where it came from; first what somebody set."""
    names = max((len(one.name) for one in told), default=0)
    values = min(48, max((len(_plain(one)) for one in told if one.source != "default"), default=0))
    lines: list[str] = []
    for section in dict.fromkeys(one.section for one in told):
        here = [one for one in told if one.section == section]
        of = f" for {section}" if section else ""
        for title, rows in (
            ("Set", [one for one in here if one.source != "default"]),
            ("Defaults", [one for one in here if one.source == "default"]),
        ):
            if rows:
                lines += ["", title + of] if lines else [title + of]
            for one in rows:
                source = f"  {one.source}" if one.source != "default" else ""
                lines.append(f"  {one.name:<{names}}  {_plain(one):<{values}}{source}".rstrip())
    return "\n".join(lines)


def _plain(one: SettingReport) -> str:
    return one.shown.replace("`", "")


def policy_lines(settings: Settings) -> list[str]:
    """What browsers see, by session type."""
    named = {"every type" if not settings.policies else "every other type": settings.default_policy}
    lines = []
    for type_, policy in {**settings.policies, **named}.items():
        shown = [*policy.fields, *(f"metadata.{path}" for path in policy.metadata)]
        shown += [f"tags like {glob}" for glob in policy.tags]
        lines.append(f"  {type_}: {', '.join(shown)}")
    return lines


def notes(settings: Settings) -> list[str]:
    """What can be used and may still not be what was meant."""
    found = []
    if not settings.allowed_origins:
        found.append(
            "BFF_ALLOWED_ORIGINS is empty: pages of another origin than the gateway's can read "
            "nothing; right only if a proxy serves app and gateway under one origin"
        )
    if "*" in settings.allowed_origins:
        found.append("BFF_ALLOWED_ORIGINS is *: any page that holds a token may read")
    if settings.ops_host not in ("127.0.0.1", "::1", "localhost"):
        found.append(
            "BFF_OPS_HOST is not loopback: whoever reaches the ops port reads the metrics and may "
            "purge copies and revoke tokens; let a network policy or firewall admit your "
            "monitoring alone"
        )
    if not settings.trusted_proxies:
        found.append(
            "BFF_TRUSTED_PROXIES is empty: behind a proxy, all browsers would share its address "
            "and so one address limit"
        )
    if reason := fast_path.why_off(enabled=settings.fast_path, tracing=settings.tracing):
        found.append(
            f"the fast path is off ({reason}): answers are the same, but a hit costs three to four "
            "times as much CPU"
        )
    if settings.cache_ttl > LONG_TTL:
        found.append(
            f"BFF_CACHE_TTL is {settings.cache_ttl:g} seconds, and so old may an open session look"
        )
    found += [
        f"environment {e.name!r} sends a root key upstream: a restricted key (tr_…_sk_… with "
        "read:sessions) in TRIGGER_SECRET_KEY can do less harm; the root key then goes into "
        "BFF_SIGNING_KEYS"
        for e in settings.environments
        if not all("_sk_" in key.reveal() for key in e.secret_keys)
    ]
    return found


class Checker:
    """Asks; both ways share a client and a clock, and tests bring their own."""

    def __init__(
        self, settings: Settings, clock: Clock, *, transport: Transport | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._timeout = settings.upstream_timeout
        self._client = Client(
            connect_timeout=settings.upstream_connect_timeout, transport=transport
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def upstream(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        """Ask *environment*'s API with its key; *session* names one that exists."""
        return _told_kindly(self._upstream(environment, session), environment.api_url)

    async def _upstream(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        upstream = self._api(environment)
        path = NEWEST if session is None else ids.path(session)
        answer = await upstream.probe("GET", path)
        quota = read_quota(answer.headers)
        yield _key_finding(answer, session)
        if answer.status != 401:  # noqa: PLR2004
            claims = await upstream.probe("POST", CLAIMS_PATH)
            yield _environment_finding(claims, environment)
            yield _mode_finding(claims, environment)
            quota = read_quota(claims.headers) or quota
        if quota is None:
            yield Finding(Result.UNSURE, "the answers tell nothing of the bucket (x-ratelimit-*)")
        else:
            half = quota.limit // 2
            yield Finding(
                Result.OK if quota.remaining > half else Result.UNSURE,
                f"{quota.remaining} of {quota.limit} left in the environment's bucket"
                + ("" if quota.remaining > half else ": the gateway spends nothing below half"),
            )
        yield _clock_finding("upstream", answer, self._clock()[1])

    async def first_session(self, environment: EnvironmentSettings) -> str | None:
        """Find any session to prove isolation with; None if the key may not list them."""
        try:
            answer = await self._api(environment).probe("GET", NEWEST)
            return str(json.loads(answer.body)["data"][0]["id"])
        except (UpstreamError, ValueError, LookupError, TypeError):
            return None

    def _api(self, environment: EnvironmentSettings) -> Upstream:
        return Upstream(
            self._client,
            url=environment.api_url,
            secret_keys=[key.reveal() for key in environment.secret_keys],
            branch=environment.branch,
            timeout=self._timeout,
            user_agent=f"bff/{__version__}",
            observe=lambda _: None,
        )

    async def store(self) -> AsyncIterator[Finding]:
        """Ask the store, if there is one, as a gateway that starts."""
        place = self._settings.store_url
        if place is None:
            return
        store = Store(
            place,
            timeout=self._settings.store_timeout,
            name=f"bff-check-{secrets.token_hex(4)}",
            count=lambda *_: None,
            changed=lambda _: None,
        )
        try:
            await store.open(lambda _: None)
        except StoreError as exc:
            yield Finding(Result.PROBLEM, f"{exc}: check BFF_STORE_URL, and what stands between")
        else:
            yield Finding(
                Result.OK,
                f"it accepts the name and the password; replicas that are there: "
                f"{store.replicas - 1}",
            )
        finally:
            await store.close()

    # -- a running gateway

    def gateway(
        self, environment: EnvironmentSettings, url: str, session: str | None
    ) -> AsyncIterator[Finding]:
        """Ask the gateway at *url* for *session* as who may read it, and as who may not."""
        return _told_kindly(self._gateway(environment, url.rstrip("/"), session), url)

    async def _gateway(
        self, environment: EnvironmentSettings, url: str, session: str | None
    ) -> AsyncIterator[Finding]:
        id_ = session or "session_bff_check_no_such_session"
        other = ("session_" if ids.is_friendly(id_) else "") + secrets.token_hex(12)
        target = url + ids.path(id_)
        if not environment.signing_keys or environment.learn:
            yield Finding(
                Result.UNSURE,
                "isolation cannot be proved from here: making tokens takes a signing key and "
                "BFF_ENVIRONMENT_ID",
            )
            return
        ann, bob = self._token(environment, id_), self._token(environment, other)

        first = await self._ask(target, ann)
        if "x-request-id" not in first.headers:
            yield Finding(
                Result.PROBLEM,
                f"what answers ({first.status}) is not the gateway, or a proxy in front removes "
                "its X-Request-Id: is this the browser port's address, and are /api/v1/sessions "
                "and /api/v1/sessions/* routed to it?",
            )
            return
        if first.status == 401:  # noqa: PLR2004
            yield Finding(
                Result.PROBLEM,
                "the gateway does not accept a token signed with the first of BFF_SIGNING_KEYS: it "
                "runs with other settings, or its clock is wrong",
            )
            return
        entitled = 200 if session else 404
        yield Finding(
            _result(well=first.status == entitled),
            f"a token that names the session gets {first.status}"
            + ("" if first.status == entitled else f"{_code(first)}, not {entitled}: see its log"),
        )
        etag = first.headers.get("etag", "*")
        refused = [
            await self._ask(target, bob),
            await self._ask(target, bob | {"if-none-match": etag}),
            await self._ask(target, bob | {"cache-control": "only-if-cached"}),
        ]
        again = await self._ask(target, ann)
        alone = await self._ask(target, {})
        statuses = [answer.status for answer in refused]
        kept = statuses == [403] * 3 and alone.status == 401  # noqa: PLR2004
        proof = "" if session else " (no session exists to prove it on: pass --session ID)"
        yield Finding(
            Result.UNSURE if kept and not session else _result(well=kept),
            f"isolation: while the copy is shared, a token for another session gets {statuses} and "
            f"no token {alone.status}"
            + (proof if kept else ": something in front keeps copies of its own; turn that off"),
        )
        yield _cache_finding([first, *refused, again, alone])
        yield await self._origin_finding(target, ann)
        metrics = await self._ask(url + "/metrics", {})
        hidden = REQUESTS.encode() not in metrics.body  # an app may have a page of that name
        yield Finding(
            _result(well=hidden),
            "the ops port's routes cannot be reached from here"
            if hidden
            else "anybody reads /metrics here: route only the browser port",
        )
        yield _clock_finding("the gateway", again, self._clock()[1])

    def _token(self, environment: EnvironmentSettings, id_: str) -> dict[str, str]:
        token = mint(
            environment.signing_keys[0].reveal(),
            environment_id=environment.id or "bff",
            scopes=[f"read:sessions:{id_}"],
            issued=int(self._clock()[1]),
            ttl=TOKEN_SECONDS,
            actor="bff-check",
        )
        return {"authorization": f"Bearer {token}"}

    async def _origin_finding(self, target: str, browser: Mapping[str, str]) -> Finding:
        foreign = {"origin": FOREIGN_ORIGIN}
        asked = {**foreign, "access-control-request-method": "GET"}
        allowed = [
            name
            for name, answer in {
                "an answer": await self._ask(target, {**browser, **foreign}),
                "a refusal": await self._ask(target, foreign),
                "a preflight": await self._ask(target, asked, method="OPTIONS"),
            }.items()
            if answer.headers.get("access-control-allow-origin") in ("*", FOREIGN_ORIGIN)
        ]
        if not allowed:
            return Finding(Result.OK, "a foreign Origin gets no permission to read")
        if "*" in self._settings.allowed_origins:
            return Finding(Result.UNSURE, "any Origin may read, as BFF_ALLOWED_ORIGINS=* says")
        return Finding(
            Result.PROBLEM,
            f"a foreign Origin may read {', '.join(allowed)}: something in front adds CORS "
            "headers of its own; leave them to the gateway",
        )

    async def _ask(self, url: str, headers: Mapping[str, str], *, method: str = "GET") -> Answer:
        sent = {"user-agent": f"bff/{__version__}", **headers}
        return await self._client.ask(method, url, sent, timeout=self._timeout)


def _code(answer: Answer) -> str:
    """The error code of a refusal of ours, to be put behind its status."""
    try:
        code = json.loads(answer.body)["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return f" {code}" if isinstance(code, str) and code in REFUSALS else ""


def _result(*, well: bool) -> Result:
    return Result.OK if well else Result.PROBLEM


def _key_finding(answer: Answer, session: str | None) -> Finding:
    match answer.status:
        case 200:
            return Finding(Result.OK, "the key is accepted and may read sessions")
        case 401:
            return Finding(
                Result.PROBLEM,
                "the key is rejected: check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview "
                "environment",
            )
        case 403:
            return Finding(
                Result.PROBLEM,
                "the key is accepted but may not read sessions: give it read:sessions",
            )
        case 404 if session is not None:
            # Upstream looks for the session before it looks at what the key may do.
            return Finding(
                Result.UNSURE, "the key is accepted; there is no such session to try it on"
            )
        case 429:
            return Finding(
                Result.UNSURE, "the environment's bucket is empty (429): try again in a minute"
            )
    return Finding(
        Result.PROBLEM, f"the answer is {answer.status}: is TRIGGER_API_URL the API's address?"
    )


def _environment_finding(answer: Answer, environment: EnvironmentSettings) -> Finding:
    if answer.status == 401:  # noqa: PLR2004
        if environment.id is None and not environment.learn:
            return Finding(Result.OK, "the environment's id is not needed: all keys are your own")
        return Finding(
            Result.UNSURE,
            "a restricted key does not tell its environment: compare BFF_ENVIRONMENT_ID",
        )
    try:
        claims: Any = json.loads(answer.body)
        subject = str(claims["sub"])
    except (ValueError, LookupError, TypeError):
        return Finding(Result.UNSURE, f"the environment was not told ({answer.status})")
    if environment.id is None:
        return Finding(Result.OK, f"the key belongs to environment {subject}")
    return Finding(
        _result(well=subject == environment.id),
        f"the key belongs to environment {subject}"
        + (
            ""
            if subject == environment.id
            else f", BFF_ENVIRONMENT_ID says {environment.id}: one of the two is another's"
        ),
    )


def _mode_finding(answer: Answer, environment: EnvironmentSettings) -> Finding:
    """Tell who verifies tokens, and what of it the key decides."""
    how = " and then by ".join(
        {"local": "the keys here", "upstream": "upstream"}[one] for one in environment.verify
    )
    if any("_sk_" not in key.reveal() for key in environment.secret_keys):
        why = "a root key signs Trigger.dev's, so BFF_VERIFY may be local or upstream"
    elif "upstream" in environment.verify:
        why = "an additional key (tr_…_sk_…) signs none, so upstream is asked about Trigger.dev's"
    else:
        why = "whatever BFF_SIGNING_KEYS did not sign is refused, Trigger.dev's own tokens too"
    text = f"tokens are verified by {how}: {why}"
    if environment.learn and answer.status != 200:  # noqa: PLR2004
        return Finding(
            Result.PROBLEM,
            f"{text}; and the environment's id, which that takes, this key cannot tell: set "
            "BFF_ENVIRONMENT_ID",
        )
    return Finding(Result.OK, text)


def _cache_finding(answers: list[Answer]) -> Finding:
    """Each answer is made for its request: the same id twice is a copy kept on the way."""
    ids = [answer.headers.get("x-request-id") for answer in answers]
    directives = [answer.headers.get("cache-control", "") for answer in answers]
    varies = [answer.headers.get("vary", "").lower() for answer in answers]
    if len(set(ids)) < len(ids):
        return Finding(
            Result.PROBLEM,
            "two requests got one answer: something in front keeps copies; turn that off",
        )
    if not all(d in ("no-store", "private, no-cache") for d in directives):
        return Finding(
            Result.PROBLEM, "something in front rewrites Cache-Control: leave it as it is"
        )
    if not all("authorization" in v and "origin" in v for v in varies):
        return Finding(Result.PROBLEM, "something in front removes Vary: leave it as it is")
    return Finding(Result.OK, "nothing in front keeps copies or rewrites what forbids it")


def _clock_finding(whose: str, answer: Answer, wall: float) -> Finding:
    try:
        skew = parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - wall
    except ValueError:
        return Finding(Result.UNSURE, f"{whose} sends no Date to compare clocks by")
    # A Date is a whole second, cut off.
    agrees = -MAX_SKEW - 1 <= skew <= MAX_SKEW
    return Finding(
        _result(well=agrees),
        f"the clock of {whose} agrees with this machine's"
        if agrees
        else f"the clock of {whose} is {abs(skew):.0f} s "
        f"{'ahead of' if skew > 0 else 'behind'} this machine's: let both follow NTP",
    )


async def _told_kindly(findings: AsyncIterator[Finding], url: str) -> AsyncIterator[Finding]:
    """Pass findings on; trouble on the way is one more of them."""
    async with aclosing(findings) as found:  # type: ignore[type-var]
        try:
            async for finding in found:
                yield finding
        except UpstreamError as error:
            told = (error.code.removeprefix("upstream_"), cause(error))
            yield Finding(
                Result.PROBLEM,
                f"{url} cannot be asked ({': '.join(filter(None, told))}): check the address, and "
                "what stands between",
            )
