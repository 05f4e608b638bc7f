"""Every problem at once, each with its name and a remedy, and no secret in any of them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.world import OWN_KEY, ROOT_KEY, SECRET_KEY, environ

from bff.config import settings
from bff.config.reader import load
from bff.config.settings import SettingsError
from bff.config.values import Rate

KEYS = f'TRIGGER_SECRET_KEY = "{SECRET_KEY}"\nBFF_SIGNING_KEYS = "{OWN_KEY}"\n'


def problems(told: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(told)
    return raised.value.problems


def test_the_least_that_must_be_told() -> None:
    told = load({"TRIGGER_SECRET_KEY": ROOT_KEY, "BFF_ENVIRONMENT_ID": "env_1"})

    (environment,) = told.environments
    assert environment.api_url == "https://api.trigger.dev"
    assert [key.reveal() for key in environment.signing_keys] == [ROOT_KEY]
    assert environment.upstream_budget == Rate(10, 1)
    assert (told.host, told.port, told.ops_port) == ("127.0.0.1", 8787, 9787)
    assert told.rate_limit == Rate(300, 60)
    assert told.allowed_origins == ()
    assert told.cache_max_bytes == 64 * 1024 * 1024


def test_all_problems_come_together_each_with_its_name() -> None:
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

    names = [problem.split()[0].rstrip(":") for problem in found]
    assert sorted(names) == [
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
    ("changes", "says"),
    [
        ({"TRIGGER_SECRET_KEY": None}, "TRIGGER_SECRET_KEY is not set; set TRIGGER_SECRET_KEY or"),
        ({"TRIGGER_SECRET_KEY": None}, "upstream; best a restricted one (`tr_*_sk_*` with"),
        ({"TRIGGER_SECRET_KEY": "abc"}, "begin with tr_dev_, tr_stg_"),
        ({"TRIGGER_SECRET_KEY": "tr_pat_" + "a" * 24}, "begin with tr_dev_, tr_stg_"),
        ({"TRIGGER_SECRET_KEY": "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"}, "copy one from API keys"),
        ({"TRIGGER_SECRET_KEY": "tr_dev_a b"}, "spaces"),
        ({"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "local"}, "says local and there is no key here"),
        ({"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "local,upstream"}, "says local and there is no"),
        ({"BFF_VERIFY": "upstream"}, "BFF_SIGNING_KEYS has no effect"),
        (
            {"BFF_VERIFY": "upstream,local"},
            "local,upstream, in this order",
        ),
        ({"BFF_VERIFY": "off"}, "local,upstream, in this order"),
        ({"BFF_TOKEN_COOKIE": "token"}, "__Host-"),
        ({"BFF_TOKEN_COOKIE": "__Host-a;b"}, "__Host-"),
        ({"BFF_SIGNING_KEYS": SECRET_KEY}, "signs no tokens"),
        ({"BFF_SIGNING_KEYS": "x" * 31}, "at least 32"),
        ({"BFF_SIGNING_KEYS": "tr_staging_x"}, "malformed root key"),
        ({"TRIGGER_API_URL": "http://api.example.com"}, "in the clear"),
        ({"TRIGGER_API_URL": "ftp://x"}, "is not an address"),
        ({"TRIGGER_API_URL": "https://user:pw@x"}, "nothing else"),
        ({"TRIGGER_API_URL": "https://x/?a"}, "nothing else"),
        ({"TRIGGER_API_URL": "https://x:port"}, "is not an address"),
        ({"BFF_ALLOWED_ORIGINS": "*,https://a.example"}, "either"),
        ({"BFF_ALLOWED_ORIGINS": "https://A.example"}, "no browser sends"),
        ({"BFF_ALLOWED_ORIGINS": "https://a.example:443"}, "no browser sends"),
        ({"BFF_ALLOWED_ORIGINS": "a.example"}, "no browser sends"),
        ({"BFF_ALLOWED_ORIGINS": "null"}, "no browser sends"),
        ({"BFF_ALLOWED_ORIGINS": "https://a.example/"}, "no slash at the end"),
        ({"BFF_ALLOWED_ORIGINS": "https://*.example"}, "no wildcard but * alone"),
        ({"BFF_TRUSTED_PROXIES": "::1,10.0.0.1/8"}, "'10.0.0.1/8', which is no network"),
        ({"BFF_TRUSTED_PROXIES": "caddy"}, "(not 10.0.0.1/8, and no name)"),
        ({"BFF_HOST": "0.0.0.0:8787"}, "BFF_HOST is no address to listen on"),
        ({"BFF_OPS_HOST": "http://localhost"}, "without scheme and port"),
        ({"BFF_PORT": "9787"}, "BFF_PORT and BFF_OPS_PORT are the same; give each its own"),
        ({"BFF_STORE_TIMEOUT": "61"}, "too long to wait; write seconds, 60 at most"),
        ({"BFF_UPSTREAM_TIMEOUT": "5000"}, "too long to wait"),
        ({"BFF_RATE_LIMIT": "0/minute"}, "N from 1"),
        ({"BFF_RATE_LIMIT": "5/day"}, "N/hour"),
        ({"BFF_CACHE_TTL": "nan"}, "duration"),
        ({"BFF_UPSTREAM_TIMEOUT": "0"}, "zero"),
        ({"BFF_CACHE_MAX_BYTES": "64MB"}, "number of bytes"),
        ({"BFF_BRANCH": "a\nb"}, "control characters"),
        ({"BFF_EXPOSE_METADATA": "a..b"}, "BFF_EXPOSE_METADATA: 'a..b' has an empty step"),
        ({"BFF_EXPOSE_FIELDS": "id,type"}, "the SDK fails without"),
        ({"BFF_OPS_NAMES": "gateway-1,gateway-2:9787"}, "'gateway-2:9787', which is no host name"),
        ({"BFF_OPS_NAMES": "http://gateway"}, "write it without scheme, port and path"),
        ({"BFF_OPS_NAMES": "*"}, "is no host name"),
        ({"BFF_NOPE": "1"}, "BFF_NOPE is not a setting"),
        ({"BFF_ZZZ": "1"}, "BFF_ZZZ is not a setting; docs/SETTINGS.md has all there are"),
        ({"BFF_CONFIG": "/no/such/file"}, "BFF_CONFIG names a file that cannot be read"),
    ],
    ids=repr,
)
def test_each_problem_names_its_setting_and_a_remedy(changes: dict, says: str) -> None:
    (found,) = problems(environ(**changes))

    assert says in found
    assert found.startswith(("BFF_", "TRIGGER_"))


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
def test_who_verifies_and_whether_the_id_has_to_be_asked_for(
    changes: dict, verify: object, keys: list[str], *, learn: bool
) -> None:
    (environment,) = load(environ(**changes)).environments

    assert environment.verify == (("local", "upstream") if verify is ... else verify)
    assert [key.reveal() for key in environment.signing_keys] == keys
    assert environment.learn is learn


def test_no_problem_and_no_repr_quotes_a_secret(tmp_path) -> None:
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


def test_secrets_come_from_files_one_a_line(tmp_path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text(f"{OWN_KEY}\n{'k' * 32}\n")
    key.write_text(f"{SECRET_KEY}\n")
    told = load(
        environ(
            TRIGGER_SECRET_KEY=None,
            TRIGGER_SECRET_KEY_FILE=str(key),
            BFF_SIGNING_KEYS="",
            BFF_SIGNING_KEYS_FILE=str(keys),
        )
    )

    (environment,) = told.environments
    assert [k.reveal() for k in environment.secret_keys] == [SECRET_KEY]
    assert [k.reveal() for k in environment.signing_keys] == [OWN_KEY, "k" * 32]


def test_a_secret_is_told_once(tmp_path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRET_KEY)

    (found,) = problems(environ(TRIGGER_SECRET_KEY_FILE=str(file)))

    assert "both set" in found


@pytest.fixture
def config(tmp_path) -> Callable[[str], dict[str, str]]:
    def write(text: str, **changes: str | None) -> dict[str, str]:
        file = tmp_path / "bff.toml"
        file.write_text(text)
        return environ(BFF_CONFIG=str(file), **changes)

    return write


def test_the_file_holds_the_same_names_and_the_environment_wins(config) -> None:
    told = load(
        config(
            """
            BFF_CACHE_TTL = 7
            BFF_CACHE_CLOSED_TTL = 70.5
            BFF_ALLOWED_ORIGINS = ["https://a.example", "https://b.example"]
            BFF_RATE_LIMIT = "off"
            """,
            BFF_CACHE_TTL="9",
            BFF_ALLOWED_ORIGINS="",
        )
    )

    assert (told.cache_ttl, told.cache_closed_ttl, told.rate_limit) == (9, 70.5, None)
    assert told.allowed_origins == ("https://a.example", "https://b.example")


def test_environments_and_policies_come_from_the_file(config) -> None:
    told = load(
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

    assert [(e.name, e.branch, e.upstream_budget) for e in told.environments] == [
        ("default", None, Rate(10, 1)),
        ("preview", "feat/one", Rate(1, 1)),
    ]
    policy = told.policies["chat.agent"]
    assert (policy.metadata, policy.tags) == (("plan", "steps.*.title"), ("public:*",))
    assert told.default_policy.metadata == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("BFF_CACHE_TTL = ", "not valid TOML (at"),
        ("BFF_TYPO = 1", "BFF_CONFIG: BFF_TYPO is not a setting"),
        ('rate_limit = "3/minute"', "rate_limit is not a setting; did you mean BFF_RATE_LIMIT?"),
        ("environments = 3", "[[environments]]"),
        ("policies = 3", "[policies."),
        (
            '[policies.x]\nBFF_PORT = "1"',
            "policy 'x': BFF_PORT is not a setting here; it belongs at",
        ),
        ('[[environments]]\nBFF_RATE_LIMIT = "off"', "BFF_RATE_LIMIT is not a setting here; it"),
        ('[policies.x]\nBFF_EXPOSE_FIELDS = "id"', "policy 'x': BFF_EXPOSE_FIELDS"),
        ('[[environments]]\nname = "A B"', "name may have"),
        (
            f'[[environments]]\n{KEYS}BFF_ENVIRONMENT_ID = "env_test"',
            "same BFF_ENVIRONMENT_ID",
        ),
    ],
    ids=range(10),
)
def test_problems_of_the_file(config, text: str, says: str) -> None:
    assert any(says in found for found in problems(config(text)))


@given(st.dictionaries(st.sampled_from(sorted(settings.SETTINGS)), st.text(max_size=30)))
def test_any_text_is_read_or_refused(told: dict[str, str]) -> None:
    try:
        load(environ(**told))
    except SettingsError as exc:
        assert exc.problems


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "http://127.0.0.1", "http://[::1]:3", "https://x.example/base/"]
)
def test_http_for_loopback_and_a_path_prefix_are_fine(url: str) -> None:
    (environment,) = load(environ(TRIGGER_API_URL=url)).environments

    assert environment.api_url == url.rstrip("/")


def test_what_may_be_listened_on() -> None:
    for host in ("127.0.0.1", "192.0.2.1", "::", "::1", "localhost", "gateway-1.internal"):
        assert load(environ(BFF_HOST=host)).host == host
    load(environ(BFF_PORT="8787", BFF_OPS_PORT="8787", BFF_HOST="192.0.2.1"))
    load(environ(BFF_PORT="0", BFF_OPS_PORT="0"))


def test_plain_http_when_it_is_written() -> None:
    assert load(environ(TRIGGER_API_URL="http://inside.example", BFF_ALLOW_HTTP_API_URL="true"))
