"""Entity tags and fingerprints."""

from hypothesis import given
from hypothesis import strategies as st

from bff.digests import etag, fingerprint


@given(st.binary(), st.binary())
def test_equal_tags_mean_equal_bytes(one: bytes, other: bytes) -> None:
    assert (etag(one) == etag(other)) is (one == other)
    assert etag(one, other) == etag(one + other)


def test_etag_is_a_strong_quoted_tag() -> None:
    tag = etag(b"{}")

    assert tag[:1] == tag[-1:] == b'"'
    assert len(tag) == 26
    assert tag[1:-1].replace(b"-", b"").replace(b"_", b"").isalnum()


def test_fingerprint_differs_with_every_part() -> None:
    made = [
        fingerprint(),
        fingerprint("a"),
        fingerprint("a", "b"),
        fingerprint("ab"),
        fingerprint(["a", "b"]),
        fingerprint("a", None),
        fingerprint("a", 1),
    ]

    assert len(set(made)) == len(made)
    assert all(len(one) == 16 for one in made)
