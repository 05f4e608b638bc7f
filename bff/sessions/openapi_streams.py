"""The event streams of the OpenAPI document, and the messages that chats take. Pure.

OpenAPI 3.1 has no words for events. So a stream is a string that holds a list of events, in the
form of OpenAPI 3.2: an event is an object of its fields, and its `data` is a string of JSON.
"""

from typing import Final

from bff import metrics
from bff.sessions.fields import FIELDS, Schema
from bff.sessions.openapi_answers import JSON, TEXT, list_of, object_of, reference

EVENTS: Final = "text/event-stream"
_LIVE_EXAMPLE: Final = """\
retry: 3000

id: 0123456789abcdef0123456789abcdef0123
event: gone
data: {"id":"chat-1"}

: ok

event: end
data: {"reason":"expired"}

"""
_CHAT_EXAMPLE: Final = """\
event: batch
id: 4
data: {"records":[{"seq_num":4,"headers":[],"body":"{\\"data\\":{\\"type\\":\\"finish\\"}}"}]}

event: ping
data: {}

"""
_ANSWERING: Final[Schema] = {
    "type": "boolean",
    "description": "Whether the agent is answering; absent while that is not known",
}
_LIVE_ID: Final = TEXT | {"description": "Stands for all that is shown: send it as Last-Event-ID"}
_CURSOR: Final = TEXT | {"description": "The number of the last record: send it as Last-Event-ID"}


def live_content() -> Schema:
    """Describe the stream of a session or of a list."""
    return _content("LiveEvent", _LIVE_EXAMPLE)


def chat_content() -> Schema:
    """Describe the stream of a chat."""
    return _content("ChatEvent", _CHAT_EXAMPLE)


def _content(name: str, example: str) -> Schema:
    schema = TEXT | {"contentMediaType": EVENTS, "contentSchema": list_of(reference(name))}
    return {EVENTS: {"schema": schema, "example": example}}


def live_schemas(schemas: Schema, *, answering: bool) -> Schema:
    """Name the schemas of live events.

    Args:
        schemas: those of what polls get, by name.
        answering: whether documents tell that the agent is answering.
    """
    unavailable = schemas["Sessions"]["properties"]["unavailable"]
    document = reference("LiveSession" if answering else "Session")
    everything = {"data": list_of(document), "unavailable": unavailable}
    ends = {"type": "string", "enum": [*metrics.LISTENER_REASONS]}
    return {
        "LiveEvent": {
            "description": "Fields of an event; comments, such as `: ok`, have no event",
            "anyOf": [
                _event("sessions", reference("LiveSessions"), id=_LIVE_ID),
                _event("session", document, id=_LIVE_ID),
                _event("gone", reference("LiveGone"), id=_LIVE_ID),
                _event("end", reference("LiveEnd")),
            ],
        },
        "LiveSessions": object_of(everything, optional=("unavailable",))
        | {"description": "Everything that the stream shows: replace all"},
        "LiveGone": object_of({"id": TEXT})
        | {"description": "A session that is no longer shown, as the token names it"},
        "LiveEnd": object_of({"reason": ends})
        | {"description": "The last event: connect again, with a new token"},
        **({"LiveSession": _with_answering(schemas["Session"])} if answering else {}),
    }


def _with_answering(session: Schema) -> Schema:
    """Describe the document of an event by the schema of a poll's document."""
    if "anyOf" in session:
        return {"anyOf": [_with_answering(kind) for kind in session["anyOf"]]}
    properties = session["properties"]
    shown = properties["metadata"].get("type") == FIELDS["metadata"].schema["type"]
    metadata: Schema = {"type": ["object", "null"], "properties": {"answering": _ANSWERING}}
    if not shown:  # the policy shows no other member
        metadata["additionalProperties"] = False
    return session | {"properties": properties | {"metadata": metadata}}


def chat_schemas() -> Schema:
    """Name the schemas of the events of a chat."""
    number: Schema = {"type": "integer", "minimum": 0}
    header = list_of(TEXT) | {"minItems": 2, "maxItems": 2}
    text = "JSON of the agent; empty if the record has headers, or is not for browsers"
    record = object_of(
        {
            "seq_num": number,
            "timestamp": number,
            "headers": list_of(header),
            "body": TEXT | {"description": text},
        },
        optional=("timestamp",),
    )
    error = {"event": {"const": "error"}, "data": TEXT}
    return {
        "ChatEvent": {
            "description": "Fields of an event",
            "anyOf": [
                _event("batch", reference("ChatRecords"), id=_CURSOR),
                _event("ping", object_of({})),
                object_of(error) | {"description": "The stream has failed upstream"},
                object_of({"data": {"const": "[DONE]"}})
                | {"description": "Nothing comes after it: do not connect again"},
            ],
        },
        "ChatRecords": object_of({"records": list_of(record)}),
    }


def message_schemas(*, any_message: bool) -> Schema:
    """Name the schemas of a message and of its answer; with *any_message* it may be anything."""
    anything: Schema = {"type": "object"}
    said = object_of(
        {"role": {"enum": ["user", "assistant"]}, "parts": list_of(anything)},
        optional=("parts",),
        closed=False,
    )
    payload = object_of(
        {
            "trigger": {"enum": ["submit-message", "regenerate-message", "action"]},
            "chatId": TEXT,
            "messageId": {"type": ["string", "null"]},
            "message": said,
            "metadata": anything,
            "action": {},
        },
        optional=("messageId", "message", "metadata", "action"),
        closed=False,
    )
    stop = object_of({"kind": {"const": "stop"}}, closed=False)
    message = object_of({"kind": {"const": "message"}, "payload": payload}, closed=False)
    described: Schema = {
        "description": "A message of the official transport; a stop has no payload",
        "anyOf": [message, stop],
        "examples": [{"kind": "stop"}],
    }
    return {
        "Message": {"description": "A message of any form"} if any_message else described,
        "MessageAccepted": object_of(
            {
                "ok": {"const": True},
                "seq": {"type": "integer"},
                "pendingVersion": {"type": "boolean"},
            },
            optional=("seq", "pendingVersion"),
        ),
    }


def _event(name: str, data: Schema, **fields: Schema) -> Schema:
    content = TEXT | {"contentMediaType": JSON, "contentSchema": data}
    return object_of({"event": {"const": name}, **fields, "data": content})
