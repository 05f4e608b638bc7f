"""The pretend upstream behaves as the real one was measured to."""

import httpx2
import pytest
from support.world import ROOT_KEY, SECRET_KEY, Clock, claims, pretend, read, sign

from bff.demo.upstream import Environment, PretendUpstream, session


@pytest.fixture
def upstream(clock: Clock) -> PretendUpstream:
    made = pretend(lambda: clock.wall)
    made.environments[0].additional_keys["tr_prod_sk_runs"] = ("read:runs",)
    branch = Environment("env_branch", ROOT_KEY, branch="feat/one")
    branch.add(session(70, "chat-prev"))
    made.environments = (*made.environments, branch)
    return made


async def get(upstream: PretendUpstream, id_: str, key: str | None, **headers: str):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    transport = httpx2.ASGITransport(upstream)
    async with httpx2.AsyncClient(transport=transport, base_url="http://up") as http:
        return await http.get(f"/api/v1/sessions/{id_}", headers=sent)


def token(clock: Clock, *scopes: object, **changes: object) -> str:
    return sign(claims(clock.wall, *scopes, **changes), ROOT_KEY)


async def test_checks_are_credential_then_look_up_then_scope(
    upstream: PretendUpstream, clock: Clock
) -> None:
    async def status(id_: str, key: str | None) -> int:
        return (await get(upstream, id_, key)).status_code

    assert await status("chat-1", ROOT_KEY) == 200
    assert await status("chat-1", SECRET_KEY) == 200
    assert await status("chat-1", None) == 401
    assert await status("chat-1", "tr_prod_unknown") == 401
    assert await status("chat-1", "garbage") == 401
    assert await status("nope", token(clock, "read:runs")) == 404, "look-up before scope"
    assert await status("chat-1", token(clock, "read:runs")) == 403
    assert await status("chat-1", "tr_prod_sk_runs") == 403
    assert await status("chat-1", token(clock, *read("chat-1"))) == 200
    assert await status("chat-1", token(clock, sub="env_unknown")) == 401
    assert await status("chat-1/", ROOT_KEY) == 301


async def test_session_leaks_trigger_config_as_the_real_one_does(
    upstream: PretendUpstream, clock: Clock
) -> None:
    response = await get(upstream, "chat-1", token(clock, *read("chat-1")))

    assert response.json()["triggerConfig"]["basePayload"]["metadata"]["authToken"]
    assert len(response.json()) == 13


async def test_branch_environment_needs_its_header(upstream: PretendUpstream) -> None:
    without = await get(upstream, "chat-prev", ROOT_KEY)
    with_ = await get(upstream, "chat-prev", ROOT_KEY, x_trigger_branch="feat/one")

    assert without.status_code == 404, "the parent environment answers, which has no such session"
    assert with_.status_code == 200


async def test_limits_are_those_of_the_real_upstream(
    upstream: PretendUpstream, clock: Clock
) -> None:
    mine = token(clock, *read("chat-1"))
    responses = [await get(upstream, "chat-1", mine) for _ in range(61)]
    refused = responses[-1]

    assert [r.status_code for r in responses] == [200] * 60 + [429]
    assert refused.headers["content-type"].startswith("application/problem+json")
    members = "title status type detail reset limit remaining secondsUntilReset error"
    assert set(refused.json()) == set(members.split())
    assert int(refused.headers["x-ratelimit-reset"]) > clock.wall * 1000
    another = token(clock, *read("chat-1"), jti="x")
    assert (await get(upstream, "chat-1", another)).status_code == 200

    bucket = upstream.environments[0].bucket
    bucket.limit = bucket.remaining = 2
    statuses = [(await get(upstream, "chat-1", SECRET_KEY)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    clock.advance(10)
    assert (await get(upstream, "chat-1", SECRET_KEY)).status_code == 200
