"""The purges that a replica knows: by origin and id, in the store's time, and bounded."""

from bff.replicas.purge_log import PurgeLog


def test_purge_ends_what_was_claimed_before_it() -> None:
    log = PurgeLog(10)
    log.add("origin", "chat-1", "1000-0")

    assert log.is_purged("origin", ["chat-1"], 999_999)
    assert log.is_purged("origin", ["session_1", "chat-1"], 1_000_999), "the same millisecond"
    assert not log.is_purged("origin", ["chat-1"], 1_001_000)
    assert not log.is_purged("origin", ["chat-2"], 0)
    assert not log.is_purged("another", ["chat-1"], 0)


def test_forgotten_purge_ends_everything_before_it() -> None:
    log = PurgeLog(3)
    for number in range(1, 6):
        log.add("origin", f"chat-{number}", f"{number}-0")

    assert log.is_purged("origin", ["another"], 2_999)
    assert not log.is_purged("origin", ["another"], 3_000)
    assert log.is_purged("origin", ["chat-5"], 5_999)
    assert len(log._times) == len(log._order) == 3


def test_repeated_purge_takes_no_more_room_than_others() -> None:
    log = PurgeLog(3)
    for number in range(1, 100):
        log.add("origin", "chat-1", f"{number}-0")

    assert len(log._times) == 1
    assert log.is_purged("origin", ["chat-1"], 99_999)
    assert not log.is_purged("origin", ["chat-1"], 100_000)
    assert not log.is_purged("origin", ["chat-2"], 97_000)


def test_message_that_arrives_late_undoes_no_later_purge() -> None:
    log = PurgeLog(10)
    log.add("origin", "chat-1", "2000-0")
    log.add("origin", "chat-1", "1000-0")

    assert log.is_purged("origin", ["chat-1"], 1_999_999)


def test_copies_from_before_the_data_of_the_store_are_purged() -> None:
    log = PurgeLog(2)
    log.forget("5-0")
    log.forget("3-0")

    assert log.is_purged("origin", ["chat-1"], 5_999)
    assert not log.is_purged("origin", ["chat-1"], 6_000)
