"""``bff demo``: a gateway in front of a pretend upstream, whose chats change as time passes."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.routing import Route

from bff.config import reader, settings
from bff.demo import playground, playground_chat
from bff.demo.upstream import Document, Environment, PretendUpstream, iso, session
from bff.tokens.mint import mint

GATEWAY_PORT = 8787
UPSTREAM_PORT = 8030
"""The port of a self-hosted Trigger.dev."""
ENVIRONMENT_ID = "env_demo"
TOKEN_SECONDS = 3600
"""Lifetime of the demo's tokens."""
RUN_SECONDS = 20
"""Length of a chat's turn. Each turn is a run with an id of its own."""
CLOSING_SECONDS = 90
"""Time from the start of the demo until one of the chats closes."""
ANN_CHATS = ("chat-live", "chat-closing", "chat-done")
WORD_SECONDS = 0.1
"""Time between two words of an agent's answer: enough to press stop."""
IDENTITY_FIELD = "__bff"
PEEKS = "12/minute"
"""Few, because all messages of the demo pass the gateway, which then knows who is answering."""
VIEWERS = 19
"""Other browsers that the playground plays. Each has a token of its own for the live chat."""
ORIGINS = tuple(
    f"http://{host}:{port}" for port in (3000, 5173, 8000) for host in ("localhost", "127.0.0.1")
)
"""Where Next.js, Vite and `python3 -m http.server` serve a page. A browser takes a host's name and
its address for two origins."""


@dataclass(frozen=True)
class Demo:
    """The pretend upstream and the settings of a gateway in front of it."""

    upstream: PretendUpstream
    root_key: str
    signing_key: str
    """Signs the tokens. Only the gateway has this key, so upstream accepts none of them."""
    identity_key: str
    """Signs the identities. The agent has it too."""
    clock: Callable[[], float]
    """Unix seconds."""
    origins: tuple[str, ...]
    """Where pages may come from."""

    def settings(self, upstream_port: int, port: int, ops_port: int) -> settings.Settings:
        """Return the settings that an operator would write."""
        return reader.load(
            {
                "TRIGGER_SECRET_KEY": self.root_key,
                "TRIGGER_API_URL": f"http://127.0.0.1:{upstream_port}",
                "BFF_ENVIRONMENT_ID": ENVIRONMENT_ID,
                "BFF_SIGNING_KEYS": self.signing_key,
                "BFF_ALLOWED_ORIGINS": ",".join(self.origins),
                "BFF_PORT": str(port),
                "BFF_OPS_PORT": str(ops_port),
                "BFF_RATE_LIMIT": "60/minute",
                "BFF_EXPOSE_METADATA": "progress",
                "BFF_EXPOSE_TAGS": "public:*",
                "BFF_CHAT": "true",
                "BFF_IDENTITY_FIELD": IDENTITY_FIELD,
                "BFF_IDENTITY_KEY": self.identity_key,
                "BFF_EXPOSE_ANSWERING": "true",
                "BFF_ANSWERING_BUDGET": PEEKS,
                "BFF_DRAIN_SECONDS": "0.1",
            }
        )

    def token(self, *sessions: str, actor: str, age: int = 0, writes: tuple[str, ...] = ()) -> str:
        """Mint a token as the app's backend would for a browser *age* seconds ago."""
        scopes = [f"read:sessions:{id_}" for id_ in sessions]
        return mint(
            self.signing_key,
            environment_id=ENVIRONMENT_ID,
            scopes=[*scopes, *(f"write:sessions:{id_}" for id_ in writes)],
            issued=int(self.clock()) - age,
            ttl=TOKEN_SECONDS,
            actor=actor,
        )

    def routes(self, counts: Mapping[tuple[str | int, ...], float]) -> tuple[Route, ...]:
        """Return the routes of the playground, which shows the *counts* of the gateway."""
        return (
            *playground.routes(self.upstream, self._tokens, counts),
            *playground_chat.routes(self.upstream, self.identity_key, IDENTITY_FIELD),
        )

    def _tokens(self) -> dict[str, str]:
        ann = self.token(*ANN_CHATS, actor="ann", writes=ANN_CHATS)
        page = secrets.token_hex(4)  # two pages are not the same viewers
        viewers = [f"viewer-{number}" for number in range(1, VIEWERS + 1)]
        return {
            **{name: self.token("chat-live", actor=f"{name}-{page}") for name in viewers},
            "ann": ann,
            "bob": self.token("chat-live", "chat-of-bob", actor="bob", writes=("chat-of-bob",)),
            "wrong": ann[:-4] + "AAAA",
            "expired": self.token(*ANN_CHATS, actor="ann", age=TOKEN_SECONDS + 60),
        }

    def lines(self, base: str, ops: str, bff: str) -> str:
        """Return commands to paste, each with a comment that explains its answer.

        Args:
            base: the address of the gateway.
            ops: the address of its ops port.
            bff: the command that a shell runs as this program.
        """
        url = f"{base}/api/v1/sessions"
        ann = self.token(*ANN_CHATS, actor="ann", writes=ANN_CHATS)
        bob = self.token("chat-live", actor="bob")
        return f"""
A gateway answers at {base}. Its upstream is a pretend Trigger.dev API.
Open {base} in a browser for the playground, or paste these commands:

ANN='Authorization: Bearer {ann}'
BOB='Authorization: Bearer {bob}'

# One session: the policy removes triggerConfig and most of metadata and tags.
# Repeat it within two seconds: 'cache-status' says hit, the gateway sends upstream no request.
curl -siw '\\n' {url}/chat-live -H "$ANN"

# The token does not name this session: 403, whether or not the session exists.
curl -siw '\\n' {url}/chat-of-bob -H "$ANN"

# All chats that Ann's token names, in one request.
curl -sw '\\n' {url} -H "$ANN"

# The browser has the current copy and sends its ETag: 304 without a body.
ETAG=$(curl -sI {url}/chat-done -H "$ANN" | tr -d '\\r' | sed -n 's/^etag: //p')
curl -siw '\\n' {url}/chat-done -H "$ANN" -H "If-None-Match: $ETAG"

# A message to the agent, and its answer as a stream: no record has the token that upstream sends.
MESSAGE='{{"id": "m1", "role": "user", "parts": [{{"type": "text", "text": "hello"}}]}}'
CHAT={base}/realtime/v1/sessions/chat-live
PAYLOAD='{{"trigger": "submit-message", "chatId": "chat-live", "message": '$MESSAGE'}}'
curl -sw '\\n' $CHAT/in/append -H "$ANN" -d '{{"kind": "message", "payload": '"$PAYLOAD"'}}'
curl -sN $CHAT/out -H "$ANN" -H 'accept: text/event-stream' -H 'timeout-seconds: 5'

# A caller may send 60 requests a minute. The 61st is a 429, which says when to retry.
curl -s -o /dev/null -w '%{{http_code}}\\n' '{url}/chat-live?n=[1-61]' -H "$BOB" | sort | uniq -c

# Your own app: its server signs tokens with this key, and its pages send them to this gateway.
GATEWAY_SIGNING_KEY={self.signing_key}
GATEWAY_URL={base}
# Pages may come from {", ".join(self.origins)};
# {bff} demo --origin http://localhost:8080 allows another origin.
# The sessions are {", ".join(self._names())}; tokens with write:sessions:<id> may chat.
# Start from docs/FRONTEND.md, or from an app in docs/examples.

# Operators see the gateway on one screen:
{bff} status --ops {ops}

Press Ctrl-C to end the demo.
"""

    def upstream_lines(self, address: str, bff: str) -> str:
        """Return the commands that start a gateway in front of the pretend upstream."""
        return f"""
A pretend Trigger.dev API answers at {address}. Its chats are {", ".join(self._names())}.
Paste these commands in another shell to put a gateway of your own in front of it:

export TRIGGER_API_URL={address}
export TRIGGER_SECRET_KEY={self.root_key}
export BFF_SIGNING_KEYS={self.signing_key}
export BFF_ALLOWED_ORIGINS={",".join(self.origins)}
{bff} check --probe
{bff} serve

In a third shell, with the same four exports:

curl -i http://127.0.0.1:8787/api/v1/sessions/chat-live \\
  -H "Authorization: Bearer $({bff} token --session chat-live)"

Press Ctrl-C to end the pretend API.
"""

    def _names(self) -> list[str]:
        return [one["externalId"] for one in self.upstream.environments[0].sessions.values()]


