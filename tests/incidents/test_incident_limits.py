"""Incidents 21 to 23: origins and addresses."""

import pytest
from support.hostile import ask
from support.rawsockets import request, talk
from support.world import ORIGIN, PATH, Gateway, World, read


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        ORIGIN + ".evil",
        ORIGIN + ":8443",
        ORIGIN + ":443",
        ORIGIN.replace("https", "http"),
        ORIGIN.replace("app.", "app-"),
        ORIGIN.replace("app.", "x.app."),
        ORIGIN.upper(),
        ORIGIN + "/",
        f"{ORIGIN}, https://evil.example",
        f"https://evil.example {ORIGIN}",
        "*",
        "",
    ],
)
def test_21_only_the_exact_origin_gets_cors_headers(edge: Gateway, origin: str) -> None:
    token = edge.token(*read("chat-1"))
    line = f"Origin: {origin}"
    requests = (request(PATH + "chat-1", line, token=token), request(PATH + "x", line))
    requests += (request(PATH + "x", line, method="OPTIONS"), request("/", line))
    requests += (request(PATH + "x", line, *["x: y"] * 101),)

    for data in requests:
        headers = talk(edge.port, data).responses[0].headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "Authorization, Origin, Accept"
    for data in requests:
        good = data.replace(f"Origin: {origin}".encode(), f"Origin: {ORIGIN}".encode())
        headers = talk(edge.port, good).responses[0].headers
        assert headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in headers


async def _statuses(world: World, *addresses: tuple[str, str]) -> list[int]:
    """Request without a token from each (peer, X-Forwarded-For); returns the statuses."""
    statuses = []
    for peer, forwarded in addresses:
        fields = {"forwarded": (forwarded.encode(),)} if forwarded else {}
        statuses.append((await ask(world, "x", None, peer=peer, **fields)).status)
    return statuses


async def test_22_leftmost_forwarded_address_is_not_counted(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute", BFF_TRUSTED_PROXIES="10.0.0.0/8")
    untrusted = [("192.0.2.9", f"198.51.100.{n}, 10.0.0.1") for n in range(3)]
    assert await _statuses(world, *untrusted) == [401, 401, 429]

    rotating = [("10.0.0.1", f"203.0.113.{n}, 198.51.100.7, 10.0.0.2") for n in range(3)]
    assert await _statuses(world, *rotating) == [401, 401, 429], (
        "the first untrusted address from the right counts"
    )

    distinct = [("10.0.0.1", f"198.51.100.9, 203.0.113.{n}") for n in range(3)]
    assert await _statuses(world, *distinct) == [401, 401, 401]

    malformed = [("10.0.0.7", f"203.0.113.{n}, unknown, 10.0.0.2") for n in range(3)]
    assert await _statuses(world, *malformed) == [401, 401, 429], "nothing left of it counts"


async def test_22_several_forwarded_lines_are_one_list(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute", BFF_TRUSTED_PROXIES="10.0.0.0/8")
    statuses = [
        (
            await ask(
                world,
                "x",
                None,
                peer="10.0.0.1",
                forwarded=(f"203.0.113.{n}".encode(), b"198.51.100.7"),
            )
        ).status
        for n in range(3)
    ]
    assert statuses == [401, 401, 429]


async def test_23_mapped_address_is_ipv4_and_a_64_is_one_address(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute")

    same = [("192.0.2.1", ""), ("::ffff:192.0.2.1", ""), ("::FFFF:c000:0201", "")]
    assert await _statuses(world, *same) == [401, 401, 429]
    assert await _statuses(world, ("::ffff:192.0.2.5", ""), ("192.0.2.6", "")) == [401, 401]

    net = [("2001:db8:0:1::1", ""), ("2001:db8:0:1:ffff::2", ""), ("2001:db8:0:1::3%eth0", "")]
    assert await _statuses(world, *net) == [401, 401, 429]
    assert await _statuses(world, ("2001:db8:0:2::1", "")) == [401]


async def test_23_trusted_proxy_may_be_an_ipv4_mapped_address(world: World) -> None:
    await world.start(BFF_IP_RATE_LIMIT="2/minute", BFF_TRUSTED_PROXIES="10.0.0.0/8")

    through = [("::ffff:10.0.0.1", f"203.0.113.{n}") for n in range(3)]
    assert await _statuses(world, *through) == [401, 401, 401]
