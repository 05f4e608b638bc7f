"""The bytes that connections hold: in all, by address, by kind."""

from bff.server.buffers import Buffers, Holding


def buffers(limit: int = 100) -> Buffers:
    return Buffers(limit, is_trusted=lambda address: address == "192.0.2.9")


def test_one_address_has_a_share() -> None:
    shared = buffers()
    one, again = (Holding(shared, "192.0.2.1") for _ in range(2))

    assert one.requests(20)
    assert not again.requests(10)
    assert again.requests(5)
    assert Holding(shared, "192.0.2.2").requests(25)
    assert shared.held == 50


def test_all_addresses_share_the_limit() -> None:
    shared = buffers()
    holdings = [Holding(shared, f"192.0.2.{number}") for number in range(10)]

    assert [holding.requests(25) for holding in holdings] == [True] * 4 + [False] * 6
    holdings[0].close()
    assert holdings[5].requests(25)
    assert shared.held == 100


def test_proxy_has_the_whole_limit() -> None:
    shared = buffers()
    proxies = [Holding(shared, "192.0.2.9") for _ in range(3)]

    assert [proxy.requests(40) for proxy in proxies] == [True, True, False]


def test_answer_larger_than_a_share_is_allowed_alone() -> None:
    shared = buffers()
    one, again = (Holding(shared, "192.0.2.1") for _ in range(2))

    assert one.answer(90, "192.0.2.1")
    assert not again.answer(1, "192.0.2.1")
    one.answered()
    assert again.answer(1000, "192.0.2.1"), "nothing else is held"


def test_written_answer_is_counted_once() -> None:
    shared = buffers()
    one = Holding(shared, "192.0.2.1")

    assert one.answer(90, "192.0.2.1")
    assert one.unread(80)
    assert shared.held == 80
    one.answered()
    one.unread(0)
    assert shared.held == 0


def test_answer_counts_for_the_address_behind_a_proxy() -> None:
    shared = buffers()
    one, two = (Holding(shared, "192.0.2.9") for _ in range(2))

    assert one.answer(20, "198.51.100.1")
    assert not two.answer(20, "198.51.100.1")
    assert two.answer(20, "198.51.100.2")
    one.close()
    two.close()
    assert (shared.held, dict(shared._by_address)) == (0, {})


def test_closed_connection_holds_nothing() -> None:
    shared = buffers()
    one = Holding(shared, "192.0.2.1")
    one.requests(10)
    one.close()
    assert one.answer(50, "192.0.2.1")
    assert one.unread(50)
    assert shared.held == 0