def make(clock: Callable[[], float], *origins: str) -> Demo:
    """Make a demo with four chats: a live one, one that closes soon, a closed one, one of Bob.

    Pages of *origins* may ask it, beside those of `ORIGINS`.
    """
    started = clock()
    root_key = f"tr_dev_{secrets.token_hex(16)}"
    environment = Environment(ENVIRONMENT_ID, root_key)
    dates = {"createdAt": iso(started), "updatedAt": iso(started)}
    environment.add(session(1, "chat-live", **dates))
    environment.add(session(2, "chat-closing", **dates))
    environment.add(
        session(3, "chat-done", **dates, closedAt=iso(started), closedReason="the user left")
    )
    environment.add(session(4, "chat-of-bob", **dates))

    def live(document: Document, now: float) -> None:
        if document["closedAt"] is not None:
            return
        seconds = now - started
        closed = document["externalId"] == "chat-closing" and seconds >= CLOSING_SECONDS
        seconds = min(seconds, CLOSING_SECONDS) if closed else seconds
        turn = int(seconds // RUN_SECONDS)
        document["currentRunId"] = f"run_demo{turn:022d}"
        document["metadata"]["progress"] = round(seconds % RUN_SECONDS / RUN_SECONDS, 1)
        document["updatedAt"] = iso(started + turn * RUN_SECONDS)
        if closed:
            document["closedAt"] = document["updatedAt"] = iso(started + CLOSING_SECONDS)
            document["closedReason"] = "the agent said goodbye"

    upstream = PretendUpstream(environment, clock=clock, live=live)
    upstream.chats.pace = WORD_SECONDS
    upstream.chats.answer = _answer
    keys = secrets.token_hex(32), secrets.token_hex(32)
    return Demo(upstream, root_key, *keys, clock, (*ORIGINS, *origins))


def _answer(said: str) -> str:
    return (
        f'You said: "{said}". I am a pretend agent and answer one word at a time, so that you can '
        "press stop before I have written everything that I know about gateways."
    )
