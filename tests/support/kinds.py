"""The kinds of tokens, by who verifies them, for tests that hold for all of them."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import KeyPair
from support.world import OWN_KEY, ROOT_KEY, World, claims, sign

KINDS = ("local", "upstream", "source")
ISSUER = "https://idp.example.com"
_PAIR, _OTHER_PAIR = KeyPair("EdDSA", "one"), KeyPair("EdDSA", "one")
_PEM = _PAIR.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Kind:
    """Makes tokens of one kind, and the settings of a gateway that accepts them.

    Args:
        name: one of `KINDS`.
        folder: holds the files that the settings name.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.settings: dict[str, str | None] = {}
        self.hmac_key = OWN_KEY
        """The HS256 key; for a source its public key, which must never count as one."""
        if name == "upstream":
            self.settings = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}
            self.hmac_key = ROOT_KEY
        elif name == "source":
            keys, config = folder / "jwks.json", folder / "bff.toml"
            keys.write_text(json.dumps({"keys": [_PAIR.jwk()]}))
            config.write_text(
                f'[[token_sources]]\nname = "idp"\nissuer = "{ISSUER}"\naudience = "chat"\n'
                f'algorithms = "EdDSA"\njwks_file = "{keys}"\n'
            )
            self.settings = {"BFF_CONFIG": str(config)}
            self.hmac_key = _PEM.decode()

    def claims(self, wall: float, *scopes: object, **changes: Any) -> dict[str, Any]:
        """Make the claims of a valid token; a change to None removes one."""
        if self.name != "source":
            return claims(wall, *scopes, **changes)
        subject = (changes.get("act") or {}).get("sub", "user")
        of_source = {"iss": ISSUER, "aud": "chat", "sub": subject, "pub": None}
        return claims(wall, *scopes, **(of_source | changes))

    def sign(self, payload: dict[str, Any], *, forged: bool = False, **header: Any) -> str:
        """Sign with the right key or, if *forged*, with another one."""
        if self.name == "source":
            return (_OTHER_PAIR if forged else _PAIR).sign(payload, **header)
        key = "not-the-key-" * 4 if forged else self.hmac_key
        return sign(payload, key, headers=header or None)

    def token(self, world: World, *scopes: object, forged: bool = False, **changes: Any) -> str:
        """Make a token that is issued now."""
        return self.sign(self.claims(world.clock.wall, *scopes, **changes), forged=forged)
