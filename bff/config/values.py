"""How the text of a setting is read: to a value, or to what is wrong and what to write instead.

No problem quotes a secret; what is quoted is of settings that hold none.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import isfinite
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from bff.replicas.valkey import StoreAddress
from bff.tokens.jwks import PUBLIC_ALGORITHMS, SHARED_ALGORITHM

MAX_WAIT_SECONDS = 60


class Secret:
    """A text that no log, message or repr shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the text to who sends or verifies with it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True)
class Rate:
    """*limit* in any *seconds*."""

    limit: int
    seconds: int


class ProblemError(ValueError):
    """What is wrong with one value, and what to write instead; never the value of a secret."""


def text(text: str) -> str:
    if not text.isprintable():
        raise ProblemError("has control characters; write plain text")
    return text


def texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())


def flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ProblemError("is neither true nor false")
    return text == "true"


def switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ProblemError("is neither on nor off")
    return text == "on"


def port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:  # noqa: PLR2004
        raise ProblemError("is not a port; write a number from 0 to 65535 (0 for any free one)")
    return int(text)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (isfinite(seconds) and 0 <= seconds <= 86400):  # noqa: PLR2004
        raise ProblemError("is not a duration; write seconds from 0 to 86400, such as 2 or 0.5")
    return seconds


def positive_seconds(text: str) -> float:
    found = seconds(text)
    if found == 0:
        raise ProblemError("is zero; write the seconds to wait, such as 5")
    return found


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ProblemError("is not a number; write one from 1, such as 100")
    return int(text)


def size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ProblemError("is not a size; write a number of bytes, such as 67108864")
    return int(text)


def wait(text: str) -> float:
    """Seconds somebody waits meanwhile; bounded, for who means milliseconds writes thousands."""
    found = positive_seconds(text)
    if found > MAX_WAIT_SECONDS:
        raise ProblemError(
            f"is too long to wait; write seconds, {MAX_WAIT_SECONDS} at most, such as 5 or 0.05"
        )
    return found


_PERIODS = {"second": 1, "minute": 60, "hour": 3600}


def rate(text: str) -> Rate | None:
    if text == "off":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,8})\s*/\s*(second|minute|hour)", text)
    if not match:
        raise ProblemError(
            "is not a limit; write N/second, N/minute or N/hour with N from 1, or off"
        )
    return Rate(int(match[1]), _PERIODS[match[2]])


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ProblemError("is not an address; write one like https://api.trigger.dev") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not text.isprintable():
        raise ProblemError("is not an address; write one like https://api.trigger.dev")
    if parts.query or parts.fragment or "@" in parts.netloc or " " in text:
        raise ProblemError("may hold a host, a port and a path, and nothing else")
    return text.rstrip("/")


_STORE_SCHEME = re.compile(r"(valkey|redis)(s?)(\+cluster)?")
_STORE_HINT = "write one like valkeys://user:password@host:6379/0 (docs/FLEET.md)"


def store(text: str) -> StoreAddress:
    try:
        parts = urlsplit(text)
        port = parts.port or 6379
    except ValueError:
        raise ProblemError(f"is not an address; {_STORE_HINT}") from None
    scheme = _STORE_SCHEME.fullmatch(parts.scheme)
    path = parts.path.strip("/")
    if not scheme or not parts.hostname or not text.isprintable() or parts.fragment:
        raise ProblemError(f"is not an address; {_STORE_HINT}")
    if path and not re.fullmatch(r"[0-9]{1,3}", path):
        raise ProblemError(f"names a database that is no number; {_STORE_HINT}")
    if scheme[3] and path not in ("", "0"):
        raise ProblemError("names a database, and a cluster has but one; leave it out")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ca_file = options.pop("ca_file", None)
    if options:
        raise ProblemError("may have ?ca_file=PATH after it, and nothing else")
    if ca_file is not None and not (scheme[2] and Path(ca_file).is_file()):
        raise ProblemError("names a ca_file that is no file, or has no TLS; write valkeys://…")
    return StoreAddress(
        host=parts.hostname,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(path or 0),
        tls=bool(scheme[2]),
        cluster=bool(scheme[3]),
        ca_file=ca_file,
    )


def origins(text: str) -> tuple[str, ...]:
    origins = texts(text)
    for origin in origins:
        if origin != "*" and not _is_origin(origin):
            raise ProblemError(
                f"holds {origin!r}, which no browser sends; write https://app.example.com: scheme "
                "and host in lower case, a port only if it is not the default one, no path, no "
                "slash at the end, no wildcard but * alone"
            )
    if "*" in origins and len(origins) > 1:
        raise ProblemError("holds * and more; write either * or the origins")
    return origins


def _is_origin(text: str) -> bool:
    match = re.fullmatch(
        r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:]+\])(?::([0-9]{1,5}))?", text
    )
    return bool(match) and {"http": "80", "https": "443"}.get(match[1]) != match[3]  # type: ignore[index]


