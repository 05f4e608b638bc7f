"""Several sessions for one request: the members of a list, or sessions whose ids are compared.

Each member has the same copy, load and decision as a session alone.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from bff.copies.loader import Loader
from bff.errors import Refusal, Refused
from bff.gateway.admission import Admission
from bff.gateway.context import RequestContext
from bff.gateway.introspection import Introspector, PendingIntrospection
from bff.gateway.lookup import Lookup
from bff.gateway.pending import PendingLoad, Served
from bff.tokens.caller import Caller

WHOLE_REQUEST: Final = frozenset(("token_invalid", "token_revoked", "rate_limited"))
"""Codes of refusals that end the whole request, because every other member would get them too."""


@dataclass(eq=False)
class Members:
    """Finds members by one configuration."""

    admission: Admission
    introspector: Introspector
    lookup: Lookup
    loader: Loader

    def hold(self, caller: Caller) -> AbstractContextManager[None]:
        """Start no load inside the `with` block; after it sessions without a copy come first."""
        return self.loader.queue(caller.environment).hold()

    def find(
        self, request: RequestContext, caller: Caller, session_id: str
    ) -> Served | PendingLoad | PendingIntrospection | Refusal:
        """Find one member.

        Raises:
            Refused: one of `WHOLE_REQUEST`; others are about this member, and returned.
        """
        try:
            if not self.introspector.is_accepted(caller, session_id, request.now):
                return self.introspector.start(request, caller, session_id)
            self.admission.charge_caller(request, caller)
            return self.lookup.find(request, caller, session_id, alone=False)
        except Refused as refused:
            if refused.refusal.code in WHOLE_REQUEST:
                raise
            return refused.refusal
