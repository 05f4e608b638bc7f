"""The settings of chats, and what they must not be together."""

import pytest
from support.world import OWN_KEY, ROOT_KEY, SECRET_KEY, environ

from bff.config.chat_settings import ChatSettings
from bff.config.reader import load
from bff.config.settings import SettingsError
from bff.config.values import Rate

KEY = "agent-key-sentinel-0123456789abcdef"
IDENTITY = {"BFF_IDENTITY_FIELD": "__bff", "BFF_IDENTITY_KEY": KEY}


def chat(**changes: str | None) -> ChatSettings:
    return load(environ(**changes)).chat


def problem(**changes: str | None) -> str:
    with pytest.raises(SettingsError) as raised:
        load(environ(**changes))
    (only,) = raised.value.problems
    return only


def test_chat_is_off_by_default_with_limits_for_when_it_is_on() -> None:
    settings = chat()

    assert not settings.enabled
    assert settings.input == "chat"
    assert settings.message_limit == Rate(20, 60)
    assert settings.message_daily_limit is settings.message_total_limit is None
    assert settings.stream_limit == Rate(30, 60)
    assert (settings.max_streams, settings.max_streams_per_caller) == (2000, 10)
    assert settings.max_message_bytes == 1024 * 1024


def test_limits_of_a_day_can_be_written() -> None:
    assert chat(BFF_MESSAGE_DAILY_LIMIT="200/day").message_daily_limit == Rate(200, 86400)
    assert chat(BFF_MESSAGE_TOTAL_LIMIT="9/hour").message_total_limit == Rate(9, 3600)


@pytest.mark.parametrize(
    "changes",
    [
        {"BFF_SIGNING_KEYS": ROOT_KEY},
        {"BFF_SIGNING_KEYS": f"{OWN_KEY},{ROOT_KEY}"},
        {"BFF_SIGNING_KEYS": None, "TRIGGER_SECRET_KEY": ROOT_KEY},
        {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"},
        {"BFF_VERIFY": "local,upstream"},
    ],
)
def test_chat_is_refused_where_trigger_tokens_are_accepted(changes: dict[str, str | None]) -> None:
    text = problem(BFF_CHAT="true", **changes)

    assert "'default' would hide nothing" in text
    assert "BFF_CHAT_TRIGGER_TOKENS=true" in text
    assert chat(BFF_CHAT="true", BFF_CHAT_TRIGGER_TOKENS="true", **changes).enabled
    assert not chat(**changes).enabled, "without chats nothing is refused"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"BFF_IDENTITY_FIELD": "__bff"}, "BFF_IDENTITY_KEY is not set"),
        ({"BFF_IDENTITY_KEY": KEY}, "BFF_IDENTITY_FIELD is not set"),
        (IDENTITY | {"BFF_INPUT": "any"}, "no effect with BFF_INPUT=any"),
        (IDENTITY | {"BFF_IDENTITY_KEY": OWN_KEY}, "also a signing key"),
        (IDENTITY | {"BFF_IDENTITY_KEY": "short"}, "BFF_IDENTITY_KEY is not a key of your own"),
        (IDENTITY | {"BFF_IDENTITY_KEY": ROOT_KEY}, "BFF_IDENTITY_KEY is not a key of your own"),
        (IDENTITY | {"BFF_IDENTITY_KEY": SECRET_KEY}, "BFF_IDENTITY_KEY is not a key of your own"),
        (IDENTITY | {"BFF_IDENTITY_FIELD": "__proto__"}, "BFF_IDENTITY_FIELD is not the name"),
        (IDENTITY | {"BFF_IDENTITY_HEADERS": "x-user"}, "without BFF_TRUSTED_PROXIES"),
        ({"BFF_IDENTITY_HEADERS": "x-user"}, "without BFF_IDENTITY_FIELD"),
        ({"BFF_IDENTITY_HEADERS": "Cookie"}, "BFF_IDENTITY_HEADERS contains 'cookie'"),
        ({"BFF_IDENTITY_HEADERS": "x y"}, "BFF_IDENTITY_HEADERS contains 'x y'"),
        ({"BFF_INPUT": "all"}, "BFF_INPUT is not chat or any"),
        ({"BFF_INPUT_FIELDS": "model,sessionId"}, "contains sessionId"),
        ({"BFF_INPUT_FIELDS": "chatId"}, "contains chatId"),
        ({"BFF_MESSAGE_DAILY_LIMIT": "0/day"}, "BFF_MESSAGE_DAILY_LIMIT is not a limit"),
        ({"BFF_MAX_STREAMS": "0"}, "BFF_MAX_STREAMS is not a whole number"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, str | None], named: str
) -> None:
    assert named in problem(BFF_CHAT="true", **changes)


def test_identity_with_headers_of_a_trusted_proxy_is_read() -> None:
    settings = chat(
        BFF_CHAT="true", BFF_IDENTITY_HEADERS="X-User, x-org", BFF_TRUSTED_PROXIES="10.0.0.0/8",
        **IDENTITY,
    )  # fmt: skip

    assert settings.identity_headers == ("x-user", "x-org")
    assert settings.identity_key is not None
    assert KEY not in repr(settings)
