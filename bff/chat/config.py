"""The settings of chats in the form that running objects use."""

from collections.abc import Sequence
from dataclasses import dataclass

from bff.chat.identity import Signer
from bff.chat.messages import MessagePolicy
from bff.stream_registry import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """The settings of chats.

    Attributes:
        enabled: whether the two routes are served.
        messages: the policy for messages; None if every body is sent unchanged.
        signer: signs identities; None if messages carry none.
        identity_headers: names of header lines of the trusted proxy that an identity repeats.
        shows_reason: whether the policy shows why a session was closed.
        drain_seconds: when the process stops, it ends streams evenly over this time.
    """

    enabled: bool
    messages: MessagePolicy | None
    signer: Signer | None
    identity_headers: Sequence[bytes]
    bounds: Bounds
    max_message_bytes: int
    shows_reason: bool
    drain_seconds: float
