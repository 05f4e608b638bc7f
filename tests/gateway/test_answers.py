"""Answers: validators, HEAD, and failures that nothing expected."""

from support.world import (
    ORIGIN,
    World,
    read,
)


async def test_if_none_match_is_compared_last(world: World) -> None:
    etag = (await world.get("chat-1")).headers["etag"]

    same = await world.get("chat-1", if_none_match=f'"other", W/{etag}')
    star = await world.get("chat-1", if_none_match="*")
    other = await world.get("chat-1", if_none_match='"other"')
    late = await world.get("chat-1", if_none_match='"other",' * 40 + etag)
    unnamed = await world.get("chat-1", *read("chat-2"), if_none_match=etag)

    assert [r.status_code for r in (same, star, other, unnamed)] == [304, 304, 200, 403]
    assert late.status_code == 200, "a list without end is not read to its end"
    assert same.content == b""
    assert same.headers["etag"] == etag
    assert same.headers["cache-control"] == "private, no-cache"
    assert "content-type" not in same.headers


async def test_head_is_a_counted_get_without_body(world: World) -> None:
    full = await world.get("chat-1")
    head = await world.get("chat-1", method="HEAD")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(full.content))
    assert int(head.headers["x-ratelimit-remaining"]) == 298


async def test_unexpected_error_gets_a_readable_500(world: World) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("sentinel-in-an-exception")

    world.service.gateway.admission.charge_caller = broken

    response = await world.get("chat-1")

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "sentinel" not in response.text + world.log.getvalue()
    assert "request_failed" in [line["event"] for line in world.logged()]
