"""The chat list: the browser's answer, and the calls that upstream saw."""

import asyncio
from itertools import chain
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from support.polls import polled_world
from support.virtual_time import run
from support.world import FRIENDLY, ORIGIN, PATH, World, read

from bff.demo.upstream import Answer, Seen, session
from bff.gateway.pending import FALLBACK_SECONDS

LIST = PATH.rstrip("/")


async def ask(
    world: World,
    *scopes: str,
    token: str | None = None,
    method: str = "GET",
    query: str | dict[str, Any] = "",
    **headers: str,
) -> httpx2.Response:
    sent = {"authorization": f"Bearer {token or world.token(*scopes)}", "origin": ORIGIN}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    query = query if isinstance(query, str) else urlencode(query)
    return await world.browser.request(method, LIST + (query and f"?{query}"), headers=sent)


def shown(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [one["externalId"] or one["id"] for one in response.json()["data"]]


def many(world: World, count: int, **fields: Any) -> list[str]:
    names = [f"m-{number:03d}" for number in range(count)]
    for number, name in enumerate(names, start=1000):
        world.upstream.environments[0].add(session(number, name, **fields))
    return names


@pytest.fixture
async def rich(world: World) -> World:
    """A world without an upstream budget."""
    await world.start(BFF_UPSTREAM_BUDGET="off")
    return world


async def test_a_list_is_what_the_token_names_and_what_exists(rich: World) -> None:
    response = await ask(rich, *read("chat-2", "nope", "chat-1", "a/b: c%?#ü"), "read:runs:x")

    assert shown(response) == ["chat-2", "chat-1", "a/b: c%?#ü"], "in the order of the token"
    single = (await rich.get("chat-1")).json()
    assert response.json() == {"data": response.json()["data"], "pagination": {}}
    assert response.json()["data"][1] == single
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert rich.calls == 4, "and the single session came from the same copy"


async def test_nothing_hidden_is_in_a_list(rich: World) -> None:
    response = await ask(rich, *read("chat-1", "chat-2"))

    for hidden in ("first message", "backend", "user_123", "tenant_acme", "org:acme", "plan"):
        assert hidden not in response.text + str(response.headers)


async def test_copies_and_loads_are_the_shared_ones(rich: World) -> None:
    await rich.get("chat-1")
    lists = [ask(rich, *read("chat-1", "chat-2", FRIENDLY["chat-2"])) for _ in range(50)]
    responses = await asyncio.gather(*lists, rich.get("chat-2"))

    assert {response.status_code for response in responses} == {200}
    assert all(shown(response) == ["chat-1", "chat-2"] for response in responses[:-1])
    assert rich.calls == 3, "one, and one for each form of the other"
    hit = await ask(rich, *read("chat-1", "chat-2"))
    assert (rich.calls, hit.headers["cache-status"]) == (3, "bff; hit")


async def test_misses_load_at_the_same_time(rich: World) -> None:
    names, under_way, most = many(rich, 15), 0, 0

    async def slow(_: Seen) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    rich.upstream.override = slow

    assert shown(await ask(rich, *read(*names))) == names
    assert most == 15


async def test_both_forms_and_repeated_scopes_are_one_session(rich: World) -> None:
    scopes = read(FRIENDLY["chat-2"], "chat-1", "chat-2", FRIENDLY["chat-1"], "chat-1", "chat-1")

    whole = await ask(rich, *scopes)
    pages = await walk(rich, rich.token(*scopes), size=1)

    assert shown(whole) == ["chat-2", "chat-1"]
    assert pages == [["chat-2"], ["chat-1"]]


async def test_scope_on_an_invalid_id_causes_no_load(rich: World) -> None:
    odd = [".", "..", "x" * 257, "a\nb", "\ud800", "a\x00"]

    response = await ask(
        rich, token=rich.token(*(f"read:sessions:{id_}" for id_ in odd), *read("chat-1"))
    )
    alone = await ask(rich, token=rich.token(*(f"read:sessions:{id_}" for id_ in odd)))

    assert shown(response) == ["chat-1"]
    assert shown(alone) == []
    assert [seen.raw_path for seen in rich.upstream.seen] == [PATH + "chat-1"]


@pytest.mark.parametrize(
    "scope", ["read:sessions", "read:all", "admin", "*:sessions", "read:sessions:"]
)
async def test_type_wide_scope_gets_a_remedy(world: World, scope: str) -> None:
    response = await ask(world, scope, *read("chat-1"))

    assert (response.status_code, response.json()["code"]) == (403, "unauthorized")
    assert "read:sessions:<id>" in response.json()["error"]
    assert world.calls == 0


@pytest.mark.parametrize("scope", ["read:runs:x", "write:sessions:chat-1", "*"])
async def test_a_token_that_names_no_session_lists_none(world: World, scope: str) -> None:
    response = await ask(world, scope)

    assert (response.status_code, response.json()) == (200, {"data": [], "pagination": {}})
    assert response.headers["x-ratelimit-remaining"] == "299", "it counts as a request"


async def test_bad_tokens_and_limits_are_those_of_every_request(world: World) -> None:
    await world.start(BFF_RATE_LIMIT="2/minute")
    token = world.token(*read("chat-1", "chat-2"))

    responses = [await ask(world, token=token) for _ in range(3)]

    assert [response.status_code for response in responses] == [200, 200, 429], (
        "a list is one request"
    )
    assert responses[0].headers["x-ratelimit-remaining"] == "1"
    assert (await ask(world, token="bad")).status_code == 401
    expired = await ask(world, token=world.token(*read("chat-1"), exp=1))
    assert expired.json()["code"] == "token_expired"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_list_route_creates_no_session(world: World, method: str) -> None:
    response = await ask(world, *read("chat-1"), method=method)

    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert "Trigger.dev API" in response.json()["error"]


# -- pages


async def walk(world: World, token: str, *, size: int, **filters: str) -> list[list[str]]:
    """Read page after page, forth and then back; both ways show the same."""
    pages, query = [], {"page[size]": size, **filters}
    response = await ask(world, token=token, query=query)
    assert "previous" not in response.json()["pagination"]
    pages.append(shown(response))
    while after := response.json()["pagination"].get("next"):
        response = await ask(world, token=token, query={**query, "page[after]": after})
        pages.append(shown(response))
    back = [pages[-1]]
    while before := response.json()["pagination"].get("previous"):
        response = await ask(world, token=token, query={**query, "page[before]": before})
        back.append(shown(response))
    assert back[::-1] == pages
    return pages


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_two_hundred_scopes_page_by_page(rich: World, size: int) -> None:
    names = many(rich, 200)
    for gone in names[3:180:9]:
        found = rich.upstream.environments[0].find(gone)
        del rich.upstream.environments[0].sessions[found["id"]]
    await rich.start(BFF_UPSTREAM_BUDGET="off", BFF_RATE_LIMIT="off", BFF_IP_RATE_LIMIT="off")
    left = [name for name in names if rich.upstream.environments[0].find(name)]

    pages = await walk(rich, rich.token(*read(*names)), size=size)

    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1), "pages are full"
    assert list(chain(*pages)) == left
    assert rich.calls == 200, "each was asked for once"


