"""Tests the upstream API with the secret key, and the store (`bff check --probe`)."""

import json
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Final

from bff import __version__
from bff.clock import Clock
from bff.config.settings import EnvironmentSettings, Settings
from bff.errors import UpstreamError
from bff.ops.check import Checker, Finding, Result, expect, until_unreachable
from bff.replicas.connection import Connection
from bff.replicas.valkey import ClientFactory, StoreError
from bff.sessions import ids
from bff.upstream.api import CLAIMS_PATH, Quota, Upstream, read_quota
from bff.upstream.connection import Answer
from bff.upstream.identity import api_error
from bff.upstream.pool import Pools, Transport, trusted

_NEWEST: Final = "/api/v1/sessions?page[size]=1"
"""Lists the newest session, if the secret key may list sessions."""


class UpstreamChecker(Checker):
    """Sends requests to upstream and to the store as a gateway does.

    Args:
        settings: those of the gateway.
        clock: the two times.
        transport: replaces the network in tests.
    """

    def __init__(
        self, settings: Settings, clock: Clock, *, transport: Transport | None = None
    ) -> None:
        super().__init__(settings, clock)
        self._transport = transport or Pools(
            context=trusted(settings.upstream_ca_file),
            connect_timeout=settings.upstream_connect_timeout,
            clock=clock,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def findings(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        """Test *environment*'s API with its secret key; *session* is the id of an existing one."""
        return until_unreachable(self._findings(environment, session), environment.api_url)

    async def _findings(
        self, environment: EnvironmentSettings, session: str | None
    ) -> AsyncIterator[Finding]:
        upstream = self._upstream(environment)
        answer = await upstream.probe("GET", _NEWEST if session is None else ids.path(session))
        yield _key_finding(answer, session)
        if answer.status != HTTPStatus.UNAUTHORIZED:
            claims = await upstream.probe("POST", CLAIMS_PATH)
            yield _environment_finding(claims, environment)
            yield _verify_finding(claims, environment)
            # A 401 shows the bucket of unknown keys.
            yield _quota_finding(read_quota(answer.headers))
        yield self._compare_clocks("upstream", answer)

    async def first_session(self, environment: EnvironmentSettings) -> str | None:
        """Return the newest session's id; None if the key may not list sessions."""
        try:
            answer = await self._upstream(environment).probe("GET", _NEWEST)
            return str(json.loads(answer.body)["data"][0]["id"])
        except (UpstreamError, ValueError, LookupError, TypeError):
            return None

    def _upstream(self, environment: EnvironmentSettings) -> Upstream:
        return Upstream(
            self._transport,
            url=environment.api_url,
            secret_keys=[key.reveal() for key in environment.secret_keys],
            branch=environment.branch,
            timeout=self._settings.upstream_timeout,
            user_agent=f"bff/{__version__}",
            observe=lambda _: None,
            clock=self._clock,
        )

    async def store(self) -> AsyncIterator[Finding]:
        """Connect to the store as a gateway does when it starts."""
        address = self._settings.store_url
        if address is None:
            return
        connection = Connection(
            ClientFactory(address),
            timeout=self._settings.store_timeout,
            name=f"bff-check-{secrets.token_hex(4)}",
            count=lambda *_: None,
            changed=lambda _: None,
            on_marker=lambda _: None,
        )
        try:
            await connection.open()
        except StoreError as exc:
            text = f"{exc}: check BFF_STORE_URL and the network between"
            yield Finding(Result.PROBLEM, text)
        else:
            others = connection.replicas - 1  # this command counts as one
            text = f"the store accepts the name and the password; connected replicas: {others}"
            yield Finding(Result.OK, text)
        finally:
            await connection.close()


def _key_finding(answer: Answer, session: str | None) -> Finding:
    from_api = answer.status == HTTPStatus.OK or api_error(answer) is not None
    match answer.status if from_api else None:
        case HTTPStatus.OK:
            return Finding(Result.OK, "the key is accepted and may read sessions")
        case HTTPStatus.UNAUTHORIZED:
            return Finding(
                Result.PROBLEM,
                "the key is rejected: check TRIGGER_SECRET_KEY, and BFF_BRANCH for a preview "
                "environment",
            )
        case HTTPStatus.FORBIDDEN:
            return Finding(
                Result.PROBLEM,
                "the key is accepted but may not read sessions: give it read:sessions",
            )
        case HTTPStatus.NOT_FOUND if session is not None:
            # Upstream looks the session up before it checks the key's permissions.
            return Finding(
                Result.UNSURE,
                "the key is accepted; its permissions are not tested, for the session does not "
                "exist",
            )
        case HTTPStatus.TOO_MANY_REQUESTS:
            return Finding(
                Result.UNSURE, "upstream limits the environment's rate (429): wait a minute"
            )
    return Finding(
        Result.PROBLEM,
        f"something that is not the API answers {answer.status}, or the API refuses the request: "
        "check TRIGGER_API_URL, and the proxies between",
    )


def _environment_finding(answer: Answer, environment: EnvironmentSettings) -> Finding:
    if answer.status == HTTPStatus.UNAUTHORIZED:
        if environment.id is None and not environment.learn:
            return Finding(
                Result.OK, "BFF_ENVIRONMENT_ID is not needed: no signing key is a root key"
            )
        return Finding(
            Result.UNSURE,
            "upstream does not show a restricted key's environment: compare BFF_ENVIRONMENT_ID",
        )
    try:
        claims: Any = json.loads(answer.body)
        subject = str(claims["sub"])
    except (ValueError, LookupError, TypeError):
        return Finding(
            Result.UNSURE, f"upstream does not show the key's environment ({answer.status})"
        )
    return expect(
        environment.id in (None, subject),
        f"the key belongs to environment {subject}",
        f"the key belongs to environment {subject}, but BFF_ENVIRONMENT_ID is {environment.id}: "
        "correct one of them",
    )


def _verify_finding(answer: Answer, environment: EnvironmentSettings) -> Finding:
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
        not environment.learn or answer.status == HTTPStatus.OK,
        text,
        f"{text}; this needs the environment's id, which upstream does not show for this key: set "
        "BFF_ENVIRONMENT_ID",
    )


def _quota_finding(quota: Quota | None) -> Finding:
    if quota is None:
        return Finding(Result.UNSURE, "upstream's answers do not show its bucket (x-ratelimit-*)")
    text = f"{quota.remaining} of {quota.limit} left in the environment's bucket"
    if quota.remaining > quota.limit // 2:
        return Finding(Result.OK, text)
    return Finding(Result.UNSURE, f"{text}: the gateway loads nothing while less than half is left")
