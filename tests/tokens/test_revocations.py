"""Revocations: they apply at once and for a time, and only an operator can make them."""

import asyncio
import json
from itertools import permutations

import pytest
from support.world import (
    FRIENDLY,
    ROOT_KEY,
    World,
    claims,
    read,
    sign,
)

from bff.tokens.revocations import Revocation, RevocationError, Revocations, parse

NOW = 1_800_000_000.5


async def revoke(world: World, **body: object) -> None:
    response = await world.ops.post("/revocations", json=body)
    assert response.status_code == 200, response.text


async def ask(world: World, token: str, id_: str = "chat-1") -> tuple[int, str]:
    response = await world.get(id_, token=token)
    return response.status_code, response.json().get("code", "")


async def test_jti_revokes_one_token(world: World) -> None:
    one, two = (world.token(*read("chat-1"), jti=jti) for jti in ("one", "two"))
    assert await ask(world, one) == await ask(world, two) == (200, "")

    await revoke(world, jti="one")

    assert await ask(world, one) == (401, "token_revoked"), "a verified token is revoked too"
    assert await ask(world, two) == (200, "")
    assert await ask(world, world.token(*read("chat-1"))) == (200, "")
    world.clock.advance(30 * 86400)
    again = world.token(*read("chat-1"), jti="one")
    assert await ask(world, again) == (200, ""), "the revocation has expired"


async def test_subject_revokes_its_tokens_issued_before(world: World) -> None:
    ann = world.token(*read("chat-1"), act={"sub": "ann"})
    bob = world.token(*read("chat-1"), act={"sub": "bob"})
    assert await ask(world, ann) == await ask(world, bob) == (200, "")
    world.clock.advance(0.5)

    await revoke(world, subject="ann")

    assert await ask(world, ann) == (401, "token_revoked")
    assert await ask(world, bob) == (200, "")
    same_second = world.token(*read("chat-1"), act={"sub": "ann"})
    silent = world.token(*read("chat-1"), act={"sub": "ann"}, iat=None)
    assert (await ask(world, same_second))[0] == (await ask(world, silent))[0] == 401
    world.clock.advance(1)
    assert await ask(world, world.token(*read("chat-1"), act={"sub": "ann"})) == (200, "")
    await revoke(world, subject="env_test")
    assert (await ask(world, bob))[0] == 401, "`sub` is a subject too"


@pytest.mark.parametrize("named", ["chat-1", FRIENDLY["chat-1"]])
@pytest.mark.parametrize("id_", ["chat-1", FRIENDLY["chat-1"]])
async def test_session_is_revoked_under_either_id(world: World, named: str, id_: str) -> None:
    token = world.token(*read("chat-1", "chat-2"))
    assert await ask(world, token, id_) == (200, "")
    etag = (await world.get("chat-1", token=token)).headers["etag"]
    world.clock.advance(1)

    await revoke(world, session=named)

    assert await ask(world, token, id_) == (403, "unauthorized")
    assert (await world.get(id_, token=token, if_none_match=etag)).status_code == 403
    assert await ask(world, token, "chat-2") == (200, "")
    assert await ask(world, world.token(*read("chat-1")), id_) == (200, "")


@pytest.mark.parametrize("seconds", [3, 8, 100], ids=["stale", "stale-if-error", "expired"])
async def test_revoked_session_causes_no_load(world: World, seconds: int) -> None:
    token = world.token(*read("chat-1"))
    assert await ask(world, token) == (200, "")
    world.clock.advance(seconds)

    await revoke(world, session=FRIENDLY["chat-1"])

    assert await ask(world, token) == (403, "unauthorized")
    await world.settle()
    assert world.calls == 1


async def test_moment_revokes_all_tokens_issued_before(world: World) -> None:
    tokens = [world.token(*read("chat-1"), jti=str(n)) for n in range(5)]
    world.clock.advance(10)
    young = world.token(*read("chat-1"))

    await revoke(world, issued_before=world.clock.wall - 5)

    assert [(await ask(world, token))[0] for token in tokens] == [401] * 5
    assert await ask(world, young) == (200, "")
    await revoke(world, issued_before=world.clock.wall - 11)
    assert (await ask(world, tokens[0]))[0] == 401, "an earlier moment changes nothing"


async def test_token_revoked_during_a_load_gets_no_session(world: World) -> None:
    gate = asyncio.Event()

    async def slow(_) -> None:
        await gate.wait()

    world.upstream.override = slow
    token = world.token(*read("chat-1"), jti="one")
    waiting = asyncio.create_task(ask(world, token))
    await asyncio.sleep(0.01)
    await revoke(world, jti="one")
    gate.set()

    assert await waiting == (401, "token_revoked")


async def test_token_that_upstream_verified_can_be_revoked(world: World) -> None:
    await world.start(BFF_SIGNING_KEYS=None)
    token = sign(claims(world.clock.wall, *read("chat-1"), jti="one"), ROOT_KEY)
    assert await ask(world, token) == (200, "")

    await revoke(world, jti="one")

    assert await ask(world, token) == (401, "token_revoked")