async def test_page_holds_twenty_by_default(rich: World) -> None:
    names = many(rich, 21)

    twenty = await ask(rich, *read(*names[:20]))
    first = await ask(rich, *read(*names))

    assert (len(shown(twenty)), twenty.json()["pagination"]) == (20, {})
    assert (len(shown(first)), [*first.json()["pagination"]]) == (20, ["next"])


async def test_a_page_asks_for_no_more_than_it_shows_and_one(rich: World) -> None:
    names = many(rich, 50)

    await ask(rich, *read(*names), query={"page[size]": 5})

    assert rich.calls == 6


async def test_a_cursor_is_of_use_to_the_caller_alone(rich: World) -> None:
    names = many(rich, 30)
    token = rich.token(*read(*names))
    after = (await ask(rich, token=token)).json()["pagination"]["next"]

    same = [rich.token(*read(*names), jti="re-minted"), rich.token(*reversed(read(*names)))]
    other = [
        rich.token(*read(*names[:29])),
        rich.token(*read(*names), act={"sub": "ann"}),
        rich.token(*read("chat-1")),
    ]

    for again in same:
        assert shown(await ask(rich, token=again, query={"page[after]": after}))
    refused = [await ask(rich, token=t, query={"page[after]": after}) for t in other]
    nonsense = await ask(rich, token=token, query={"page[after]": "nonsense"})
    assert {response.status_code for response in refused} == {400}
    assert {response.content for response in refused} == {nonsense.content}, "nothing is told apart"


