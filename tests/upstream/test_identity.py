"""Which answers count as the API's: those captured from it, and none of anything else."""

import json

import pytest

from bff.upstream.connection import Answer
from bff.upstream.identity import api_error

JSON = "application/json; charset=utf-8"
PROBLEM = "application/problem+json; charset=utf-8"
HTML = "text/html; charset=utf-8"
MDN = "https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/"
FORBIDDEN = {
    "error": "Unauthorized",
    "code": "unauthorized",
    "param": "access_token",
    "type": "authorization",
}
NO_HEADER = {
    "title": "Unauthorized",
    "status": 401,
    "type": MDN + "401",
    "detail": "No authorization header provided",
    "error": "No authorization header provided",
}
LIMITED = {
    "title": "Rate Limit Exceeded",
    "status": 429,
    "type": MDN + "429",
    "detail": "Rate limit exceeded 0/5 requests remaining. Retry in 9.82 seconds.",
    "reset": 1795462608019,
    "limit": 5,
    "remaining": -1,
    "secondsUntilReset": 9.82,
    "error": "Rate limit exceeded 0/5 requests remaining. Retry in 9.82 seconds.",
}


def answer(status: int, body: object, kind: str | None = JSON, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        fields["content-type"] = kind
    return Answer(status, fields, body if isinstance(body, bytes) else json.dumps(body).encode())


CAPTURED = [
    answer(401, {"error": "Invalid API key"}, x_ratelimit_limit="750"),
    answer(401, {"error": "Public Access Token is invalid"}, x_ratelimit_limit="750"),
    answer(401, {"error": "Invalid Public Access Token"}),
    answer(401, {"error": "x-trigger-branch header required for preview env"}),
    answer(401, {"error": "No matching branch env"}),
    answer(401, NO_HEADER, PROBLEM),
    answer(403, FORBIDDEN),
    answer(403, {"error": "…", "code": "scopes_exceed_key_access", "deniedScopes": ["x"]}),
    answer(404, {"error": "Not found"}, x_should_retry="false"),
    answer(404, {"error": "Not found"}, None),
    answer(404, {"error": "No session with this id"}, x_should_retry="false"),
    answer(404, {"error": "Resource not found"}),
    answer(429, LIMITED, PROBLEM),
    answer(401, {"error": "A later text"}, access_control_expose_headers="x-trigger-jwt,x-other"),
    answer(401, {"error": "Invalid or Missing API Key"}),
]


@pytest.mark.parametrize("captured", CAPTURED, ids=range(len(CAPTURED)))
def test_captured_errors_are_the_apis(captured: Answer) -> None:
    assert api_error(captured) == json.loads(captured.body)


PAGE = b"<!DOCTYPE html><html><head><title>Attention Required!</title></head></html>"
FOREIGN = {
    "CDN page": PAGE,
    "CDN page as JSON": json.dumps({"error": "<html>"}).encode() + b"<html>",
    "empty": b"",
    "no JSON": b"error code: 1015",
    "not an object": b'["error"]',
    "text": b'"error"',
    "null": b"null",
    "NestJS": {"message": "Cannot GET /api", "error": "Not Found", "statusCode": 404},
    "NestJS 401": {"message": "Unauthorized", "statusCode": 401},
    "NestJS 403": {"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403},
    "Fastify": {"message": "Route GET:/api not found", "error": "Not Found", "statusCode": 404},
    "FastAPI": {"detail": "Not Found"},
    "Django REST": {"detail": "Authentication credentials were not provided."},
    "Spring": {"timestamp": "2026-01-01", "status": 404, "error": "Not Found", "path": "/api"},
    "Rails": {"status": 404, "error": "Not Found"},
    "Laravel": {"message": "Unauthenticated."},
    "Phoenix": {"errors": {"detail": "Not Found"}},
    "Kong": {"message": "no Route matched with those values"},
    "Next.js": {"error": "Not Found"},
    "the name of 401": {"error": "Unauthorized"},
    "the name of 403": {"error": "forbidden"},
    "AWS": {"message": "Missing Authentication Token"},
    "Azure": {"statusCode": 401, "message": "Access denied due to missing subscription key."},
    "OAuth": {"error": "invalid_token", "error_description": "The access token expired"},
    "JSON:API": {"errors": [{"status": "404", "title": "Not Found"}]},
    "Google": {"error": {"code": 404, "message": "Not Found", "status": "NOT_FOUND"}},
    "Cloudflare": {"error": "Access denied", "code": 1020, "ray_id": "x"},
    "number as a code": {"error": "Access denied", "code": 1020},
    "text as a code": {"error": "Access denied", "code": "1020"},
    "code and type": {"error": "unauthorized", "code": "E_AUTH", "type": "error"},
    "no more than one": {"error": "Not found", "code": "not_found"},
    "OAuth, its code alone": {"error": "invalid_token"},
    "Tyk 401": {"error": "Authorization field missing"},
    "Tyk 403": {"error": "Access to this API has been disallowed"},
    "Devise": {"error": "You need to sign in or sign up before continuing."},
    "oauth2-proxy": {"error": "access_denied"},
    "Express": {"error": "No token provided"},
    "Express 404": {"error": "Cannot GET /api/v1/sessions/chat-1"},
    "Vercel": {"error": {"code": "NOT_FOUND", "message": "The page could not be found"}},
    "Netlify": {"error": "Site not found"},
    "Hasura": {"error": "x", "path": "$", "code": "access-denied"},
    "Spring WebFlux": {"path": "/api", "status": 401, "error": "Unauthorized", "requestId": "x"},
    "GraphQL": {"errors": [{"message": "Unauthorized"}], "error": "Unauthorized"},
    "problem without error": {k: v for k, v in NO_HEADER.items() if k != "error"},
    "problem of another status": NO_HEADER | {"status": 418},
    "problem with more": NO_HEADER | {"instance": "/x"},
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("name", FOREIGN)
def test_error_of_something_else_is_not_the_apis(name: str, status: int) -> None:
    assert api_error(answer(status, FOREIGN[name])) is None


def test_error_counts_only_as_json() -> None:
    assert api_error(answer(404, {"error": "Not found"}, HTML)) is None
    assert api_error(answer(401, {"error": "Invalid API key"}, "text/plain")) is None


def test_missing_session_needs_the_apis_own_text_or_mark() -> None:
    for text in ("Not Found", "not found", "No such page", "Page not found"):
        assert api_error(answer(404, {"error": text})) is None
        assert api_error(answer(404, {"error": text}, x_ratelimit_limit="60")) is None


def test_challenge_for_a_password_is_not_the_apis() -> None:
    challenge = answer(401, {"error": "Log in"}, www_authenticate='Basic realm="staging"')
    assert api_error(challenge) is None
