"""Signature algorithms: an engine accepts its own algorithm and nothing else."""

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import KeyPair, forge
from support.world import OWN_KEY, claims, read

from bff.errors import Refused
from bff.tokens.algorithms import PUBLIC_ALGORITHMS, SHARED_ALGORITHM, TRIGGER_ALGORITHM

CLAIMS = claims(1_800_000_000, *read("chat-1"))


def test_algorithm_verifies_what_it_signs() -> None:
    token = TRIGGER_ALGORITHM.sign(b'{"sub":"a"}', OWN_KEY).encode()

    assert TRIGGER_ALGORITHM.verify(token, OWN_KEY) == {"sub": "a"}
    with pytest.raises(Refused, match="token_invalid"):
        TRIGGER_ALGORITHM.verify(token, "x" * 40)


@pytest.mark.parametrize(
    "alg",
    [
        "none",
        "None",
        "nOnE",
        "HS384",
        "HS512",
        "RS256",
        "ES256",
        "",
        None,
        ["HS256"],
        {"HS256": 1},
        256,
    ],
)
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512", ""])
def test_token_does_not_choose_the_algorithm(alg: object, digest: str) -> None:
    header = {"typ": "JWT"} if alg is None else {"typ": "JWT", "alg": alg}

    with pytest.raises(Refused, match="token_invalid"):
        TRIGGER_ALGORITHM.verify(forge(header, CLAIMS, OWN_KEY, digest=digest), OWN_KEY)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "crit": ["x"]},
        {"alg": "HS256", "crit": ["x"], "x": 1},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "kid": 7},
        [],
        b"\xff",
        b"[" * 5000,
        b'{"alg":"HS256"',
    ],
)
def test_malformed_header_is_refused(header: object) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        TRIGGER_ALGORITHM.verify(forge(header, CLAIMS, OWN_KEY), OWN_KEY)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"[]", b"null", b'"x"', b"\xff", b"[" * 5000, b"9" * 5000),
        *(b'{"sub":"a","sub":"b"}', b'{"exp":NaN}'),
    ],
)
def test_malformed_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        TRIGGER_ALGORITHM.verify(forge({"alg": "HS256"}, payload, OWN_KEY), OWN_KEY)


def test_public_key_is_not_a_shared_key() -> None:
    public = KeyPair("RS256", "one").private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    with pytest.raises(Refused, match="token_invalid"):
        SHARED_ALGORITHM.verify(forge({"alg": "HS256"}, CLAIMS, pem), pem)


@pytest.mark.parametrize("algorithm", PUBLIC_ALGORITHMS, ids=lambda one: one.name)
def test_algorithm_reads_only_its_own_keys(algorithm) -> None:
    pairs = [KeyPair(name, "one") for name in ("RS256", "ES256", "EdDSA")]
    for pair in pairs:
        if pair.algorithm == algorithm.name:
            token = pair.sign({"sub": "a"}).encode()
            assert algorithm.verify(token, algorithm.read_key(pair.jwk())) == {"sub": "a"}
        else:
            with pytest.raises(ValueError, match=f"not a key for {algorithm.name}"):
                algorithm.read_key(pair.jwk())
