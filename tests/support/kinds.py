"""The kinds of tokens there are, by who verifies them: for tests of what holds for each."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.issuers import KeyPair
from support.world import OWN_KEY, ROOT_KEY, World, claims, sign

KINDS = ("local", "upstream", "source")
ISSUER = "https://idp.example.com"
_PAIR, _STRANGER = KeyPair("EdDSA", "one"), KeyPair("EdDSA", "one")
_PEM = _PAIR.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Kind:
    """How tokens of one kind are made, and a gateway that takes them is set up.

    Args:
        name: one of `KINDS`.
        folder: for the files that settings name.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.settings: dict[str, str | None] = {}
        self.hmac_key = OWN_KEY
        """The key of HS256 or, where there is none, what someone may take for it."""
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
        """Claims of a good token; a change to None removes one."""
        if self.name != "source":
            return claims(wall, *scopes, **changes)
        who = (changes.get("act") or {}).get("sub", "someone")
        theirs = {"iss": ISSUER, "aud": "chat", "sub": who, "pub": None}
        return claims(wall, *scopes, **(theirs | changes))

    def sign(self, payload: dict[str, Any], *, forged: bool = False, **header: Any) -> str:
        """Sign with the key that counts or, for a forged one, with another."""
        if self.name == "source":
            return (_STRANGER if forged else _PAIR).sign(payload, **header)
        key = "not-the-key-" * 4 if forged else self.hmac_key
        return sign(payload, key, headers=header or None)

    def token(self, world: World, *scopes: object, forged: bool = False, **changes: Any) -> str:
        """Make one as of now."""
        return self.sign(self.claims(world.clock.wall, *scopes, **changes), forged=forged)
