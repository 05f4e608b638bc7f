"""Tokens of other issuers: the tokens that providers issue, real keys, and a real JWKS server."""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import (
    Claims,
    KeyPair,
    Routes,
    auth0,
    b64,
    clerk,
    forge,
    keycloak,
    running_jwks,
    supabase,
)
from support.world import OWN_KEY, Clock, World, claims, read, sign

from bff.errors import Refused
from bff.tokens import introspected, revocations
from bff.tokens import jwks as keys
from bff.tokens.issuers import Source
from bff.tokens.jwks import Key, KeySet, read_jwks, shared_key
from bff.tokens.verify import read_unverified

DOCS = Path(__file__).parent.parent.parent / "docs" / "TOKENS.md"
CLAIMS = {"auth0": auth0, "clerk": clerk, "supabase": supabase, "keycloak": keycloak}
KEYS = {
    "auth0": KeyPair("RS256", "auth0-1"),
    "clerk": KeyPair("RS256", "ins_2abcdef"),
    "supabase": KeyPair("ES256", "b81269f1-21d8-4f2e-b719-c2240a840d90"),
    "keycloak": KeyPair("EdDSA", "nnniBrxL0qhG79pkF3ccQj"),
}
OTHER = KeyPair("RS256", "auth0-1")
SHARED = "shared-secret-sentinel-0123456789abcdef"


def snippets() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def jwks() -> Iterator[running_jwks]:
    with running_jwks(**KEYS) as server:
        yield server


Start = Callable[..., object]


@pytest.fixture
async def sourced(clock: Clock, jwks: running_jwks, tmp_path: Path) -> AsyncIterator[World]:
    """The service with all sources of the documentation, their JWK sets on a real server."""
    config = tmp_path / "bff.toml"
    text = "\n".join(snippets())
    for name in KEYS:
        text = re.sub(
            rf'("{name}".*?jwks_url = )".*?"', rf'\1"{jwks.url}{name}"', text, flags=re.DOTALL
        )
    legacy = f"""
        [[token_sources]]
        name = "legacy"
        issuer = "https://legacy.example.com"
        audience = "authenticated"
        algorithms = "HS256"
        shared_keys = "{SHARED}"
        """
    config.write_text(text + legacy)
    world = World(clock, BFF_CONFIG=str(config), BFF_BAD_TOKEN_LIMIT="off")
    world.transport = Routes(world.upstream, jwks.url)
    async with world:
        await fetched(world, 1)
        yield world


async def fetched(world: World, times: int) -> None:
    """Wait until every key set was fetched *times* times."""
    import asyncio  # noqa: PLC0415

    counts = world.telemetry.counts
    for _ in range(500):
        done = {
            name: sum(n for key, n in counts.items() if key[:2] == ("bff_key_fetches", name))
            for name in KEYS
        }
        if min(done.values()) >= times:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(done)


def token(world: World, provider: str, *scopes: str, key: KeyPair | None = None, **changes) -> str:
    made = CLAIMS[provider](world.clock.wall, list(scopes or read("chat-1")))
    made = {name: value for name, value in (made | changes).items() if value is not None}
    return (key or KEYS[provider]).sign(made)


async def outcome(world: World, token: str, id_: str = "chat-1") -> tuple[int, str]:
    response = await world.get(id_, token=token)
    return response.status_code, response.json().get("code", "")


@pytest.mark.parametrize("provider", CLAIMS)
async def test_token_of_each_provider_reads_the_sessions_it_names(
    sourced: World, provider: str
) -> None:
    good = token(sourced, provider)

    assert await outcome(sourced, good) == (200, "")
    assert await outcome(sourced, good, "chat-2") == (403, "unauthorized")
    assert await outcome(sourced, token(sourced, provider, "openid")) == (403, "unauthorized")
    assert await outcome(sourced, token(sourced, provider, exp=1)) == (401, "token_expired")
    assert await outcome(sourced, token(sourced, provider, exp=None)) == (401, "token_invalid")
    assert await outcome(sourced, token(sourced, provider, sub=None)) == (401, "token_invalid")
    seen = [s for s in sourced.upstream.seen if good in str(s.headers)]
    assert seen == [], "a token of a source is never sent upstream"


