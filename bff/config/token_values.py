"""Converts the text of a setting about keys and tokens, or raises `InvalidValue` with a remedy.

A problem quotes only settings that hold no secret.
"""

import base64
import binascii
import re
from itertools import pairwise
from urllib.parse import urlsplit

from bff.config.typed import (
    MIN_KEY_BYTES,
    InvalidValue,
    Secret,
    is_loopback,
    one_of,
    split_keys,
    texts,
)
from bff.config.values import names, url
from bff.tokens.algorithms import PUBLIC_ALGORITHMS, SHARED_ALGORITHM


def secret(text: str) -> Secret:
    if _LABEL.match(text):
        raise InvalidValue(
            "begins with a label such as Bearer or base64:, which is a part of the key; write the "
            "key alone"
        )
    if _is_asymmetric(text):
        raise InvalidValue(
            "is a public key, a certificate or a private key, in PEM or its base64; a token source "
            "takes public keys (jwks_file, jwks_url)"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidValue(
            "contains spaces, line breaks or characters that keys do not have; copy the key again"
        )
    if text[:1] + text[-1:] in ("()", "[]", "{}", "<>", "**"):
        raise InvalidValue("is in brackets or asterisks, which are a part of the key; remove them")
    if _ELSEWHERE.match(text):
        raise InvalidValue(
            "is an address or a path and no key; write the key itself, or set the setting "
            "whose name ends with _FILE to the path"
        )
    if _TOKEN.fullmatch(text):
        raise InvalidValue(
            "is a token (JWT) and no key: everyone who has it could sign tokens; write a key"
        )
    if _KEY_INSIDE.search(text):
        raise InvalidValue("has other characters around a Trigger.dev key; copy the key again")
    return Secret(text)


_LABEL = re.compile(
    r"(bearer|base64|b64|hex|key|kid|current|primary|old|new|next)[\w-]{0,12}[:=\s](?=.)",
    re.IGNORECASE | re.ASCII,
)
_DER = re.compile(
    rb"\x30(\x82..(\x30|\x02)|\x81.(\x30|\x02\x01)|[\x20-\x7f](\x30[\x05\x0d\x10\x13]|\x02\x01))",
    re.DOTALL,
)
"""Matches the beginning of a key or certificate (X.509, PKCS #1, #8, SEC 1)."""


def _is_asymmetric(text: str) -> bool:
    """Whether a text is of an asymmetric key. With a public one anybody could sign tokens."""
    if text.startswith(("-----BEGIN", "AAAAB3NzaC1", "AAAAC3NzaC1", "AAAAE2VjZHNh")):
        return True
    try:
        return _DER.match(base64.b64decode(text[:8], validate=True)) is not None
    except (binascii.Error, ValueError):
        return False


_ELSEWHERE = re.compile(
    r"[a-z][a-z0-9+.-]*://|@?(~|\.\.?|[A-Za-z]:)?[\\/](run|var|etc|mnt|home|Users|root|tmp|opt|secrets)"
    r"[\\/]|.*/\.well-known/"
)
_TOKEN = re.compile(r"eyJ[\w-]+(\.[\w-]*){2,4}", re.ASCII)
_KEY_INSIDE = re.compile(r".tr_(dev|stg|prod|preview)_\w{8}")
_SECRET_KEY = re.compile(r"tr_(dev|stg|prod|preview)_(sk_[\w-]+|[\w-]{12,})", re.ASCII)


def secret_keys(text: str) -> tuple[Secret, ...]:
    keys = split_keys(text)
    secrets = tuple(map(secret, keys))
    if not keys or not all(map(_SECRET_KEY.fullmatch, keys)):
        raise InvalidValue(
            "is not a Trigger.dev secret key; copy one from API keys in the dashboard: they begin "
            "with tr_dev_, tr_stg_, tr_prod_ or tr_preview_"
        )
    return secrets


ROOT_KEY = re.compile(r"tr_(dev|stg|prod|preview)_(?!sk_)[\w-]{12,}", re.ASCII)


_REPEATED = re.compile(r"(.{1,16}?)\1+.{0,15}")
"""Matches keys of `MIN_KEY_BYTES` and more that repeat a short text; random ones never do."""
_WORDS = re.compile(r"secret|example|password|insecure|do.?not.?use|256.?bit", re.IGNORECASE)


def _is_of_words(key: str) -> bool:
    # A random key has more groups of digits, whatever its owner wrote in front of it.
    return bool(_WORDS.search(key)) and len(re.findall(r"\d+", key)) <= 2  # noqa: PLR2004


def _check_strength(key: str, number: int, needs: str) -> None:
    if len(key) < MIN_KEY_BYTES:
        raise InvalidValue(
            f"has a key of {len(key)} bytes as number {number}; {needs} at least {MIN_KEY_BYTES}"
            f": openssl rand -hex {MIN_KEY_BYTES}"
        )
    counting = sum(ord(after) - ord(before) == 1 for before, after in pairwise(key))
    if _REPEATED.fullmatch(key) or 4 * counting > 3 * len(key):
        raise InvalidValue(
            f"has a key that repeats a short text, or counts, as number {number}, so it can be "
            f"guessed; make one: openssl rand -hex {MIN_KEY_BYTES}"
        )


def signing_keys(text: str) -> tuple[Secret, ...]:
    keys = split_keys(text)
    for number, key in enumerate(keys, start=1):
        secret(key)
        if re.match(r"tr_[a-z]+_sk_", key):
            raise InvalidValue(
                f"has an additional key (tr_…_sk_…) as number {number}, which signs no tokens; "
                "use the environment's root key, or a key of your own"
            )
        if key.lower().startswith("tr_") and not ROOT_KEY.fullmatch(key):
            raise InvalidValue(f"has a malformed root key as number {number}; copy it again")
        if not key.startswith("tr_"):
            _check_strength(key, number, "a key of your own needs")
            if _is_of_words(key):
                raise InvalidValue(
                    f"has a key of words as number {number}, so it can be guessed; make one: "
                    f"openssl rand -hex {MIN_KEY_BYTES}"
                )
    return tuple(map(Secret, keys))


def verify(text: str) -> tuple[str, ...]:
    order = names(text)
    if order not in (("local",), ("upstream",), ("local", "upstream")):
        raise InvalidValue(
            "is not local, upstream or local,upstream; write one of them (local comes first: it "
            "costs upstream no request)"
        )
    return order


def cookie(text: str) -> str:
    if not re.fullmatch(r"__Host-[A-Za-z0-9_.-]{1,64}", text):
        raise InvalidValue(
            "is not a __Host- name; write one like __Host-bff-token: with this prefix, browsers "
            "let neither another host nor plain http set the cookie"
        )
    return text


def algorithms(text: str) -> tuple[str, ...]:
    algorithms = names(text)
    supported = tuple(one.name for one in (*PUBLIC_ALGORITHMS, SHARED_ALGORITHM))
    if not algorithms or not set(algorithms) <= set(supported):
        raise InvalidValue(
            f"may contain {', '.join(supported)}; write the algorithms that the issuer signs with"
        )
    if SHARED_ALGORITHM.name in algorithms and len(algorithms) > 1:
        raise InvalidValue(
            f"contains {SHARED_ALGORITHM.name} and others; "
            "a source has either shared or public keys; keep one kind"
        )
    return algorithms


def jwks_url(text: str) -> str:
    parts = urlsplit(url(text))
    if parts.path.endswith(("/openid-configuration", "/oauth-authorization-server")):
        raise InvalidValue("is the configuration of the issuer; write the jwks_uri in it")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise InvalidValue("would fetch keys that others on the network could replace; use https")
    return text


def shared_keys(text: str) -> tuple[Secret, ...]:
    if "-----" in text:
        raise InvalidValue("contains a PEM; for public keys use jwks_url or jwks_file")
    keys = split_keys(text)
    for number, key in enumerate(keys, start=1):
        secret(key)
        _check_strength(key, number, "HS256 needs")
    return tuple(map(Secret, keys))


def claim_path(text: str) -> tuple[str, ...]:
    path = texts(text)
    if not path:
        raise InvalidValue("is empty; write the name of a claim")
    if any("." in step and not re.search("[:/]", step) for step in path):
        raise InvalidValue(
            "has a dot, which does not lead into a claim; write a list, such as "
            '["app_metadata", "scopes"]'
        )
    if path[0] in _USER_CLAIMS:
        raise InvalidValue(
            f"begins with {path[0]}, which users can change at the provider; put the scopes into a "
            "claim that only your servers write"
        )
    return path


_USER_CLAIMS = ("user_metadata", "unsafe_metadata", "unsafeMetadata")


scopes_are_text = one_of({"list": False, "text": True})
