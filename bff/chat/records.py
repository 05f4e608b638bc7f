"""Passes on what browsers may see of a chat's stream. Pure, and the same for any cut of the bytes.

Upstream sends server-sent events. They are parsed by the rules of WHATWG, and what is allowed is
written anew. A finished turn brings a token of Trigger.dev, in the headers of a control record or,
from old agents, in a data record; so a record is classified before any part of it is left out, and
everything beside the bodies of data records is an allow-list. A body is the app's own output and
passes as it is, unless it is one of Trigger.dev's own chunks.
"""

import json
import re
from collections.abc import MutableMapping
from json.encoder import encode_basestring
from typing import Any, Final

from bff import metrics, strict_json

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of one event. Upstream reads at most 1 MiB of records at a time; as JSON within JSON, a
record of control characters takes up to seven times its size."""
ERROR: Final = b"event: error\ndata: The stream has failed upstream; resume it\n\n"
"""Stands for upstream's own event, whose text may tell anything."""
UNREADABLE: Final = b"event: error\ndata: The stream cannot be read further\n\ndata: [DONE]\n\n"
"""The end of a stream that resuming would not mend."""
_PING: Final = b"event: ping\ndata: {}\n\n"
_DONE: Final = b"data: [DONE]\n\n"
_BOM: Final = b"\xef\xbb\xbf"
_SIMPLE: Final = re.compile(r"(?:id:[^\n]*\n)?event: ([^\n]*)\n(?:id:[^\n]*\n)?data: ([^\n]*)")
"""An event as upstream writes it; the general rule gives the same, at three times the cost."""
_COMMAND: Final = ""
"""The name of the first header of a command to the stream's storage."""
_CONTROL: Final = "trigger-control"
_TURN_END: Final = "turn-complete"
_IN_EVENT: Final = "session-in-event-id"
"""The header that names the last message that a turn has answered."""
_ALLOWED: Final = {
    _COMMAND: re.compile(r"[a-z-]{1,32}"),
    _CONTROL: re.compile(r"[a-z-]{1,64}"),
    _IN_EVENT: re.compile(r"[0-9]{1,20}"),
    "session-closed": re.compile(r"true|false"),
}
"""Headers of commands and controls that are kept, each with its values."""
_REASON: Final = "session-closed-reason"
_NAMED: Final = frozenset(
    (*_ALLOWED, _REASON, "public-access-token", "session-in-consumed-id", "last-event-id")
)
"""Headers that metrics name; every other is counted as ``other``."""
_OWN: Final = "trigger:"
"""Prefix of the types of Trigger.dev's own chunks."""
_ENVELOPE: Final = frozenset(("data", "id"))
"""Keys of a body: the app's chunk, and the id by which the official client drops repetitions."""
_MAX_STRINGS: Final = 4
"""Levels of JSON within strings that the filter parses."""
_BEGINNINGS: Final = frozenset('{["')
_PLAIN_TYPE: Final = re.compile(r"trigger:[a-z-]{1,64}")
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,21}")
"""An id of Trigger.dev's own record: shorter than any key or token."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
"""An id of the app's record, shorter than a token. The official client's ids have 7 letters."""
_MAX_SEQUENCE: Final = 10**16
"""Upper bound of sequence numbers, because a cursor has at most sixteen digits."""


class Unreadable(Exception):
    """A record cannot be read, so nothing after it can be passed on."""


class _Odd(ValueError):
    """A body is JSON, but two parsers could read it differently."""


class RecordFilter:
    """Filters one stream.

    Args:
        counts: what to count in; see `Telemetry.counts`.
        shows_reason: whether the policy shows why a session was closed.
        max_event_bytes: bound on one event.
        cursor: the sequence number of the last record that the browser has.
    """

    def __init__(
        self,
        counts: MutableMapping[tuple[str | int, ...], float],
        *,
        shows_reason: bool = False,
        max_event_bytes: int = MAX_EVENT_BYTES,
        cursor: int = -1,
    ) -> None:
        self.failed = False
        """Whether an event could not be read, so that the stream has ended with `UNREADABLE`."""
        self.cursor = cursor
        """The sequence number of the last record that the browser has; -1 for none."""
        self.records = 0
        """Data records that were passed on."""
        self.answered = -1
        """The number of the last message whose turn has ended, by the controls; -1 if none has."""
        self._counts = counts
        self._shows_reason = shows_reason
        self._max = max_event_bytes
        self._rest = bytearray()
        """Bytes of an event that is not complete."""
        self._began = False
        self._after_cr = False

    @property
    def buffered(self) -> int:
        """Bytes of the event that is not complete."""
        return len(self._rest)

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; return the events that they complete."""
        if self.failed:
            return b""
        data = self._normalize(data)
        rest = self._rest
        if not rest and self._began and data.find(b"\n\n") == len(data) - 2 > 0:
            return self._checked_event(data[:-2])  # one event, as nearly always
        searched = max(0, len(rest) - 1)
        rest += data
        if not self._began:
            if len(rest) < len(_BOM) and _BOM.startswith(bytes(rest)):
                return b""
            self._began = True
            rest[:] = rest.removeprefix(_BOM)
        written = []
        begin = 0
        while not self.failed and (end := rest.find(b"\n\n", searched)) >= 0:
            if end > begin:
                written.append(self._checked_event(bytes(rest[begin:end])))
            begin = searched = end + 2
        del rest[:begin]
        # The last byte of the rest may end a line, and so an event.
        if self.failed:
            self._rest = bytearray()
        elif len(rest) > self._max + 1:
            written.append(self._fail())
        return b"".join(written)

    def _checked_event(self, event: bytes) -> bytes:
        """Filter an event; one that is too large or cannot be read ends the stream."""
        if len(event) > self._max:
            return self._fail()
        passed = self._event(event.decode(errors="replace"))
        return passed + self._fail() if self.failed else passed

    def _fail(self) -> bytes:
        self.failed = True
        self._rest = bytearray()
        return UNREADABLE

    def _normalize(self, data: bytes) -> bytes:
        """Replace each CR and CRLF with LF; a CRLF may be cut in two."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            if not data:
                self._after_cr = False
                return data
        if data:
            self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    # -- events

    def _event(self, text: str) -> bytes:
        simple = _SIMPLE.fullmatch(text)
        if simple is not None:
            kind, data = simple.groups()
        else:
            kind, lines = "", []
            for line in text.split("\n"):
                name, _, value = line.partition(":")
                if name == "data":
                    lines.append(value.removeprefix(" "))
                elif name == "event":
                    kind = value.removeprefix(" ")
            if not lines:
                return b""  # comments, or an id alone: no event
            data = "\n".join(lines)
        if kind == "batch":
            self._count("batch")
            return self._batch(data)
        if kind == "ping":
            self._count("ping")
            return _PING
        if kind == "error":
            self._count("error")
            return ERROR
        if kind in ("", "message") and data == "[DONE]":
            self._count("done")
            return _DONE
        self._count("other")
        return b""

    def _count(self, event: str) -> None:
        self._counts[metrics.STREAM_EVENTS, event] += 1

    def _batch(self, data: str) -> bytes:
        passed: list[str] = []
        try:
            for record in _load(data)["records"]:
                passed.append(self._record(record))  # noqa: PERF401  those before a failure count
        except (Unreadable, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            self.failed = True
        if not passed:
            return b""
        # The id of upstream has three numbers, but a cursor is one.
        records = ",".join(passed)
        text = f'event: batch\nid: {self.cursor}\ndata: {{"records":[{records}]}}\n\n'
        return text.encode(errors="backslashreplace")

    # -- records

    def _record(self, record: dict[str, Any]) -> str:
        """Write a record anew."""
        number = record["seq_num"]
        if type(number) is not int or not 0 <= number < _MAX_SEQUENCE:
            raise Unreadable
        body, kept = "", "[]"
        headers = record.get("headers")
        if headers and self._is_control(headers):
            shown = self._headers(headers)
            self._note_turn(dict(shown))
            kept = strict_json.dumps(shown)
        else:
            body = self._body(record.get("body"))
            self.records += 1
        self.cursor = number
        timestamp = record.get("timestamp")
        time = f'"timestamp":{timestamp},' if type(timestamp) is int else ""
        # A whole encoder costs as much as the rest of the filter.
        return f'{{"seq_num":{number},{time}"headers":{kept},"body":{encode_basestring(body)}}}'

    def _is_control(self, headers: object) -> bool:
        """Whether a record is a command, a control or malformed: its body is not for browsers."""
        if not isinstance(headers, list):
            return True
        names = [_name(header) for header in headers]
        if any(name is None or name.strip().lower() in (_COMMAND, _CONTROL) for name in names):
            return True
        for name in names:
            self._count_header(name)
        return False

    def _note_turn(self, headers: dict[str, str]) -> None:
        if headers.get(_CONTROL) == _TURN_END and _IN_EVENT in headers:
            self.answered = max(self.answered, int(headers[_IN_EVENT]))

    def _headers(self, headers: object) -> list[tuple[str, str]]:
        """Return the headers that browsers may see."""
        kept = []
        for header in headers if isinstance(headers, list) else ():
            name = _name(header)
            value = header[1] if name is not None and len(header) > 1 else None
            if isinstance(value, str) and self._is_allowed(name, value):
                kept.append((name or "", value))
            else:
                self._count_header(name)
        return kept

    def _is_allowed(self, name: str | None, value: str) -> bool:
        if name == _REASON:
            return self._shows_reason
        values = _ALLOWED.get(name or "") if name is not None else None
        return values is not None and values.fullmatch(value) is not None

    def _count_header(self, name: str | None) -> None:
        label = name if name in _NAMED else "other"
        self._counts[metrics.STREAM_HEADERS_DROPPED, label or "command"] += 1

    # -- bodies of data records

    def _body(self, body: object) -> str:
        """Return a body as it may be passed on: nearly always as it is."""
        if body is None or body == "":
            return ""
        if not isinstance(body, str):
            raise Unreadable
        try:
            envelope = _load_unique(body)
            if isinstance(envelope, dict) and _own(envelope) is None:
                return _passed_envelope(body, envelope)
            own = _own_type(envelope)  # a chunk without an envelope
        except json.JSONDecodeError:
            raise Unreadable from None
        except (ValueError, RecursionError):
            self._count("odd_body")
            return ""
        return body if own is None else strict_json.dumps({"type": own})


def _passed_envelope(body: str, envelope: dict[str, Any]) -> str:
    """Return the body of a data record, parsed as *envelope*, without what is not for browsers."""
    chunk = envelope.get("data")
    own = _own_type(chunk)
    if own is not None:
        stub: Any = {"type": own}
        kept = {"data": stub if isinstance(chunk, dict) else strict_json.dumps(stub)}
        id_ = envelope.get("id")
        if isinstance(id_, str) and _SHORT_ID.fullmatch(id_):
            kept["id"] = id_
        return strict_json.dumps(kept)
    dropped = envelope.keys() - _ENVELOPE
    if not _is_id(envelope.get("id")):
        dropped.add("id")
    if not dropped:
        return body
    # Parsed again, because `_load_unique` reads a whole number as a float.
    return strict_json.dumps(
        {key: value for key, value in json.loads(body).items() if key not in dropped}
    )


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return _ID.fullmatch(value) is not None
    return not isinstance(value, dict | list)


def _name(header: object) -> str | None:
    """The name of a record's header; None if it is malformed."""
    name = header[0] if isinstance(header, list) and header else None
    return name if isinstance(name, str) else None


