"""The message policy: which messages browsers may append to a chat, and what of them is sent. Pure.

Trigger.dev stores a body as it comes, and the agent believes its fields. So the policy is an
allow-list, and the gateway writes each message anew: no byte of the browser's body is sent as it
was. The checks before the parse bound its cost.
"""

import json
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from bff import strict_json
from bff.errors import Refused

MAX_DEPTH: Final = 64
"""Levels of nested objects and lists in one message."""
MAX_STRUCTURE: Final = 65_536
"""Brackets, braces and commas of one message: results of tools have more than a document."""
KEPT: Final = frozenset(("message", "chatId", "trigger", "messageId", "metadata", "action"))
"""Keys of a payload that the official transport sends."""
BELIEVED: Final = frozenset(
    (
        *("actionSource", "channelEvent", "continuation", "headStartMessages"),
        *("idleTimeoutInSeconds", "isHandover", "messages", "previousRunId", "sessionId"),
    )
)
"""Keys of a payload by which an agent is steered; no setting may let browsers send them."""
_TRIGGERS: Final = frozenset(("submit-message", "regenerate-message", "action"))
"""A `trigger` of another value would close the chat, or hand it over to another run."""
_RESOLVED: Final = frozenset(
    ("output-available", "output-error", "output-denied", "approval-responded")
)
"""States of a tool part that the browser's user decides."""
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
"""A string, or the rest of a body that ends in one: without that, each quote would start a search
to the end of the body."""
_ABSENT: Final = object()
_OTHERS: Final = bytes(set(range(256)) - set(b"[]{}"))
_LEVELS: Final = {ord(bracket): 1 if bracket in "[{" else -1 for bracket in "[]{}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePolicy:
    """An allow-list of what browsers may append.

    Attributes:
        fields: further keys of a payload that are kept.
        identity_field: the key of `metadata` that holds the signed identity; None for none.
    """

    fields: frozenset[str] = frozenset()
    identity_field: str | None = None

    def read(self, body: bytes) -> "Message":
        """Read *body*, whose size is bounded.

        Raises:
            Refused: ``invalid_message``.
        """
        value = _parse(body)
        kind = value.get("kind")
        dropped = len(value.keys() - {"kind", "payload"})
        if kind == "stop":
            return Message("stop", None, None, dropped + ("payload" in value))
        if kind != "message":
            raise _refused("kind must be 'message' or 'stop'")
        payload = value.get("payload")
        if not isinstance(payload, dict):
            raise _refused("payload must be an object")
        kept = {key: payload[key] for key in payload if key in KEPT or key in self.fields}
        dropped += len(payload) - len(kept)
        metadata = kept.get("metadata", {})
        if not isinstance(metadata, dict):
            raise _refused("metadata must be an object, or absent")
        _check_payload(kept)
        if self.identity_field is not None:
            dropped += _drop(kept, self.identity_field) + _drop(
                kept.get("message"), self.identity_field
            )
        return Message("message", kept, self.identity_field, dropped)


@dataclass(frozen=True, slots=True)
class Message:
    """A message that the policy allows.

    Attributes:
        payload: what is kept of the payload; None for a stop.
        dropped: how many keys are not sent.
    """

    kind: str
    payload: Mapping[str, Any] | None
    identity_field: str | None
    dropped: int

    @property
    def chat_id(self) -> str | None:
        """The id by which the message names its session; a stop names none."""
        return None if self.payload is None else self.payload["chatId"]

    def check_chat(self, ids: Container[str]) -> None:
        """Refuse a message that names none of *ids*, those of its session.

        Raises:
            Refused: ``foreign_chat``.
        """
        if self.chat_id is not None and self.chat_id not in ids:
            raise Refused("foreign_chat")

    def encode(self, session_id: str, sign: Callable[[], str]) -> bytes:
        """Write the message for the session *session_id*, which `check_chat` has checked.

        Args:
            session_id: the id of the path.
            sign: makes the signed identity; called only if the policy names a field for it.
        """
        if self.payload is None:
            return b'{"kind":"stop"}'
        payload = dict(self.payload) | {"chatId": session_id}
        if self.identity_field is not None:
            metadata = payload.get("metadata", {})
            payload["metadata"] = {**metadata, self.identity_field: sign()}
        text = json.dumps(
            {"kind": self.kind, "payload": payload}, ensure_ascii=False, separators=(",", ":")
        )
        # JavaScript can send half a surrogate pair; UTF-8 cannot, so its escape is kept.
        return text.encode(errors="backslashreplace")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        if _depth_exceeds(body, MAX_DEPTH):
            raise _refused(f"it may be nested at most {MAX_DEPTH} levels deep")
        value = strict_json.loads(body.decode(), most=MAX_STRUCTURE)
    except ValueError:
        raise _refused(
            "it must be one JSON object in UTF-8, without repeated keys and non-finite numbers"
        ) from None
    if not isinstance(value, dict):
        raise _refused("it must be one JSON object")
    return value


def _depth_exceeds(body: bytes, bound: int) -> bool:
    """Whether brackets are nested deeper than *bound*, without a recursion."""
    brackets = body.translate(None, _OTHERS)
    if len(brackets) <= bound:
        return False
    brackets = _STRING.sub(b"", body).translate(None, _OTHERS)
    return max(accumulate(map(_LEVELS.__getitem__, brackets)), default=0) > bound


def _check_payload(payload: Mapping[str, Any]) -> None:
    trigger = payload.get("trigger")
    if not isinstance(trigger, str) or trigger not in _TRIGGERS:
        raise _refused(f"trigger must be one of {', '.join(sorted(_TRIGGERS))}")
    if not isinstance(payload.get("chatId"), str):
        raise _refused("chatId must be the id of this session")
    if not isinstance(payload.get("messageId", ""), str | None):
        raise _refused("messageId must be a string")
    if "message" in payload:
        _check_message(payload["message"])
    elif trigger == "submit-message":
        raise _refused("message is missing")


def _check_message(message: object) -> None:
    """Refuse every role but ``user``, and ``assistant`` where it only resolves tool calls."""
    parts = message.get("parts", []) if isinstance(message, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise _refused("message must be an object, and its parts a list of objects")
    role = message.get("role") if isinstance(message, dict) else None
    if role == "user":
        return
    if role != "assistant" or not parts or not all(map(_is_resolved, parts)):
        raise _refused(
            "the role of a message must be user, or assistant if all parts are resolved tool parts"
        )


def _is_resolved(part: Mapping[str, Any]) -> bool:
    type_, state = part.get("type"), part.get("state")
    return (
        isinstance(type_, str)
        and (type_.startswith("tool-") or type_ == "dynamic-tool")
        and isinstance(state, str)
        and state in _RESOLVED
    )


def _drop(holder: Any, key: str) -> bool:
    """Drop *key* of a `metadata`; tell whether it had the key."""
    metadata = holder.get("metadata") if isinstance(holder, dict) else None
    return isinstance(metadata, dict) and metadata.pop(key, _ABSENT) is not _ABSENT


def _refused(rule: str) -> Refused:
    return Refused("invalid_message", f"The message is not allowed: {rule}")
