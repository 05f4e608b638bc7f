"""Incidents 1 to 4, 24 and 25: tokens."""

import base64
import hashlib
import hmac
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from support.hostile import WIDE_OPEN, ask, resident, told
from support.issuers import KeyPair
from support.kinds import Kind
from support.world import ENVIRONMENT_ID, OWN_KEY, World, claims, read, sign

from bff.errors import Refused
from bff.sessions import ids
from bff.tokens.verify import Issuer, Verifier

_HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def _forge(header: dict[str, object], payload: object, key: str = OWN_KEY) -> str:
    """Make a token with any header, signed by the algorithm that the header names."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part(header) + b"." + part(payload)
    alg = header.get("alg")
    if isinstance(alg, str) and alg.lower() == "none":
        return (signed + b".").decode()
    digest = _HASHES.get(alg if isinstance(alg, str) else "", hashlib.sha256)
    mac = hmac.new(key.encode(), signed, digest).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


@pytest.mark.parametrize(
    "alg",
    [
        *("none", "None", "nOnE", "HS384", "HS512", "RS256", "ES256", "", "hs256", "HS256 "),
        *(None, ["HS256"], {"a": 1}, 256, True),
    ],
    ids=repr,
)
async def test_01_token_does_not_choose_the_algorithm(
    of_kind: World, kind: Kind, alg: object
) -> None:
    header: dict[str, object] = {"typ": "JWT", "kid": "one"}
    header |= {"alg": alg} if alg is not None else {}
    payload = kind.claims(of_kind.clock.wall, *read("chat-1"))

    response = await of_kind.get("chat-1", token=_forge(header, payload, kind.hmac_key))
    assert of_kind.calls == 0
    good = await of_kind.get("chat-1", token=kind.sign(payload))

    assert (response.status_code, response.json()["code"]) == (401, "token_invalid")
    assert good.status_code == 200, "the same token is accepted with the right algorithm"


async def test_01_algorithm_none_is_refused_with_a_signature_too(
    of_kind: World, kind: Kind
) -> None:
    signed = kind.token(of_kind, *read("chat-1"))
    _, payload, signature = signed.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').rstrip(b"=").decode()

    for token in (f"{none}.{payload}.", f"{none}.{payload}.{signature}", f"{none}.{payload}"):
        assert (await of_kind.get("chat-1", token=token)).status_code == 401
    assert of_kind.calls == 0


@pytest.mark.parametrize("crit", [["x"], ["exp"], [], "x", {"x": 1}], ids=repr)
async def test_02_unknown_crit_is_refused(of_kind: World, kind: Kind, crit: object) -> None:
    payload = kind.claims(of_kind.clock.wall, *read("chat-1"))

    token = kind.sign(payload, crit=crit, x=1)

    assert (await of_kind.get("chat-1", token=token)).status_code == 401
    assert of_kind.calls == 0


@pytest.mark.parametrize("version", ["2.11.9", "1.7.1", "2.3.0"])
def test_02_older_pyjwt_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(jwt, "__version__", version)
    monkeypatch.delitem(sys.modules, "bff.tokens.algorithms")

    with pytest.raises(ImportError, match="install 2"):
        importlib.import_module("bff.tokens.algorithms")


async def test_03_removed_key_of_a_source_ends_its_tokens_at_once(
    world: World, tmp_path: Path
) -> None:
    kind = Kind("source", tmp_path)
    await world.start(**kind.settings)
    token = kind.token(world, *read("chat-1"))
    assert (await world.get("chat-1", token=token)).status_code == 200
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [KeyPair("EdDSA", "one").jwk()]}))

    world.reload()

    assert (await world.get("chat-1", token=token)).json()["code"] == "token_invalid"


async def test_03_removed_key_ends_its_tokens_at_once(world: World) -> None:
    other = "another-signing-key-0123456789abcdef"
    await world.start(BFF_SIGNING_KEYS=f"{other},{OWN_KEY}")
    token = world.token(*read("chat-1"))
    assert (await world.get("chat-1", token=token)).status_code == 200

    await world.start(BFF_SIGNING_KEYS=other)

    assert (await world.get("chat-1", token=token)).json()["code"] == "token_invalid"


async def test_03_verified_token_is_not_kept_after_its_expiry(of_kind: World, kind: Kind) -> None:
    world = of_kind
    token = kind.token(world, *read("chat-1"), exp=int(world.clock.wall) + 10)
    assert (await world.get("chat-1", token=token)).status_code == 200
    assert len(world.service.gateway.config.verifier) == 1

    world.clock.advance(9.999)
    assert (await world.get("chat-1", token=token)).status_code == 200
    world.clock.advance(0.001)

    assert (await world.get("chat-1", token=token)).json()["code"] == "token_expired"
    assert len(world.service.gateway.config.verifier) == 0


def test_04_hundred_thousand_tokens_take_bounded_memory() -> None:
    verifier = Verifier([Issuer("e", ENVIRONMENT_ID, (OWN_KEY,))], ids.grant)
    wall = 1_800_000_000.0
    kept = sign(claims(wall, *read("chat-1"))).encode()
    padding = "x" * 6000

    def good(number: int) -> bytes:
        extra = {"pad": padding} if number % 20 == 0 else {}
        return _forge({"alg": "HS256"}, claims(wall, *read(f"chat-{number}"), **extra)).encode()

    for number in range(9_000):  # fills the cache
        verifier.verify(good(number), wall)
    full, before = len(verifier), resident()
    verifier.verify(kept, wall)
    for number in range(11_000):
        verifier.verify(good(9_000 + number), wall)
    grown = resident() - before
    verifier.verify(kept, wall)
    size = len(verifier)
    bad = sign(claims(wall, *read("chat-1")), "not-the-key-" * 4).encode()
    refused = 0
    for number in range(80_000):
        token = bad + (b"x" * 8000 if number % 20 == 0 else b"") + str(number).encode()
        try:
            verifier.verify(token, wall)
        except Refused:
            refused += 1

    assert refused == 80_000
    assert full < 9_000, "the cache has a bound, and it is full"
    assert grown < 24 * 1024 * 1024
    assert resident() - before < 32 * 1024 * 1024
    assert len(verifier) == size, "no bad token pushed out a good one"
    assert kept in verifier._verified


@pytest.mark.parametrize("listed", [False, True], ids=["session", "list"])
async def test_24_new_token_is_the_same_caller(world: World, kind: Kind, listed: bool) -> None:
    await world.start(**kind.settings, BFF_RATE_LIMIT="5/minute")

    async def status(*scopes: str, **claims: Any) -> int:
        token = kind.token(world, *scopes, **claims)
        if not listed:
            return (await world.get("chat-1", token=token)).status_code
        headers = {"authorization": f"Bearer {token}"}
        return (await world.browser.get("/api/v1/sessions", headers=headers)).status_code

    for actor in (None, "ann"):
        act = {"sub": actor} if actor else None
        statuses = [await status(*read("chat-1"), act=act, jti=str(n)) for n in range(6)]
        assert statuses == [200] * 5 + [429]
        # The order and repetition of scopes do not change the caller.
        assert await status(*read("chat-1"), *read("chat-1"), act=act, nonce=1) == 429


async def test_25_ten_thousand_bad_tokens_cost_upstream_no_request(
    world: World, kind: Kind
) -> None:
    await world.start(**kind.settings, BFF_IP_RATE_LIMIT="off")
    good = kind.token(world, *read("chat-1"))
    wrong = kind.token(world, *read("chat-1"), forged=True)
    assert (await ask(world, "chat-1", good)).status == 200
    refused = set()

    for number in range(10_000):
        bad = wrong[: len(wrong) - number % 50] + str(number)
        refused.add((await ask(world, "chat-1", bad)).status)
        if number % 100 == 0:
            world.clock.advance(0.001)
            assert (await ask(world, "chat-1", good)).status == 200

    assert refused == {401, 429}
    assert world.calls <= (1 + 60 if kind.name == "upstream" else 1), (
        "the bad-token limit, or nothing"
    )
    assert len(world.service.gateway.config.verifier) == 1


async def test_25_bad_tokens_of_many_addresses_cost_upstream_no_request(world: World) -> None:
    await world.start(**WIDE_OPEN)

    for number in range(2_000):
        response = await ask(world, "chat-1", f"a.b.{number}", peer=f"10.0.{number % 250}.1")
        assert (response.status, told(response)["cache-control"]) == (401, "no-store")

    assert world.calls == 0


@pytest.mark.parametrize("kind", ["upstream", "source"], indirect=True)
async def test_04_bad_tokens_of_any_kind_are_not_kept(of_kind: World, kind: Kind) -> None:
    await of_kind.start(**kind.settings, **WIDE_OPEN)
    gateway = of_kind.service.gateway
    assert (await ask(of_kind, "chat-1", kind.token(of_kind, *read("chat-1")))).status == 200
    bad = kind.token(of_kind, *read("chat-1"), pad="x" * 6000, forged=True).rpartition(".")[0]

    def invent(number: int) -> str:
        return f"{bad}.{number:086}"

    async def flood(numbers: range) -> None:
        for number in numbers:
            assert (await ask(of_kind, "chat-1", invent(number))).status == 401
            of_kind.upstream.seen.clear()

    await flood(range(800))
    before = resident()
    await flood(range(800, 1600))

    assert len(gateway.config.verifier) == 1
    assert resident() - before < 4 * 1024 * 1024, "of 7 MB of tokens"


def test_04_bad_token_is_verified_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are not kept."""
    verifier = Verifier([Issuer("e", None, (OWN_KEY,))], ids.grant)
    checks = SimpleNamespace(count=0)
    original = verifier._check

    def counted(token: bytes, wall: float):
        checks.count += 1
        return original(token, wall)

    monkeypatch.setattr(verifier, "_check", counted)
    good = sign(claims(0, "read:sessions", sub="env")).encode()
    for _ in range(3):
        verifier.verify(good, 1.0)
        with pytest.raises(Refused):
            verifier.verify(b"bad", 1.0)

    assert checks.count == 1 + 3