@pytest.mark.parametrize(
    ("provider", "change"),
    [
        ("auth0", {"aud": "https://my-tenant.eu.auth0.com/userinfo"}),
        ("auth0", {"aud": None}),
        ("auth0", {"iss": "https://my-tenant.eu.auth0.com"}),
        ("clerk", {"azp": "https://evil.example.com"}),
        ("clerk", {"azp": None}),
        ("clerk", {"aud": "https://other.example.com"}),
        ("clerk", {"nbf": 2_000_000_000}),
        ("supabase", {"aud": "anon"}),
        ("supabase", {"role": "anon"}),
        ("supabase", {"is_anonymous": True}),
        ("supabase", {"is_anonymous": 0}),
        ("keycloak", {"typ": "ID"}),
        ("keycloak", {"azp": "another-app"}),
        ("keycloak", {"aud": "account"}),
        ("keycloak", {"aud": [["chat-gateway"]]}),
    ],
)
async def test_token_without_a_required_claim_is_refused(
    sourced: World, provider: str, change: Claims
) -> None:
    assert await outcome(sourced, token(sourced, provider, **change)) == (401, "token_invalid")


@pytest.mark.parametrize(
    ("provider", "change"),
    [
        ("auth0", {"https://chat.example.com/scopes": "read:sessions:chat-1"}),
        ("auth0", {"https://chat.example.com/scopes": None, "scopes": read("chat-1")}),
        ("supabase", {"app_metadata": {"scopes": {"read:sessions:chat-1": True}}}),
        ("supabase", {"app_metadata": "scopes", "scopes": ["admin"]}),
        ("keycloak", {"session_scope": read("chat-1"), "scope": "read:sessions:chat-1"}),
        ("keycloak", {"session_scope": "read:sessions:chat-1,"}),
    ],
)
async def test_scopes_of_another_type_or_claim_grant_nothing(
    sourced: World, provider: str, change: Claims
) -> None:
    assert await outcome(sourced, token(sourced, provider, **change)) == (403, "unauthorized")


@pytest.mark.parametrize("provider", CLAIMS)
async def test_key_of_another_source_verifies_no_token(sourced: World, provider: str) -> None:
    forged = CLAIMS[provider](sourced.clock.wall, read("chat-1"))

    for signer in CLAIMS:
        for kid in (KEYS[provider].kid, KEYS[signer].kid, None):
            status, _ = await outcome(sourced, KEYS[signer].sign(forged, kid=kid))
            assert status == (200 if provider == signer else 401)


async def test_source_is_chosen_by_issuer_before_any_key_is_tried(sourced: World) -> None:
    wall = sourced.clock.wall
    own = claims(wall, *read("chat-1"))
    of_auth0 = auth0(wall, read("chat-1"))

    assert (await outcome(sourced, sign(own)))[0] == 200
    assert (await outcome(sourced, sign(of_auth0)))[0] == 401, "own key, Auth0's issuer"
    assert (await outcome(sourced, KEYS["auth0"].sign(own)))[0] == 401, "Auth0's key, own issuer"
    assert (await outcome(sourced, sign(own, SHARED)))[0] == 401, "a source's shared key"
    assert (await outcome(sourced, OTHER.sign(of_auth0)))[0] == 401, "the same kid, another key"
    for issuer in ("https://nobody.example.com", None, 7, ["https://my-tenant.eu.auth0.com/"]):
        forged = json.dumps(of_auth0 | {"iss": issuer}).encode()
        token = jwt.api_jws.encode(
            forged, KEYS["auth0"].private, algorithm="RS256", headers={"kid": "auth0-1"}
        )
        assert (await outcome(sourced, token))[0] == 401


def hs256(payload: Claims, key: bytes, **header: object) -> str:
    return forge({"alg": "HS256", "typ": "JWT"} | header, payload, key).decode()


@pytest.mark.parametrize("provider", CLAIMS)
async def test_public_key_of_a_source_is_never_an_hmac_key(sourced: World, provider: str) -> None:
    public = KEYS[provider].private.public_key()
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(KEYS[provider].jwk()).encode(),
        str(KEYS[provider].jwk().get("n", KEYS[provider].jwk().get("x"))).encode(),
        b"",
    ]  # fmt: skip
    good = CLAIMS[provider](sourced.clock.wall, read("chat-1"))
    for form in forms:
        for algorithm in ("HS256", KEYS[provider].algorithm, "none", "HS512", ["HS256"], None):
            forged = hs256(good, form, alg=algorithm, kid=KEYS[provider].kid)
            assert (await outcome(sourced, forged))[0] == 401


async def test_shared_key_verifies_only_hs256_of_its_issuer(sourced: World) -> None:
    good = claims(sourced.clock.wall, *read("chat-1"), iss="https://legacy.example.com")
    good |= {"aud": "authenticated"}

    assert (await outcome(sourced, sign(good, SHARED)))[0] == 200
    assert (await outcome(sourced, sign(good, SHARED, headers={"kid": "x"})))[0] == 200
    assert (await outcome(sourced, hs256(good, SHARED.encode(), alg="HS384")))[0] == 401
    assert (await outcome(sourced, sign(good, OWN_KEY)))[0] == 401
    assert (await outcome(sourced, KEYS["auth0"].sign(good)))[0] == 401


