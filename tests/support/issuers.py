"""Identity providers for tests: keys, claims as providers issue them, and a JWKS server.

Also makes malformed tokens (`forge`).
"""

import base64
import hmac
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

_MAKE: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
_JWK: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def b64(data: bytes) -> str:
    """Encode *data* in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segment(value: object) -> str:
    """Encode bytes, or a value as JSON, as a segment of a token."""
    return b64(value if isinstance(value, bytes) else json.dumps(value).encode())


def forge(header: object, payload: object, key: str | bytes, *, digest: str = "sha256") -> bytes:
    """Make a token of any header and payload, with an HMAC of *digest* ("" for no signature)."""
    signed = f"{segment(header)}.{segment(payload)}"
    key = key.encode() if isinstance(key, str) else key
    signature = hmac.digest(key, signed.encode(), digest) if digest else b""
    return f"{signed}.{b64(signature)}".encode()


class KeyPair:
    """A signing key of a provider."""

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private = _MAKE[algorithm]()

    def jwk(self, **changes: object) -> dict[str, Any]:
        """Return the public key, as a JWKS lists it."""
        made = json.loads(_JWK[self.algorithm].to_jwk(self.private.public_key()))
        made.pop("key_ops", None)
        made |= {"kid": self.kid, "use": "sig", "alg": self.algorithm, **changes}
        return {name: value for name, value in made.items() if value is not None}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """Sign *claims*; a header member of None is left out."""
        headers = {"kid": self.kid, **header}
        headers = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(claims, self.private, algorithm=self.algorithm, headers=headers)


class running_jwks:  # noqa: N801  a context manager
    """A JWKS server on loopback.

    It lists `keys` by provider, unless `answer` (status, body, headers) is set. `seen` holds the
    paths of requests.
    """

    def __init__(self, **keys: KeyPair) -> None:
        self.keys = {name: [key] for name, key in keys.items()}
        self.answer: tuple[int, bytes, dict[str, str]] | None = None
        self.seen: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append(self.path)
                status, body, headers = outer.answer or (200, outer.document(self.path), {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def document(self, path: str) -> bytes:
        return json.dumps({"keys": [key.jwk() for key in self.keys[path[1:]]]}).encode()

    def __enter__(self) -> "running_jwks":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Routes(httpx2.AsyncBaseTransport):
    """Sends requests to the port of *real* over sockets, all others to the pretend upstream."""

    def __init__(self, upstream: Any, real: str) -> None:
        self._app = httpx2.ASGITransport(upstream)
        self._sockets = httpx2.AsyncHTTPTransport(trust_env=False)
        self._real = httpx2.URL(real).port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        transport = self._sockets if request.url.port == self._real else self._app
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._sockets.aclose()


Claims = dict[str, Any]


def auth0(wall: float, scopes: list[str]) -> Claims:
    return {
        "https://chat.example.com/scopes": scopes,
        "iss": "https://my-tenant.eu.auth0.com/",
        "sub": "auth0|6553da60a54af58e29493993",
        "aud": ["https://chat.example.com", "https://my-tenant.eu.auth0.com/userinfo"],
        "iat": int(wall),
        "exp": int(wall) + 86400,
        "scope": "openid profile email",
        "azp": "K1AUPhZq8mRi0Q0pjhkfu1D7y6KjDQja",
    }


def clerk(wall: float, scopes: list[str]) -> Claims:
    return {
        "azp": "https://app.example.com",
        "exp": int(wall) + 60,
        "fva": [7, -1],
        "iat": int(wall),
        "iss": "https://clerk.example.com",
        "nbf": int(wall) - 10,
        "scopes": scopes,
        "sid": "sess_2abcdefghijklmnopqrstuvwxyz",
        "sts": "active",
        "sub": "user_2abcdefghijklmnopqrstuvwxyz",
        "v": 2,
    }


def supabase(wall: float, scopes: list[str]) -> Claims:
    return {
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": int(wall)}],
        "app_metadata": {"provider": "email", "providers": ["email"], "scopes": scopes},
        "aud": "authenticated",
        "email": "ann@example.com",
        "exp": int(wall) + 3600,
        "iat": int(wall),
        "is_anonymous": False,
        "iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1",
        "phone": "",
        "role": "authenticated",
        "session_id": "5c1a0d2e-0f36-4f0d-9a3c-0c2f2a6f3b1d",
        "sub": "123e4567-e89b-12d3-a456-426614174000",
        "user_metadata": {"scopes": ["admin"]},
    }


def keycloak(wall: float, scopes: list[str]) -> Claims:
    return {
        "exp": int(wall) + 300,
        "iat": int(wall),
        "auth_time": int(wall) - 5,
        "jti": "onrtac:312ee6f5-7b1c-4d4c-9f4b-6f1f3a1b2c3d",
        "iss": "https://sso.example.com/realms/chat",
        "aud": ["chat-gateway", "account"],
        "sub": "36fa0f91-f94d-4a0c-afed-6b7d952e47da",
        "typ": "Bearer",
        "azp": "chat-app",
        "sid": "2a88c258-f73a-4103-b862-e1fbd8f4e04e",
        "acr": "1",
        "allowed-origins": ["https://app.example.com"],
        "realm_access": {"roles": ["offline_access", "default-roles-chat", "admin"]},
        "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
        "scope": "openid email profile",
        "session_scope": " ".join(scopes),
        "email_verified": True,
        "preferred_username": "ann",
    }
