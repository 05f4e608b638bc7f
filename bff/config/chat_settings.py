"""The settings of chats, and the combinations of them that are mistakes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bff.chat.messages import BELIEVED, KEPT
from bff.config import token_values, values
from bff.config.declaration import setting
from bff.config.typed import MIN_KEY_BYTES, InvalidValue, Secret, each, one_of, texts
from bff.config.values import Rate


def _own_key(text: str) -> Secret:
    if len(text) < MIN_KEY_BYTES or text.startswith("tr_"):
        raise InvalidValue(
            f"is not a key of your own of at least {MIN_KEY_BYTES} bytes: openssl rand -hex "
            f"{MIN_KEY_BYTES}"
        )
    if "," in text:
        raise InvalidValue("has a comma; write one key")
    return token_values.secret(text)


def _long_rate(text: str) -> Rate | None:
    match = re.fullmatch(r"([1-9][0-9]{0,8})\s*/\s*day", text)
    return Rate(int(match[1]), values.MAX_SECONDS) if match else values.rate(text)


def _identity_field(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", text) or text == "__proto__":
        raise InvalidValue("is not the name of a field; write one like __bff")
    return text


def _field_names(text: str) -> tuple[str, ...]:
    problem = "is not a key; write names like model"
    return each(values.names(text), _FIELD.fullmatch, problem)


def _header_names(text: str) -> tuple[str, ...]:
    problem = (
        "is not a header that a proxy sets for the application; write names like x-forwarded-email"
    )
    return each(texts(text.lower()), _HEADER.fullmatch, problem)


_FIELD: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.-]{0,63}")
_HEADER: Final = re.compile(
    r"(?!(authorization|cookie|proxy-authorization|host|content-length)$)[a-z0-9-]{1,64}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """The settings of the two chat routes."""

    enabled: bool = setting(
        values.flag,
        "`true` carries chats: pages send messages and read answers through the gateway. A reload "
        "with `false` ends every stream and refuses messages",
        default="false",
        name="BFF_CHAT",
    )
    trigger_tokens: bool = setting(
        values.flag,
        "`true` allows chats although the gateway accepts tokens that Trigger.dev accepts too: a "
        "browser with such a token can read past the gateway",
        default="false",
        name="BFF_CHAT_TRIGGER_TOKENS",
    )
    input: str = setting(
        one_of({"chat": "chat", "any": "any"}),
        "`chat` lets only messages of the official transport pass; `any` sends every body as it "
        "comes, for sessions other than chats",
        default="chat",
    )
    input_fields: tuple[str, ...] = setting(
        _field_names, "further keys of a message's payload that are sent upstream", default=""
    )
    identity_field: str | None = setting(
        _identity_field,
        "the key of a message's `metadata` that the gateway sets to a signed identity, such as "
        "`__bff`",
    )
    identity_key: Secret | None = setting(
        _own_key, "the key that signs identities; the agent verifies with it", secret=True
    )
    identity_headers: tuple[str, ...] = setting(
        _header_names,
        "headers whose values an identity repeats. The gateway reads them from trusted proxies "
        "only, which must overwrite those of browsers",
        default="",
    )
    message_limit: Rate | None = setting(
        values.rate, "messages per caller, or `off`; a stop is not counted", default="20/minute"
    )
    message_daily_limit: Rate | None = setting(
        _long_rate,
        "messages per caller over a longer time, such as `200/day`, or `off`",
        default="off",
    )
    message_total_limit: Rate | None = setting(
        _long_rate,
        "messages of all callers of an environment together, such as `5000/day`, or `off`",
        default="off",
    )
    stream_limit: Rate | None = setting(
        values.rate,
        "streams that a caller opens, or `off`. The official transport opens one for each message, "
        "and again after a minute of silence",
        default="30/minute",
        name="BFF_STREAM_OPEN_LIMIT",
    )
    max_streams: int = setting(
        values.count,
        "open streams of each worker; one address may have a quarter of them; further ones get 503",
        default="2000",
    )
    max_streams_per_caller: int = setting(
        values.count,
        "open streams of one caller in each worker; further ones get 429",
        default="10",
    )
    max_message_bytes: int = setting(
        values.count,
        "bytes of a message; a larger one gets 413, and the rest of it is not read",
        default="1048576",
    )
    drain_seconds: float = setting(
        values.timeout,
        "seconds over which the ends of open streams are spread when the gateway stops; at most 8 "
        "are used, because a stop takes at most ten seconds",
        default="5",
    )


def problems(
    chat: ChatSettings, *, trigger_tokens: Iterable[str], keys: Iterable[Secret], has_proxies: bool
) -> list[str]:
    """List the mistakes in the combination of settings, each with a remedy.

    Args:
        chat: the settings.
        trigger_tokens: names of environments in which tokens of Trigger.dev are accepted.
        keys: every key that verifies tokens or goes upstream.
        has_proxies: whether proxies are trusted.
    """
    mistakes = []
    if chat.enabled and not chat.trigger_tokens:
        mistakes += [
            f"BFF_CHAT of environment {name!r} would hide nothing: Trigger.dev accepts the tokens "
            "of browsers too, so they can read past the gateway; set BFF_SIGNING_KEYS to a key of "
            "your own (openssl rand -hex 32) and BFF_VERIFY=local, or write "
            "BFF_CHAT_TRIGGER_TOKENS=true"
            for name in trigger_tokens
        ]
    believed = sorted(set(chat.input_fields) & (BELIEVED | KEPT))
    if believed:
        mistakes.append(
            f"BFF_INPUT_FIELDS contains {', '.join(believed)}, which the agent believes or the "
            "gateway handles; remove it"
        )
    field, key = chat.identity_field, chat.identity_key
    if (field is None) != (key is None):
        missing, present = "BFF_IDENTITY_KEY", "BFF_IDENTITY_FIELD"
        if field is None:
            missing, present = present, missing
        mistakes.append(f"{missing} is not set, but {present} is; set both")
    if field is not None and chat.input == "any":
        mistakes.append(
            "BFF_IDENTITY_FIELD has no effect with BFF_INPUT=any, which sends bodies as they come; "
            "remove one of them"
        )
    if key is not None and key in set(keys):
        mistakes.append(
            "BFF_IDENTITY_KEY is also a signing key or a secret key; the agent holds it, so use a "
            "key for identities alone: openssl rand -hex 32"
        )
    if chat.identity_headers and field is None:
        mistakes.append("BFF_IDENTITY_HEADERS has no effect without BFF_IDENTITY_FIELD; set it")
    elif chat.identity_headers and not has_proxies:
        mistakes.append(
            "BFF_IDENTITY_HEADERS has no effect without BFF_TRUSTED_PROXIES: any browser could "
            "send these headers; set it"
        )
    return mistakes
