"""The settings of live session state."""

from collections.abc import Iterable
from dataclasses import dataclass

from bff.config import values
from bff.config.declaration import setting
from bff.config.values import Rate
from bff.sessions.policy import Policy
from bff.stream_registry import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """The settings of event streams on the routes of sessions and lists."""

    enabled: bool = setting(
        values.flag,
        "`true` answers a request that prefers `text/event-stream` with the session, or the list, "
        "as it changes. A reload with `false` ends every such stream; every request then gets JSON",
        default="true",
        name="BFF_LIVE",
    )
    max_listeners: int = setting(
        values.count,
        "open event streams of session state of each worker; one address may have a quarter of "
        "them; further ones get 503. Each takes one of `BFF_MAX_CONNECTIONS`",
        default="10000",
    )
    max_listeners_per_caller: int = setting(
        values.count,
        "open event streams of session state of one caller in each worker; further ones get 429",
        default="10",
    )
    answering: bool = setting(
        values.flag,
        "`true` adds `metadata.answering` to the documents of event streams: whether the agent is "
        "answering. The gateway then asks upstream about each session that a listener follows",
        default="false",
        name="BFF_EXPOSE_ANSWERING",
    )
    answering_budget: Rate | None = setting(
        values.rate,
        "requests that the gateway may send upstream for `BFF_EXPOSE_ANSWERING`, beside those of "
        "`BFF_UPSTREAM_BUDGET`; `off` for no bound",
        default="5/second",
    )

    @property
    def bounds(self) -> Bounds:
        """The bounds of open event streams."""
        return Bounds(streams=self.max_listeners, streams_per_caller=self.max_listeners_per_caller)


def problems(live: LiveSettings, policies: Iterable[Policy]) -> list[str]:
    """List the problems of settings that contradict one another, each with a remedy."""
    firsts = {path.partition(".")[0] for policy in policies for path in policy.metadata}
    if not live.answering or firsts.isdisjoint(("answering", "*")):
        return []
    problem = (
        "BFF_EXPOSE_ANSWERING would replace metadata.answering of the application, which "
        "BFF_EXPOSE_METADATA shows; name the keys of BFF_EXPOSE_METADATA without it and without "
        "*, or remove one of the settings"
    )
    return [problem]
