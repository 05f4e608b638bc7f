"""Texts of settings about keys and tokens: what each becomes, or the remedy of an invalid one."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bff.config import token_values
from bff.config.typed import InvalidValue

RANDOM = "a8Kq0zP4nX7vT2mB9yR5wL3cJ6hF1dG8"
ENCODED = base64.urlsafe_b64encode(RANDOM.encode()).decode()


def shown_by_an_issuer(key: Any) -> str:
    """Return a public key as Keycloak's page of keys shows it: without the lines of a PEM."""
    form = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(form).decode()


RSA = shown_by_an_issuer(rsa.generate_private_key(65537, 2048).public_key())
EC = shown_by_an_issuer(ec.generate_private_key(ec.SECP256R1()).public_key())
ED25519 = shown_by_an_issuer(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (token_values.verify, "local,upstream", ("local", "upstream")),
        (token_values.cookie, "__Host-bff-token", "__Host-bff-token"),
        (token_values.algorithms, "RS256,EdDSA", ("RS256", "EdDSA")),
        (token_values.claim_path, "app_metadata,scopes", ("app_metadata", "scopes")),
        (
            token_values.claim_path,
            "https://a.example.com/scopes",
            ("https://a.example.com/scopes",),
        ),
        (token_values.scopes_are_text, "list", False),
        (token_values.scopes_are_text, "text", True),
    ],
)
def test_text_is_read_as_its_value(read: Callable, text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (token_values.secret_keys, "tr_pat_" + "a" * 24, "begin with tr_dev_, tr_stg_"),
        (token_values.secret_keys, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "a token (JWT) and no key"),
        (token_values.secret_keys, "tr_dev_a b", "spaces"),
        (token_values.signing_keys, "tr_dev_sk_" + "a" * 24, "signs no tokens"),
        (token_values.signing_keys, "x" * 31, "at least 32"),
        (token_values.signing_keys, "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl", "a token (JWT)"),
        (token_values.signing_keys, "secret" * 6, "can be guessed"),
        (token_values.signing_keys, "0" * 32, "can be guessed"),
        (token_values.shared_keys, "pass-word" * 4 + "pass", "can be guessed"),
        (token_values.shared_keys, "abcdefghijklmnopqrstuvwxyz012345", "can be guessed"),
        (token_values.signing_keys, "a-string-secret-at-least-256-bits-long", "key of words"),
        (token_values.signing_keys, "dev_only_key_do_not_use_in_production", "key of words"),
        (token_values.signing_keys, f"base64:{RANDOM}", "begins with a label"),
        (token_values.signing_keys, f"Bearer {RANDOM}", "begins with a label"),
        (token_values.shared_keys, f"kid-2026={RANDOM}", "begins with a label"),
        (token_values.signing_keys, ENCODED.rstrip("="), "in base64 as number 1"),
        (token_values.signing_keys, RSA, "is a public key"),
        (token_values.signing_keys, RSA[:64] + "\n" + RSA[64:], "is a public key"),
        (token_values.signing_keys, EC, "is a public key"),
        (token_values.signing_keys, ED25519, "is a public key"),
        (token_values.signing_keys, f"-----BEGIN PRIVATE KEY-----\n{RSA}", "is a public key"),
        (token_values.signing_keys, "AAAAC3NzaC1lZDI1NTE5AAAAI" + RANDOM, "is a public key"),
        (token_values.signing_keys, "login.example.com/.well-known/jwks.json", "an address"),
        (token_values.signing_keys, "TR_PROD_" + RANDOM, "malformed root key"),
        (token_values.signing_keys, "tr_prod_abc", "malformed root key"),
        (token_values.secret_keys, "tr_prod_abc", "begin with tr_dev_, tr_stg_"),
        (token_values.signing_keys, "tr_staging_x", "malformed root key"),
        (token_values.verify, "upstream,local", "local comes first"),
        (token_values.verify, "off", "is not local, upstream or local,upstream"),
        (token_values.cookie, "token", "__Host-"),
        (token_values.cookie, "__Host-a;b", "__Host-"),
        (token_values.algorithms, "none", "may contain RS256, ES256"),
        (token_values.algorithms, "HS256,RS256", "either shared or public keys"),
        (token_values.jwks_url, "http://one.example.com/jwks", "use https"),
        (token_values.shared_keys, "-----BEGIN PUBLIC KEY-----", "use jwks_url or jwks_file"),
        (token_values.shared_keys, "x" * 31, "at least 32"),
        (token_values.jwks_url, "https://a.example/.well-known/openid-configuration", "jwks_uri"),
        (token_values.claim_path, "app_metadata.scopes", "write a list"),
        (token_values.claim_path, ",", "is empty"),
        (token_values.claim_path, "user_metadata,scopes", "users can change"),
        (token_values.scopes_are_text, "both", "is not list or text"),
    ],
)
def test_invalid_text_gets_a_remedy(read: Callable, text: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        read(text)

    assert problem in str(raised.value)
