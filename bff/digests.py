"""Names made of a hash: entity tags of bodies, fingerprints of settings."""

import base64
import hashlib
import json


def etag(*parts: bytes) -> bytes:
    """Make the entity tag of a body that consists of *parts*: equal tags, equal bytes."""
    digest = hashlib.sha256(b"".join(parts)).digest()
    return b'"%b"' % base64.urlsafe_b64encode(digest[:18])


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits that differ when any of *parts*, which JSON can write, does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
