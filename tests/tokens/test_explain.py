"""Tokens, explained check by check."""

import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any

import pytest
from support.issuers import KeyPair
from support.world import NEW_KEY, OWN_KEY, Clock, World, claims, read, sign

from bff.tokens.explain import Check, explain, reason
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet, read_jwks
from bff.tokens.verify import Issuer

WALL = Clock().wall
ISSUERS = (Issuer("default", "env_test", (NEW_KEY, OWN_KEY)), Issuer("two", "env_two", (OWN_KEY,)))


def checks(token: str, issuers: Any = ISSUERS, sources: Any = ()) -> dict[str, Check]:
    return {check.name: check for check in explain(token.encode(), issuers, sources, WALL)}


def failed(token: str, **arguments: Any) -> list[str]:
    return [c.name for c in checks(token, **arguments).values() if c.passed is False]


def test_good_token_passes_every_check() -> None:
    found = checks(sign(claims(WALL, *read("chat-1"))))

    assert failed(sign(claims(WALL, *read("chat-1")))) == []
    assert "signing key number 2 of default, number 1 of two verifies" in found["signature"].text
    assert "sub is env_test: environment default" in found["environment"].text


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("no-token", "form"),
        ("a.b.c", "form"),
        ("x" * 40_000, "form"),
        ("tr_prod_sentinel", "form"),
        (sign(claims(WALL), "k" * 40), "signature"),
        (sign(claims(WALL), "k" * 64, algorithm="HS512"), "algorithm"),
        (sign(claims(WALL, iss="https://elsewhere")), "issuer"),
        (sign(claims(WALL, aud="https://elsewhere")), "audience"),
        (sign(claims(WALL, pub=None)), "public"),
        (sign(claims(WALL, sub="env_branch")), "environment"),
        (sign(claims(WALL, sub=7), headers=None), "environment"),
        (sign(claims(WALL, exp=WALL - 1)), "expiry"),
        (sign(claims(WALL, exp=None)), "expiry"),
        (sign(claims(WALL, iat=WALL + 3600)), "not before"),
        (sign(claims(WALL, nbf=WALL + 3600)), "not before"),
    ],
    ids=range(15),
)
def test_bad_token_fails_the_check_that_it_should(token: str, name: str) -> None:
    assert name in failed(token)
    assert token not in repr(checks(token))


def test_reason_is_the_first_failure() -> None:
    assert reason(checks(sign(claims(WALL, exp=1), "k" * 40)).values()) == "signature"
    assert reason(checks(sign(claims(WALL))).values()) == "unknown"


def test_token_that_upstream_verifies_is_unsure() -> None:
    issuers = (Issuer("default", "env_test", (), upstream=True),)

    found = checks(sign(claims(WALL), "k" * 40), issuers=issuers)

    assert found["signature"].passed is None
    assert found["environment"].passed is True


def test_own_key_is_said_to_tell_the_environment() -> None:
    payload = claims(WALL, sub="bff")

    assert checks(sign(payload, NEW_KEY))["environment"].passed is True
    assert failed(sign(payload, OWN_KEY)) == ["environment"], "two environments have the key"


def test_unknown_environment_is_unsure_until_its_id_is_known() -> None:
    issuers = (Issuer("default", None, (OWN_KEY,), pending=True),)

    assert checks(sign(claims(WALL)), issuers=issuers)["environment"].passed is None


def source(pair: KeyPair, *, known: bool = True) -> Source:
    document = json.dumps({"keys": [pair.jwk()]})
    keys = KeySet(read_jwks(document, ("RS256",)), url=None if known else "https://x/jwks")
    return Source(
        name="one",
        environment="default",
        issuer="https://one",
        audiences=("chat",),
        algorithms=("RS256",),
        keys=keys,
        scopes_path=("scopes",),
        scopes_are_text=False,
        required={},
    )


def test_token_of_a_source_is_checked_by_its_keys() -> None:
    pair, other = KeyPair("RS256", "a"), KeyPair("RS256", "a")
    good = {"iss": "https://one", "aud": "chat", "sub": "ann", "exp": WALL + 60}

    assert failed(pair.sign(good), sources=[source(pair)]) == []
    assert failed(other.sign(good), sources=[source(pair)]) == ["signature"]
    assert "audience" in failed(pair.sign(good | {"aud": "x"}), sources=[source(pair)])
    assert failed(sign(good), sources=[source(pair)]) == ["algorithm", "signature"]
    unknown = checks(pair.sign(good), sources=[source(pair, known=False)])
    assert unknown["signature"].passed is None


def test_audience_fails_when_the_source_has_none() -> None:
    pair = KeyPair("RS256", "a")
    without = replace(source(pair), audiences=())
    good = {"iss": "https://one", "sub": "ann", "exp": WALL + 60}

    assert failed(pair.sign(good), sources=[without]) == []
    assert "audience" in failed(pair.sign(good | {"aud": "chat"}), sources=[without])


@pytest.mark.parametrize("value", [None, True, 1e300, -1e300, "x", [], {}, float("1e15")])
@pytest.mark.parametrize("name", ["exp", "iat", "nbf", "aud", "iss", "sub", "alg", "kid"])
def test_odd_claims_are_explained(name: str, value: Any) -> None:
    payload = {**claims(WALL), name: value}
    token = ".".join(
        urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", name: value}, payload)
    )

    assert checks(f"{token}.c2ln")


async def test_log_says_why_a_token_is_refused(world: World) -> None:
    for changes, key, name in (
        ({}, "k" * 40, "signature"),
        ({"sub": "env_branch"}, OWN_KEY, "environment"),
        ({"aud": "x"}, OWN_KEY, "audience"),
    ):
        token = sign(claims(world.clock.wall, *read("chat-1"), **changes), key)
        assert (await world.get("chat-1", token=token)).status_code == 401
        line = world.logged()[-1]
        assert (line["event"], line["reason"]) == ("request_refused", name)
        assert token not in world.log.getvalue()


async def test_flood_of_bad_tokens_is_not_examined(world: World) -> None:
    await world.start(BFF_BAD_TOKEN_LIMIT="off")
    for _ in range(12):
        await world.get("chat-1", token=sign(claims(0), "k" * 40))
    long = sign(claims(0, pad="x" * 5000), "k" * 40)
    world.clock.advance(2)
    await world.get("chat-1", token=long)

    reasons = [x["reason"] for x in world.logged() if x["event"] == "request_refused"]
    assert reasons == ["signature"] * 10 + ["not examined"] * 3
