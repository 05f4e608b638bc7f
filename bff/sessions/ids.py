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
_ROUTE = ROUTE.decode()
MAX_ID_CHARACTERS = 256
_MAX_RAW = 12 * MAX_ID_CHARACTERS
"""Bytes of a raw segment: a character has at most four bytes, and percent-encoding triples them."""
PLAIN_PATH = rb"%b([A-Za-z0-9_~:-]{1,%d})" % (ROUTE, MAX_ID_CHARACTERS)
"""Pattern of a raw path whose id needs no decoding. Nearly every path matches it."""
_FRIENDLY = "session_"
"""Prefix of the ids that upstream makes; an external id cannot have it."""
CHANNELS = ":channels:"
"""Part of a scope that names a channel of a session. An id that contains it names no session."""
_PLAIN_PATH = re.compile(PLAIN_PATH)
_DOTS = re.compile(r"(?:^|[/\\])\.{1,2}(?:$|[/\\])")
_INVALID_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")


def grant(token_scopes: Iterable[object]) -> scopes.Grant:
    """The sessions that a token with these scopes may read, and those that it may write to."""
    listed = list(token_scopes)
    writes = _sessions(listed, "write")
    return replace(_sessions(listed, "read"), writes=writes if writes.every or writes.ids else None)


def _sessions(token_scopes: Iterable[object], action: str) -> scopes.Grant:
    """The sessions of one action; a channel is not a session."""
    granted = scopes.grant(token_scopes, action=action, type_="sessions")
    if not any(CHANNELS in id_ for id_ in granted.named):
        return granted
    named = tuple(id_ for id_ in granted.named if CHANNELS not in id_)
    return scopes.Grant(every=granted.every, ids=frozenset(named), named=named)


def covers(granted: scopes.Grant, id_: str) -> bool:
    """Whether *granted* covers *id_* itself, before the session's other id is known."""
    return id_ in granted.ids or (granted.every and CHANNELS not in id_)


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
    # Upstream's ids may hold a tab, but no other control character. Lone surrogates come from
    # tokens; a path cannot hold them.
    return text.isprintable() or not any(
        character != "\t" and unicodedata.category(character) in ("Cc", "Cs") for character in text
    )


def is_reachable(id_: str) -> bool:
    """Whether upstream can find a session by *id_*.

    Upstream decodes an encoded slash twice, so it looks for another session than ``a%2Fb``.
    """
    return "%2f" not in id_.lower()


def has_dots(id_: str) -> bool:
    """Whether *id_* has a dot segment, as ``../x`` has.

    A proxy before upstream may decode it and resolve it: what follows an id of a chat would then
    belong to another path.
    """
    return _DOTS.search(id_) is not None


def has_escape(id_: str) -> bool:
    """Whether *id_* looks percent-encoded.

    Upstream may take such an id for the id of another session. This is not a failure of upstream.
    """
    return _ESCAPE.search(id_) is not None


def named(granted: scopes.Grant) -> tuple[str, ...]:
    """The ids that the token names one by one, in its order, without impossible ones."""
    return tuple(id_ for id_ in granted.named if is_id(id_) and is_reachable(id_))


def named_in_other_form(granted: scopes.Grant, id_: str) -> tuple[str, ...]:
    """The named ids of the other form: one of them may be the other id of *id_*'s session."""
    friendly = is_friendly(id_)
    # The form is the cheapest to check, so it comes first.
    return tuple(
        one
        for one in granted.named
        if is_friendly(one) is not friendly and is_id(one) and is_reachable(one)
    )


def path(id_: str) -> str:
    """The path upstream: any id becomes one percent-encoded segment below the route."""
    return _ROUTE + quote(id_, safe="")


def is_friendly(id_: str) -> bool:
    """Whether *id_* is a friendly id. As upstream does, it looks at the prefix alone."""
    return id_.startswith(_FRIENDLY)
