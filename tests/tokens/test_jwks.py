"""JWK sets: which of their keys count, and when they are fetched."""

import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.issuers import KeyPair

from bff.tokens.jwks import KeySet, read_jwks, shared_key

RSA, CURVE, EDWARDS = KeyPair("RS256", "rsa"), KeyPair("ES256", "ec"), KeyPair("EdDSA", "ed")
ALL = ("RS256", "ES256", "EdDSA")


def algorithms(*jwks: object, of: tuple[str, ...] = ALL) -> list[str]:
    """The algorithms of the keys that are read from a set of *jwks*."""
    return [key.algorithm.name for key in read_jwks(json.dumps({"keys": jwks}), of)]


def test_jwks_yields_its_public_keys() -> None:
    assert algorithms(RSA.jwk(), CURVE.jwk(), EDWARDS.jwk()) == ["RS256", "ES256", "EdDSA"]
    assert algorithms(EDWARDS.jwk(alg="Ed25519"), CURVE.jwk(alg=None)) == ["EdDSA", "ES256"]
    assert algorithms(RSA.jwk(), 7, None, {"kty": ["RSA"]}, {"kty": "RSA"}) == ["RS256"]


def test_null_member_of_a_jwk_counts_as_absent() -> None:
    nulls = dict.fromkeys(("use", "key_ops", "alg", "kid", "d", "x5c", "oth"))

    assert algorithms(*({**pair.jwk(), **nulls} for pair in (RSA, CURVE, EDWARDS))) == [
        "RS256",
        "ES256",
        "EdDSA",
    ]


def _weak_rsa() -> dict[str, object]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  on purpose
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))


def _p384() -> dict[str, object]:
    key = ec.generate_private_key(ec.SECP384R1())
    return json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))


@pytest.mark.parametrize(
    "jwk",
    [
        RSA.jwk(use="enc"),
        RSA.jwk(key_ops=["encrypt"]),
        RSA.jwk(alg="RS512"),
        RSA.jwk(alg="HS256"),
        RSA.jwk(kid=7),
        {"kty": "oct", "k": "c2VjcmV0"},
        _weak_rsa(),
        _p384(),
    ],
    ids=["use", "key_ops", "RS512", "HS256", "kid", "shared", "1024 bits", "P-384"],
)
def test_jwks_ignores_keys_that_verify_nothing(jwk: object) -> None:
    with pytest.raises(ValueError, match="holds no public key for RS256 or ES256 or EdDSA"):
        algorithms(jwk)


def test_jwks_yields_keys_of_the_configured_algorithms_only() -> None:
    assert algorithms(RSA.jwk(), CURVE.jwk(), of=("ES256",)) == ["ES256"]
    with pytest.raises(ValueError, match="holds no public key for ES256"):
        algorithms(RSA.jwk(), of=("ES256",))


def test_jwks_with_a_private_key_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a private key"):
        algorithms(CURVE.jwk(), RSA.jwk(d="AQAB"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"keys": 7}', "[" * 50_000),
        json.dumps({"keys": [RSA.jwk()]})[:-1] + ', "keys": []}',
        json.dumps({"keys": [RSA.jwk()] * 101}),
    ],
    ids=range(7),
)
def test_malformed_jwks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a JWK set"):
        read_jwks(text, ALL)


def test_key_set_is_fetched_regularly_and_on_an_unknown_key() -> None:
    keys = KeySet(url="https://x", trusted_seconds=100)
    assert keys.wait(0) == 0
    keys.attempt(0)
    assert keys.wait(1) == 9, "a failed fetch is repeated soon"
    keys.replace([shared_key("k" * 32)], 1000)
    assert keys.wait(1) == 299
    assert keys.trusted(1099)
    assert not keys.trusted(1100)
    keys.candidates("unknown", 1001)
    assert keys.wait(1) == 29
    generation = keys.generation
    keys.attempt(30)
    keys.replace([shared_key("k" * 32)], 1030)
    assert keys.generation == generation, "the same keys change nothing"
    assert keys.wait(30) == 300