@pytest.mark.parametrize(
    "header",
    [{"crit": ["x"]}, {"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}, {"kid": 7}],
    ids=repr,
)
async def test_malformed_header_of_a_source_token_is_refused(
    sourced: World, header: Claims
) -> None:
    made = auth0(sourced.clock.wall, read("chat-1"))
    text = hs256(made, b"", alg="RS256", **({"kid": "auth0-1"} | header)).rpartition(".")[0]
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signature = algorithm.sign(text.encode(), KEYS["auth0"].private)

    assert (await outcome(sourced, f"{text}.{b64(signature)}"))[0] == 401


async def test_key_that_a_token_carries_is_not_used(sourced: World, jwks: running_jwks) -> None:
    stranger = KeyPair("RS256", "auth0-1")
    made = auth0(sourced.clock.wall, read("chat-1"))
    before = len(jwks.seen)
    forged = stranger.sign(made, jwk=stranger.jwk(), jku=jwks.url + "?stranger", x5u=jwks.url)

    assert (await outcome(sourced, forged))[0] == 401
    assert len(jwks.seen) == before


async def test_callers_differ_by_source_and_subject(clock: Clock, sourced: World) -> None:
    verify = sourced.service.gateway.config.verifier.verify

    def key(provider: str, *scopes: str, **changes) -> bytes:
        caller = verify(token(sourced, provider, *scopes, **changes).encode(), clock.wall)
        assert caller.has_actor
        return caller.key

    good = key("auth0")
    assert key("auth0", jti="again", iat=int(clock.wall) - 5) == good
    assert key("auth0", sub="auth0|other") != good
    assert key("auth0", "read:sessions:chat-2") == good, "one person, another chat"
    assert key("clerk", sub="auth0|6553da60a54af58e29493993") != good


# -- keys change


async def test_new_key_is_fetched_while_no_request_waits_for_it(
    sourced: World, jwks: running_jwks
) -> None:
    new = KeyPair("RS256", "auth0-2")
    jwks.keys["auth0"].append(new)
    good = token(sourced, "auth0", key=new)
    fetches = jwks.seen.copy

    assert (await outcome(sourced, good)) == (401, "token_invalid")
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]
    assert source.keys.unknown_kid.is_set()
    assert source.keys.wait(sourced.clock.now) == 30, (
        "a bounded rate, however many tokens name unknown keys"
    )
    before = len(fetches())
    for number in range(200):
        stranger = KeyPair("EdDSA", f"made-up-{number % 3}")
        await outcome(sourced, token(sourced, "keycloak", key=stranger))
    assert len(fetches()) == before

    await sourced.service.changes.key_refresh.refresh(source)

    assert (await outcome(sourced, good)) == (200, "")


async def test_removed_key_ends_the_tokens_that_it_verified(
    sourced: World, jwks: running_jwks
) -> None:
    changed, other = token(sourced, "auth0"), token(sourced, "clerk")
    assert (await outcome(sourced, changed))[0] == (await outcome(sourced, other))[0] == 200
    jwks.keys["auth0"] = [KEYS["supabase"], KeyPair("RS256", "auth0-9")]
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]

    await sourced.service.changes.key_refresh.refresh(source)

    assert (await outcome(sourced, changed)) == (401, "token_invalid")
    assert (await outcome(sourced, other))[0] == 200


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"down", {}),
        (302, b"", {"location": "/elsewhere"}),
        (404, b"{}", {}),
        (200, b"<html>", {}),
        (200, b'{"keys": 7}', {}),
        (200, b'{"keys": []}', {}),
        (200, b"[" * 50_000, {}),
        (200, b'{"keys": [' + b" " * 2_000_000 + b"]}", {}),
        (200, b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "auth0-1"}]}', {}),
        (200, json.dumps({"keys": [OTHER.jwk(d="AQAB")]}).encode(), {}),
        (200, json.dumps({"keys": [OTHER.jwk()] * 101}).encode(), {}),
        (200, OTHER.kid.encode(), {"content-encoding": "gzip"}),
    ],
    ids=range(12),
)  # fmt: skip
async def test_keys_are_trusted_for_a_day_while_their_server_fails(
    sourced: World, jwks: running_jwks, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    good = token(sourced, "auth0", exp=int(sourced.clock.wall) + 200_000)
    assert (await outcome(sourced, good))[0] == 200
    jwks.answer = answer
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]
    before = len(jwks.seen)

    await sourced.service.changes.key_refresh.refresh(source)

    assert jwks.seen[before:] == ["/auth0"], "one request, and no redirect is followed"
    assert source.keys.wait(sourced.clock.now) == 10
    assert (await outcome(sourced, good))[0] == 200
    sourced.clock.advance(86_399)
    assert (await outcome(sourced, good))[0] == 200
    sourced.clock.advance(1)
    assert (await outcome(sourced, good)) == (503, "not_ready"), "the token may be valid"
    jwks.answer = None
    await sourced.service.changes.key_refresh.refresh(source)
    assert (await outcome(sourced, good))[0] == 200


