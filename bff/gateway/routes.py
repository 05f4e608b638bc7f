"""Which route a request is for.

The raw path decides, so a percent-encoded form of a route does not match it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bff.errors import Refused
from bff.request import RequestHead
from bff.sessions import ids


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One route. Routes are compared by identity, several times a request.

    Attributes:
        label: its name in metrics and in the log.
        page: the public JSON that it answers with; None for a route that needs a token.
        instead: the text of a 405; None for the usual one.
        methods: the methods that it serves beside OPTIONS.
    """

    label: str
    page: bytes | None = None
    instead: str | None = None
    methods: tuple[str, ...] = ("GET", "HEAD")


SESSION: Final = Route("session")
LIST: Final = Route(
    "list", instead="Sessions are started at the Trigger.dev API, not at this gateway"
)
CHAT_IN: Final = Route("chat_in", methods=("POST",))
"""Messages to a chat."""
CHAT_OUT: Final = Route("chat_out", methods=("GET",))
"""The stream of a chat."""
OTHER: Final = Route("other")
"""The route of a request that matches none, or that ends before it is matched."""
CHAT_ROUTE: Final = b"/realtime/v1/sessions/"
"""Prefix of the paths of chats; the id of a session and one of `_CHAT_ROUTES` follow."""
_WRONG_BASE: Final = (
    "The base URL is wrong: the gateway's paths begin with /api/ or /realtime/, so a proxy in "
    "front must remove what comes before"
)
_CHAT_ROUTES: Final = ((b"/in/append", CHAT_IN), (b"/out", CHAT_OUT))


class Routes:
    """Matches the routes of the browser port; *pages* holds public JSON by path.

    *chat* tells whether the routes of chats are served.
    """

    def __init__(self, pages: Mapping[bytes, bytes], *, chat: bool = False) -> None:
        self._chat = chat
        self._pages = {path: Route("page", page) for path, page in pages.items()}

    def is_page(self, head: RequestHead) -> bool:
        """Whether a request is for public JSON, which holds no session."""
        return head.path in self._pages

    def match(self, head: RequestHead) -> Route:
        """Match a request by its path.

        Raises:
            Refused: ``not_served`` (410) or ``not_found`` (404).
        """
        path = head.path
        if path.startswith(ids.ROUTE) and b"/" not in path[len(ids.ROUTE) :]:
            return SESSION
        if path == ids.LIST_ROUTE:
            return LIST
        page = self._pages.get(path)
        if page is not None:
            return page
        if self._chat and path.startswith(CHAT_ROUTE):
            route = match_chat(path)
            if route is not None:
                return route[0]
        if path.startswith((b"/api/", b"/realtime/")):
            raise Refused("not_served")
        if b"/api/" in path or b"/realtime/" in path:
            # The base URL is wrong. After a 404 the SDK's chat transport would start a paid run.
            raise Refused("not_served", _WRONG_BASE)
        raise Refused("not_found", "The gateway has no such route")


def match_chat(path: bytes) -> tuple[Route, bytes] | None:
    """Match a path below `CHAT_ROUTE`: its route, and the raw segment of the session's id."""
    rest = path[len(CHAT_ROUTE) :]
    for end, route in _CHAT_ROUTES:
        if rest.endswith(end) and b"/" not in rest[: -len(end)]:
            return route, rest[: -len(end)]
    return None
