"""Incidents 51 and 71: work before a limit, and a claim that counted as a caller."""

import base64
import contextlib
import json
import time
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from support.cost import calls_of
from support.hostile import ask
from support.issuers import KeyPair, b64
from support.kinds import Kind
from support.world import ENVIRONMENT_ID, FRIENDLY, OWN_KEY, ROOT_KEY, World, claims, read, sign

from bff.demo.upstream import session
from bff.errors import Refused, UpstreamInvalid
from bff.gateway.admission import Admission
from bff.gateway.answers import Answers
from bff.gateway.lists import Lists
from bff.gateway.lookup import Lookup
from bff.sessions import ids
from bff.sessions.document import parse_document
from bff.tokens.caller import Caller, Claimant
from bff.tokens.issuers import Source
from bff.tokens.jwks import KeySet, read_jwks
from bff.tokens.verify import Issuer, Verifier
from bff.upstream.connection import Answer as UpstreamAnswer
from bff.upstream.identity import api_error

NOW = 1_800_000_000.0
PAIR = KeyPair("EdDSA", "one")
MEGABYTE = 1024 * 1024
REFERENCE = b"[" + b",".join([b"{}"] * (MEGABYTE // 3)) + b"]"
"""A megabyte that the parser in C alone reads for a tenth of a second."""
CALLS = 400
"""Python calls, also of functions in C, that one hostile text may cost. A hook for each object
would cost thousands."""


def fillings(size: int) -> dict[str, str]:
    """Return members of an object, of about *size* bytes, that parsers find hard."""

    def times(text: str) -> str:
        return "[" + ",".join([text] * (size // (len(text) + 1))) + "]"

    return {
        "empty objects": '"x":' + times("{}"),
        "small objects": '"x":' + times('{"a":1}'),
        "empty lists": '"x":' + times("[]"),
        "deep lists": '"x":' + "[" * (size // 2) + "]" * (size // 2),
        "deep objects": '"x":' + '{"a":' * (size // 6) + "1" + "}" * (size // 6),
        "many keys": ",".join(f'"{n:x}":1' for n in range(size // 9)),
        "one key": ",".join(['"a":1'] * (size // 6)),
        "long string": f'"x":"{"a" * size}"',
        "long key": f'"{"a" * size}":1',
        "escapes": '"x":"' + "\\u0041" * (size // 6) + '"',
        "numbers": '"x":' + times("1"),
        "floats": '"x":' + times("1e308"),
        "huge numbers": '"x":' + times("9" * 4000),
        "one huge number": '"x":' + "9" * size,
        "spaces": " " * size + '"x":1',
        "scopes": '"scopes":' + times('"read:sessions:c"'),
        "NaN": '"x":' + times("NaN"),
        "unfinished": '"x":' + "[" * size,
    }


ISSUERS = {
    "Trigger.dev": claims(NOW, *read("chat-1")),
    "a source": {"iss": "https://idp.example.com", "aud": "chat", "sub": "ann", "exp": NOW + 900},
    "nobody": {"iss": "https://evil.example.com", "exp": NOW + 900},
}
HEADERS = {
    "HS256": {"alg": "HS256"},
    "EdDSA": {"alg": "EdDSA", "kid": "one"},
    "unknown key": {"alg": "EdDSA", "kid": "x" * 500},
    "none": {"alg": "none"},
    "invented": {"alg": "XX512", "kid": ["x"]},
}
SIGNATURES = (b"A" * 43, b"A" * 86, b"A" * 4000)


def invented(size: int) -> Iterator[tuple[str, bytes]]:
    """Make tokens of about *size* bytes that nobody signed, of every kind and filling."""
    for filling, members in fillings(size * 3 // 4).items():
        for issuer, of_issuer in ISSUERS.items():
            payload = f"{json.dumps(of_issuer)[:-1]},{members}}}".encode()
            for name, header in HEADERS.items():
                text = f"{b64(json.dumps(header).encode())}.{b64(payload)}.".encode()
                for signature in SIGNATURES:
                    yield f"{filling}, {issuer}, {name}, {len(signature)}", text + signature
        head = b64(("{" + members + "}").encode()).encode()
        yield f"{filling} in the header", head + b".e30." + SIGNATURES[0]
    for name, token in {
        "dots": b"." * size,
        "no base64": b"!" * size + b".e30.AAAA",
        "pairs": b"a." * (size // 2),
        "letters": b"x" * size,
        "padding": b"e30.e30." + b"=" * size,
        "signature": b"e30.e30." + b"A" * size,
        "bytes": b"\xff" * size,
    }.items():
        yield name, token


@pytest.fixture(scope="module", params=["local", "upstream", "source", "all"])
def verifier(request: pytest.FixtureRequest) -> Verifier:
    kind = request.param
    jwks = json.dumps({"keys": [PAIR.jwk()]})
    source = Source(
        name="idp",
        environment="default",
        issuer="https://idp.example.com",
        audiences=("chat",),
        algorithms=("EdDSA",),
        keys=KeySet(read_jwks(jwks, ("EdDSA",))),
        scopes_path=("scopes",),
        scopes_are_text=False,
        required={},
    )
    issuer = Issuer("default", ENVIRONMENT_ID, (OWN_KEY,), upstream=kind in ("upstream", "all"))
    return Verifier([issuer], ids.grant, sources=(source,) if kind in ("source", "all") else ())


def fastest(work: Callable[[], object], *, times: int = 5) -> float:
    """Return the least seconds that *work* took: what else the machine does only adds."""
    least = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least


def refuse(verifier: Verifier, token: bytes) -> None:
    try:
        holder = verifier.verify(token, NOW)
    except Refused as refused:
        assert refused.refusal.code == "token_invalid"
    else:
        assert isinstance(holder, Claimant)


@pytest.mark.parametrize("size", [1000, 8000, 15_000, 30_000])
def test_51_no_filling_of_a_token_costs_many_calls(verifier: Verifier, size: int) -> None:
    worst = max(
        (calls_of(lambda token=token: refuse(verifier, token)), name)
        for name, token in invented(size)
    )
    assert worst[0] < CALLS, worst


@pytest.mark.parametrize("size", [1000, 15_000, 30_000])
def test_51_no_filling_of_a_token_costs_much_time(verifier: Verifier, size: int) -> None:
    """No token costs more than 30 times the decoding of the longest one and one signature."""
    text, signature = b"A" * 30_000, b64(PAIR.private.sign(b"x")).encode()
    key = PAIR.private.public_key()
    decode = fastest(lambda: base64.urlsafe_b64decode(text))
    verify = fastest(lambda: key.verify(base64.urlsafe_b64decode(signature + b"=="), b"x"))

    for name, token in invented(size):
        bound = 30 * (decode + verify)
        assert fastest(partial(refuse, verifier, token), times=3) < bound or (
            fastest(partial(refuse, verifier, token), times=20) < bound
        ), name


async def test_51_flood_beyond_the_limit_is_not_read(of_kind: World, kind: Kind) -> None:
    good = kind.token(of_kind, *read("chat-1"))
    assert (await ask(of_kind, "chat-1", good)).status == 200
    bad = kind.token(of_kind, *read("chat-1"), forged=True, pad=[{}] * 50).rpartition(".")[0]
    verifier, read_tokens = of_kind.service.gateway.config.verifier, []
    original = verifier._check

    def counted(token: bytes, wall: float) -> Any:
        read_tokens.append(token)
        return original(token, wall)

    verifier._check = counted
    statuses = [
        (await ask(of_kind, id_, f"{bad}.{number:086}")).status
        for number in range(100)
        for id_ in (("chat-1", "made-up", "")[number % 3],)
    ]

    assert statuses[:50].count(429) == 0
    assert statuses[60:] == [429] * 40
    assert len(set(read_tokens)) == 60, "some of them again, after their wait for upstream"
    assert (await ask(of_kind, "chat-1", good)).status == 200, "a known token costs no look"
    assert (await ask(of_kind, "chat-1", good, peer="192.0.2.9")).status == 200
    of_kind.clock.advance(60)
    new = kind.token(of_kind, *read("chat-1"), jti="new")
    assert (await ask(of_kind, "chat-1", new)).status == 200


@pytest.mark.parametrize("filling", fillings(1))
def test_51_no_filling_of_a_document_holds_the_loop(filling: str) -> None:
    members = fillings(MEGABYTE - 1000)[filling]
    body = f"{json.dumps(session(1, 'chat-1'))[:-1]},{members}}}".encode()

    def parse() -> None:
        with contextlib.suppress(UpstreamInvalid):
            parse_document(body, requested_id="chat-1")

    bound = fastest(lambda: json.loads(REFERENCE), times=3) / 2
    assert calls_of(parse) < 20_000
    assert fastest(parse, times=3) < bound or fastest(parse, times=10) < bound


@pytest.mark.parametrize("filling", fillings(1))
def test_51_no_filling_of_other_answers_holds_the_loop(filling: str) -> None:
    """An error of upstream, and a key set, are JSON from outside too."""
    body = ("{" + fillings(MEGABYTE)[filling] + "}").encode()

    def parse() -> None:
        assert api_error(UpstreamAnswer(404, {}, body)) is None
        with pytest.raises(ValueError, match="JWK set"):
            read_jwks(body, ("RS256",))

    bound = fastest(lambda: json.loads(REFERENCE), times=3) / 2
    assert fastest(parse, times=3) < bound or fastest(parse, times=10) < bound


def test_51_document_with_much_text_is_accepted() -> None:
    """Commas and brackets in messages are not structure."""
    prose = "Well, [this] is {a} text, " * 20_000
    document = session(1, "chat-1", metadata={"text": prose, "more": [prose[:1000]] * 100})

    assert parse_document(json.dumps(document).encode(), requested_id="chat-1") == document


# -- a claim is not a caller


OPAQUE: dict[str, str | None] = {"BFF_SIGNING_KEYS": None, "BFF_VERIFY": "upstream"}
QUERIES = [
    "",
    "?filter[createdAt][from]=2000-01-01T00:00:00.000Z&filter[createdAt][to]=2000-01-02T00:00:00.000Z",
    "?page[size]=1",
    "?filter[type]=nothing",
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_68_invented_token_gets_no_list(world: World, query: str, method: str) -> None:
    await world.start(**OPAQUE)
    token = sign(claims(world.clock.wall, *read("chat-1", "chat-2")), OWN_KEY)
    headers = {"authorization": f"Bearer {token}", "if-none-match": "*"}

    statuses = [
        (
            await world.browser.request(method, "/api/v1/sessions" + query, headers=headers)
        ).status_code
        for _ in range(65)
    ]

    assert statuses == [401] * 60 + [429] * 5, "each is counted"


@pytest.mark.parametrize(
    ("scopes", "id_"),
    [
        (read("chat-1"), "chat-2"),
        (read("chat-1"), FRIENDLY["chat-2"]),
        ([], "chat-1"),
        (read("chat-1:channels:x"), "chat-1"),
        (read("a%2Fb"), "a%252Fb"),
        (read("chat-1"), "%00"),
        (["read:sessions"], "a:channels:b"),
    ],
    ids=str,
)
async def test_68_each_request_of_an_invented_token_is_counted(
    world: World, scopes: list[str], id_: str
) -> None:
    await world.start(**OPAQUE, BFF_BAD_TOKEN_LIMIT="5/minute")
    token = sign(claims(world.clock.wall, *scopes), OWN_KEY)

    statuses = [(await ask(world, id_, token)).status for _ in range(7)]

    assert set(statuses[:5]) <= {400, 401, 403}
    assert statuses[5:] == [429, 429]
    assert world.calls <= 1


async def test_68_token_that_names_nothing_is_refused_unverified(world: World) -> None:
    await world.start(**OPAQUE)
    token = sign(claims(world.clock.wall, "read:runs"), ROOT_KEY)

    response = await world.browser.get(
        "/api/v1/sessions", headers={"authorization": f"Bearer {token}"}
    )

    assert response.status_code == 403
    assert world.calls == 0


async def test_68_trouble_does_not_make_a_caller(world: World) -> None:
    """While upstream fails, nothing is verified, so nothing is shown."""
    await world.start(**OPAQUE)
    await world.get("chat-1", token=sign(claims(world.clock.wall, *read("chat-1")), ROOT_KEY))
    world.answer(500, {"error": "down"})
    token = sign(claims(world.clock.wall, *read("chat-1"), jti="2"), OWN_KEY)

    with patch.object(world.service.gateway, "serve") as serve:
        for query in QUERIES:
            response = await world.browser.get(
                "/api/v1/sessions" + query, headers={"authorization": f"Bearer {token}"}
            )
            assert response.status_code == 502

    serve.assert_not_called()  # it decides for a verified caller


def test_68_code_that_shows_or_counts_takes_a_caller() -> None:
    """The type checker then refuses a claimant; a claimant is not a caller."""
    assert not issubclass(Claimant, Caller)
    for method in (
        Answers.session,
        Answers.list_page,
        Admission.charge_caller,
        Admission.authorize,
        Lookup.find,
        Lists.decide,
    ):
        hints = typing.get_type_hints(method)
        assert hints["caller"] is Caller, method
