"""Tokens of other issuers: real keys, the shapes that providers issue, and a real JWKS server."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import Claims, KeyPair, Routes, auth0, clerk, keycloak, running_jwks, supabase
from support.world import OWN_KEY, Clock, World, claims, environ, read, sign

from bff.config import reader, settings
from bff.errors import Refused
from bff.tokens import introspected, revocations
from bff.tokens import jwks as keys
from bff.tokens.issuers import Source, peek
from bff.tokens.jwks import Key, KeySet, read_jwks, shared_key

DOCS = Path(__file__).parent.parent.parent / "docs" / "TOKENS.md"
SHAPES = {"auth0": auth0, "clerk": clerk, "supabase": supabase, "keycloak": keycloak}
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
    """The service with all the sources of the documentation, their JWKS on a real server."""
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
    """Let the background have fetched every key set so often."""
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
    made = SHAPES[provider](world.clock.wall, list(scopes or read("chat-1")))
    made = {name: value for name, value in (made | changes).items() if value is not None}
    return (key or KEYS[provider]).sign(made)


async def outcome(world: World, token: str, id_: str = "chat-1") -> tuple[int, str]:
    response = await world.get(id_, token=token)
    return response.status_code, response.json().get("code", "")


@pytest.mark.parametrize("provider", SHAPES)
async def test_a_token_as_each_provider_issues_it_opens_what_it_names(
    sourced: World, provider: str
) -> None:
    mine = token(sourced, provider)

    assert await outcome(sourced, mine) == (200, "")
    assert await outcome(sourced, mine, "chat-2") == (403, "unauthorized")
    assert await outcome(sourced, token(sourced, provider, "openid")) == (403, "unauthorized")
    assert await outcome(sourced, token(sourced, provider, exp=1)) == (401, "token_expired")
    assert await outcome(sourced, token(sourced, provider, exp=None)) == (401, "token_invalid")
    assert await outcome(sourced, token(sourced, provider, sub=None)) == (401, "token_invalid")
    seen = [s for s in sourced.upstream.seen if mine in str(s.headers)]
    assert seen == [], "a foreign token never goes upstream"


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
async def test_a_claim_that_is_not_as_told_is_401(
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
async def test_scopes_of_another_shape_or_place_grant_nothing(
    sourced: World, provider: str, change: Claims
) -> None:
    assert await outcome(sourced, token(sourced, provider, **change)) == (403, "unauthorized")


@pytest.mark.parametrize("provider", SHAPES)
async def test_no_token_verifies_under_another_sources_key(sourced: World, provider: str) -> None:
    forged = SHAPES[provider](sourced.clock.wall, read("chat-1"))

    for signer in SHAPES:
        for kid in (KEYS[provider].kid, KEYS[signer].kid, None):
            status, _ = await outcome(sourced, KEYS[signer].sign(forged, kid=kid))
            assert status == (200 if provider == signer else 401)


async def test_a_source_is_chosen_by_issuer_before_any_key_is_tried(sourced: World) -> None:
    wall = sourced.clock.wall
    ours = claims(wall, *read("chat-1"))
    theirs = auth0(wall, read("chat-1"))

    assert (await outcome(sourced, sign(ours)))[0] == 200
    assert (await outcome(sourced, sign(theirs)))[0] == 401, "our key, their issuer"
    assert (await outcome(sourced, KEYS["auth0"].sign(ours)))[0] == 401, "their key, our issuer"
    assert (await outcome(sourced, sign(ours, SHARED)))[0] == 401, "a source's shared key"
    assert (await outcome(sourced, OTHER.sign(theirs)))[0] == 401, "the same kid, another key"
    for issuer in ("https://nobody.example.com", None, 7, ["https://my-tenant.eu.auth0.com/"]):
        forged = json.dumps(theirs | {"iss": issuer}).encode()
        token = jwt.api_jws.encode(
            forged, KEYS["auth0"].private, algorithm="RS256", headers={"kid": "auth0-1"}
        )
        assert (await outcome(sourced, token))[0] == 401


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hs256(payload: Claims, key: bytes, **header: object) -> str:
    head = {"alg": "HS256", "typ": "JWT"} | header
    text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{text}.{b64(hmac.new(key, text.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize("provider", SHAPES)
async def test_a_public_key_is_never_an_hmac_key(sourced: World, provider: str) -> None:
    public = KEYS[provider].private.public_key()
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(KEYS[provider].jwk()).encode(),
        str(KEYS[provider].jwk().get("n", KEYS[provider].jwk().get("x"))).encode(),
        b"",
    ]  # fmt: skip
    good = SHAPES[provider](sourced.clock.wall, read("chat-1"))
    for form in forms:
        for algorithm in ("HS256", KEYS[provider].algorithm, "none", "HS512", ["HS256"], None):
            forged = hs256(good, form, alg=algorithm, kid=KEYS[provider].kid)
            assert (await outcome(sourced, forged))[0] == 401


async def test_a_shared_key_verifies_hs256_of_its_own_issuer_alone(sourced: World) -> None:
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
async def test_odd_headers_of_foreign_tokens_are_refused(sourced: World, header: Claims) -> None:
    made = auth0(sourced.clock.wall, read("chat-1"))
    text = hs256(made, b"", alg="RS256", **({"kid": "auth0-1"} | header)).rpartition(".")[0]
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signature = algorithm.sign(text.encode(), KEYS["auth0"].private)

    assert (await outcome(sourced, f"{text}.{b64(signature)}"))[0] == 401


async def test_keys_that_come_with_the_token_are_not_looked_at(
    sourced: World, jwks: running_jwks
) -> None:
    stranger = KeyPair("RS256", "auth0-1")
    made = auth0(sourced.clock.wall, read("chat-1"))
    before = len(jwks.seen)
    forged = stranger.sign(made, jwk=stranger.jwk(), jku=jwks.url + "?theirs", x5u=jwks.url)

    assert (await outcome(sourced, forged))[0] == 401
    assert len(jwks.seen) == before


async def test_callers_are_counted_by_source_and_subject(clock: Clock, sourced: World) -> None:
    verify = sourced.service.gateway.config.verifier.verify

    def key(provider: str, *scopes: str, **changes) -> bytes:
        caller = verify(token(sourced, provider, *scopes, **changes).encode(), clock.wall)
        assert caller.has_actor
        return caller.key

    mine = key("auth0")
    assert key("auth0", jti="again", iat=int(clock.wall) - 5) == mine
    assert key("auth0", sub="auth0|other") != mine
    assert key("auth0", "read:sessions:chat-2") != mine
    assert key("clerk", sub="auth0|6553da60a54af58e29493993") != mine


# -- keys come and go


async def test_a_new_key_is_fetched_when_a_token_names_it_and_no_request_waits(
    sourced: World, jwks: running_jwks
) -> None:
    new = KeyPair("RS256", "auth0-2")
    jwks.keys["auth0"].append(new)
    mine = token(sourced, "auth0", key=new)
    fetches = jwks.seen.copy

    assert (await outcome(sourced, mine)) == (401, "token_invalid")
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]
    assert source.keys.wanted.is_set()
    assert source.keys.wait(sourced.clock.now) == 30, "a bounded rate, however many ask"
    before = len(fetches())
    for number in range(200):
        stranger = KeyPair("EdDSA", f"made-up-{number % 3}")
        await outcome(sourced, token(sourced, "keycloak", key=stranger))
    assert len(fetches()) == before

    await sourced.service.key_refresh.refresh(source)

    assert (await outcome(sourced, mine)) == (200, "")


async def test_a_key_that_is_gone_verifies_nothing_not_even_what_is_remembered(
    sourced: World, jwks: running_jwks
) -> None:
    mine, theirs = token(sourced, "auth0"), token(sourced, "clerk")
    assert (await outcome(sourced, mine))[0] == (await outcome(sourced, theirs))[0] == 200
    jwks.keys["auth0"] = [KEYS["supabase"], KeyPair("RS256", "auth0-9")]
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]

    await sourced.service.key_refresh.refresh(source)

    assert (await outcome(sourced, mine)) == (401, "token_invalid")
    assert (await outcome(sourced, theirs))[0] == 200


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
async def test_while_its_server_says_nonsense_the_keys_stay_and_are_trusted_for_a_day(
    sourced: World, jwks: running_jwks, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    mine = token(sourced, "auth0", exp=int(sourced.clock.wall) + 200_000)
    assert (await outcome(sourced, mine))[0] == 200
    jwks.answer = answer
    source = sourced.service.gateway.config.verifier._sources["https://my-tenant.eu.auth0.com/"]
    before = len(jwks.seen)

    await sourced.service.key_refresh.refresh(source)

    assert jwks.seen[before:] == ["/auth0"], "asked once, and no redirect followed"
    assert source.keys.wait(sourced.clock.now) == 10
    assert (await outcome(sourced, mine))[0] == 200
    sourced.clock.advance(86_399)
    assert (await outcome(sourced, mine))[0] == 200
    sourced.clock.advance(1)
    assert (await outcome(sourced, mine)) == (503, "not_ready"), "not the token's fault"
    jwks.answer = None
    await sourced.service.key_refresh.refresh(source)
    assert (await outcome(sourced, mine))[0] == 200


async def test_before_the_first_fetch_it_is_not_the_tokens_fault(
    sourced: World, jwks: running_jwks
) -> None:
    jwks.answer = (500, b"", {})
    await sourced.start(**sourced._changes)
    await fetched(sourced, 2)

    assert (await outcome(sourced, token(sourced, "auth0"))) == (503, "not_ready")
    assert (await outcome(sourced, sourced.token(*read("chat-1"))))[0] == 200


async def test_a_reload_keeps_what_was_fetched_and_takes_over_what_changed(
    sourced: World, jwks: running_jwks
) -> None:
    mine, theirs = token(sourced, "auth0"), token(sourced, "clerk")
    assert (await outcome(sourced, mine))[0] == (await outcome(sourced, theirs))[0] == 200
    config = Path(str(sourced._changes["BFF_CONFIG"]))
    before, jwks.answer = config.read_text(), (500, b"", {})  # noqa: ASYNC240  a test may block

    def change(text: str) -> None:
        config.write_text(text)
        sourced.reload(**sourced._changes)

    change(before.replace('audience = "https://chat', 'audience = "https://x.chat'))
    assert await outcome(sourced, mine) == (401, "token_invalid")
    assert (await outcome(sourced, theirs))[0] == 200
    change(before.replace('algorithms = "RS256"', 'algorithms = "RS512"'))
    assert (await outcome(sourced, theirs))[0] == 200, "a bad file changes nothing"
    change(before)
    assert (await outcome(sourced, mine))[0] == 200, "its keys were kept all along"
    sourced.reload(BFF_CONFIG=None)
    assert await outcome(sourced, mine) == (401, "token_invalid")


def test_what_of_a_jwks_is_a_key() -> None:
    def kinds(*jwks: object, wanted: tuple[str, ...] = ("RS256", "ES256", "EdDSA")) -> list[str]:
        try:
            return [key.algorithm for key in read_jwks(json.dumps({"keys": jwks}), wanted)]
        except ValueError as exc:
            return [str(exc)]

    none = ["holds no public key for RS256 or ES256 or EdDSA"]
    rsa_key, curve, edwards = KEYS["auth0"], KEYS["supabase"], KEYS["keycloak"]
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()  # noqa: S505  that is the point
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    rs, es = jwt.algorithms.RSAAlgorithm, jwt.algorithms.ECAlgorithm

    assert kinds(rsa_key.jwk(), curve.jwk(), edwards.jwk()) == ["RS256", "ES256", "EdDSA"]
    assert kinds(edwards.jwk(alg="Ed25519"), curve.jwk(alg=None)) == ["EdDSA", "ES256"]
    assert kinds(rsa_key.jwk(), 7, None, {"kty": ["RSA"]}, {"kty": "RSA"}) == ["RS256"]
    assert kinds(rsa_key.jwk(), wanted=("ES256",)) == ["holds no public key for ES256"]
    assert kinds(rsa_key.jwk(use="enc")) == none
    assert kinds(rsa_key.jwk(key_ops=["encrypt"])) == none
    assert kinds(rsa_key.jwk(alg="RS512")) == none
    assert kinds(rsa_key.jwk(alg="HS256")) == none
    assert kinds(rsa_key.jwk(kid=7)) == none
    assert kinds({"kty": "oct", "k": "c2VjcmV0"}) == none
    assert kinds(json.loads(rs.to_jwk(weak))) == none
    assert kinds(json.loads(es.to_jwk(p384))) == none
    assert kinds(curve.jwk(), rsa_key.jwk(d="AQAB"))[0].startswith("holds a private key")


def source(*keys: Key, algorithms: tuple[str, ...] = ("RS256", "EdDSA")) -> Source:
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


def test_each_check_of_a_source_stands_by_itself() -> None:
    """In the service others stand before some of them: here they are alone."""
    rsa_key, edwards = KeyPair("RS256", "same"), KeyPair("EdDSA", "same")
    listed = json.dumps({"keys": [rsa_key.jwk(), edwards.jwk()]})
    keys = read_jwks(listed, ("RS256", "EdDSA"))
    good = {"iss": "https://one.example.com", "aud": "chat", "sub": "ann"}

    def verify(of: Source, key: KeyPair, **changes: object) -> dict:
        token = key.sign(good | changes).encode()
        return of.verify(token, peek(token)[0], 0.0)

    assert verify(source(*keys), rsa_key) == verify(source(*keys), edwards) == good
    for of, key, changes in (
        (source(*keys, algorithms=("RS256",)), edwards, {}),
        (source(*keys, algorithms=("EdDSA",)), rsa_key, {}),
        (source(*keys), rsa_key, {"iss": "https://two.example.com"}),
        (source(shared_key(SHARED)), rsa_key, {}),
    ):
        with pytest.raises(Refused, match="token_invalid"):
            verify(of, key, **changes)


def test_when_a_jwks_is_fetched() -> None:
    keys = KeySet(url="https://x", trusted_seconds=100)
    assert keys.wait(0) == 0
    keys.attempt(0)
    assert keys.wait(1) == 9, "soon again, until one came"
    keys.replace([shared_key("k" * 32)], 1000)
    assert keys.wait(1) == 299
    assert keys.trusted(1099)
    assert not keys.trusted(1100)
    keys.find("unknown", 1001)
    assert keys.wait(1) == 29
    generation = keys.generation
    keys.attempt(30)
    keys.replace([shared_key("k" * 32)], 1030)
    assert keys.generation == generation, "the same keys change nothing"
    assert keys.wait(30) == 300


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
def test_what_cannot_be_read_is_refused_before_anyone_verifies(token: bytes) -> None:
    with pytest.raises(Refused, match="token_invalid"):
        peek(token)


# -- settings


SOURCE = """
[[token_sources]]
name = "one"
issuer = "https://one.example.com"
audience = "chat"
algorithms = "RS256"
jwks_url = "https://one.example.com/jwks"
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SOURCE.replace('_url = "https', '_url = "http'), "in the clear"),
        (SOURCE.replace("RS256", "HS256"), "for HS256 there has to be shared_keys"),
        (SOURCE.replace("RS256", "none"), "may hold RS256, ES256"),
        (SOURCE.replace("RS256", "HS256,RS256"), "shared keys or public ones"),
        (SOURCE.replace("jwks_url", "shared_keys"), "either jwks_url or jwks_file"),
        (SOURCE + f'shared_keys = "{SHARED}"', "either jwks_url or jwks_file, and nothing else"),
        (SOURCE.replace('audience = "chat"', ""), "audience is not set"),
        (SOURCE.replace('one.example.com"', 'one"'), None),
        (SOURCE.replace('https://one.example.com"', 'https://id.trigger.dev"'), "dev's own"),
        (SOURCE.replace('issuer = "https://one.example.com"', ""), "issuer is not set"),
        (SOURCE + SOURCE, "same name"),
        (SOURCE + SOURCE.replace('"one"', '"two"'), "same issuer"),
        (SOURCE + 'environment = "nowhere"', "environment is to be one of default"),
        (SOURCE + 'scopes_claim = ["user_metadata", "scopes"]', "whoever signs in writes"),
        (SOURCE + 'scopes_claim = ","', "is empty"),
        (SOURCE + 'scopes_form = "both"', "neither list nor text"),
        (SOURCE + "keys_trusted = 0", "is zero"),
        (SOURCE + 'algoritms = "RS256"', "did you mean algorithms?"),
        (SOURCE + "[token_sources.required]\nazp = []", "required is to be a table"),
        (SOURCE + "[token_sources.required]\nazp = {a = 1}", "required is to be a table"),
        ("token_sources = 3", "[[token_sources]]"),
        (SOURCE.replace("jwks_url", "jwks_file"), "cannot be read"),
    ],
    ids=range(22),
)  # fmt: skip
def test_problems_of_sources(tmp_path: Path, text: str, says: str | None) -> None:
    config = tmp_path / "bff.toml"
    config.write_text(text)
    told = environ(BFF_CONFIG=str(config))
    if says is None:
        assert reader.load(told).token_sources
        return
    with pytest.raises(settings.SettingsError) as raised:
        reader.load(told)

    assert any(says in problem for problem in raised.value.problems), raised.value.problems


