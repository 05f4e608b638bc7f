"""Fetches the id of the environment that a secret key belongs to, or says why that fails.

Without the right id, a token of one preview branch could read the sessions of another, because all
branches have one signing key. Upstream returns the id for a root or unrestricted key on one route,
and for a restricted key only inside a token that it mints.
"""

import base64
import json
from http import HTTPStatus
from typing import Any, Final

from bff import strict_json
from bff.upstream.api import CLAIMS_PATH, Upstream
from bff.upstream.connection import Answer
from bff.upstream.identity import MAX_MEMBERS, api_error

PUBLIC_TOKENS_PATH: Final = "/api/v1/auth/public-tokens"
_TOKEN_REQUEST: Final = json.dumps(
    {"scopes": ["read:sessions:bff_environment_check"], "expirationTime": "1m"}
).encode()
"""Requests a token for a session that does not exist; nobody gets the token."""
_REFUSALS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class IdUnknown(Exception):
    """Upstream does not return the id.

    Attributes:
        remedy: the mistake and what to do, with the names of settings.
        is_final: only a change of the settings or of the key can help.
    """

    def __init__(self, remedy: str, *, is_final: bool) -> None:
        super().__init__(remedy)
        self.remedy = remedy
        self.is_final = is_final


async def learn(upstream: Upstream, key: int | None = None) -> str:
    """Ask upstream for the environment of a secret key.

    Args:
        upstream: the environment's API.
        key: the position of the key, from 0; None for the one in use.

    Raises:
        IdUnknown: upstream answered, but not with an id.
        UpstreamError: upstream did not answer.
    """
    answer = await upstream.probe("POST", CLAIMS_PATH, key=key)
    if is_refusal(answer):
        answer = await upstream.probe("POST", PUBLIC_TOKENS_PATH, key=key, body=_TOKEN_REQUEST)
    subject = _subject(answer)
    if subject is None:
        raise IdUnknown(explain(answer, upstream), is_final=is_refusal(answer))
    return subject


def is_refusal(answer: Answer) -> bool:
    """Tell whether the API refuses the key; a proxy or a CDN may refuse as well."""
    return answer.status in _REFUSALS and api_error(answer) is not None


def explain(answer: Answer, upstream: Upstream) -> str:
    """Say why upstream refused the key, with the names of settings."""
    error = str(_object(answer.body).get("error", ""))
    match answer.status if api_error(answer) is not None else None:
        case HTTPStatus.UNAUTHORIZED if "branch" in error and not upstream.credentials.has_branch:
            return (
                "the key is of a preview environment, which needs a branch: set BFF_BRANCH, or "
                "check TRIGGER_SECRET_KEY"
            )
        case HTTPStatus.UNAUTHORIZED if "branch" in error:
            return "the environment has no branch of the name in BFF_BRANCH: correct it"
        case HTTPStatus.UNAUTHORIZED:
            return (
                "the key is rejected: check TRIGGER_SECRET_KEY, and TRIGGER_API_URL (a key is "
                "valid at one installation only)"
            )
        case HTTPStatus.FORBIDDEN:
            return "the key may not read sessions: give it read:sessions"
        case HTTPStatus.NOT_FOUND:
            return "upstream has no route for the id: set BFF_ENVIRONMENT_ID"
    return (
        f"upstream, or something before it, answers {int(answer.status)}: check TRIGGER_API_URL, "
        "and the proxies between"
    )


def _subject(answer: Answer) -> str | None:
    """Read the id out of the answer, or out of the token in it."""
    if answer.status != HTTPStatus.OK:
        return None
    document = _object(answer.body)
    token = document.get("token")
    if isinstance(token, str):
        document = _claims(token)
    subject = document.get("sub")
    return subject if isinstance(subject, str) and subject else None


def _claims(token: str) -> dict[str, Any]:
    """Read the claims of a token that comes from upstream itself, so nothing is verified."""
    try:
        return _object(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    except (IndexError, ValueError):
        return {}


def _object(text: bytes) -> dict[str, Any]:
    """Read an object of JSON; an empty one if it is not."""
    try:
        value = strict_json.loads(text, most=MAX_MEMBERS)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
