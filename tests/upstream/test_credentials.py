"""The secret keys of one environment: what is sent, and which key is in use."""

from bff.upstream.credentials import Credentials


def credentials(*keys: str, changes: list[int]) -> Credentials:
    return Credentials(
        url="http://127.0.0.1:1",
        secret_keys=keys,
        branch="feat/one",
        user_agent="bff/test",
        on_key=changes.append,
    )


def test_request_carries_the_key_in_use_and_the_branch() -> None:
    signed = credentials("key-1", "key-2", changes=[]).signed(1)

    assert b"authorization: Bearer key-2\r\n" in signed
    assert b"x-trigger-branch: feat/one\r\n" in signed
    assert b"key-1" not in signed


def test_unsigned_request_carries_no_key() -> None:
    assert b"authorization" not in credentials("key-1", changes=[]).unsigned


def test_rejected_key_is_replaced_once() -> None:
    changes: list[int] = []
    keys = credentials("key-1", "key-2", changes=changes)

    keys.reject(0)
    keys.reject(0)  # another request that was sent with the same key

    assert (keys.in_use, changes) == (1, [2])


def test_only_key_stays_in_use() -> None:
    changes: list[int] = []
    keys = credentials("key-1", changes=changes)

    keys.reject(0)

    assert (keys.in_use, changes) == (0, [])
