"""The refusals, and what the browser is told.

Each refusal is one row: its code is public, its status is what frontends and the official SDK act
on, its text never carries a token, a key or upstream's own words.

The SDK re-mints its token on 401 and 403 and starts a (paid) run on 404, so no trouble upstream is
ever told with one of these.
"""

from dataclasses import dataclass


class Refusal(Exception):  # noqa: N818  the word of this product for an error shown to the browser
    """An answer that is not the session, raised wherever the request's path ends.

    Args:
        code: one of `REFUSALS`.
        detail: a text for the browser in place of the row's own; never upstream's or the caller's.
        retry_after: seconds until a retry makes sense.
    """

    def __init__(
        self, code: str, detail: str | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(code)
        self.kind = REFUSALS[code]
        self.code = code
        self.detail = detail or self.kind.text
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: an HTTP status and what it says."""

    status: int
    text: str


REFUSALS: dict[str, Kind] = {
    "bad_request": Kind(400, "The request is malformed"),
    "invalid_session_id": Kind(
        400, "A session id is one path segment of 1 to 256 characters, percent-encoded as UTF-8"
    ),
    "token_missing": Kind(401, "Send a public access token as 'Authorization: Bearer <token>'"),
    "token_invalid": Kind(401, "The public access token is invalid"),
    "token_expired": Kind(401, "The public access token has expired"),
    "token_revoked": Kind(401, "The public access token has been revoked"),
    "secret_key_sent": Kind(
        401, "A secret key does not belong in a browser: rotate it and send a public access token"
    ),
    "unauthorized": Kind(403, "Unauthorized"),
    "not_found": Kind(404, "Not found"),
    "method_not_allowed": Kind(405, "Method not allowed"),
    "not_served": Kind(410, "This gateway does not serve that route: ask the Trigger.dev API"),
    "head_too_large": Kind(431, "The request's headers are too many or too large"),
    "rate_limited": Kind(429, "Rate limit exceeded"),
    "upstream_rejected_credentials": Kind(502, "The upstream rejected the gateway's credentials"),
    "upstream_unavailable": Kind(502, "The upstream cannot be reached"),
    "upstream_invalid": Kind(502, "The upstream's answer is not valid"),
    "upstream_timeout": Kind(504, "The upstream did not answer in time"),
    "over_budget": Kind(503, "The gateway has spent its upstream budget; retry shortly"),
    "not_ready": Kind(503, "The gateway is not ready"),
    "internal": Kind(500, "Internal error"),
}
