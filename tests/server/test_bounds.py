"""The number of connections, in all and by address."""

from ipaddress import ip_network

from bff.server.bounds import Bounds, ConnectionLimiter


def limiter(connections: int, per_address: int) -> tuple[ConnectionLimiter, list[str]]:
    bounds = Bounds(
        head_bytes=1000,
        headers=10,
        request_seconds=1.0,
        idle_seconds=1.0,
        unread_seconds=1.0,
        connections=connections,
        connections_per_address=per_address,
        buffered_bytes=1000,
    )
    counted: list[str] = []
    proxies = (ip_network("192.0.2.9/32"),)
    return ConnectionLimiter(bounds, trusted=proxies, count=counted.append), counted


def test_connections_are_bounded_in_total() -> None:
    connections, counted = limiter(2, 5)
    assert [connections.enter(f"192.0.2.{number}") for number in range(3)] == [True, True, False]
    connections.leave("192.0.2.2")
    connections.leave("192.0.2.0")
    assert connections.enter("192.0.2.3")
    assert counted == ["too_many"]


def test_connections_of_one_address_are_bounded() -> None:
    connections, counted = limiter(100, 2)
    assert [connections.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert [connections.enter("192.0.2.9") for _ in range(3)] == [True] * 3, "a proxy"
    assert counted == ["too_many_of_address"]