async def test_revoked_token_counts_as_a_bad_token(world: World) -> None:
    await world.start(BFF_BAD_TOKEN_LIMIT="3/minute")
    token = world.token(*read("chat-1"), jti="one")
    await revoke(world, jti="one")

    assert [(await ask(world, token))[0] for _ in range(4)] == [401, 401, 401, 429]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl": 5},
        {"jti": ""},
        {"jti": 7},
        {"jti": "x" * 1025},
        {"jti": "a", "subject": "b"},
        {"jti": "a", "issued_before": 5},
        {"session": None},
        {"subject": "ann", "issued_before": NOW + 10},
        {"issued_before": 1_800_000_000_000},
        {"issued_before": "now"},
        {"issued_before": True},
        {"issued_before": 10**400},
        {"issued_before": None},
        {"subject": "ann", "ttl": 0},
        {"subject": "ann", "ttl": -1},
        {"subject": "ann", "ttl": 10**9},
        {"subject": "ann", "ttl": float("nan")},
        {"subject": "ann", "ttls": 5},
    ],
    ids=repr,
)
def test_impossible_revocation_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(RevocationError):
        parse(body, NOW)


async def test_page_in_a_browser_cannot_revoke(world: World) -> None:
    body, json_type = json.dumps({"jti": "one"}), {"content-type": "application/json"}
    for headers, content in (
        ({}, body),
        ({"content-type": "text/plain"}, body),
        ({**json_type, "origin": "http://127.0.0.1:9787"}, body),
        ({**json_type, "sec-fetch-site": "cross-site"}, body),
        ({**json_type, "cookie": "a=b"}, body),
        (json_type, "[]"),
        (json_type, "{"),
        (json_type, "[" * 8000),
        (json_type, " " * 9000 + body),
    ):
        for method in ("POST", "DELETE"):
            response = await world.ops.request(
                method, "/revocations", headers=headers, content=content
            )
            assert (response.status_code, response.json()["code"]) == (400, "bad_request"), headers
    assert (await world.browser.post("/revocations", json={"jti": "one"})).status_code == 404
    assert len(world.service.gateway.revocations) == 0


async def test_metrics_show_the_number_of_revocations_only(world: World) -> None:
    await revoke(world, jti="sentinel-jti")
    await revoke(world, subject="sentinel-subject")
    metrics = (await world.ops.get("/metrics")).text

    assert "bff_revocations 2.0" in metrics
    assert "sentinel" not in metrics + world.log.getvalue()


def test_revocations_are_bounded_and_kept_to_their_end() -> None:
    kept = Revocations(max_kept=10)
    for number in range(10):
        kept.add(parse({"jti": str(number), "ttl": 60 if number < 5 else 600}, NOW), NOW)
    with pytest.raises(RevocationError, match="10 revocations are kept already"):
        kept.add(parse({"jti": "more"}, NOW), NOW)
    kept.add(parse({"jti": "9", "ttl": 60}, NOW), NOW)
    assert kept.token("9", (), NOW, NOW + 599), "a shorter ttl changes nothing"

    later = NOW + 60
    kept.add(parse({"jti": "more"}, later), later)
    assert len(kept) == 6
    assert not kept.token("0", (), NOW, later)
    assert kept.token("9", (), NOW, later)
    assert kept.token("more", (), NOW, later)


def test_encoded_revocation_decodes_to_the_same() -> None:
    for body in ({"jti": "a"}, {"session": "ü:/"}, {"subject": "b"}, {"issued_before": 5.5}):
        made = parse(body, NOW)
        other = Revocations()
        other.add(Revocation.decode(made.encode()), NOW)
        assert other.all() == (made,)
    for text in ("", "[]", "{}", '{"kind": "x", "value": "", "before": 1, "until": 2}', "[" * 9999):
        with pytest.raises(ValueError, match=r".*"):
            Revocation.decode(text)


def revocation(made: float, *, undone: bool = False, before: float = 50.0) -> Revocation:
    return Revocation(
        kind="subject", value="ann", before=before, until=1000.0, made=made, undone=undone
    )


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_undoing_means_the_same_in_any_order(order: tuple[int, ...]) -> None:
    records = [revocation(1), revocation(2, undone=True), revocation(3, before=60.0)]
    kept = Revocations()
    for number in order:
        kept.add(Revocation.decode(records[number].encode()), 5.0)

    assert kept.token(None, ("ann",), 55.0, 5.0)
    kept.add(revocation(4, undone=True), 5.0)
    assert not kept.token(None, ("ann",), 10.0, 5.0)
    assert [r.undone for r in kept.in_force(5.0)] == [True]
    kept.add(revocation(3), 6.0)
    assert not kept.token(None, ("ann",), 10.0, 6.0), "an older revocation that arrives late"


def test_revocation_wins_over_an_undoing_of_the_same_moment() -> None:
    kept = Revocations()
    kept.add(revocation(1, undone=True), 5.0)
    kept.add(revocation(1), 5.0)

    assert kept.token(None, ("ann",), 10.0, 5.0)