def test_keys_from_files(tmp_path: Path) -> None:
    jwks, secret, config = (tmp_path / name for name in ("jwks.json", "secret", "bff.toml"))
    jwks.write_text(json.dumps({"keys": [KEYS["auth0"].jwk()]}))
    secret.write_text(SHARED + "\n")
    config.write_text(
        SOURCE.replace("jwks_url", "jwks_file").replace("https://one.example.com/jwks", str(jwks))
        + f'[[token_sources]]\nname = "two"\nissuer = "https://two"\naudience = "x"\n'
        f'algorithms = "HS256"\nshared_keys_FILE = "{secret}"\n'
    )
    told = reader.load(environ(BFF_CONFIG=str(config)))

    assert SHARED not in repr(told)
    assert told.token_sources[1].shared_keys[0].reveal() == SHARED
    jwks.write_text(json.dumps({"keys": [KEYS["supabase"].jwk()]}))
    with pytest.raises(settings.SettingsError, match="jwks_file holds no public key for RS256"):
        reader.load(environ(BFF_CONFIG=str(config)))


def test_the_documentation_tells_the_times_and_bounds_that_hold() -> None:
    text = " ".join(DOCS.read_text().split())
    for said in (
        f"for {introspected.ACCEPTED_SECONDS:.0f} seconds or until the token's `exp`",
        f"kept {introspected.REFUSED_SECONDS:.0f} seconds",
        f"every {keys.REFRESH_SECONDS / 60:.0f} minutes",
        f"at most every {keys.UNKNOWN_KEY_SECONDS:.0f} seconds",
        f"`RS256` of {keys.MIN_RSA_BITS} to {keys.MAX_RSA_BITS} bits",
        f"{revocations.DEFAULT_TTL / 86400:.0f} days if it is left out",
    ):
        assert said in text
