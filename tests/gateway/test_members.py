"""Several sessions for one request: each has its own outcome, unless all would meet the same."""

import pytest
from support.world import World, read

from bff.errors import Refusal, Refused
from bff.gateway.context import RequestContext
from bff.gateway.members import Members
from bff.gateway.pending import PendingLoad
from bff.request import RequestHead
from bff.sessions.copy import Copy
from bff.tokens.caller import Caller


def members_of(world: World, *scopes: str) -> tuple[Members, RequestContext, Caller]:
    gateway = world.service.gateway
    head = RequestHead.read("GET", b"/api/v1/sessions/chat-1", b"", [], "192.0.2.1")
    token = world.token(*scopes, act={"sub": "ann"}).encode()
    caller = gateway.config.verifier.verify(token, world.clock.wall)
    assert isinstance(caller, Caller)
    members = Members(
        admission=gateway.admission,
        introspector=gateway._introspector,
        lookup=gateway._lookup,
        loader=gateway.loader,
    )
    return members, RequestContext(head, b"one", *world.clock(), None), caller


async def test_member_is_a_copy_a_load_or_a_refusal(world: World) -> None:
    await world.get("chat-1")
    await world.get("gone")
    members, request, caller = members_of(world, *read("chat-1", "chat-2", "gone"))

    copy, load, missing = [members.find(request, caller, i) for i in ("chat-1", "chat-2", "gone")]

    assert isinstance(copy, tuple)
    assert isinstance(copy[0], Copy)
    assert isinstance(load, PendingLoad)
    assert missing == Refusal("not_found")
    await world.settle()


async def test_refusal_of_the_whole_request_is_raised(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="1/minute")
    members, request, caller = members_of(world, *read("chat-1"))
    gateway = world.service.gateway
    gateway.admission.charge_caller(
        RequestContext(request.head, b"two", *world.clock(), None), caller
    )

    with pytest.raises(Refused, match="rate_limited"):
        members.find(request, caller, "chat-1")
    await world.settle()
