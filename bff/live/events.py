"""The events of a listener as bytes (WHATWG: server-sent events), and their ids. Pure.

The id of an event stands for everything that the listener shows: it is the sum of one stamp for
each session. A stamp is made of the entity tag of the shown document, so all replicas make equal
ids, and one change costs one addition, however long the list is.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

_STAMP_BYTES: Final = 18
"""Bytes of an entity tag's digest; see `bff.digests.etag`."""
_STAMPS: Final = 1 << 8 * _STAMP_BYTES
FRESH: Final = b": ok\n\n"
"""The comment of a heartbeat: proxies and browsers see that the connection lives."""
OLD: Final = b": copies are old\n\n"
"""The comment of a heartbeat while a session that the listener follows cannot be loaded."""
_RETRY_MILLISECONDS: Final = 1000
_RETRY_SPREAD: Final = 4000


@lru_cache(maxsize=256)  # a change is shown to many listeners
def stamp(etag: bytes, answering: bool | None = None) -> int:  # noqa: FBT001
    """Make the stamp of a shown document from its entity tag, and from what is added to it."""
    digest = base64.urlsafe_b64decode(etag.strip(b'"'))
    if answering is not None:
        digest = sha256(digest + b"%d" % answering).digest()[:_STAMP_BYTES]
    return int.from_bytes(digest, "big")


@lru_cache(maxsize=32)  # few, because a document may be large
def with_answering(body: bytes, answering: bool | None) -> bytes:  # noqa: FBT001
    """Add to an encoded document whether the agent is answering, if that is known."""
    if answering is None:
        return body
    document = json.loads(body)
    document["metadata"] = {**(document["metadata"] or {}), "answering": answering}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def stamp_of_refusal(name: str, code: str) -> int:
    """Make the stamp of a session that is reported as unavailable: it is negative."""
    digest = sha256(json.dumps([name, code]).encode()).digest()
    return -int.from_bytes(digest[:_STAMP_BYTES], "big")


def add(total: int, before: int, after: int) -> int:
    """Replace one stamp in a sum of stamps."""
    return (total - before + after) % _STAMPS


def event_id(total: int) -> bytes:
    """Write the id of the events that lead to *total*."""
    return b"%036x" % total


def opening(request_id: bytes) -> bytes:
    """Make the first line: when a browser that lost the connection comes back, in milliseconds.

    The request's id spreads the times, so that the listeners of a replica that died come spread.
    """
    spread = int.from_bytes(sha256(request_id).digest()[:4], "big") % _RETRY_SPREAD
    return b"retry: %d\n\n" % (_RETRY_MILLISECONDS + spread)


def sessions(documents: Iterable[bytes], unavailable: list[dict[str, str]], total: int) -> bytes:
    """Make the first event: all sessions that the listener shows, as encoded *documents*."""
    rest = b',"unavailable":%b' % _json(unavailable) if unavailable else b""
    data = b'{"data":[%b]%b}' % (b",".join(documents), rest)
    return b"id: %b\nevent: sessions\ndata: %b\n\n" % (event_id(total), data)


@lru_cache(maxsize=8)  # all who follow one session alone get the same bytes
def session(document: bytes, total: int) -> bytes:
    """Make the event for one new or changed session. JSON holds no line break."""
    return b"id: %b\nevent: session\ndata: %b\n\n" % (event_id(total), document)


def gone(name: str, total: int) -> bytes:
    """Make the event for a session that is no longer shown."""
    return b"id: %b\nevent: gone\ndata: %b\n\n" % (event_id(total), _json({"id": name}))


def end(reason: str) -> bytes:
    """Make the last event. It has no id, so that a browser resumes after the one before."""
    return b"event: end\ndata: %b\n\n" % _json({"reason": reason})


def _json(value: Mapping[str, Any] | list[Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