async def test_a_cursor_outlives_its_session(rich: World) -> None:
    names = many(rich, 4)
    token = rich.token(*read(*names))
    first = await ask(rich, token=token, query={"page[size]": 2})
    environment = rich.upstream.environments[0]
    del environment.sessions[environment.find(names[1])["id"]]
    rich.clock.advance(100)

    after = first.json()["pagination"]["next"]
    second = await ask(rich, token=token, query={"page[size]": 2, "page[after]": after})

    assert shown(second) == names[2:]


# -- what cannot be loaded


async def test_member_that_cannot_be_loaded_is_reported(world: World) -> None:
    await world.start(BFF_UPSTREAM_BUDGET="2/second", BFF_CACHE_NEGATIVE_TTL="9")
    token = world.token(*read("chat-1", "nope", "chat-2", "chat-closed"))

    part = await ask(world, token=token)
    world.clock.advance(1)
    whole = await ask(world, token=token)

    assert shown(part) == ["chat-1"]
    error = "The gateway has spent its upstream budget; retry shortly"
    assert part.json()["unavailable"] == [
        {"id": id_, "error": error, "code": "over_budget"} for id_ in ("chat-2", "chat-closed")
    ]
    assert part.headers["x-unavailable-sessions"] == "2"
    assert "X-Unavailable-Sessions" in part.headers["access-control-expose-headers"]
    assert shown(whole) == ["chat-1", "chat-2", "chat-closed"]
    assert "unavailable" not in whole.json()
    assert "x-unavailable-sessions" not in whole.headers
    assert part.headers["etag"] != whole.headers["etag"]


async def test_one_broken_session_does_not_hide_the_others(rich: World) -> None:
    async def broken(seen: Seen) -> Answer | None:
        return Answer(500, {"error": "sentinel"}) if "chat-2" in seen.raw_path else None

    rich.upstream.override = broken
    response = await ask(rich, *read("chat-1", "chat-2", "chat-closed"))

    assert shown(response) == ["chat-1", "chat-closed"]
    assert [one["code"] for one in response.json()["unavailable"]] == ["upstream_unavailable"]
    assert "sentinel" not in response.text


async def test_list_without_any_loaded_member_gets_the_error(rich: World) -> None:
    rich.answer(500, {"error": "down"})

    response = await ask(rich, *read("chat-1", "chat-2"))

    assert (response.status_code, response.json()["code"]) == (502, "upstream_unavailable")
    assert response.headers["x-should-retry"] == "false"


async def test_a_list_of_nothing_that_exists_is_empty(rich: World) -> None:
    response = await ask(rich, *read("nope", "never"))

    assert (response.status_code, response.json()) == (200, {"data": [], "pagination": {}})


async def test_while_upstream_fails_old_copies_are_listed(rich: World) -> None:
    first = await ask(rich, *read("chat-1", "chat-2"))
    rich.answer(500, {"error": "down"})
    rich.clock.advance(30)

    response = await ask(rich, *read("chat-1", "chat-2"))

    assert response.content == first.content
    assert (response.headers["age"], response.headers["etag"]) == ("30", first.headers["etag"])


