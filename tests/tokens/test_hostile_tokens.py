"""Hostile tokens of other issuers, against one verifier with all sources and own keys.

Each row is a token that must be refused, with a name that says what is wrong with it.
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import Claims, KeyPair, segment
from support.world import ENVIRONMENT_ID, OWN_KEY, ROOT_KEY, claims, read, sign

from bff.errors import Refused
from bff.sessions import ids
from bff.tokens.caller import Caller, Claimant
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet, read_jwks, shared_key
from bff.tokens.verify import Issuer, Verifier

NOW = 1_800_000_000.0
SHARED = "shared-secret-sentinel-0123456789abcdef"
RSA, CURVE, EDWARDS = KeyPair("RS256", "rsa"), KeyPair("ES256", "ec"), KeyPair("EdDSA", "ed")
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  on purpose
P384, K256 = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())
STRANGERS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def jwk_of(key: Any) -> Claims:
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))


def weak_jwk() -> Claims:
    return jwk_of(WEAK) | {"kid": "weak", "use": "sig", "alg": "RS256"}


def p384_jwk() -> Claims:
    made = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(P384.public_key()))
    return made | {"kid": "p384", "use": "sig"}


def source(name: str, algorithms: tuple[str, ...], *jwks: Claims) -> Source:
    keys = (shared_key(SHARED),) if not jwks else read_jwks(json.dumps({"keys": jwks}), algorithms)
    return Source(
        name=name,
        environment="default",
        issuer=f"https://{name}.example.com/",
        audiences=("chat",),
        algorithms=algorithms,
        keys=KeySet(keys),
        scopes_path=("scopes",),
        scopes_are_text=False,
        required={},
    )


SOURCES = (
    source("rsa", ("RS256",), RSA.jwk(), weak_jwk()),
    source("ec", ("ES256",), CURVE.jwk(), p384_jwk()),
    source("ed", ("EdDSA",), EDWARDS.jwk()),
    source("shared", ("HS256",)),
    source("both", ("RS256", "ES256"), RSA.jwk(), CURVE.jwk()),
)


@pytest.fixture(scope="module", params=["local", "local,upstream"])
def verifier(request: pytest.FixtureRequest) -> Verifier:
    issuer = Issuer("default", ENVIRONMENT_ID, (OWN_KEY,), upstream="upstream" in request.param)
    return Verifier([issuer], ids.grant, sources=SOURCES)


def good(name: str, **changes: Any) -> Claims:
    of_source = {"iss": f"https://{name}.example.com/", "aud": "chat", "sub": "ann", "pub": None}
    return claims(NOW, *read("chat-1"), **(of_source | changes))


Signer = Callable[[bytes], bytes]


def built(header: object, payload: object, signer: Signer | bytes) -> str:
    text = f"{segment(header)}.{segment(payload)}"
    signature = signer if isinstance(signer, bytes) else signer(text.encode())
    return f"{text}.{segment(signature)}"


def mac(key: bytes, digest: str = "sha256") -> Signer:
    return lambda text: hmac.new(key, text, digest).digest()


def rs(key: Any, digest: Any = SHA256) -> Signer:
    return lambda text: key.sign(text, padding.PKCS1v15(), digest())


def ps(text: bytes) -> bytes:
    return RSA.private.sign(text, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())


def es(key: Any, digest: Any = SHA256, size: int = 32) -> Signer:
    def signed(text: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(text, ec.ECDSA(digest())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return signed


def der(text: bytes) -> bytes:
    return CURVE.private.sign(text, ec.ECDSA(SHA256()))


def h(alg: object, kid: object = None, **more: object) -> Claims:
    header = {"typ": "JWT", "alg": alg, "kid": kid} | more
    return {name: value for name, value in header.items() if value is not None}


def public(encoding: Encoding, form: PublicFormat) -> bytes:
    return RSA.private.public_key().public_bytes(encoding, form)


PEM = public(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
N = RSA.jwk()["n"].encode()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
RSA_GOOD, EC_GOOD = good("rsa"), good("ec")
OWN_CLAIMS = claims(NOW, *read("chat-1"))
HEAD, _, SIGNATURE = RSA.sign(RSA_GOOD).split(".")
TWICE = b'{"iss":"https://rsa.example.com/","iss":"https://id.trigger.dev",'

HOSTILE: dict[str, str] = {
    # a public key used as a shared key
    "HS256 with the PEM": built(h("HS256", "rsa"), RSA_GOOD, mac(PEM)),
    "HS256 with the PEM, stripped": built(h("HS256", "rsa"), RSA_GOOD, mac(PEM.strip())),
    "HS256 with PKCS1 PEM": built(
        h("HS256", "rsa"), RSA_GOOD, mac(public(Encoding.PEM, PublicFormat.PKCS1))
    ),
    "HS256 with the DER": built(
        h("HS256", "rsa"),
        RSA_GOOD,
        mac(public(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    ),
    "HS256 with the JWK": built(
        h("HS256", "rsa"), RSA_GOOD, mac(json.dumps(RSA.jwk()).encode())
    ),
    "HS256 with n": built(h("HS256", "rsa"), RSA_GOOD, mac(N)),
    "HS256 with no key": built(h("HS256", "rsa"), RSA_GOOD, mac(b"")),
    "HS256 with another source's shared key": built(
        h("HS256", "rsa"), RSA_GOOD, mac(SHARED.encode())
    ),
    "RS256 that says HS256": built(h("HS256", "rsa"), RSA_GOOD, rs(RSA.private)),
    "HMAC that says RS256": built(h("RS256", "rsa"), RSA_GOOD, mac(PEM)),
    "HMAC at a source of two algorithms": built(h("HS256", "rsa"), good("both"), mac(PEM)),
    # no algorithm, or a wrong one
    **{
        f"{alg!r}": built(h(alg, "rsa"), RSA_GOOD, rs(RSA.private))
        for alg in ("none", "None", "", "rs256", "RS256 ", ["RS256"], {"RS256": 1}, 256, True)
    },
    "none, unsigned": built(h("none", "rsa"), RSA_GOOD, b""),
    "no alg at all": built(h(None, "rsa"), RSA_GOOD, rs(RSA.private)),
    "RS384 with the right key": built(h("RS384", "rsa"), RSA_GOOD, rs(RSA.private, SHA384)),
    "RS512 with the right key": built(h("RS512", "rsa"), RSA_GOOD, rs(RSA.private, SHA512)),
    "PS256 with the right key": built(h("PS256", "rsa"), RSA_GOOD, ps),
    "PS256 that says RS256": built(h("RS256", "rsa"), RSA_GOOD, ps),
    "HS384 with the shared key": built(
        h("HS384"), good("shared"), mac(SHARED.encode(), "sha384")
    ),
    "HS512 with the shared key": built(
        h("HS512"), good("shared"), mac(SHARED.encode(), "sha512")
    ),
    # keys that must not count
    "RSA of 1024 bits, which the JWKS lists": built(h("RS256", "weak"), RSA_GOOD, rs(WEAK)),
    "ES256 on P-384, which the JWKS lists": built(
        h("ES256", "p384"), EC_GOOD, es(P384, SHA256, 48)
    ),
    "ES384 on P-384": built(h("ES384", "p384"), EC_GOOD, es(P384, SHA384, 48)),
    "ES256K": built(h("ES256K", "ec"), EC_GOOD, es(K256)),
    "ES256 on secp256k1": built(h("ES256", "ec"), EC_GOOD, es(K256)),
    "Ed448": built(h("EdDSA", "ed"), good("ed"), ed448.Ed448PrivateKey.generate().sign),
    "EdDSA that says Ed25519": built(h("Ed25519", "ed"), good("ed"), EDWARDS.private.sign),
    # signatures that are wrong
    **{
        f"{name} {what}": built(h(key.algorithm, key.kid), good(name), signature)
        for name, key in (("rsa", RSA), ("ec", CURVE), ("ed", EDWARDS))
        for what, signature in (
            ("unsigned", b""),
            ("zeros", bytes(64)),
            ("ones", b"\xff" * 64),
            ("of 1 MB", bytes(20_000)),
        )
    },
    "ES256 with r = s = order": built(h("ES256", "ec"), EC_GOOD, ORDER.to_bytes(32, "big") * 2),
    "ES256 as DER": built(h("ES256", "ec"), EC_GOOD, der),
    "ES256 zeros as DER": built(h("ES256", "ec"), EC_GOOD, encode_dss_signature(0, 0)),
    **{
        f"a stranger's {key.algorithm}": jwt.encode(
            good(name), STRANGERS[key.algorithm], key.algorithm, headers={"kid": key.kid}
        )
        for name, key in (("rsa", RSA), ("ec", CURVE), ("ed", EDWARDS))
    },
    "another payload": f"{HEAD}.{segment(good('rsa', sub='eve'))}.{SIGNATURE}",
    "another header": f"{segment(h('RS256', 'rsa', x=1))}.{segment(RSA_GOOD)}.{SIGNATURE}",
    # a key that the token names, or carries
    **{
        f"kid {kid!r}"[:60]: built(h("RS256", kid), RSA_GOOD, rs(RSA.private))
        for kid in (
            "", " rsa", "RSA", "rsa\0", "../rsa", "../../../../dev/null", "/proc/self/environ",
            "file:///dev/null", "http://127.0.0.1/keys", "' OR 1=1 --", "rsa;id", "r" * 20_000,
        )
    },
    **{
        f"kid {kid!r}": built(h("RS256", kid), RSA_GOOD, rs(RSA.private))
        for kid in (7, ["rsa"], {"rsa": 1}, True)
    },
    "no kid among several keys": built(h("RS256"), good("both"), rs(RSA.private)),
    **{
        f"{name} of a stranger": built(
            h("RS256", "rsa", **{name: value}), RSA_GOOD, rs(STRANGERS["RS256"])
        )
        for name, value in (
            ("jwk", jwk_of(STRANGERS["RS256"])),
            ("jku", "http://127.0.0.1:1/keys"),
            ("x5u", "http://127.0.0.1:1/cert"),
            ("x5c", ["MIIB"]),
            ("x5t", "abc"),
        )
    },
    # headers and forms that the standards refuse
    "crit": built(h("RS256", "rsa", crit=["x"], x=1), RSA_GOOD, rs(RSA.private)),
    "crit of exp": built(h("RS256", "rsa", crit=["exp"], exp=1), RSA_GOOD, rs(RSA.private)),
    "crit, empty": built(h("RS256", "rsa", crit=[]), RSA_GOOD, rs(RSA.private)),
    "b64 false": built(h("RS256", "rsa", b64=False, crit=["b64"]), RSA_GOOD, rs(RSA.private)),
    "two alg": built(b'{"alg":"RS256","alg":"HS256","kid":"rsa"}', RSA_GOOD, rs(RSA.private)),
    "two iss, one of them Trigger.dev's": built(
        h("RS256", "rsa"), TWICE + json.dumps(RSA_GOOD)[1:].encode(), rs(RSA.private)
    ),
    "an encrypted token": "e30.e30.e30.e30.e30",
    "a token in a token": built(
        h("RS256", "rsa", cty="JWT"), RSA.sign(RSA_GOOD).encode(), rs(RSA.private)
    ),
    "a list of claims": built(h("RS256", "rsa"), [RSA_GOOD], rs(RSA.private)),
    "NaN": built(h("RS256", "rsa"), good("rsa", exp=float("nan")), rs(RSA.private)),
    "with padding": RSA.sign(RSA_GOOD) + "=",
    "with a line break": RSA.sign(RSA_GOOD) + "\n",
    "with a dot more": RSA.sign(RSA_GOOD) + ".",
    "in another alphabet": RSA.sign(RSA_GOOD).replace("-", "+").replace("_", "/") + "+",
    # another issuer
    "a source's key, own issuer": RSA.sign(OWN_CLAIMS),
    "a source's key, own issuer, both audiences": RSA.sign(
        OWN_CLAIMS | {"aud": ["https://api.trigger.dev", "chat"]}
    ),
    "own key, a source's issuer": sign(RSA_GOOD),
    "own key, a source's issuer and kid": sign(RSA_GOOD, headers={"kid": "rsa"}),
    "upstream's key, a source's issuer": sign(RSA_GOOD, ROOT_KEY, headers={"kid": "rsa"}),
    "a shared key, own issuer": sign(OWN_CLAIMS, SHARED),
    "the key of another source": CURVE.sign(RSA_GOOD, kid="rsa"),
    "a key of this source under another issuer": RSA.sign(EC_GOOD, kid="ec"),
    **{
        f"iss {iss!r}": RSA.sign(RSA_GOOD | {"iss": iss})
        for iss in (
            "https://rsa.example.com", "https://rsa.example.com//", "https://RSA.example.com/",
            "https://rsa.example.com/ ", "https://rsa.example.com/?", "",
        )
    },
    **{
        f"iss {iss!r}": built(h("RS256", "rsa"), RSA_GOOD | {"iss": iss}, rs(RSA.private))
        for iss in (None, 7, ["https://rsa.example.com/"], {"https://rsa.example.com/": 1})
    },
    # claims
    **{
        f"{change!r}": built(h("RS256", "rsa"), good("rsa", **change), rs(RSA.private))
        for change in (
            {"aud": None}, {"aud": "other"}, {"aud": ""}, {"aud": []}, {"aud": [["chat"]]},
            {"aud": {"chat": 1}}, {"aud": "chat "}, {"sub": None}, {"sub": ""}, {"sub": 7},
            {"exp": None}, {"exp": "2099"}, {"exp": True}, {"exp": [2 * NOW]}, {"exp": 10**400},
            {"nbf": NOW + 61}, {"nbf": "0"}, {"nbf": True}, {"iat": NOW + 61}, {"iat": 10**12},
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*(s.name for s in SOURCES), "own key"]
)  # fmt: skip
def test_good_token_of_each_source_is_accepted(verifier: Verifier, name: str) -> None:
    """Shows that each hostile token is refused for its one difference from these."""
    tokens = {
        "rsa": RSA.sign(RSA_GOOD),
        "ec": CURVE.sign(EC_GOOD),
        "ed": EDWARDS.sign(good("ed")),
        "shared": sign(good("shared"), SHARED),
        "both": CURVE.sign(good("both")),
        "own key": sign(OWN_CLAIMS),
    }

    caller = verifier.verify(tokens[name].encode(), NOW)

    assert isinstance(caller, Caller)
    assert caller.granted.ids == {"chat-1"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_token_is_refused(verifier: Verifier, name: str) -> None:
    size = len(verifier)

    try:
        caller = verifier.verify(HOSTILE[name].encode(), NOW)
    except Refused as refused:
        assert refused.refusal.code == "token_invalid"
    else:  # it looks like one of Trigger.dev's, so upstream has to verify it
        assert name == "a shared key, own issuer"
        assert isinstance(caller, Claimant)

    assert len(verifier) == size


def test_hostile_key_set_costs_little_and_adds_no_key() -> None:
    """Huge numbers cost little, malformed keys are ignored, and two keys may have one kid."""
    huge = RSA.jwk(kid="huge") | {"n": segment(b"\xff" * 600_000)}
    exponent = RSA.jwk(kid="exponent") | {"e": segment(b"\x01" * 200_000)}
    off = CURVE.jwk(kid="off") | {"x": CURVE.jwk()["y"]}
    jwks = [huge, exponent, off, RSA.jwk(), RSA.jwk(), CURVE.jwk(kid="rsa")]

    keys = read_jwks(json.dumps({"keys": jwks}), ("RS256", "ES256"))

    assert [(key.id, key.algorithm.name) for key in keys] == [
        ("rsa", "RS256"),
        ("rsa", "RS256"),
        ("rsa", "ES256"),
    ]
    both = source("rsa", ("RS256", "ES256"), *jwks)
    mixed = Verifier([], ids.grant, sources=[both])
    assert mixed.verify(RSA.sign(RSA_GOOD).encode(), NOW).granted.ids == {"chat-1"}
    assert mixed.verify(CURVE.sign(RSA_GOOD, kid="rsa").encode(), NOW).granted.ids == {"chat-1"}
    forged = jwt.encode(RSA_GOOD, STRANGERS["RS256"], "RS256", {"kid": "rsa"})
    with pytest.raises(Refused, match="token_invalid"):
        mixed.verify(forged.encode(), NOW)


def test_signatures_of_the_rows_are_real() -> None:
    """The signatures of the rows are real: made in another way they are the same."""
    made = built(h("HS256"), good("shared"), mac(SHARED.encode()))
    text, _, signature = made.rpartition(".")
    assert signature == segment(hmac.digest(SHARED.encode(), text.encode(), hashlib.sha256))
