"""Checks values for traces of people, shells, env files and orchestrators.

A value is mended only if it can mean nothing else: white space around it, and the byte order mark
of a file. Every other trace of a tool or of copy and paste is a problem with a remedy. Otherwise
the gateway would use it as a part of a key, an id or a list. No problem quotes the value.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Final, TypeVar

T = TypeVar("T")

_BLANKS: Final = " \t\r\n"
_QUOTES: Final = (
    *"\"'`´‘’‚‛“”„‟«»‹›＂＇「」『』′″",  # noqa: RUF001  look-alikes are what it looks for
    *("&quot;", "&#34;", "&#39;", "%22", "%27"),
)
_JSON: Final = re.compile(r"[\[{]\s*[\"'“]")
_REFERENCE: Final = re.compile(r"\$\{|\$\(|\{\{|\}\}|<no value>")
_VARIABLE: Final = re.compile(r"\$\$?[A-Z_][A-Z0-9_]+")
_WHOLE_REFERENCE: Final = re.compile(
    r"\$\$?\w+|%\w+%|%\(\w+\)s|%?\{\w+\}|@@?\w+@@?|__[A-Z][A-Z0-9_]*__|\(\(.*\)\)|\$\[\[.*\]\]"
    r"|!!?[A-Za-z]\w* \S+",
    re.ASCII,
)
_SECRET_STORE: Final = re.compile(
    r"(op|vault|ref\+\w+|secret|\w*keyvault|doppler|awssm|gcpsm|sops|azurekv)://"
    r"|vault:\S+[/#]|arn:aws|ENC\[|\{cipher\}|projects/\S+/secrets/|@microsoft\.keyvault\(",
    re.IGNORECASE,
)
"""Begins a reference to a secret in another program's store."""
_PLACEHOLDER: Final = re.compile(
    r"(replace[_ -]?(me|this|with)|change[_ -]?(me|this|it)|fill[_ -]?(me|in))(?![a-z])"
    r"|placeholder|…|\.\.\.$"
    # The bound makes the time linear: a name may have many parts.
    r"|(^|_|//)(your|my|the)[_ -]([\w -]{0,40}[_ -])?"
    r"(key|secret|token|id|host|url|origin|domain|branch)([_ -]here)?\b"
    r"|^(tr_[a-z]+_|env_)?(sk_)?[xX*]{3,30}$|^(todo|fixme|tbd|insert[_ -].*)$|^<[^>]*>$"
    r"|[•●∙·]{3}|^[\[(](redacted|hidden|invalid|secret|masked|filtered)[\])]$",
    re.IGNORECASE,
)
_NOTHING: Final = re.compile(
    r"(null|nil|(?-i:None)|undefined|n/a|nan|\[object \w+\])|~|\[\]|\{\}|\(\)"
    r"|\((none|null|nil|empty|unset|not set)\)",
    re.IGNORECASE,
)
_COMMENT: Final = re.compile(r"\s#|^#")
_ESCAPE: Final = re.compile(r"\\[nrt]?$|^\\[nrt]|\\[\"']|%(20|0[9AaDd])$")
_ASSIGNMENT: Final = re.compile(r"(export|set)\s+\w+\s*[=:]|=")
_ASSIGNED_KEY: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+\s*[=:]")
"""A tag may look so, but no key."""
_FULL_WIDTH: Final = re.compile(r"[\uff01-\uff5e\u3001\u3002]")
_KEY: Final = re.compile(
    r"tr_(?:dev|stg|prod|preview|pat)_\w+|eyJ[\w-]{8,}\.[\w.-]+|-----BEGIN[^\n]*", re.ASCII
)
"""Matches secrets, in whatever setting they are."""
_LONG: Final = re.compile(r"[\w+=-]{40,}", re.ASCII)
_HEX: Final = re.compile(r"\b[0-9a-f]{48,}\b", re.ASCII)
"""These two match texts that may be secrets: 24 random bytes or more."""
_HIDDEN: Final = "(hidden)"
_SHORTEST_SECRET: Final = 8
"""Characters. A shorter text is shown: no valid secret is as short, but a word may contain it."""
MIN_KEY_BYTES = 32
"""Bytes of the shortest key that HS256 allows (RFC 7518, section 3.2)."""
MAX_KEYS = 100
"""Keys of one setting. A bad token is compared with every key, so more would slow the gateway."""


class InvalidValue(ValueError):
    """The text of a setting is invalid: the message has a remedy, and never quotes a secret."""