_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def host(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if not _HOST_NAME.fullmatch(text):
            raise ProblemError(
                "is no address to listen on; write one such as 127.0.0.1, 0.0.0.0 or ::, without "
                "scheme and port"
            ) from None
    return text


def host_names(text: str) -> tuple[str, ...]:
    names = texts(text)
    for name in names:
        if not _HOST_NAME.fullmatch(name):
            raise ProblemError(
                f"holds {name!r}, which is no host name; write it without scheme, port and path"
            )
    return names


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(_network, texts(text)))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ProblemError(
            f"holds {text!r}, which is no network; write addresses or CIDRs, such as 10.0.0.0/8 "
            "(not 10.0.0.1/8, and no name)"
        ) from None


def secret(text: str) -> Secret:
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ProblemError(
            "holds spaces, line breaks or signs that no key has; check how it was copied"
        )
    return Secret(text)


_SECRET_KEY = re.compile(r"tr_(dev|stg|prod|preview)_.")


def secret_keys(text: str) -> tuple[Secret, ...]:
    keys = texts(text)
    if not keys or not all(map(_SECRET_KEY.match, keys)):
        raise ProblemError(
            "is no Trigger.dev secret key; copy one from API keys in the dashboard: they begin "
            "with tr_dev_, tr_stg_, tr_prod_ or tr_preview_"
        )
    return tuple(map(secret, keys))


ROOT_KEY = re.compile(r"tr_(dev|stg|prod|preview)_(?!sk_).+")
_MIN_OWN_KEY_BYTES = 32


def signing_keys(text: str) -> tuple[Secret, ...]:
    keys = texts(text)
    for number, key in enumerate(keys, start=1):
        secret(key)
        if re.match(r"tr_[a-z]+_sk_", key):
            raise ProblemError(
                f"holds an additional key (tr_…_sk_…) as number {number}, which signs no tokens; "
                "use the environment's root key, or a key of your own"
            )
        if key.startswith("tr_") and not ROOT_KEY.fullmatch(key):
            raise ProblemError(f"holds a malformed root key as number {number}; copy it again")
        if not key.startswith("tr_") and len(key) < _MIN_OWN_KEY_BYTES:
            raise ProblemError(
                f"holds a key of {len(key)} bytes as number {number}; a key of your own needs at "
                f"least {_MIN_OWN_KEY_BYTES}: openssl rand -hex 32"
            )
    return tuple(map(Secret, keys))


def verify(text: str) -> tuple[str, ...]:
    order = texts(text)
    if order not in (("local",), ("upstream",), ("local", "upstream")):
        raise ProblemError(
            "is none of local, upstream and local,upstream, in this order: what a key here "
            "verifies, upstream need not be asked about"
        )
    return order


def cookie(text: str) -> str:
    if not re.fullmatch(r"__Host-[A-Za-z0-9_.-]{1,64}", text):
        raise ProblemError(
            "is no name for it; write one like __Host-bff-token: only with that prefix do browsers "
            "see to it that no other host and no plain http sets it"
        )
    return text


def algorithms(text: str) -> tuple[str, ...]:
    named = texts(text)
    known = (*PUBLIC_ALGORITHMS, SHARED_ALGORITHM)
    if not named or not set(named) <= set(known):
        raise ProblemError(f"may hold {', '.join(known)}; write what the issuer signs with")
    if SHARED_ALGORITHM in named and len(named) > 1:
        raise ProblemError(
            f"holds {SHARED_ALGORITHM} and others; a source has shared keys or public ones"
        )
    return named


def jwks_url(text: str) -> str:
    parts = urlsplit(url(text))
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ProblemError("would fetch keys in the clear, for anyone to swap; use https")
    return text


def shared_keys(text: str) -> tuple[Secret, ...]:
    if "-----" in text:
        raise ProblemError("holds a PEM; a public key is no shared key: use jwks_url or jwks_file")
    keys = texts(text)
    for number, key in enumerate(keys, start=1):
        secret(key)
        if len(key) < _MIN_OWN_KEY_BYTES:
            raise ProblemError(
                f"holds a key of {len(key)} bytes as number {number}; HS256 needs at least "
                f"{_MIN_OWN_KEY_BYTES}"
            )
    return tuple(map(Secret, keys))


def claim_path(text: str) -> tuple[str, ...]:
    path = texts(text)
    if not path:
        raise ProblemError("is empty; write the name of a claim")
    if path[0] in _OWN_CLAIMS:
        raise ProblemError(
            f"begins with {path[0]}, which whoever signs in writes at the provider; have the "
            "provider put scopes into a claim that only your servers write"
        )
    return path


_OWN_CLAIMS = ("user_metadata", "unsafe_metadata", "unsafeMetadata")


def scopes_form(text: str) -> str:
    if text not in ("list", "text"):
        raise ProblemError("is neither list nor text")
    return text