async def test_token_gets_503_before_its_keys_are_fetched(
    sourced: World, jwks: running_jwks
) -> None:
    jwks.answer = (500, b"", {})
    await sourced.start(**sourced._changes)
    await fetched(sourced, 2)

    assert (await outcome(sourced, token(sourced, "auth0"))) == (503, "not_ready")
    assert (await outcome(sourced, sourced.token(*read("chat-1"))))[0] == 200


async def test_reload_keeps_fetched_keys_and_applies_changes(
    sourced: World, jwks: running_jwks
) -> None:
    changed, other = token(sourced, "auth0"), token(sourced, "clerk")
    assert (await outcome(sourced, changed))[0] == (await outcome(sourced, other))[0] == 200
    config = Path(str(sourced._changes["BFF_CONFIG"]))
    before, jwks.answer = config.read_text(), (500, b"", {})  # noqa: ASYNC240  a test may block

    def change(text: str) -> None:
        config.write_text(text)
        sourced.reload(**sourced._changes)

    change(before.replace('audience = "https://chat', 'audience = "https://x.chat'))
    assert await outcome(sourced, changed) == (401, "token_invalid")
    assert (await outcome(sourced, other))[0] == 200
    change(before.replace('algorithms = "RS256"', 'algorithms = "RS512"'))
    assert (await outcome(sourced, other))[0] == 200, "a wrong file changes nothing"
    change(before)
    assert (await outcome(sourced, changed))[0] == 200, "its keys were kept"
    sourced.reload(BFF_CONFIG=None)
    assert await outcome(sourced, changed) == (401, "token_invalid")


def make_source(*keys: Key, algorithms: tuple[str, ...] = ("RS256", "EdDSA")) -> Source:
    return Source(
        name="one",
        environment="default",
        issuer="https://one.example.com",
        audiences=("chat",),
        algorithms=algorithms,
        keys=KeySet(keys),
        scopes_path=("scopes",),
        scopes_are_text=False,
        required={},
    )


def test_source_makes_each_check_without_the_verifier() -> None:
    """In the service other checks come before some of these."""
    rsa_key, edwards = KeyPair("RS256", "same"), KeyPair("EdDSA", "same")
    jwks = json.dumps({"keys": [rsa_key.jwk(), edwards.jwk()]})
    keys = read_jwks(jwks, ("RS256", "EdDSA"))
    good = {"iss": "https://one.example.com", "aud": "chat", "sub": "ann"}

    def verify(source: Source, key: KeyPair, **changes: object) -> dict:
        token = key.sign(good | changes).encode()
        return source.verify(token, read_unverified(token)[0], 0.0)

    both = make_source(*keys)
    assert verify(both, rsa_key) == verify(both, edwards) == good
    for wrong, key, changes in (
        (make_source(*keys, algorithms=("RS256",)), edwards, {}),
        (make_source(*keys, algorithms=("EdDSA",)), rsa_key, {}),
        (both, rsa_key, {"iss": "https://two.example.com"}),
        (make_source(shared_key(SHARED)), rsa_key, {}),
    ):
        with pytest.raises(Refused, match="token_invalid"):
            verify(wrong, key, **changes)


# -- documentation


def test_documentation_tells_the_times_and_bounds_of_the_code() -> None:
    text = " ".join(DOCS.read_text().split())
    for sentence in (
        f"for {introspected.ACCEPTED_SECONDS:.0f} seconds or until the token's `exp`",
        f"kept {introspected.REFUSED_SECONDS:.0f} seconds",
        f"every {keys.REFRESH_SECONDS / 60:.0f} minutes",
        f"at most every {keys.UNKNOWN_KEY_SECONDS:.0f} seconds",
        f"`RS256` of {keys.MIN_RSA_BITS} to {keys.MAX_RSA_BITS} bits",
        f"{revocations.DEFAULT_TTL / 86400:.0f} days if it is left out",
    ):
        assert sentence in text
