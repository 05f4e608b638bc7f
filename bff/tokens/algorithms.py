"""The signature algorithms of tokens: the only module that uses PyJWT.

Every algorithm has an engine of its own that knows no other algorithm. A key is bound to one
algorithm, so the ``alg`` of a token cannot turn a public key into an HMAC key.

The settings of token sources take their list of algorithms from this module.
"""

import base64
from typing import Any, Final

import jwt
from jwt.algorithms import Algorithm as Implementation
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from bff import strict_json
from bff.errors import Refused

if tuple(int(part) for part in jwt.__version__.split(".")[:2]) < (2, 12):
    raise ImportError(
        f"PyJWT {jwt.__version__} accepts unknown 'crit' headers; install 2.12 or later"
    )


_MAX_MEMBERS: Final = 2048
"""Brackets, braces and commas of verified claims; a token that names 200 sessions has 210."""
_MAX_SIGNATURE_BYTES: Final = 1400
"""Bytes of an encoded signature; a signature by the longest RSA key has 1366."""


class Algorithm:
    """One signature algorithm.

    Args:
        name: the ``alg`` of tokens.
        kty: the key type of its public keys in a JWK set.
        curve: the curve of those keys.
    """

    def __init__(
        self, name: str, implementation: Implementation, *, kty: str = "", curve: str | None = None
    ) -> None:
        self.name = name
        self.kty = kty
        self.curve = curve
        self._implementation = implementation
        self._engine = jwt.PyJWS(algorithms=[])
        self._engine.register_algorithm(name, implementation)

    def read_key(self, jwk: dict[str, Any]) -> Any:
        """Read a public key.

        Raises:
            ValueError: it is not a key for this algorithm.
        """
        try:
            return self._implementation.from_jwk(jwk)
        # Members of the wrong type raise more than PyJWT's own errors.
        except Exception as exc:
            raise ValueError(f"not a key for {self.name}") from exc

    def is_signature(self, signature: bytes, signed: bytes, key: Any) -> bool:
        """Whether *key* made the encoded *signature*. It parses nothing of the token."""
        if len(signature) > _MAX_SIGNATURE_BYTES:
            return False
        try:
            made = base64.urlsafe_b64decode(signature + b"==")
            return self._implementation.verify(signed, self._implementation.prepare_key(key), made)
        # Signatures of the wrong form raise more than PyJWT's own errors.
        except Exception:  # noqa: BLE001
            return False

    def verify(self, token: bytes, key: Any) -> dict[str, Any]:
        """Verify *token* with *key*, and read its claims; `is_signature` comes first.

        Raises:
            Refused: ``token_invalid``.
        """
        try:
            payload = self._engine.decode(token, key, algorithms=[self.name])
            claims = strict_json.loads(payload, most=_MAX_MEMBERS)
        # Malformed tokens raise ValueError, TypeError and RecursionError too.
        except Exception:  # noqa: BLE001
            raise Refused("token_invalid") from None
        if not isinstance(claims, dict):
            raise Refused("token_invalid")
        return claims

    def sign(self, payload: bytes, key: str) -> str:
        """Sign *payload* with *key*; returns the token."""
        return self._engine.encode(payload, key, algorithm=self.name)


class _Hmac(HMACAlgorithm):
    """HMAC without PyJWT's checks of keys: the settings are checked once, when they are read.

    PyJWT would warn at each use of a ``tr_dev_…`` root key, which has 31 bytes.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: Any) -> None:  # noqa: ARG002
        return None


TRIGGER_ALGORITHM: Final = Algorithm("HS256", _Hmac(HMACAlgorithm.SHA256))
"""Signs Trigger.dev's own tokens."""
SHARED_ALGORITHM: Final = Algorithm("HS256", HMACAlgorithm(HMACAlgorithm.SHA256))
"""Signs tokens of sources with shared keys."""
PUBLIC_ALGORITHMS: Final = (
    Algorithm("RS256", RSAAlgorithm(RSAAlgorithm.SHA256), kty="RSA"),
    Algorithm("ES256", ECAlgorithm(ECAlgorithm.SHA256), kty="EC", curve="P-256"),
    Algorithm("EdDSA", OKPAlgorithm(), kty="OKP", curve="Ed25519"),
)
"""Sign tokens of sources with public keys; a key of another type or curve is ignored."""
