"""Admits requests: the address, the token, the caller, and the session that it may read.

The checks are methods, in the order in which `decide` makes them. Each raises a refusal or lets the
request go on.
"""

from collections.abc import Callable, Hashable
from http import HTTPStatus
from typing import Final

from bff import metrics
from bff.config.runtime import RuntimeConfig
from bff.errors import Refusal, Refused
from bff.gateway.context import RequestContext
from bff.gateway.routes import CHAT_IN
from bff.limits.client_address import address_key, browser_address
from bff.limits.rate import LeasePending, Limiter, Window
from bff.request import HeaderFields
from bff.sessions.copy import Copy
from bff.telemetry import Telemetry
from bff.tokens import explain
from bff.tokens.caller import Caller, Claimant, Holder
from bff.tokens.revocations import Revocations

_UNAUTHORIZED: Final = HTTPStatus.UNAUTHORIZED
"""Statuses by plain names: to look one up in the enumeration costs half a microsecond."""

_ENDS: Final = {"token_revoked": "revoked", "token_expired": "expired"}
"""Why an open stream ends, by the code of the refusal that its token would get."""
_MAX_COOKIES: Final = 256
"""Cookies of one request that are read; browsers keep at most 180 for one host."""


class Admission:
    """Admits requests by one configuration; *on_token* gets the caller of each new token."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        revocations: Revocations,
        telemetry: Telemetry,
        on_token: Callable[[Caller], None],
    ) -> None:
        self._trusted_proxies = config.trusted_proxies
        self._limits = config.limits
        self._verifier = config.verifier
        self._token_cookie = config.token_cookie
        self._revocations = revocations
        self._telemetry = telemetry
        self._on_token = on_token

    # -- the address

    def charge_address(self, request: RequestContext, *, page: bool = False) -> None:
        """Charge the browser's address, before any cryptography. Pages have a limit of their own.

        Raises:
            Refused: ``rate_limited``.
        """
        head = request.head
        address = head.peer
        if head.fields.forwarded:
            address = browser_address(address, head.fields.forwarded, self._trusted_proxies)
        request.address = address = address_key(address)
        limiter = self._limits.page if page else self._limits.address
        window = limiter.charge(address, request.now)
        if (
            window.used > window.granted
        ):  # `window.exceeded` written out: every hit checks two windows
            request.window = window
            raise Refused("rate_limited")

    def refund_address(self, request: RequestContext) -> None:
        """Refund the address: the request is decided again from its start."""
        self._limits.address.refund(request.address)

    # -- the token

    def authenticate(self, request: RequestContext) -> Caller | Claimant:
        """Verify the token of a request. For a claimant, upstream still has to verify it.

        Raises:
            Refused: ``bad_request``, ``token_…``, ``secret_key_sent`` or, for an address with too
                many bad tokens, ``rate_limited``.
        """
        fields = request.head.fields
        if fields.ambiguous:
            raise Refused("bad_request", "Send one Authorization and one Origin header")
        # A cookie comes with requests that another page causes, so it never sends a message.
        reads = fields.authorization is None and request.route is not CHAT_IN
        cookie = self._cookie_token(fields) if reads else None
        if not (fields.authorization or cookie):
            self._telemetry.count(metrics.BAD_TOKENS, "token_missing")
            raise Refused("token_missing")
        try:
            request.token = fields.token or cookie or _bearer_token(fields.authorization or b"")
            holder = self._verifier.recall(request.token, request.wall)
            is_new = holder is None
            if holder is None:
                if request.waited is None:  # after a wait the token is no longer unknown
                    self._refuse_flood(request)
                holder = self._verifier.verify(request.token, request.wall)
            if self._revocations.any:
                self._refuse_revoked_token(holder, request.wall)
        except Refused as refused:
            if refused.refusal.status == _UNAUTHORIZED:
                self.charge_bad_token(request, refused.refusal)
            raise
        if is_new and isinstance(holder, Caller):
            self._on_token(holder)
        return holder

    def _refuse_flood(self, request: RequestContext) -> None:
        """Refuse an unknown token, without reading it, if its address has sent too many bad ones.

        Raises:
            Refused: ``rate_limited``.
        """
        window = self._limits.bad_token.look(request.address, request.now)
        if window.exhausted:
            window.charge()
            _refuse_exceeded(request, window)

    def why_invalid(self, request: RequestContext) -> str:
        """Name the first check that the token fails, for the log."""
        verifier = self._verifier
        return explain.reason(
            explain.explain(request.token, verifier.issuers, verifier.sources, request.wall)
        )

    def _cookie_token(self, fields: HeaderFields) -> bytes | None:
        """Take the token from its cookie, if a page of the gateway's own origin sends the request.

        The browser says so in Sec-Fetch-Site, which no script can set. It sends an Origin with
        every request that another origin may have caused, so with an Origin no cookie counts.
        """
        if (
            self._token_cookie is None
            or not fields.cookies
            or fields.fetch_site != b"same-origin"
            or fields.origin is not None
        ):
            return None
        cookies = b";".join(fields.cookies)
        if cookies.count(b";") > _MAX_COOKIES:
            raise Refused("bad_request", "Send fewer cookies")
        pairs = (pair.strip().partition(b"=") for pair in cookies.split(b";"))
        tokens = [value for name, _, value in pairs if name == self._token_cookie and value]
        if len(tokens) > 1:
            raise Refused("bad_request", "Send the token's cookie once")
        return tokens[0] if tokens else None

    def why_ended(self, token: bytes, holder: Holder, wall: float) -> str | None:
        """Tell why the *token* of an open stream does not hold any more, as metrics name it.

        None if it still holds. The stream itself checks the sessions that it shows.
        """
        try:
            self._refuse_revoked_token(holder, wall)
            self._verifier.verify(token, wall)
        except Refused as refused:
            return _ENDS.get(refused.refusal.code, "key")
        return None

    def _refuse_revoked_token(self, holder: Holder, wall: float) -> None:
        """Refuse a token that is revoked for every session. This is checked again after every wait.

        Raises:
            Refused: ``token_revoked``.
        """
        if self._revocations.token(holder.jti, holder.subjects, holder.issued, wall):
            raise Refused("token_revoked")

    def charge_bad_token(self, request: RequestContext, refusal: Refusal) -> None:
        """Charge a bad token to its address, by the limit for bad tokens.

        Raises:
            Refused: ``rate_limited``.
        """
        window = self._limits.bad_token.charge(request.address, request.now)
        self._telemetry.count(metrics.BAD_TOKENS, refusal.code)
        if refusal.code == "secret_key_sent":
            self._telemetry.log.error("secret_key_sent_by_browser", remedy="rotate the key")
        _refuse_exceeded(request, window)

    def charge_unverified(self, request: RequestContext) -> Window:
        """Charge an unverified token as if it were bad; returns the window, for a refund.

        Raises:
            Refused: ``rate_limited``.
        """
        window = self._limits.bad_token.charge(request.address, request.now)
        _refuse_exceeded(request, window)
        return window

    # -- the caller

    def charge_caller(self, request: RequestContext, caller: Caller) -> None:
        """Charge the caller, once a request.

        Raises:
            Refused: ``rate_limited``.
        """
        if request.caller_charged:
            return
        key = caller.limit_key(request.address)
        request.window = window = self._limits.caller.charge(key, request.now)
        request.caller_charged = True
        if window.used > window.granted:
            raise Refused("rate_limited")

    def charge_stream(self, request: RequestContext, caller: Caller) -> None:
        """Charge the caller for a stream in place of a request.

        Raises:
            Refused: ``rate_limited``.
        """
        _charge(request, self._limits.stream, caller.limit_key(request.address))

    def charge_stop(self, request: RequestContext, caller: Caller) -> None:
        """Charge a stop to a limit of its own, in place of the caller's requests.

        Raises:
            Refused: ``rate_limited``.
            LeasePending: quota has to be leased first; nothing was counted.
        """
        key = caller.limit_key(request.address)
        _charge(request, self._limits.stop, key)
        self._limits.caller.refund(key)

    def charge_message(self, request: RequestContext, caller: Caller) -> None:
        """Charge the caller and the environment for a message, all of it or nothing.

        Raises:
            Refused: ``rate_limited``.
            LeasePending: quota has to be leased first; nothing was counted.
        """
        key, limits = caller.limit_key(request.address), self._limits
        counted = (limits.message, key), (limits.message_daily, key)
        charged: list[Window] = []
        try:
            for limiter, of in (*counted, (limits.message_total, caller.environment)):
                charged.append(_charge(request, limiter, of))
        except (Refused, LeasePending):
            for window in charged:
                window.refund()
            raise
        request.window = charged[0]

    # -- the session

    def authorize(self, request: RequestContext, caller: Caller, copy: Copy) -> None:
        """Decide on the copy's own ids: the token may name either of them.

        Raises:
            Refused: ``unauthorized``.
        """
        if (
            copy.environment != caller.environment
            or not caller.granted.covers(copy.id, copy.external_id)
            or (self._revocations.any and self.is_session_revoked(request, caller, copy))
        ):
            raise Refused("unauthorized")

    def refuse_revoked_session(
        self, request: RequestContext, holder: Holder, session_id: str
    ) -> None:
        """Refuse a session that is revoked by the requested id, before there is a copy of it.

        Raises:
            Refused: ``unauthorized``.
        """
        if self._revocations.session(session_id, None, holder.issued, request.wall):
            raise Refused("unauthorized")

    def is_session_revoked(self, request: RequestContext, holder: Holder, copy: Copy) -> bool:
        """Whether tokens issued as early as this one may no longer read the session."""
        return self._revocations.session(copy.id, copy.external_id, holder.issued, request.wall)


def _refuse_exceeded(request: RequestContext, window: Window) -> None:
    if window.exceeded:
        request.window = window
        raise Refused("rate_limited") from None


def _charge(request: RequestContext, limiter: Limiter, key: Hashable) -> Window:
    request.window = window = limiter.charge(key, request.now)
    if window.exceeded:
        raise Refused("rate_limited")
    return window


def _bearer_token(authorization: bytes) -> bytes:
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.startswith(b"tr_"):  # Trigger.dev's API takes a key without a scheme too
        raise Refused("secret_key_sent")
    if scheme.lower() != b"bearer":
        raise Refused("token_invalid", "Send the token as 'Authorization: Bearer <token>'")
    if not token.strip():
        raise Refused("token_missing")
    return token.strip()
