"""The settings of event streams in the form that running objects use."""

from dataclasses import dataclass

from bff.stream_registry import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """The settings of event streams.

    Attributes:
        enabled: whether a request may have one.
        answering: whether its documents tell that the agent is answering.
    """

    enabled: bool
    answering: bool
    bounds: Bounds