async def test_a_leaving_browser_ends_no_load(rich: World) -> None:
    gate = asyncio.Event()

    async def slow(_: Seen) -> None:
        await gate.wait()

    rich.upstream.override = slow
    leaver = asyncio.create_task(ask(rich, *read("chat-1", "chat-2")))
    await asyncio.sleep(0.01)
    leaver.cancel()
    stayer = asyncio.create_task(rich.get("chat-1"))
    await asyncio.sleep(0.01)
    gate.set()

    assert (await stayer).status_code == 200
    assert leaver.cancelled()
    assert rich.calls == 2


async def test_no_memory_for_copies_makes_no_endless_list(rich: World) -> None:
    await rich.start(
        BFF_UPSTREAM_BUDGET="off",
        BFF_CACHE_MAX_BYTES="0",
        BFF_CACHE_TTL="0",
        BFF_CACHE_NEGATIVE_TTL="0",
    )

    assert shown(await ask(rich, *read("nope", "chat-1", "chat-2"))) == ["chat-1", "chat-2"]
    assert rich.calls == 3


async def test_rounds_are_few_however_little_matches(rich: World) -> None:
    names, rounds, waiting = many(rich, 200), 0, False

    async def count(_: Seen) -> None:
        nonlocal rounds, waiting
        rounds += not waiting
        waiting = True
        await asyncio.sleep(0.005)
        waiting = False

    rich.upstream.override = count
    query = {"page[size]": 1, "filter[type]": "none.such"}

    assert shown(await ask(rich, *read(*names), query=query)) == []
    assert rounds <= 8


# -- conditional requests


def test_purges_during_a_wait_do_not_prolong_it() -> None:
    async def history() -> None:
        async with polled_world() as it:
            names = it.add(*(f"chat-{n}" for n in range(8)))
            token = it.token("ann", names)
            await it.page(token)
            it.delays = lambda: 1.5
            gateway = it.world.service.gateway
            gateway.cache.purge("default", names[0])
            page = asyncio.create_task(it.page(token))
            for name in names[1:]:
                await asyncio.sleep(1.4)
                gateway.cache.purge("default", name)

            answer = await page

            assert answer.took <= FALLBACK_SECONDS + 1.5 + 0.1, "the page waits for one load"
            assert answer.late, "others come with the next page"

    run(history)


async def test_304_for_the_list_too(rich: World) -> None:
    token = rich.token(*read("chat-1", "chat-2"))
    etag = (await ask(rich, token=token)).headers["etag"]

    same = await ask(rich, token=token, if_none_match=etag)
    unnamed = await ask(rich, "read:runs", if_none_match=etag)
    rich.upstream.environments[0].find("chat-2")["currentRunId"] = "run_next"
    rich.clock.advance(20)
    changed = await ask(rich, token=token, if_none_match=etag)

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert same.headers["cache-control"] == "private, no-cache"
    assert (unnamed.status_code, unnamed.json()["data"]) == (200, []), "another list"
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


async def test_head_of_a_list(rich: World) -> None:
    full = await ask(rich, *read("chat-1"))
    head = await ask(rich, *read("chat-1"), method="HEAD")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(full.content))
    assert head.headers["etag"] == full.headers["etag"]


