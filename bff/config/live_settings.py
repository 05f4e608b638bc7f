"""The settings of live session state."""

from dataclasses import dataclass

from bff.config import values
from bff.config.declaration import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """The settings of event streams on the routes of sessions and lists."""

    enabled: bool = setting(
        "BFF_LIVE",
        values.flag,
        "`true` answers a request that prefers `text/event-stream` with the session, or the list, "
        "as it changes. A reload with `false` ends every such stream; every request then gets JSON",
        default="true",
    )
    max_listeners: int = setting(
        "BFF_MAX_LISTENERS",
        values.count,
        "open event streams of session state of each worker; one address may have a quarter of "
        "them; further ones get 503. Each takes one of `BFF_MAX_CONNECTIONS`",
        default="10000",
    )
    max_listeners_per_caller: int = setting(
        "BFF_MAX_LISTENERS_PER_CALLER",
        values.count,
        "open event streams of session state of one caller in each worker; further ones get 429",
        default="10",
    )
