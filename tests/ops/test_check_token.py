"""`bff token --explain`."""

import subprocess
import time

import pytest
from support.command_line import bff
from support.issuers import KeyPair, running_jwks
from support.world import (
    OWN_KEY,
    ROOT_KEY,
    claims,
    environ,
    read,
    running_upstream,
    sign,
)


def explain(
    token: str, *, stdin: bool = False, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    shown = "-" if stdin else token
    return bff("token", "--explain", shown, environ=environ(**changes), stdin=token)


@pytest.mark.parametrize("stdin", [False, True])
def test_good_token_is_explained(stdin: bool) -> None:
    token = sign(claims(time.time(), *read("chat-1", "chat-2")))

    done = explain(f"Bearer {token}\n", stdin=stdin)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK       signature: signing key number 1 of default verifies it" in done.stdout
    assert "Sessions that its scopes name: chat-1, chat-2" in done.stdout
    assert "PROBLEM" not in done.stdout


def test_bad_token_is_a_problem_without_its_text() -> None:
    token = sign(claims(time.time(), "read:sessions", exp=1), "k" * 40)

    done = explain(token)

    assert done.returncode == 1
    assert "PROBLEM  signature: no signing key verifies it" in done.stdout
    assert "PROBLEM  expiry: it expired at 1970-01-01T00:00:01" in done.stdout
    assert "Sessions that its scopes name: all of the environment" in done.stdout
    assert token.split(".")[2] not in done.stdout + done.stderr


@pytest.mark.parametrize("text", [ROOT_KEY, OWN_KEY, "x"])
def test_secret_in_place_of_a_token_is_never_shown(text: str) -> None:
    done = explain(text)

    assert done.returncode == 1
    assert "PROBLEM  form" in done.stdout
    assert not text or len(text) == 1 or text not in done.stdout + done.stderr


def test_missing_id_is_learned(upstream: running_upstream) -> None:
    token = sign(claims(time.time(), *read("chat-1"), sub="env_branch"), ROOT_KEY)

    done = explain(
        token,
        TRIGGER_API_URL=f"http://127.0.0.1:{upstream.port}",
        BFF_SIGNING_KEYS=ROOT_KEY,
        BFF_ENVIRONMENT_ID=None,
    )

    assert "sub is env_branch, but BFF_ENVIRONMENT_ID is env_test" in done.stdout


def test_keys_of_a_source_are_fetched(tmp_path) -> None:
    pair = KeyPair("RS256", "a")
    with running_jwks(one=pair) as jwks:
        file = tmp_path / "bff.toml"
        file.write_text(
            f'[[token_sources]]\nname = "one"\nissuer = "https://one"\naudience = "chat"\n'
            f'algorithms = "RS256"\njwks_url = "{jwks.url}one"\n'
        )
        good = {"iss": "https://one", "aud": "chat", "sub": "ann", "exp": time.time() + 60}
        done = explain(pair.sign(good | {"scopes": read("a")}), BFF_CONFIG=str(file))
    gone = explain(pair.sign(good), BFF_CONFIG=str(file))

    assert "OK       signature: a key of the source verifies it" in done.stdout
    assert "UNSURE   signature: the gateway has no trusted keys of the source now" in gone.stdout
