"""Requests with a token that only upstream can verify: they wait before anything is shown.

Upstream verifies a token about a session. So a claimant is admitted by a session that its token
names and, if that is possible, by the requested one.
"""

from bff.errors import Refused
from bff.gateway.chats import Chats
from bff.gateway.context import RequestContext
from bff.gateway.introspection import Introspector
from bff.gateway.pending import Pending
from bff.gateway.routes import CHAT_IN, CHAT_OUT, LIST
from bff.sessions import ids
from bff.tokens.caller import Caller, Claimant


def admit(
    introspector: Introspector, chats: Chats, request: RequestContext, claimant: Claimant
) -> Caller | Pending:
    """Return the caller, if upstream verified the token lately; else let upstream verify it.

    Raises:
        Refused: the token names no session for this request, or as `Introspector.start`.
    """
    caller = introspector.caller(claimant, request.now)
    if caller is not None:
        return caller
    try:
        named, requested = _named(chats, request, claimant)
    except Refused:
        introspector.count_refused(request, claimant)  # 429
        raise
    if requested:
        return introspector.start(request, claimant, named[0])
    return introspector.verify(request, claimant, named)


def _named(
    chats: Chats, request: RequestContext, claimant: Claimant
) -> tuple[tuple[str, ...], bool]:
    """Return ids that the token names, and whether it is the requested session's.

    Raises:
        Refused: ``unauthorized`` or ``invalid_session_id``.
    """
    granted, head = claimant.granted, request.head
    if request.route in (CHAT_IN, CHAT_OUT):
        return (chats.named_id(request, claimant),), False
    if request.route is LIST:
        named = ids.named(granted)
        if not named:
            raise Refused("unauthorized")
        return named, False
    session_id = head.id or ids.parse_id(head.path[len(ids.ROUTE) :])
    if not ids.covers(granted, session_id):
        # A forged token must not learn which sessions the gateway knows.
        named = ids.named_in_other_form(granted, session_id)
        if not named:
            raise Refused("unauthorized")
        return named, False
    if not ids.is_reachable(session_id):
        raise Refused("unauthorized")
    return (session_id,), True
