"""Settings from variables and the file: all problems at once, and no secret in any of them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.world import OWN_KEY, ROOT_KEY, SECRET_KEY, environ

from bff.config.reader import load
from bff.config.settings import SETTINGS, SettingsError
from bff.config.values import Rate
from bff.tokens.verify import Issuer

KEYS = f'TRIGGER_SECRET_KEY = "{SECRET_KEY}"\nBFF_SIGNING_KEYS = "{OWN_KEY}"\n'


def problems(environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(environment)
    return raised.value.problems


@pytest.fixture
def config(tmp_path) -> Callable[..., dict[str, str]]:
    """Write a file, and return an environment whose BFF_CONFIG names it."""

    def write(text: str, **changes: str | None) -> dict[str, str]:
        file = tmp_path / "bff.toml"
        file.write_text(text)
        return environ(BFF_CONFIG=str(file), **changes)

    return write


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "cannot be read: No such file"), ("", "has no certificate"), ("x", "no certificate")],
)
def test_unusable_ssl_cert_file_is_a_problem(tmp_path, text: str | None, problem: str) -> None:
    file = tmp_path / "authorities.pem"
    if text is not None:
        file.write_text(text)

    (found,) = problems(environ(SSL_CERT_FILE=str(file)))

    assert found.startswith("SSL_CERT_FILE ")
    assert problem in found
    assert "or unset it" in found


# -- the environment


def test_settings_have_defaults_beside_the_key() -> None:
    settings = load({"TRIGGER_SECRET_KEY": ROOT_KEY, "BFF_ENVIRONMENT_ID": "env_1"})

    (environment,) = settings.environments
    assert environment.api_url == "https://api.trigger.dev"
    assert [key.reveal() for key in environment.signing_keys] == [ROOT_KEY]
    assert environment.upstream_budget == Rate(10, 1)
    assert (settings.host, settings.port, settings.ops_port) == ("127.0.0.1", 8787, 9787)
    assert settings.rate_limit == Rate(300, 60)
    assert settings.allowed_origins == ()
    assert settings.cache_max_bytes == 64 * 1024 * 1024
    assert settings.fast_path is True


def test_load_reports_all_problems_at_once() -> None:
    found = problems(
        {
            "TRIGGER_API_URL": "http://api.example.com",
            "TRIGGER_SECRET_KEY": SECRET_KEY,
            "BFF_SIGNING_KEYS": "short",
            "BFF_PORT": "99999",
            "BFF_CACHE_TTL": "-1",
            "BFF_RATE_LIMIT": "many",
            "BFF_ALLOWED_ORIGINS": "https://app.example.com/",
            "BFF_TRUSTED_PROXIES": "10.0.0.0/33",
            "BFF_EXPOSE_FIELDS": "id",
            "BFF_CACHE_TLL": "3",
        }
    )

    assert sorted(problem.split()[0].rstrip(":") for problem in found) == [
        "BFF_ALLOWED_ORIGINS",
        "BFF_CACHE_TLL",
        "BFF_CACHE_TTL",
        "BFF_EXPOSE_FIELDS",
        "BFF_PORT",
        "BFF_RATE_LIMIT",
        "BFF_SIGNING_KEYS",
        "BFF_TRUSTED_PROXIES",
    ]
    assert "BFF_CACHE_TLL is not a setting; did you mean BFF_CACHE_TTL?" in found


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"TRIGGER_SECRET_KEY": None}, "TRIGGER_SECRET_KEY is not set; set TRIGGER_SECRET_KEY or"),
        ({"TRIGGER_SECRET_KEY": None}, "TRIGGER_SECRET_KEY_FILE: the key of the Trigger.dev"),
        ({"TRIGGER_SECRET_KEY": "abc"}, "begin with tr_dev_, tr_stg_"),
        ({"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "local"}, "there is no key to verify with"),
        ({"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "local,upstream"}, "there is no key to verify"),
        ({"BFF_VERIFY": "upstream"}, "BFF_SIGNING_KEYS has no effect"),
        ({"TRIGGER_API_URL": "http://api.example.com"}, "unencrypted; use https"),
        ({"BFF_PORT": "9787"}, "BFF_PORT and BFF_OPS_PORT are the same; choose different"),
        ({"BFF_EXPOSE_METADATA": "a..b"}, "BFF_EXPOSE_METADATA: 'a..b' has an empty step"),
        ({"BFF_EXPOSE_FIELDS": "id,type"}, "the SDK needs them"),
        ({"BFF_NOPE": "1"}, "BFF_NOPE is not a setting"),
        ({"BFF_FAST_LANE": "off"}, "BFF_FAST_LANE is renamed to BFF_FAST_PATH (true or false)"),
        ({"BFF_FAST_PATH": "off"}, "BFF_FAST_PATH is not true or false"),
        ({"BFF_CONFIG": "/no/such/file"}, "BFF_CONFIG names a file that cannot be read"),
    ],
    ids=repr,
)
def test_problem_names_its_setting_and_a_remedy(changes: dict, text: str) -> None:
    (problem,) = problems(environ(**changes))

    assert text in problem
    assert problem.startswith(("BFF_", "TRIGGER_"))


@pytest.mark.parametrize(
    ("changes", "verify", "keys", "learn"),
    [
        ({}, ("local",), [OWN_KEY], False),
        ({"BFF_ENVIRONMENT_ID": None}, ("local",), [OWN_KEY], False),
        ({"BFF_ENVIRONMENT_ID": None, "BFF_VERIFY": "local,upstream"}, ..., [OWN_KEY], True),
        ({"BFF_SIGNING_KEYS": None}, ("upstream",), [], False),
        ({"BFF_SIGNING_KEYS": None, "BFF_ENVIRONMENT_ID": None}, ("upstream",), [], True),
        ({"BFF_SIGNING_KEYS": ROOT_KEY, "BFF_ENVIRONMENT_ID": None}, ("local",), [ROOT_KEY], True),
        (
            {"BFF_SIGNING_KEYS": None, "TRIGGER_SECRET_KEY": ROOT_KEY},
            ("local",),
            [ROOT_KEY],
            False,
        ),
        (
            {"BFF_SIGNING_KEYS": None, "TRIGGER_SECRET_KEY": ROOT_KEY, "BFF_VERIFY": "upstream"},
            ("upstream",),
            [],
            False,
        ),
    ],
    ids=range(8),
)
def test_keys_decide_who_verifies_and_whether_an_id_is_needed(
    changes: dict, verify: object, keys: list[str], *, learn: bool
) -> None:
    (environment,) = load(environ(**changes)).environments

    assert environment.verify == (("local", "upstream") if verify is ... else verify)
    assert [key.reveal() for key in environment.signing_keys] == keys
    assert environment.learn is learn


def test_problems_and_reprs_quote_no_secret(tmp_path) -> None:
    sentinel = "sentinel-of-a-key"
    file = tmp_path / "key"
    file.write_text(sentinel + " \n with a line break")
    for changes in (
        {"TRIGGER_SECRET_KEY": sentinel},
        {"BFF_SIGNING_KEYS": sentinel},
        {"BFF_SIGNING_KEYS": f"tr_prod_sk_{sentinel}"},
        {"TRIGGER_SECRET_KEY": None, "TRIGGER_SECRET_KEY_FILE": str(file)},
    ):
        assert sentinel not in "".join(problems(environ(**changes)))
    assert SECRET_KEY not in repr(load(environ()))
    assert OWN_KEY not in repr(load(environ()))
    assert OWN_KEY not in repr(Issuer("default", None, (OWN_KEY,)))


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.0.0.1", "http://[::1]:3", "https://x.example/base/"]
)
def test_api_url_may_be_loopback_or_have_a_path(url: str) -> None:
    (environment,) = load(environ(TRIGGER_API_URL=url)).environments

    assert environment.api_url == url.rstrip("/")


def test_api_url_may_be_http_when_allowed() -> None:
    assert load(environ(TRIGGER_API_URL="http://inside.example", BFF_ALLOW_HTTP_API_URL="true"))


def test_ports_may_be_equal_on_different_hosts_or_free() -> None:
    load(environ(BFF_PORT="8787", BFF_OPS_PORT="8787", BFF_HOST="192.0.2.1"))
    load(environ(BFF_PORT="0", BFF_OPS_PORT="0"))


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30)))
def test_load_reads_or_refuses_any_text(texts: dict[str, str]) -> None:
    try:
        load(environ(**texts))
    except SettingsError as exc:
        assert exc.problems


# -- the file


def test_variable_wins_over_the_file_unless_it_is_empty(config) -> None:
    settings = load(
        config(
            """
            BFF_CACHE_TTL = 7
            BFF_CACHE_CLOSED_TTL = 70.5
            BFF_FAST_PATH = false
            BFF_ALLOWED_ORIGINS = ["https://a.example", "https://b.example"]
            BFF_RATE_LIMIT = "off"
            """,
            BFF_CACHE_TTL="9",
            BFF_ALLOWED_ORIGINS="",
        )
    )

    assert (settings.cache_ttl, settings.cache_closed_ttl) == (9, 70.5)
    assert (settings.rate_limit, settings.fast_path) == (None, False)
    assert settings.allowed_origins == ("https://a.example", "https://b.example")


def test_file_holds_environments_and_policies(config) -> None:
    settings = load(
        config(
            f"""
            BFF_EXPOSE_TAGS = "public:*"
            [[environments]]
            name = "preview"
            TRIGGER_SECRET_KEY = "{SECRET_KEY}"
            BFF_SIGNING_KEYS = "{OWN_KEY}"
            BFF_ENVIRONMENT_ID = "env_preview"
            BFF_BRANCH = "feat/one"
            BFF_UPSTREAM_BUDGET = "1/second"
            [policies."chat.agent"]
            BFF_EXPOSE_METADATA = ["plan", "steps.*.title"]
            """
        )
    )

    assert [(e.name, e.branch, e.upstream_budget) for e in settings.environments] == [
        ("default", None, Rate(10, 1)),
        ("preview", "feat/one", Rate(1, 1)),
    ]
    policy = settings.policies["chat.agent"]
    assert (policy.metadata, policy.tags) == (("plan", "steps.*.title"), ("public:*",))
    assert settings.default_policy.metadata == ()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("BFF_CACHE_TTL = ", "not valid TOML (at"),
        ("BFF_TYPO = 1", "BFF_CONFIG: BFF_TYPO is not a setting"),
        ('BFF_FAST_LANE = "off"', "BFF_CONFIG: BFF_FAST_LANE is renamed to BFF_FAST_PATH (true or"),
        ('rate_limit = "3/minute"', "rate_limit is not a setting; did you mean BFF_RATE_LIMIT?"),
        ("environments = 3", "[[environments]]"),
        ("policies = 3", "[policies."),
        (
            '[policies.x]\nBFF_PORT = "1"',
            "policy 'x': BFF_PORT is not a setting of this section; set it at",
        ),
        (
            '[[environments]]\nBFF_RATE_LIMIT = "off"',
            "BFF_RATE_LIMIT is not a setting of this section",
        ),
        ('[policies.x]\nBFF_EXPOSE_FIELDS = "id"', "policy 'x': BFF_EXPOSE_FIELDS"),
        ('[[environments]]\nname = "A B"', "name is invalid"),
        (
            f'[[environments]]\n{KEYS}BFF_ENVIRONMENT_ID = "env_test"',
            "same BFF_ENVIRONMENT_ID",
        ),
    ],
    ids=range(11),
)
def test_problem_in_the_file_names_its_section(config, file: str, text: str) -> None:
    assert any(text in problem for problem in problems(config(file)))
