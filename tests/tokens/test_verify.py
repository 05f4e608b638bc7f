"""The verifier: Trigger.dev's own tokens, and the cache of verified ones."""

import hmac
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from support.issuers import b64, forge, segment
from support.world import ENVIRONMENT_ID, OWN_KEY, claims, read, sign

from bff.errors import Refused
from bff.sessions import ids
from bff.tokens.algorithms import TRIGGER_ALGORITHM
from bff.tokens.caller import Caller
from bff.tokens.verify import Issuer, Verifier, read_unverified

NOW = 1_800_000_000.0


@pytest.fixture
def verifier() -> Verifier:
    return Verifier([Issuer("default", ENVIRONMENT_ID, (OWN_KEY,))], ids.grant)


GOOD = claims(NOW, *read("chat-1"))


def test_verifier_returns_the_caller_of_a_token(verifier: Verifier) -> None:
    caller = verifier.verify(sign(GOOD).encode(), NOW)

    assert caller.environment == "default"
    assert caller.granted.ids == {"chat-1"}
    assert caller.signed_by.last == NOW
    assert isinstance(caller, Caller)


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
        {"nbf": NOW + 61},
        {"iat": NOW + 61},
        {"iat": NOW + 10**9},
    ],
    ids=repr,
)
def test_wrong_claim_is_refused(verifier: Verifier, change: dict[str, object]) -> None:
    token = forge({"alg": "HS256"}, claims(NOW, *read("chat-1"), **change), OWN_KEY)

    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(token, NOW)


ROOT = "tr_preview_0123456789abcdefghijklmn"


def test_own_key_tells_the_environment_without_its_id() -> None:
    """Root keys and shared keys cannot: a token of one branch would read another."""
    shared = "shared-key-sentinel-0123456789abcdef"
    verifier = Verifier(
        [
            Issuer("a", "env_a", (OWN_KEY, ROOT, shared)),
            Issuer("b", "env_b", (shared,)),
            Issuer("c", None, (OWN_KEY + "c",), pending=True),
        ],
        ids.grant,
    )

    def verified(key: str) -> str:
        return verifier.verify(sign(claims(NOW, sub="bff"), key).encode(), NOW).environment

    assert verified(OWN_KEY) == "a"
    for key, code in ((ROOT, "invalid"), (shared, "invalid"), (OWN_KEY + "c", "not_ready")):
        with pytest.raises(Refused, match=code):
            verified(key)


@pytest.mark.parametrize(
    "token",
    [b"", b".", b"..", b"...", b"a.b", b"\x00", b"\xff" * 10, b"x" * 100_000, b"eyJ.eyJ.x" * 1000],
)
def test_malformed_token_is_refused(verifier: Verifier, token: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(token, NOW)


def test_token_of_another_key_is_refused(verifier: Verifier) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        verifier.verify(sign(GOOD, "x" * 40).encode(), NOW)


def test_audience_may_be_one_of_a_list(verifier: Verifier) -> None:
    token = sign(claims(NOW, aud=["https://other", "https://api.trigger.dev"]))

    assert verifier.verify(token.encode(), NOW)


def test_verified_token_is_refused_from_its_expiry_on(verifier: Verifier) -> None:
    token = sign(GOOD).encode()
    verifier.verify(token, NOW)

    assert verifier.verify(token, GOOD["exp"] - 0.001)
    for _ in range(2):
        with pytest.raises(Refused, match="token_expired"):
            verifier.verify(token, GOOD["exp"])
    assert len(verifier) == 0


def test_verified_token_is_not_verified_again(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sign(GOOD).encode()
    first = verifier.verify(token, NOW)
    monkeypatch.setattr(Verifier, "_check", None)

    assert verifier.verify(bytes(bytearray(token)), NOW) is first


def test_cache_is_bounded_and_bad_tokens_push_out_no_good_one() -> None:
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


def test_key_of_several_environments_verifies_tokens_of_each() -> None:
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


KEYS = ("k" * 40, "k" * 41, "k" * 40 + "\0", "x" * 64, "x" * 65, "\u00e9" * 30)
"""Some are prefixes of others; two are equal, because HMAC pads a key with zeros."""
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
    inserted=st.sampled_from((b"", b"", b"", b"=", b"==", b"!", b"\n", b"A", b"\xff", b".")),
    spare=st.integers(0, 3),
)
@example(header={}, keys=[KEYS[1], KEYS[0]], signer=KEYS[0], cut=0, inserted=b"", spare=0)
def test_check_before_pyjwt_changes_no_answer(
    header: dict[str, Any], keys: list[str], signer: str, cut: int, inserted: bytes, spare: int
) -> None:
    parts = ({"alg": "HS256"} | header, claims(NOW, *read("chat-1")))
    signed = ".".join(segment(part) for part in parts).encode()
    signature = b64(hmac.digest(signer.encode(), signed, "sha256")).encode()
    last = _ALPHABET[_ALPHABET.index(signature[-1:]) + spare : len(_ALPHABET)][:1]  # spare bits
    signature = signature[:-1] + last
    token = signed + b"." + signature[:cut] + inserted + signature[cut:]

    def pyjwt_accepts(key: str) -> bool:
        try:
            return bool(TRIGGER_ALGORITHM.verify(token, key))
        except Exception:  # noqa: BLE001
            return False

    verifier = Verifier([Issuer("d", None, tuple(keys))], ids.grant)
    try:
        accepted = verifier.verify(token, NOW).environment == "d"
    except Refused as refused:
        accepted = False
        assert refused.refusal.code == "token_invalid"
    assert accepted == any(map(pyjwt_accepts, keys))


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"..",
        b"a.b",
        b"e30.e30.e30.e30",
        b"e30.W10.x",
        b"e30.e30.=",
        b"e30.e30.\n",
        b"bnVsbA.e30.x",
        b"e30." + b64(b"[" * 50_000).encode() + b".x",
        b"e30." + b64(b'{"sub":"a","sub":"b"}').encode() + b".x",
    ],
    ids=range(10),
)
def test_unreadable_token_is_refused_before_it_is_verified(token: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        read_unverified(token)


def test_unverified_claims_have_few_members() -> None:
    head = b64(b'{"alg":"HS256"}')

    def token(number: int) -> bytes:
        payload = b'{"x":[' + b",".join([b"1"] * number) + b"]}"
        return f"{head}.{b64(payload)}.x".encode()

    assert len(read_unverified(token(500))[1]["x"]) == 500
    with pytest.raises(Refused, match="token_invalid"):
        read_unverified(token(600))
