"""What a session is: its two ids, the scope it needs, its path upstream, and a valid document."""

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from bff.errors import Refused
from bff.tokens import scopes

LIST_ROUTE = b"/api/v1/sessions"
ROUTE = b"/api/v1/sessions/"
MAX_ID_CHARACTERS = 256
_MAX_RAW = 12 * MAX_ID_CHARACTERS
"""Bytes of a raw segment: a character has up to four, each of them three when it is encoded."""
PLAIN_PATH = rb"%b([A-Za-z0-9_~:-]{1,%d})" % (ROUTE, MAX_ID_CHARACTERS)
"""Pattern of a raw path with an id that needs no decoding, as nearly every one does."""
_FRIENDLY = "session_"
_PLAIN_PATH = re.compile(PLAIN_PATH)
_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def grant(token_scopes: Iterable[object]) -> scopes.Grant:
    """What the *token_scopes* of one token let it read."""
    return scopes.grant(token_scopes, action="read", type_="sessions")


def parse_id(segment: bytes) -> str:
    """Read one raw path *segment*, percent-decoded once.

    Raises:
        Refused: ``invalid_session_id``. ``.`` and ``..`` are among them: percent-encoding leaves
            dots alone, an HTTP client resolves them, and ``/api/v1/sessions/.`` would then ask
            for the list of all sessions, with the secret key.
    """
    if len(segment) > _MAX_RAW or b"/" in segment or _ESCAPE.search(segment):
        raise Refused("invalid_session_id")
    try:
        id_ = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refused("invalid_session_id") from None
    if not is_id(id_):
        raise Refused("invalid_session_id")
    return id_


def plain_id(path: bytes) -> str | None:
    """The id in a raw *path* that is a `PLAIN_PATH`; None for others.

    It says what `parse_id` says of the path's last segment, at a fifth of the cost.
    """
    plain = _PLAIN_PATH.fullmatch(path)
    return plain[1].decode() if plain else None


def is_id(text: str) -> bool:
    """Whether *text* can be a session's id; only such a text may become a path upstream."""
    if not 1 <= len(text) <= MAX_ID_CHARACTERS or text in (".", ".."):
        return False
    # Control characters, and lone surrogates (from a token), which no path can hold.
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def named(granted: scopes.Grant) -> tuple[str, ...]:
    """Ids that are named one by one and that a session can have, in the order of the token."""
    return tuple(id_ for id_ in granted.named if is_id(id_))


def path(id_: str) -> str:
    """The path upstream: one encoded segment below the route, whatever the id."""
    return ROUTE.decode() + quote(id_, safe="")


def is_friendly(id_: str) -> bool:
    """Whether *id_* is a friendly id; upstream too lets the prefix alone decide."""
    return id_.startswith(_FRIENDLY)


def may_be_alias(id_: str, granted: scopes.Grant) -> bool:
    """Whether *id_* may be the other form of an id that is *granted*: only the copy can tell."""
    friendly = is_friendly(id_)
    return any(is_friendly(named) is not friendly for named in granted.ids)
