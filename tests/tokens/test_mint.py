"""Minted tokens."""

import base64
import hashlib
import hmac
import json

from support.issuers import b64
from support.world import OWN_KEY, read

from bff.sessions import ids
from bff.tokens.mint import mint
from bff.tokens.verify import Issuer, Verifier

NOW = 1_800_000_000


def test_minted_token_is_like_one_of_upstream() -> None:
    token = mint(OWN_KEY, environment_id="env_1", scopes=read("a"), issued=NOW, ttl=60, actor=None)
    header, payload, signature = token.split(".")
    expected = hmac.new(OWN_KEY.encode(), f"{header}.{payload}".encode(), hashlib.sha256).digest()

    assert signature == b64(expected)
    padded = payload + "=" * (-len(payload) % 4)
    assert json.loads(base64.urlsafe_b64decode(padded)) == {
        "iss": "https://id.trigger.dev",
        "aud": "https://api.trigger.dev",
        "sub": "env_1",
        "pub": True,
        "scopes": ["read:sessions:a"],
        "iat": NOW,
        "exp": NOW + 60,
    }


def test_root_key_of_31_bytes_works_without_a_warning() -> None:
    key = "tr_dev_" + "k" * 24
    token = mint(key, environment_id="env_1", scopes=read("a"), issued=NOW, ttl=60, actor="ann")
    caller = Verifier([Issuer("d", "env_1", (key,))], ids.grant).verify(token.encode(), NOW)

    assert caller.has_actor
    assert caller.granted.ids == {"a"}
