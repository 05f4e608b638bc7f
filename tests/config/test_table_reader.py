"""One table of settings: where each value comes from, and which problems are reported."""

import pytest
from support.world import NEW_KEY, OWN_KEY, ROOT_KEY, SECRET_KEY, environ

from bff.config.reader import load
from bff.config.settings import SETTINGS, SettingsError
from bff.config.table_reader import TableReader


def reports(environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Value and source of each setting, as `bff check` shows them."""
    try:
        found = load(environment).reports
    except SettingsError as exc:
        found = exc.reports
    return {report.name: (report.shown, report.source) for report in found}


def unknown(name: str) -> str:
    reader = TableReader({}, settings=(), renamed={})
    reader.report_unknown([name], SETTINGS, "")
    (problem,) = reader.problems
    return problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BFF_CACHE_TLL", "BFF_CACHE_TTL"),
        ("BFF_ALLOWED_ORIGIN", "BFF_ALLOWED_ORIGINS"),
        ("BFF_SIGNING_KEY", "BFF_SIGNING_KEYS"),
        ("BFF_TRUSTED_PROXY", "BFF_TRUSTED_PROXIES"),
        ("BFF_SECRET_KEY", "TRIGGER_SECRET_KEY"),
        ("bff_rate_limit", "BFF_RATE_LIMIT"),
        ("rate_limit", "BFF_RATE_LIMIT"),
    ],
)
def test_unknown_name_suggests_a_close_match(name: str, meant: str) -> None:
    assert unknown(name) == f"{name} is not a setting; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    ["BFF_ORIGIN", "BFF_LIMIT", "BFF_TTL", "BFF_KEY", "BFF_DEBUG", "BFF_TIMEOUT", "BFF_ZZZ"],
)
def test_unknown_name_suggests_nothing_without_a_close_match(name: str) -> None:
    assert unknown(name) == f"{name} is not a setting; docs/SETTINGS.md lists all settings"


def test_report_has_the_source_of_each_value(tmp_path) -> None:
    keys, config = tmp_path / "keys", tmp_path / "bff.toml"
    keys.write_text(f"{OWN_KEY}\n{OWN_KEY}2\n")
    config.write_text("BFF_CACHE_TTL = 3\nBFF_CACHE_CLOSED_TTL = 4\nBFF_CACHE_NEGATIVE_TTL = 0")
    shown = reports(
        environ(
            BFF_SIGNING_KEYS=None,
            BFF_SIGNING_KEYS_FILE=str(keys),
            BFF_CONFIG=str(config),
            BFF_CACHE_CLOSED_TTL="4",
        )
    )

    assert shown["TRIGGER_SECRET_KEY"] == ("set", "environment")
    assert shown["BFF_SIGNING_KEYS"] == ("set, 2 of them", str(keys))
    assert shown["BFF_CACHE_TTL"] == ("3", "BFF_CONFIG")
    assert shown["BFF_CACHE_CLOSED_TTL"] == ("4", "environment")
    assert shown["BFF_CACHE_NEGATIVE_TTL"] == ("0", "BFF_CONFIG")
    assert shown["BFF_IDLE_TIMEOUT"] == ("`75`", "default")


def test_report_says_that_a_required_setting_is_not_set() -> None:
    shown = reports(environ(TRIGGER_SECRET_KEY=None))

    assert shown["TRIGGER_SECRET_KEY"] == ("not set (required)", "default")


def test_report_does_not_quote_an_invalid_value() -> None:
    shown = reports(environ(BFF_RATE_LIMIT="many"))

    assert shown["BFF_RATE_LIMIT"] == ("(invalid)", "environment")


def test_secret_is_read_from_a_file_one_key_a_line(tmp_path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text(f"{OWN_KEY}\n{NEW_KEY}\n")
    key.write_text(f"{SECRET_KEY}\n")
    settings = load(
        environ(
            TRIGGER_SECRET_KEY=None,
            TRIGGER_SECRET_KEY_FILE=str(key),
            BFF_SIGNING_KEYS="",
            BFF_SIGNING_KEYS_FILE=str(keys),
        )
    )

    (environment,) = settings.environments
    assert [k.reveal() for k in environment.secret_keys] == [SECRET_KEY]
    assert [k.reveal() for k in environment.signing_keys] == [OWN_KEY, NEW_KEY]
    assert set(settings.files) == {str(keys), str(key)}


@pytest.mark.parametrize(
    ("content", "changes", "text"),
    [
        (SECRET_KEY, {}, "TRIGGER_SECRET_KEY and TRIGGER_SECRET_KEY_FILE are both set; keep one"),
        (" \n", {"TRIGGER_SECRET_KEY": None}, "is empty in the file that TRIGGER_SECRET_KEY_FILE"),
        ("\udcff", {"TRIGGER_SECRET_KEY": None}, "from its file (not UTF-8 text)"),
        (None, {"TRIGGER_SECRET_KEY": None}, "from its file (No such file or directory)"),
    ],
)
def test_problem_of_a_file_names_the_setting(
    tmp_path, content: str | None, changes: dict, text: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    with pytest.raises(SettingsError) as raised:
        load(environ(TRIGGER_SECRET_KEY_FILE=str(file), **changes))

    (problem,) = raised.value.problems
    assert problem.startswith("TRIGGER_SECRET_KEY ")
    assert text in problem


@pytest.mark.parametrize("key", [ROOT_KEY, "sentinel" * 100, "senti\nnel"], ids=range(3))
def test_key_in_place_of_its_path_is_never_shown(key: str) -> None:
    environment = environ(BFF_SIGNING_KEYS=None, BFF_SIGNING_KEYS_FILE=key)
    with pytest.raises(SettingsError) as raised:
        load(environment)

    assert reports(environment)["BFF_SIGNING_KEYS"] == ("(invalid)", "(not a readable file)")
    assert key not in "".join(raised.value.problems) + repr(raised.value.reports)
    assert "set BFF_SIGNING_KEYS_FILE to the path" in raised.value.problems[0]
