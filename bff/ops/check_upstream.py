"""Tests the upstream API with the secret key, and the store (`bff check --probe`)."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from bff.background import Background
from bff.clock import Clock
from bff.config.builder import credentials
from bff.config.settings import EnvironmentSettings, Settings
from bff.errors import UpstreamError
from bff.ops.check import Checker, Finding, Page, expect, ok, problem, unsure, until_unreachable
from bff.ops.environment_id import IdUnknown, explain, learn
from bff.replicas.connection import PERMITTED, Connection
from bff.replicas.valkey import ClientFactory, StoreError
from bff.sessions import ids
from bff.telemetry import Telemetry
from bff.upstream.api import Quota, Upstream, read_quota
from bff.upstream.connection import Answer
from bff.upstream.identity import api_error
from bff.upstream.other_hosts import Network

_NEWEST: Final = "/api/v1/sessions?page[size]=1"
"""Lists the newest session, if the secret key may list sessions."""
CONFIRM_SECONDS: Final = 3.0
"""Seconds that a start waits for the ids; upstream may be down, and the gateway must start."""


class UpstreamChecker(Checker):
    """Sends requests to upstream and to the store as a gateway does.

    Args:
        settings: those of the gateway.
        clock: the two times.
        network: replaces the sockets in tests.
    """

    def __init__(self, settings: Settings, clock: Clock, *, network: Network | None = None) -> None:
        super().__init__(settings, clock)
        self._network = network or Network.open(
            ca_file=settings.upstream_ca_file,
            connect_timeout=settings.upstream_connect_timeout,
            clock=clock,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._network.aclose()

    def findings(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        """Test *environment*'s API with its secret key; *session* is the id of an existing one."""
        findings = self._findings(environment, session)
        return until_unreachable(findings, environment.api_url, Page.UPSTREAM)

    async def _findings(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        upstream = self._upstream(environment)
        path = _NEWEST if session is None else ids.path(session)
        answer = await upstream.probe("GET", path)
        yield _key_finding(answer, upstream, session)
        if answer.status != HTTPStatus.UNAUTHORIZED:
            id_, trouble = await _learn(upstream)
            yield _environment_finding(id_, trouble, environment)
            yield _verify_finding(environment, has_id=id_ is not None)
            # A 401 shows the bucket of unknown keys.
            yield _quota_finding(read_quota(answer.headers))
        for key in range(1, len(upstream.credentials)):
            async for finding in _next_key_findings(upstream, environment, key, path, session):
                yield finding
        yield self._compare_clocks("upstream", answer)

    async def confirm_ids(self) -> tuple[list[str], frozenset[str]]:
        """Compare the ids in the settings with those that upstream returns, before a start.

        Returns:
            The problems, and the environments whose id could not be compared.
        """
        named = [one for one in self._settings.environments if one.id is not None]

        async def learn_soon(environment: EnvironmentSettings) -> str | None:
            try:
                async with asyncio.timeout(CONFIRM_SECONDS):
                    return await learn(self._upstream(environment))
            except (UpstreamError, IdUnknown, TimeoutError):
                return None

        learned = await asyncio.gather(*map(learn_soon, named))
        pairs = list(zip(named, learned, strict=True))
        problems = [_difference(one, id_) for one, id_ in pairs if id_ not in (None, one.id)]
        return problems, frozenset(one.name for one, id_ in pairs if id_ is None)

    async def with_id(self, environment: EnvironmentSettings) -> EnvironmentSettings:
        """Complete the settings of an environment with the id that upstream returns."""
        if not environment.learn:
            return environment
        id_, _ = await _learn(self._upstream(environment))
        return environment if id_ is None else replace(environment, id=id_, learn=False)

    async def fetch(self, url: str) -> bytes:
        """Fetch a public document.

        Raises:
            UpstreamError: it cannot be fetched.
        """
        return await self._network.others.fetch(url, timeout=self._settings.upstream_timeout)

    async def first_session(self, environment: EnvironmentSettings) -> str | None:
        """Return the newest session's id; None if the key may not list sessions."""
        try:
            answer = await self._upstream(environment).probe("GET", _NEWEST)
            return str(json.loads(answer.body)["data"][0]["id"])
        except (UpstreamError, ValueError, LookupError, TypeError):
            return None

    def _upstream(self, environment: EnvironmentSettings) -> Upstream:
        return Upstream(
            self._network.api,
            credentials=credentials(environment),
            timeout=self._settings.upstream_timeout,
            observe=lambda _: None,
            clock=self._clock,
        )

    async def store(self) -> AsyncIterator[Finding]:
        """Connect to the store as a gateway does when it starts, and try each of its commands."""
        address = self._settings.store_url
        if address is None:
            return
        connection = Connection(
            ClientFactory(address),
            background=Background(Telemetry(io.StringIO())),
            timeout=self._settings.store_timeout,
            name="",  # it answers no browser, so it takes no share of the limits
            count=lambda *_: None,
            changed=lambda _: None,
            watch=lambda: [PERMITTED],
            on_watched=lambda _: None,
            listener_fails=lambda: False,
        )
        try:
            await connection.open()
        except StoreError as exc:
            text = f"{exc}: check BFF_STORE_URL and the network between"
            yield problem(text)
        else:
            others = connection.replicas - 1  # without this command
            text = (
                "the store accepts the name and the password, and permits all commands; "
                f"connected replicas: {others}"
            )
            yield ok(text)
        finally:
            await connection.close()


async def _learn(upstream: Upstream, key: int | None = None) -> tuple[str | None, str]:
    """Return the id of a key's environment, or why it is unknown."""
    try:
        return await learn(upstream, key), ""
    except IdUnknown as unknown:
        return None, unknown.remedy
    except UpstreamError as error:
        return None, f"upstream does not return it ({error.code})"


async def _next_key_findings(
    upstream: Upstream, environment: EnvironmentSettings, key: int, path: str, session: str | None
) -> AsyncIterator[Finding]:
    """Test a key that takes over when upstream rejects the one before it."""
    answer = await upstream.probe("GET", path, key=key)
    findings = [_key_finding(answer, upstream, session)]
    if answer.status != HTTPStatus.UNAUTHORIZED:
        id_, _ = await _learn(upstream, key)
        first, _ = await _learn(upstream)
        expected = environment.id or first
        if None not in (id_, expected) and id_ != expected:
            text = f"it belongs to environment {id_}, the first to {expected}: remove it"
            findings.append(problem(text))
    for finding in findings:
        yield Finding(finding.result, f"secret key {key + 1}: {finding.text}")


def _key_finding(answer: Answer, upstream: Upstream, session: str | None) -> Finding:
    from_api = answer.status == HTTPStatus.OK or api_error(answer) is not None
    match answer.status if from_api else None:
        case HTTPStatus.OK:
            return ok("the key is accepted and may read sessions")
        case HTTPStatus.UNAUTHORIZED:
            return problem(explain(answer, upstream))
        case HTTPStatus.FORBIDDEN:
            return problem(
                "the key is accepted but may not read sessions: give it read:sessions",
            )
        case HTTPStatus.NOT_FOUND if session is not None:
            # Upstream looks the session up before it checks the key's permissions.
            return unsure(
                "the key is accepted; its permissions are not tested, for the session does not "
                "exist",
            )
        case HTTPStatus.TOO_MANY_REQUESTS:
            return unsure("upstream limits the environment's rate (429): wait a minute")
    return problem(
        f"something that is not the API answers {answer.status}, or the API refuses the request: "
        "check TRIGGER_API_URL, and the proxies between",
    )


def _environment_finding(
    id_: str | None, trouble: str, environment: EnvironmentSettings
) -> Finding:
    not_needed = "BFF_ENVIRONMENT_ID is not needed: no signing key is a root key"
    is_needed = environment.id is not None or environment.learn
    if id_ is None:
        if not is_needed:
            return ok(not_needed)
        return unsure(f"the key's environment is unknown, so compare it by hand: {trouble}")
    text = f"the key belongs to environment {id_}"
    return expect(
        environment.id in (None, id_),
        text if is_needed else f"{text}; {not_needed}",
        _difference(environment, id_),
    )


def _difference(environment: EnvironmentSettings, id_: str | None) -> str:
    branch = f", branch {environment.branch}," if environment.branch else ""
    return (
        f"the key{branch} belongs to environment {id_}, but BFF_ENVIRONMENT_ID is "
        f"{environment.id}: correct one of them, or a token of one environment reads the sessions "
        "of the other"
    )


def _verify_finding(environment: EnvironmentSettings, *, has_id: bool) -> Finding:
    """Show how tokens are verified, and how the kind of key decides it."""
    how = ", then ".join(
        {"local": "with the signing keys", "upstream": "by upstream"}[verifier]
        for verifier in environment.verify
    )
    if any("_sk_" not in key.reveal() for key in environment.secret_keys):
        why = "a root key signs Trigger.dev's tokens, so BFF_VERIFY may be local or upstream"
    elif "upstream" in environment.verify:
        why = "a restricted key (tr_…_sk_…) signs no tokens, so upstream verifies Trigger.dev's"
    else:
        why = "the gateway refuses tokens that BFF_SIGNING_KEYS did not sign, also Trigger.dev's"
    text = f"tokens are verified {how}: {why}"
    return expect(
        not environment.learn or has_id,
        text,
        f"{text}; this needs the environment's id, which upstream does not show for this key: set "
        "BFF_ENVIRONMENT_ID",
    )


def _quota_finding(quota: Quota | None) -> Finding:
    if quota is None:
        return unsure("upstream's answers do not show its bucket (x-ratelimit-*)")
    text = f"{quota.remaining} of {quota.limit} left in the environment's bucket"
    if quota.remaining > quota.limit // 2:
        return ok(text)
    return unsure(f"{text}: the gateway loads nothing while less than half is left")
