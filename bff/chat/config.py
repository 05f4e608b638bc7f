"""The settings of chats in the form that running objects use."""

from collections.abc import Sequence
from dataclasses import dataclass

from bff.chat.identity import Signer
from bff.chat.messages import MessagePolicy
from bff.chat.streams import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """The settings of chats.

    Attributes:
        enabled: whether the two routes are served.
        messages: what may be sent; None for every body as it comes.
        signer: signs identities; None for none.
        identity_headers: names of header lines of the trusted proxy that an identity repeats.
        shows_reason: whether the policy shows why a session was closed.
        drain_seconds: over which the ends of streams are spread when the process stops.
    """

    enabled: bool
    messages: MessagePolicy | None
    signer: Signer | None
    identity_headers: Sequence[bytes]
    bounds: Bounds
    max_message_bytes: int
    shows_reason: bool
    drain_seconds: float
