"""Everything that can go wrong, and the refusal that a browser gets for it.

    Refusal             a value: the answer that a browser gets in place of the session
    Exception
    ├── Refused         ends a request with a `Refusal`
    └── UpstreamError   upstream's trouble; a load or a chat turns it into a `Refusal`
        ├── UpstreamUnavailable
        ├── UpstreamTimeout
        ├── UpstreamInvalid
        ├── StreamVersionUnknown
        ├── UpstreamRateLimited
        ├── CredentialsRejected
        ├── SessionNotFound
        ├── TokenRejected
        └── TokenForbidden

Each refusal is one row of `REFUSALS`. Its code is public. Frontends and the official SDK act on its
status: the SDK mints a new token on 401 and 403, and starts a paid run on 404. So no trouble
upstream uses one of these. Its text never holds a token, a key or upstream's own words.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar, Final, Literal

ErrorCode = Literal[
    "bad_request",
    "invalid_session_id",
    "token_missing",
    "token_invalid",
    "token_expired",
    "token_revoked",
    "secret_key_sent",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "not_served",
    "head_too_large",
    "invalid_message",
    "foreign_chat",
    "message_too_large",
    "session_closed",
    "message_unconfirmed",
    "stream_unreadable",
    "stream_version",
    "too_many_streams",
    "too_many_messages",
    "rate_limited",
    "upstream_rejected_credentials",
    "upstream_unavailable",
    "upstream_invalid",
    "upstream_timeout",
    "over_budget",
    "overloaded",
    "not_ready",
    "internal",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a status, and the text that a browser reads."""

    status: HTTPStatus
    text: str


REFUSALS: Final[dict[ErrorCode, Row]] = {
    "bad_request": Row(HTTPStatus.BAD_REQUEST, "The request is malformed"),
    "invalid_session_id": Row(
        HTTPStatus.BAD_REQUEST,
        "A session id is one path segment of 1 to 256 characters, percent-encoded as UTF-8",
    ),
    "token_missing": Row(
        HTTPStatus.UNAUTHORIZED, "Send a public access token as 'Authorization: Bearer <token>'"
    ),
    "token_invalid": Row(HTTPStatus.UNAUTHORIZED, "The public access token is invalid"),
    "token_expired": Row(HTTPStatus.UNAUTHORIZED, "The public access token has expired"),
    "token_revoked": Row(HTTPStatus.UNAUTHORIZED, "The public access token has been revoked"),
    "secret_key_sent": Row(
        HTTPStatus.UNAUTHORIZED,
        "A secret key does not belong in a browser: rotate it and send a public access token",
    ),
    "unauthorized": Row(HTTPStatus.FORBIDDEN, "Unauthorized"),
    "not_found": Row(HTTPStatus.NOT_FOUND, "Not found"),
    "method_not_allowed": Row(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed"),
    "not_served": Row(
        HTTPStatus.GONE, "This gateway does not serve that route: ask the Trigger.dev API"
    ),
    "head_too_large": Row(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The request's headers are too many or too large",
    ),
    "invalid_message": Row(HTTPStatus.BAD_REQUEST, "The message is not allowed"),
    "foreign_chat": Row(HTTPStatus.BAD_REQUEST, "The message's chatId is not this session's id"),
    "message_too_large": Row(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The message is larger than the gateway accepts"
    ),
    "session_closed": Row(HTTPStatus.CONFLICT, "The session is closed"),
    "message_unconfirmed": Row(
        HTTPStatus.BAD_GATEWAY,
        "The upstream's answer was lost, so the message may have arrived: it was sent once",
    ),
    "stream_unreadable": Row(
        HTTPStatus.GONE, "The stream ends, because its next event cannot be read"
    ),
    "stream_version": Row(
        HTTPStatus.BAD_GATEWAY, "The upstream's stream has a version that the gateway does not know"
    ),
    "too_many_streams": Row(HTTPStatus.TOO_MANY_REQUESTS, "Too many streams are open at once"),
    "too_many_messages": Row(HTTPStatus.TOO_MANY_REQUESTS, "Too many messages are sent at once"),
    "rate_limited": Row(HTTPStatus.TOO_MANY_REQUESTS, "Rate limit exceeded"),
    "upstream_rejected_credentials": Row(
        HTTPStatus.BAD_GATEWAY, "The upstream rejected the gateway's credentials"
    ),
    "upstream_unavailable": Row(HTTPStatus.BAD_GATEWAY, "The upstream cannot be reached"),
    "upstream_invalid": Row(HTTPStatus.BAD_GATEWAY, "The upstream's answer is not valid"),
    "upstream_timeout": Row(HTTPStatus.GATEWAY_TIMEOUT, "The upstream did not answer in time"),
    "over_budget": Row(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The gateway has spent its upstream budget; retry shortly",
    ),
    "overloaded": Row(
        HTTPStatus.SERVICE_UNAVAILABLE, "The gateway holds too much unread data; retry shortly"
    ),
    "not_ready": Row(HTTPStatus.SERVICE_UNAVAILABLE, "The gateway is not ready"),
    "internal": Row(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of the session; many waiters may share one.

    Attributes:
        code: the row of `REFUSALS`.
        detail: a text in place of the row's. It repeats nothing of upstream, and of the request
            at most the short name of a query parameter.
        retry_after: seconds until a retry makes sense.
    """

    code: ErrorCode
    detail: str | None = None
    retry_after: float | None = None

    @property
    def status(self) -> HTTPStatus:
        """The status of the answer."""
        return REFUSALS[self.code].status

    @property
    def text(self) -> str:
        """The text that the browser reads."""
        return self.detail or REFUSALS[self.code].text


class Refused(Exception):
    """Ends a request with a refusal; takes what `Refusal` takes."""

    def __init__(
        self, code: ErrorCode, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(code)
        self.refusal = Refusal(code, detail, retry_after)

    @classmethod
    def of(cls, refusal: Refusal) -> "Refused":
        """Make the exception that ends a request with *refusal*."""
        return cls(refusal.code, refusal.detail, refusal.retry_after)


class UpstreamError(Exception):
    """Upstream's trouble.

    Attributes:
        code: the code of the refusal that a browser gets for it.
        retry_after: seconds after which upstream accepts calls again.
        sent: the request has left, so it may have had its effect.
    """

    code: ClassVar[ErrorCode] = "internal"
    sent = False

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__(self.code)
        self.retry_after = retry_after


class UpstreamUnavailable(UpstreamError):
    """Upstream cannot be reached, or it answered with a 5xx."""

    code = "upstream_unavailable"


class UpstreamTimeout(UpstreamError):
    """Upstream did not answer in time."""

    code = "upstream_timeout"


class UpstreamInvalid(UpstreamError):
    """Upstream's answer is not a valid answer of the API."""

    code = "upstream_invalid"


class StreamVersionUnknown(UpstreamError):
    """Upstream's stream has another version than the gateway can filter."""

    code = "stream_version"


class UpstreamRateLimited(UpstreamError):
    """Upstream answered 429."""

    code = "over_budget"


class CredentialsRejected(UpstreamError):
    """Upstream rejected the gateway's secret key."""

    code = "upstream_rejected_credentials"


class SessionNotFound(UpstreamError):
    """Upstream says that there is no such session."""

    code = "not_found"


class TokenRejected(UpstreamError):
    """Upstream rejected the browser's token in an introspection."""

    code = "token_invalid"


class TokenForbidden(UpstreamError):
    """Upstream accepted the browser's token, but not for this session."""

    code = "unauthorized"
