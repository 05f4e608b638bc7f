"""The two ids of a session: parsing, scopes, and the path upstream."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import quote, unquote_to_bytes

from bff.errors import Refused
from bff.tokens import scopes

LIST_ROUTE = b"/api/v1/sessions"
ROUTE = b"/api/v1/sessions/"
MAX_ID_CHARACTERS = 256
_MAX_RAW = 12 * MAX_ID_CHARACTERS
"""Bytes of a raw segment: a character has at most four bytes, and percent-encoding triples them."""
PLAIN_PATH = rb"%b([A-Za-z0-9_~:-]{1,%d})" % (ROUTE, MAX_ID_CHARACTERS)
"""Pattern of a raw path whose id needs no decoding. Nearly every path matches it."""
_FRIENDLY = "session_"
"""Prefix of the ids that upstream makes; an external id cannot have it."""
_PLAIN_PATH = re.compile(PLAIN_PATH)
_INVALID_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def grant(token_scopes: Iterable[object]) -> scopes.Grant:
    """The sessions that a token with these scopes may read, and those that it may write to."""
    listed = list(token_scopes)
    writes = scopes.grant(listed, action="write", type_="sessions")
    read = scopes.grant(listed, action="read", type_="sessions")
    return replace(read, writes=writes if writes.every or writes.ids else None)


def parse_id(segment: bytes) -> str:
    """Parse one raw path *segment*, which is percent-decoded once.

    Raises:
        Refused: ``invalid_session_id``; ``.`` and ``..`` too. Percent-encoding leaves dots as they
            are, and an HTTP client resolves them: ``/api/v1/sessions/.`` would request the list of
            all sessions with the secret key.
    """
    if len(segment) > _MAX_RAW or b"/" in segment or _INVALID_ESCAPE.search(segment):
        raise Refused("invalid_session_id")
    try:
        id_ = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refused("invalid_session_id") from None
    if not is_id(id_):
        raise Refused("invalid_session_id")
    return id_


def plain_id(path: bytes) -> str | None:
    """The id in a raw *path* that matches `PLAIN_PATH`; None for other paths.

    The result is that of `parse_id`, at a fifth of its cost.
    """
    plain = _PLAIN_PATH.fullmatch(path)
    return plain[1].decode() if plain else None


def is_id(text: str) -> bool:
    """Whether *text* can be a session's id; `path` accepts no other text."""
    if not 1 <= len(text) <= MAX_ID_CHARACTERS or text in (".", ".."):
        return False
    # A path holds no control characters and no lone surrogates, which a token may contain.
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def named(granted: scopes.Grant) -> tuple[str, ...]:
    """The ids that the token names one by one, in its order, without impossible ones."""
    return tuple(id_ for id_ in granted.named if is_id(id_))


def path(id_: str) -> str:
    """The path upstream: any id becomes one percent-encoded segment below the route."""
    return ROUTE.decode() + quote(id_, safe="")


def is_friendly(id_: str) -> bool:
    """Whether *id_* is a friendly id. As upstream does, it looks at the prefix alone."""
    return id_.startswith(_FRIENDLY)


def may_be_alias(id_: str, granted: scopes.Grant) -> bool:
    """Whether *id_* may be the other form of a granted id. Only the copy has both forms."""
    friendly = is_friendly(id_)
    return any(is_friendly(named) is not friendly for named in granted.ids)
