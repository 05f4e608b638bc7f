"""Introspections: how long they are kept, and how many."""

from bff.tokens.introspected import Introspections


def test_introspections_are_bounded_and_refusals_push_out_none() -> None:
    introspections = Introspections(max_kept=100, max_refused=50)
    introspections.accept(b"mine", ["a", "b"], 0, 60)
    for number in range(10_000):
        introspections.refuse(str(number).encode(), "a", 0, "token_invalid", 5)
    assert introspections.accepted(b"mine", "a", 59.9)
    assert not introspections.accepted(b"mine", "a", 60)
    assert len(introspections._refused) == 50
    introspections.accept(b"short", ["a"], 0, 20)
    assert introspections.accepted(b"short", "a", 19.9)
    assert not introspections.accepted(b"short", "a", 20)
    for number in range(10_000):
        introspections.accept(str(number).encode(), ["a"], 0, 60)
    assert len(introspections) == 100
    assert not introspections.accepted(b"mine", "a", 0)


def test_introspections_take_bounded_memory() -> None:
    """Measured at the bounds, with ids of the maximal length."""
    import tracemalloc  # noqa: PLC0415

    introspections = Introspections()
    tracemalloc.start()
    for number in range(20_000):
        digest, id_ = number.to_bytes(32, "big"), f"{number:06}" + "\N{GRINNING FACE}" * 250
        introspections.refuse(digest, id_, 0, "upstream_unavailable", 1)
    refused, _ = tracemalloc.get_traced_memory()
    for number in range(5_000):
        introspections.accept(
            number.to_bytes(32, "big"), [f"chat-{number}", f"session_{number}"], 0, 60
        )
    both, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused < 16 * 1024 * 1024, "bytes of 10,000 refusals"
    assert (both - refused) / 10_000 < 500, "bytes of each of 50,000 accepted tokens"


def test_token_stays_authentic_for_a_minute_after_a_refusal() -> None:
    introspections = Introspections()

    introspections.refuse(b"token", "chat-9", 1000.0, "not_found", 5.0)

    assert introspections.authentic(b"token", 1000.0)
    assert introspections.authentic(b"token", 1059.0)
    assert not introspections.authentic(b"token", 1060.0)
    assert not introspections.authentic(b"another token", 1000.0)