class Secret:
    """A text that no log, message or repr shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, to send it or to verify with it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def mend(text: str) -> str:
    """Remove what cannot be a part of any value: white space around it."""
    return text.strip(_BLANKS)


def check(name: str, text: str, *, secret: bool) -> None:
    """Refuse what tools and copy and paste leave in the *text* of the setting *name*.

    Only a *secret* setting may hold a secret.

    Raises:
        InvalidValue: with a remedy.
    """
    for character in text:
        if character not in _BLANKS and unicodedata.category(character) in _INVISIBLE:
            raise InvalidValue(
                f"contains an invisible character (U+{ord(character):04X}); type the value again "
                "instead of copying it"
            )
    if "\ufffd" in text:
        raise InvalidValue("contains U+FFFD, which replaced a lost character; type the value again")
    if _FULL_WIDTH.search(text):
        raise InvalidValue("contains full-width characters; type the value in ASCII")
    if _JSON.match(text):
        raise InvalidValue("is written as JSON; write the values with commas between them")
    if (
        _ASSIGNMENT.match(text)
        or re.search(rf"(^|[\s=]){re.escape(name)}(_FILE)?\s*[=: ]", text, re.IGNORECASE)
        or (secret and _ASSIGNED_KEY.match(text))
    ):
        raise InvalidValue("repeats the setting's name; write only what follows the = sign")
    _check_comment(text)
    for part in filter(None, map(mend, re.split(r"[,\n]", text))):
        _check_part(part, secret=secret)
    if not secret and _KEY.search(text):
        raise InvalidValue(
            "holds a secret key or a token, which belongs in another setting; if others could read "
            "it there, rotate it"
        )


_INVISIBLE: Final = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp", "Zs")


def _check_comment(text: str) -> None:
    if _COMMENT.search(text):
        raise InvalidValue(
            "contains a comment, which is a part of the value; write it on a line of its own"
        )
    if _ESCAPE.search(text):
        raise InvalidValue(
            "contains an escape such as \\n or %20, which nothing replaced; remove it"
        )


def _check_part(part: str, *, secret: bool) -> None:
    if part.startswith(_QUOTES) or part.endswith(_QUOTES):
        raise InvalidValue("is in quotes, which are a part of the value; remove the quotes")
    if part.endswith(";"):
        raise InvalidValue("ends with a semicolon, which is a part of the value; remove it")
    if part.startswith("file:"):
        raise InvalidValue("begins with file:, which nothing reads; write the path alone")
    if _SECRET_STORE.match(part):
        raise InvalidValue("refers to a secret that nothing fetched; write the value itself")
    if (
        _REFERENCE.search(part)
        or _WHOLE_REFERENCE.fullmatch(part)
        or (not secret and _VARIABLE.search(part))
    ):
        raise InvalidValue(
            "refers to a variable that nothing replaced; write the value itself, or set the "
            "variable where the value is made"
        )
    if _NOTHING.fullmatch(part):
        raise InvalidValue("stands for no value; write the value itself, or leave the setting out")
    if _PLACEHOLDER.search(part):
        raise InvalidValue("is still the placeholder of an example; write the value itself")


def check_path(name: str, path: str) -> None:
    """Refuse a path that is the secret itself, or that only a shell would complete.

    Raises:
        InvalidValue: with a remedy.
    """
    check(name, path, secret=True)
    if "/" not in path and redact(path) != path:
        raise InvalidValue("is a key and not a path")
    if path.startswith(("~", "$", "%")):
        raise InvalidValue("begins with ~, $ or %, which nothing replaced; write the whole path")


def once_encoded(text: str) -> str | None:
    """Decode a text that was encoded with base64 once too often; None if it was not.

    Random bytes do not decode to 16 or more printable characters. A JWK has base64url, unpadded.
    """
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        padded = plain + "=" * (-len(plain) % 4)
        decoded = base64.b64decode(padded, validate=True).decode("ascii").strip(_BLANKS)
    except (binascii.Error, ValueError):
        return None
    return decoded if decoded.isprintable() and len(decoded) >= 16 else None  # noqa: PLR2004


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Hide *secrets*, and every text that looks like one, in a text for the operator."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    return _LONG.sub(_hide_if_random, _HEX.sub(_HIDDEN, _KEY.sub(_HIDDEN, text)))


def _hide_if_random(match: re.Match[str]) -> str:
    kinds = ("[a-z]", "[A-Z]", "[0-9]")
    return _HIDDEN if all(re.search(kind, match[0]) for kind in kinds) else match[0]


def one_of(values: Mapping[str, T]) -> Callable[[str], T]:
    """Make the reader of a setting that has one of these texts, each with its value."""
    *others, last = values

    def read(text: str) -> T:
        if text not in values:
            raise InvalidValue(f"is not {', '.join(others)} or {last}; write one of them")
        return values[text]

    return read


def texts(text: str) -> tuple[str, ...]:
    """Split a list at commas and line ends; empty parts are dropped."""
    return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())


def each(
    names: tuple[str, ...], is_valid: Callable[[str], object], problem: str
) -> tuple[str, ...]:
    """Return *names* if all are valid; *problem* says what another one is not.

    Raises:
        InvalidValue: with the first that is not valid.
    """
    for name in names:
        if not is_valid(name):
            raise InvalidValue(f"contains {name!r}, which {problem}")
    return names


_JOINT: Final = re.compile(r"[;|]|(?:\\[nrt])+")
"""Separates keys where an env file or a program writes a list in another way."""


def split_keys(text: str) -> tuple[str, ...]:
    """Split a list of keys.

    An empty part is refused, because the variable of that key was probably unset.

    Raises:
        InvalidValue: with a remedy.
    """
    keys = texts(text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    parts = [part.strip() for line in lines for part in line.removesuffix(",").split(",")]
    if lines and (not all(parts) or lines[-1].endswith(",")):
        raise InvalidValue(
            "has a comma without a key before or after it; write the missing key, or remove the "
            "comma"
        )
    if len(keys) > MAX_KEYS:
        raise InvalidValue(f"has more than {MAX_KEYS} keys; remove those that are rotated out")
    for number, key in enumerate(keys, start=1):
        first = keys.index(key) + 1
        if first < number:
            raise InvalidValue(f"has the same key as numbers {first} and {number}; remove one")
        split = _JOINT.split(key)
        if len(split) > 1 and all(len(part) >= MIN_KEY_BYTES for part in split):
            raise InvalidValue("has a semicolon, a bar or \\n between keys; write a comma")
        if once_encoded(key) is not None:
            raise InvalidValue(
                f"has a key in base64 as number {number}; write the key itself (the data of a "
                "Kubernetes Secret is encoded once, its stringData not at all)"
            )
    return keys


_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_host(text: str) -> bool:
    """Whether *text* is an address or a name that can be looked up."""
    try:
        ip_address(text)
    except ValueError:
        last = text.rstrip(".").rpartition(".")[2]
        return bool(HOST_NAME.fullmatch(text)) and not last.isdigit()
    return "%" not in text
