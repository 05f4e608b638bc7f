"""A stored value is read back only by a gateway that may use it, of this version or the last."""

import re

import pytest

from bff.replicas.codec import (
    Namespace,
    StoredCopy,
    conceal,
    copy_name,
    decode_copy,
    decode_introspection,
    encode_copy,
    encode_introspection,
    encode_missing,
    limit_name,
    peek_name,
    reveal,
)
from bff.sessions.copy import Copy
from bff.tokens.introspected import Introspection

KEY = b"store key"
COPY = Copy("default", "session_1", "chat-1", b'{"id":"session_1"}', loaded=7.0, closed=False)


def test_stored_bytes_stay_the_same() -> None:
    """Replicas of two versions run side by side during a rollout."""
    introspection = Introspection("ok", ("a", "b"), 17.5, 60.0)

    assert encode_copy("origin:projection", COPY, 65, 1700000000, 99, key=KEY) == (
        b"bff1 99 3db13a3d573f841e97bcad2c9dbe0dc7e87b26e2b01cfc5e0c0071b93324b3c8\n"
        b"fbkxGSMicC2dGVnF4w5aHRpBz_hx47sYycGhi_GRMgs0e9_6bSLHtX6KMON9xKJixBHWa0r7k-rrPsbZNRdcC6"
        b"IKfwA=\n"
        b'{"id":"session_1"}'
    )
    assert encode_missing("origin:projection", "chat-9", 1.0, 99, key=KEY) == (
        b"bff1 99 4b1ad2a6b920d35e25e05a30be0db8435403acc4f97e145f9236f0ec78a56afc\n"
        b"nXTR2-0MK30JrFcQDHgf5pzpi3hbkncc7mxd3hsrgeTz2CCMsPiBaq7HIs_KpuzhvpB_aMmXXlL_3baO\n"
    )
    assert encode_introspection(
        Namespace("o", "p", b"key"), b"digest", introspection, 17.5, 99
    ) == (
        b"bff1 99 d2c6be3fc9598dd319d3248c32555e62989ee780f940722a48891d8cd8ea5863\n"
        b"BCvLxd4KTi--Z7h74l8SVjw8zzTcJ2n1AcPyY0F2MWjcAockn-QXFZAdwoIQ5w=="
    )


@pytest.mark.parametrize("id_", ["session_1", "chat-1"])
def test_copy_is_read_under_both_of_its_ids(id_: str) -> None:
    value = encode_copy("s", COPY, 65.0, 1700000000.0, 99, key=KEY)

    assert decode_copy("s", id_, value, key=KEY) == StoredCopy(
        COPY.body,
        99,
        COPY.id,
        COPY.external_id,
        closed=False,
        missing=False,
        loaded=1.7e9,
        lifetime=65,
    )
    assert decode_copy("another", id_, value, key=KEY) is None
    assert decode_copy("s", "chat-2", value, key=KEY) is None
    assert decode_copy("s", id_, value, key=b"another") is None


def test_changed_copy_is_not_read() -> None:
    value = encode_copy("s", COPY, 65.0, 1700000000.0, 99, key=KEY)
    for position in range(len(value)):
        changed = bytearray(value)
        changed[position] ^= 1
        assert decode_copy("s", "chat-1", bytes(changed), key=KEY) is None


def test_absence_is_read_under_its_id() -> None:
    value = encode_missing("s", "chat-9", 1.0, 99, key=KEY)
    stored = decode_copy("s", "chat-9", value, key=KEY)

    assert stored is not None
    assert stored.missing
    assert stored.lifetime == 1.0


def test_introspection_is_read_only_with_its_key_and_id() -> None:
    one, two = (Namespace("origin", "projection", key) for key in (b"one", b"two"))
    introspection = Introspection("ok", ("a", "b"), 17.5, 60.0)
    value = encode_introspection(one, b"digest", introspection, 17.5, 99)

    assert value.startswith(b"bff1 99 ")
    assert decode_introspection(one, b"digest", "a", value) == introspection
    assert decode_introspection(one, b"digest", "b", value) == introspection
    assert decode_introspection(one, b"digest", "c", value) is None
    assert decode_introspection(one, b"digesT", "a", value) is None
    assert decode_introspection(two, b"digest", "a", value) is None
    for position in range(len(value)):
        changed = bytearray(value)
        changed[position] ^= 1
        assert decode_introspection(one, b"digest", "a", bytes(changed)) is None


def test_concealed_text_is_read_with_its_key_only() -> None:
    for text in ("", "chat-1", "é" * 100, '["chat-1", null, true]'):
        concealed = conceal(KEY, text)
        assert reveal(KEY, concealed) == text
        assert text.encode() not in concealed or not text
        for wrong in (concealed[:-4], b"AAAA" + concealed, b"", b"%%", "é".encode()):
            with pytest.raises(ValueError, match=r".*"):
                reveal(KEY, wrong)
        with pytest.raises(ValueError, match="another key"):
            reveal(b"another", concealed)
    assert conceal(KEY, "a")[:8] != conceal(KEY, "b")[:8], "no two texts share a pad"


def test_names_do_not_tell_what_they_name() -> None:
    names = {
        name
        for key in (b"one", b"two")
        for name in (copy_name("p", "a", key), peek_name("p", "a", key), limit_name(key, "a"))
    }

    assert len(names) == 6
    assert all(re.fullmatch("(bff1:p:)?[0-9a-f]{32}", name) for name in names)