def _own_type(chunk: object) -> str | None:
    """The type of a chunk of Trigger.dev's own format; a string is searched for JSON.

    Raises:
        ValueError: two parsers could read it differently, or such a chunk is where no official
            client looks for one.
    """
    for _ in range(_MAX_STRINGS):
        if not isinstance(chunk, str):
            break
        if chunk.lstrip()[:1] not in _BEGINNINGS:
            return None  # a text of the app; to let the parser fail costs more
        try:
            chunk = _load_unique(chunk)
        except json.JSONDecodeError:
            return None  # a text of the app
    else:
        raise _Odd
    inner: Any = ()
    if isinstance(chunk, dict):
        if "type" in chunk:
            return _own(chunk)
        inner = [chunk[key] for key in chunk.keys() & _ENVELOPE]  # an envelope in an envelope
    elif isinstance(chunk, list):
        inner = [one for one in chunk if isinstance(one, (dict, list, str))]
    if any(_own_type(one) is not None for one in inner):
        raise _Odd
    return None


def _own(chunk: dict[str, Any]) -> str | None:
    """The type of an object of Trigger.dev's own format; None for an object of the app."""
    type_ = chunk.get("type")
    if not (isinstance(type_, str) and type_.lstrip().lower().startswith(_OWN)):
        return None
    return type_ if _PLAIN_TYPE.fullmatch(type_) else _OWN


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Odd
    return members


def _no_json(constant: str) -> None:
    raise json.JSONDecodeError("not JSON", constant, 0)


_load: Final = strict_json.loader(json.JSONDecoder())
_load_unique: Final = strict_json.loader(
    json.JSONDecoder(object_pairs_hook=_unique, parse_int=float, parse_constant=_no_json)
)
"""Reads a body. A whole number becomes a float, so a number of any length can be read."""
