"""Token sources of the file: valid ones, and the problems of the others."""

import json
import re
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
from support.issuers import KeyPair
from support.world import environ

from bff.config.reader import load
from bff.config.settings import SettingsError

SHARED = "shared-secret-sentinel-0123456789abcdef"
SOURCE = """
[[token_sources]]
name = "one"
issuer = "https://one.example.com"
audience = "chat"
algorithms = "RS256"
jwks_url = "https://one.example.com/jwks"
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Write a file, and return an environment whose BFF_CONFIG names it."""

    def write(text: str) -> dict[str, str]:
        file = tmp_path / "bff.toml"
        file.write_text(text)
        return environ(BFF_CONFIG=str(file))

    return write


def test_source_has_defaults(config) -> None:
    (source,) = load(config(SOURCE)).token_sources

    assert source.environment == "default"
    assert (source.scopes_path, source.scopes_are_text) == (("scopes",), False)
    assert source.keys_trusted == 86400
    assert source.required == {}


def test_issuer_need_not_be_an_address(config) -> None:
    assert load(config(SOURCE.replace('one.example.com"', 'one"'))).token_sources


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (SOURCE.replace('_url = "https', '_url = "http'), "use https"),
        (SOURCE.replace("RS256", "HS256"), "needs shared_keys, and no other keys, for HS256"),
        (SOURCE.replace("RS256", "none"), "may contain RS256, ES256"),
        (SOURCE.replace("RS256", "HS256,RS256"), "either shared or public keys"),
        (re.sub("jwks_url.*", f'shared_keys = "{SHARED}"', SOURCE), "needs either jwks_url or"),
        (SOURCE + f'shared_keys = "{SHARED}"', "either jwks_url or jwks_file, and no other keys"),
        (SOURCE.replace('audience = "chat"', ""), "audience is not set"),
        (SOURCE.replace('https://one.example.com"', 'https://id.trigger.dev"'), "issuer is Tri"),
        (SOURCE.replace('issuer = "https://one.example.com"', ""), "issuer is not set"),
        (SOURCE + SOURCE, "same name"),
        (SOURCE + SOURCE.replace('"one"', '"two"'), "same issuer"),
        (SOURCE + 'environment = "nowhere"', "environment is not one of default"),
        (SOURCE + 'scopes_claim = ["user_metadata", "scopes"]', "users can change"),
        (SOURCE + 'scopes_claim = ","', "is empty"),
        (SOURCE + 'scopes_form = "both"', "is not list or text"),
        (SOURCE + "keys_trusted = 0", "is zero"),
        (SOURCE + 'algoritms = "RS256"', "did you mean algorithms?"),
        (SOURCE + "[token_sources.required]\nazp = []", "required is not a table"),
        (SOURCE + "[token_sources.required]\nazp = {a = 1}", "required is not a table"),
        ("token_sources = 3", "[[token_sources]]"),
        (SOURCE.replace("jwks_url", "jwks_file"), "jwks_file names a file that cannot be read"),
    ],
    ids=range(21),
)  # fmt: skip
def test_problem_of_a_source_has_a_remedy(config, file: str, text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(config(file))

    assert any(text in problem for problem in raised.value.problems), raised.value.problems


def test_source_keys_are_read_from_files(config, tmp_path: Path) -> None:
    jwks, secret = tmp_path / "jwks.json", tmp_path / "secret"
    jwks.write_text(json.dumps({"keys": [KeyPair("RS256", "one").jwk()]}))
    secret.write_text(SHARED + "\n")
    environment = config(
        SOURCE.replace("jwks_url", "jwks_file").replace("https://one.example.com/jwks", str(jwks))
        + f'[[token_sources]]\nname = "two"\nissuer = "https://two"\naudience = "x"\n'
        f'algorithms = "HS256"\nshared_keys_FILE = "{secret}"\n'
    )

    settings = load(environment)

    assert SHARED not in repr(settings)
    assert settings.token_sources[1].shared_keys[0].reveal() == SHARED
    assert [source.keys_trusted for source in settings.token_sources] == [inf, inf]
    jwks.write_text(json.dumps({"keys": [KeyPair("ES256", "one").jwk()]}))
    with pytest.raises(SettingsError, match="jwks_file holds no public key for RS256"):
        load(environment)
