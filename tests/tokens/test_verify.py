"""Hostile tokens, and what is remembered."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from support.world import ENVIRONMENT_ID, OWN_KEY, claims, read, sign

from bff.errors import Refused
from bff.sessions import ids
from bff.tokens.mint import mint
from bff.tokens.verify import _JWS, Issuer, Verifier

NOW = 1_800_000_000.0


@pytest.fixture
def verifier() -> Verifier:
    return Verifier([Issuer("default", ENVIRONMENT_ID, (OWN_KEY,))], ids.grant)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(header: object, payload: object, *, digest: str = "sha256", key: str = OWN_KEY) -> bytes:
    """A token with any header and payload, signed all the same."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)
    ]
    signing = ".".join(map(b64, parts))
    signature = hmac.new(key.encode(), signing.encode(), digest).digest() if digest else b""
    return f"{signing}.{b64(signature)}".encode()


GOOD = claims(NOW, *read("chat-1"))


def test_a_good_token_tells_its_caller(verifier: Verifier) -> None:
    caller = verifier.verify(sign(GOOD).encode(), NOW)

    assert caller.environment == "default"
    assert caller.granted.ids == {"chat-1"}
    assert caller.expires == GOOD["exp"]
    assert not caller.has_actor


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
def test_the_token_does_not_choose_the_algorithm(
    verifier: Verifier, alg: object, digest: str
) -> None:
    header = {"typ": "JWT"} if alg is None else {"typ": "JWT", "alg": alg}

    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(forge(header, GOOD, digest=digest), NOW)


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
def test_odd_headers_are_refused(verifier: Verifier, header: object) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(forge(header, GOOD), NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"iss": None},
        {"iss": "https://evil.example"},
        {"iss": ["https://id.trigger.dev"]},
        {"aud": None},
        {"aud": "https://evil.example"},
        {"aud": ["x"]},
        {"aud": {}},
        {"sub": None},
        {"sub": ""},
        {"sub": "env_other"},
        {"sub": [ENVIRONMENT_ID]},
        {"pub": None},
        {"pub": False},
        {"pub": 1},
        {"pub": "true"},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": [1]},
        {"nbf": NOW + 1},
        {"nbf": "x"},
        {"iat": NOW + 61},
        {"iat": NOW + 10**9},
    ],
    ids=repr,
)
def test_odd_claims_are_refused(verifier: Verifier, change: dict[str, object]) -> None:
    token = forge({"alg": "HS256", "typ": "JWT"}, claims(NOW, *read("chat-1"), **change))

    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(token, NOW)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"null", b'"x"', b"\xff", b"[" * 5000, b"9" * 5000]
)
def test_odd_payloads_are_refused(verifier: Verifier, payload: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(forge({"alg": "HS256"}, payload), NOW)


@pytest.mark.parametrize(
    "token",
    [b"", b".", b"..", b"...", b"a.b", b"\x00", b"\xff" * 10, b"x" * 100_000, b"eyJ.eyJ.x" * 1000],
)
def test_what_is_no_token_is_refused(verifier: Verifier, token: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(token, NOW)


def test_another_key_is_refused(verifier: Verifier) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(sign(GOOD, "x" * 40).encode(), NOW)


def test_an_audience_list_that_holds_ours_is_accepted(verifier: Verifier) -> None:
    token = sign(claims(NOW, aud=["https://other", "https://api.trigger.dev"]))

    assert verifier.verify(token.encode(), NOW)


@pytest.mark.parametrize("scopes", [None, "read:sessions", {"read:sessions": 1}, 7])
def test_scopes_that_are_no_list_grant_nothing(verifier: Verifier, scopes: object) -> None:
    caller = verifier.verify(sign(GOOD | {"scopes": scopes}).encode(), NOW)

    assert not caller.granted.every
    assert not caller.granted.ids


def test_what_is_no_string_among_scopes_is_passed_over(verifier: Verifier) -> None:
    caller = verifier.verify(
        sign(claims(NOW, 1, None, ["read:sessions"], *read("chat-1"))).encode(), NOW
    )

    assert caller.granted.ids == {"chat-1"}


def test_expiry_is_to_the_second_also_for_what_is_remembered(verifier: Verifier) -> None:
    token = sign(GOOD).encode()
    verifier.verify(token, NOW)

    assert verifier.verify(token, GOOD["exp"] - 0.001)
    for _ in range(2):
        with pytest.raises(Refused, match="token_expired"):
            verifier.verify(token, GOOD["exp"])
    assert len(verifier) == 0


def test_a_second_look_costs_no_verification(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sign(GOOD).encode()
    first = verifier.verify(token, NOW)
    monkeypatch.setattr(Verifier, "_check", None)

    assert verifier.verify(bytes(bytearray(token)), NOW) is first


def test_memory_is_bounded_and_bad_tokens_push_nobody_out() -> None:
    verifier = Verifier([Issuer("default", None, (OWN_KEY,))], ids.grant, max_bytes=100_000)
    kept = sign(GOOD).encode()
    verifier.verify(kept, NOW)
    for number in range(2000):
        with pytest.raises(Refused):
            verifier.verify(b"bad" * 2700 + str(number).encode(), NOW)
    assert len(verifier) == 1

    for number in range(200):
        verifier.verify(sign(GOOD | {"jti": str(number), "pad": "x" * 500}).encode(), NOW)

    assert len(verifier) < 100


def test_the_same_subject_and_scopes_are_the_same_caller(verifier: Verifier) -> None:
    def key(*scopes: object, **changes: object) -> bytes:
        return verifier.verify(sign(claims(NOW, *scopes, **changes)).encode(), NOW).key

    mine = key("read:sessions:a", "read:sessions:b")
    assert (
        key("read:sessions:b", "read:sessions:a", "read:sessions:a", exp=NOW + 5, jti="x") == mine
    )
    assert key("read:sessions:a") != mine
    assert key("read:sessions:a", "read:sessions:b", act={"sub": "ann"}) != mine
    assert key("read:sessions:a", "read:sessions:b", act={"sub": ["ann"]}) == mine


def test_keys_of_several_environments() -> None:
    shared, other = "s" * 40, "o" * 40
    verifier = Verifier(
        [Issuer("main", "env_1", (shared,)), Issuer("branch", "env_2", (shared, other))],
        ids.grant,
    )

    def environment(sub: str, key: str) -> str:
        return verifier.verify(sign(claims(NOW, sub=sub), key).encode(), NOW).environment

    assert environment("env_1", shared) == "main"
    assert environment("env_2", shared) == "branch"
    assert environment("env_2", other) == "branch"
    with pytest.raises(Refused):
        environment("env_1", other)


def test_a_root_key_of_31_bytes_is_used_without_a_warning() -> None:
    key = "tr_dev_" + "k" * 24
    token = mint(
        key, environment_id="env_1", scopes=read("a"), issued=int(NOW), ttl=60, actor="ann"
    )
    caller = Verifier([Issuer("d", "env_1", (key,))], ids.grant).verify(token.encode(), NOW)

    assert caller.has_actor
    assert caller.granted.ids == {"a"}


def test_minted_tokens_are_what_upstream_mints() -> None:
    token = mint(
        OWN_KEY, environment_id="env_1", scopes=read("a"), issued=int(NOW), ttl=60, actor=None
    )
    header, payload, signature = token.split(".")
    expected = hmac.new(OWN_KEY.encode(), f"{header}.{payload}".encode(), hashlib.sha256).digest()

    assert signature == b64(expected)
    padded = payload + "=" * (-len(payload) % 4)
    assert json.loads(base64.urlsafe_b64decode(padded)) == {
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "sub": "env_1",
        "pub": True,
        "scopes": ["read:sessions:a"],
        "iat": NOW,
        "exp": NOW + 60,
    }


def test_a_clock_that_runs_ahead_a_little_is_no_reason_to_refuse(verifier: Verifier) -> None:
    token = sign(claims(NOW, *read("chat-1"), iat=NOW + 60)).encode()

    assert verifier.verify(token, NOW).issued == NOW + 60


KEYS = ("k" * 40, "k" * 41, "k" * 40 + "\0", "x" * 64, "x" * 65, "\u00e9" * 30)
"""Some are each other's prefix; two are one, for HMAC fills a key up with zeros."""
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@hypothesis(max_examples=150, deadline=None)
@given(
    header=st.dictionaries(
        st.sampled_from(("alg", "kid", "b64", "crit", "typ")),
        st.sampled_from(("HS256", "none", "HS384", True, False, None, 1, ["b64"], ["x"], [])),
        max_size=3,
    ),
    keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True),
    signer=st.sampled_from(KEYS),
    cut=st.sampled_from((0, 20, 42, 43)),
    put=st.sampled_from((b"", b"", b"", b"=", b"==", b"!", b"\n", b"A", b"\xff", b".")),
    spare=st.integers(0, 3),
)
def test_what_is_looked_at_before_pyjwt_changes_no_answer(
    header: dict[str, Any], keys: list[str], signer: str, cut: int, put: bytes, spare: int
) -> None:
    parts = ({"alg": "HS256"} | header, claims(NOW, *read("chat-1")))
    signed = ".".join(b64(json.dumps(part).encode()) for part in parts).encode()
    signature = b64(hmac.digest(signer.encode(), signed, "sha256")).encode()
    last = _ALPHABET[_ALPHABET.index(signature[-1:]) + spare : len(_ALPHABET)][:1]  # spare bits
    signature = signature[:-1] + last
    token = signed + b"." + signature[:cut] + put + signature[cut:]

    def alone(key: str) -> bool:
        try:
            return bool(_JWS.decode(token, key, algorithms=["HS256"]))
        except Exception:  # noqa: BLE001
            return False

    verifier = Verifier([Issuer("d", None, tuple(keys))], ids.grant)
    try:
        accepted = verifier.verify(token, NOW).environment == "d"
    except Refused as refused:
        accepted = False
        assert refused.refusal.code == "token_invalid"
    assert accepted == any(map(alone, keys))