# -- filters


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("filter[type]=chat.agent", ["chat-1", "chat-2", "gone", "support"]),
        ("filter[type]=chat.support", []),
        ("filter[type]=chat.support,chat.agent", ["chat-1", "chat-2", "gone", "support"]),
        ("filter[taskIdentifier]=other", ["support"]),
        ("filter[externalId]=chat-2", ["chat-2"]),
        ("filter[externalId]=chat-closed", []),
        ("filter[status]=ACTIVE", ["chat-2", "support"]),
        ("filter[status]=CLOSED", ["gone"]),
        ("filter[status]=EXPIRED", ["chat-1"]),
        ("filter[status]=EXPIRED,CLOSED", ["chat-1", "gone"]),
        ("filter[tags]=public:beta", ["chat-1", "chat-2", "gone"]),
        ("filter[tags]=public:beta,public:new", ["chat-1", "chat-2", "gone", "support"]),
        ("filter[tags]=org:acme", []),
        ("filter[createdAt][period]=10m", ["support"]),
        ("filter[createdAt][from]=1800000000000", ["support"]),
        ("filter[createdAt][to]=1799999999999", ["chat-1", "chat-2", "gone"]),
        ("filter%5BcreatedAt%5D%5Bfrom%5D=0&filter[status]=CLOSED", ["gone"]),
    ],
)
async def test_filters_look_at_what_the_browser_sees(world: World, query: str, names: list) -> None:
    await world.start(BFF_EXPOSE_TAGS="public:*", BFF_UPSTREAM_BUDGET="off")
    environment = world.upstream.environments[0]
    environment.find("chat-1")["expiresAt"] = "2026-01-03T00:00:00.000Z"
    environment.add(session(20, "gone", closedAt="2026-01-03T00:00:00.000Z"))
    new = {"createdAt": "2027-01-15T08:00:00.000Z", "tags": ["public:new", "org:acme"]}
    environment.add(session(21, "support", taskIdentifier="other", **new))
    token = world.token(*read("chat-1", "chat-2", "gone", "support"))

    assert shown(await ask(world, token=token, query=query)) == names


@pytest.mark.parametrize(
    ("hidden", "query"),
    [
        ("externalId", "filter[externalId]=chat-1"),
        ("closedAt", "filter[status]=CLOSED"),
        ("expiresAt", "filter[status]=ACTIVE"),
        ("tags", "filter[tags]=org:acme"),
    ],
)
async def test_no_filter_tells_what_the_policy_hides(world: World, hidden: str, query: str) -> None:
    fields = {"id", "type", "taskIdentifier", "createdAt", "updatedAt"}
    fields |= {"externalId", "closedAt", "expiresAt"} - {hidden}
    await world.start(BFF_EXPOSE_FIELDS=",".join(sorted(fields)))

    response = await ask(world, *read("chat-1", "chat-closed"), query=query)

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert "shows to no browser" in response.json()["error"]
    assert world.calls == 0


async def test_filters_fill_pages(rich: World) -> None:
    names = many(rich, 60)
    for name in names[::3]:
        rich.upstream.environments[0].find(name)["taskIdentifier"] = "third"

    pages = await walk(
        rich, rich.token(*read(*names)), size=6, **{"filter[taskIdentifier]": "third"}
    )

    assert [len(page) for page in pages] == [6, 6, 6, 2]
    assert list(chain(*pages)) == names[::3]


@pytest.mark.parametrize("query", ["x=1", "page[size]", "sentinel%22%3E%3Cscript%3E=1"])
async def test_bad_query_is_400_and_costs_nothing(world: World, query: str) -> None:
    response = await ask(world, *read("chat-1"), query=query)

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert response.headers["x-should-retry"] == "false"
    assert "sentinel" not in response.text, "the error does not repeat an unsafe name"
    assert world.calls == 0


async def test_a_query_changes_nothing_of_one_session(world: World) -> None:
    token = world.token(*read("chat-1"))
    sent = {"authorization": f"Bearer {token}"}
    plain = await world.browser.get(PATH + "chat-1", headers=sent)
    queried = await world.browser.get(PATH + "chat-1?page[size]=9999&x", headers=sent)

    assert (queried.status_code, queried.content) == (200, plain.content)
    assert world.calls == 1


async def test_another_environments_copies_are_not_listed(rich: World) -> None:
    assert shown(await ask(rich, *read("chat-1"))) == ["chat-1"]

    other = rich.token(*read("chat-1"), sub="env_other")

    assert (await ask(rich, token=other)).status_code == 401
