"""The declarations of settings: each is complete, and nothing repeats them."""

from dataclasses import fields

from support.world import environ

from bff.config.chat_settings import ChatSettings
from bff.config.declaration import declared
from bff.config.live_settings import LiveSettings
from bff.config.reader import load
from bff.config.settings import (
    FIXED,
    RENAMED,
    SETTINGS,
    EnvironmentSettings,
    PolicySettings,
    Settings,
)


def test_each_default_is_a_valid_text() -> None:
    for row in SETTINGS.values():
        if row.default is not None:
            row.read(row.default)


def test_no_two_declarations_share_a_variable() -> None:
    classes = (EnvironmentSettings, Settings, PolicySettings, ChatSettings, LiveSettings)

    assert len(SETTINGS) == sum(len(declared(settings_class)) for settings_class in classes)


def test_settings_beside_the_declared_ones_are_composed() -> None:
    composed = {row.name for row in fields(Settings)} - set(declared(Settings))

    assert composed == {
        "chat", "live", "environments", "token_sources", "default_policy", "policies", "reports",
        "files",
    }  # fmt: skip


def test_fixed_settings_are_those_of_sockets_and_connections() -> None:
    assert FIXED["port"] == "BFF_PORT"
    assert {"store_url", "fast_path", "idle_timeout"} <= set(FIXED)
    assert not {"cache_ttl", "rate_limit", "trusted_proxies"} & set(FIXED)


def test_renamed_settings_are_replaced_by_existing_ones() -> None:
    assert not set(RENAMED) & set(SETTINGS)
    assert all(replacement.split()[0] in SETTINGS for replacement in RENAMED.values())


def test_equality_of_settings_ignores_reports_and_files(tmp_path) -> None:
    config = tmp_path / "bff.toml"
    config.write_text("BFF_PORT = 8787")

    assert load(environ(BFF_CONFIG=str(config))) == load(environ())
