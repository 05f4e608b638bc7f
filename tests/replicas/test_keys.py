"""The keys stay the same: replicas of two versions run side by side during a rollout."""

import re

from bff.replicas import keys
from bff.replicas.codec import Namespace

_NAMESPACE = Namespace("o", "p", b"key")


def test_keys_stay_the_same() -> None:
    assert [
        keys.REPLICAS,
        keys.window("caller:300/60:digest"),
        keys.spent("origin", "spent"),
        keys.allowance("origin"),
        keys.pause("origin"),
        keys.value("{origin}:projection", "chat-1"),
        keys.claim(keys.value("{origin}:projection", "chat-1")),
        keys.stream("purges"),
        keys.stream("revocations"),
        keys.MARKER,
        keys.REPUBLISHER,
        keys.sealed("name"),
    ] == [
        "bff1:replicas",
        "bff1:w:caller:300/60:digest",
        "bff1:{origin}:spent",
        "bff1:{origin}:allowance",
        "bff1:{origin}:pause",
        "bff1:{origin}:projection:chat-1",
        "bff1:{origin}:projection:chat-1:load",
        "bff1:{told}:purges",
        "bff1:{told}:revocations",
        "bff1:{told}:marker",
        "bff1:{told}:republisher",
        "bff1:{told}:sealed:name",
    ]


def test_keys_of_one_script_are_on_one_node_of_a_cluster() -> None:
    for names in (
        [
            *(keys.spent("o", "spent"), keys.allowance("o"), keys.pause("o")),
            *(
                keys.value(_NAMESPACE.copies_prefix, "chat-1"),
                keys.claim(keys.value(_NAMESPACE.copies_prefix, "chat-1")),
            ),
            keys.value(_NAMESPACE.introspections_prefix, "chat-1"),
        ],
        [keys.stream("revocations"), keys.stream("purges"), keys.MARKER, keys.REPUBLISHER],
        [keys.sealed("one"), keys.sealed("two")],
    ):
        assert len({re.search(r"\{(.+)\}", name)[1] for name in names}) == 1
