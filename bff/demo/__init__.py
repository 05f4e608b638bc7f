"""``bff demo``: the gateway in front of a pretend upstream, whose chats go on while one watches."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.routing import Route

from bff.config import reader, settings
from bff.demo import playground
from bff.demo.upstream import Document, Environment, PretendUpstream, iso, session
from bff.tokens.mint import mint

ENVIRONMENT_ID = "env_demo"
TOKEN_SECONDS = 3600
RUN_SECONDS = 20
"""A chat's turn; each turn is a run of its own."""
CLOSING_SECONDS = 90
"""From the start of the demo until one of the chats is closed."""
ANNS_CHATS = ("chat-live", "chat-closing", "chat-done")


@dataclass(frozen=True)
class Demo:
    """The pretend upstream and the settings of a gateway in front of it."""

    upstream: PretendUpstream
    root_key: str
    clock: Callable[[], float]
    """Unix seconds."""

    def settings(self, upstream_port: int, port: int, ops_port: int) -> settings.Settings:
        """Settings as an operator would write them."""
        return reader.load(
            {
                "TRIGGER_SECRET_KEY": self.root_key,
                "TRIGGER_API_URL": f"http://127.0.0.1:{upstream_port}",
                "BFF_ENVIRONMENT_ID": ENVIRONMENT_ID,
                "BFF_ALLOWED_ORIGINS": "http://localhost:3000",
                "BFF_PORT": str(port),
                "BFF_OPS_PORT": str(ops_port),
                "BFF_RATE_LIMIT": "60/minute",
                "BFF_EXPOSE_METADATA": "progress",
                "BFF_EXPOSE_TAGS": "public:*",
            }
        )

    def token(self, *sessions: str, actor: str, age: int = 0) -> str:
        """Mint a token as the app's backend would for a browser, *age* seconds ago."""
        return mint(
            self.root_key,
            environment_id=ENVIRONMENT_ID,
            scopes=[f"read:sessions:{id_}" for id_ in sessions],
            issued=int(self.clock()) - age,
            ttl=TOKEN_SECONDS,
            actor=actor,
        )

    def routes(self) -> tuple[Route, ...]:
        """Routes of the playground."""
        return playground.routes(self.upstream, self._tokens)

    def _tokens(self) -> dict[str, str]:
        ann = self.token(*ANNS_CHATS, actor="ann")
        return {
            "ann": ann,
            "wrong": ann[:-4] + "AAAA",
            "expired": self.token(*ANNS_CHATS, actor="ann", age=TOKEN_SECONDS + 60),
        }

    def lines(self, base: str) -> str:
        """Lines to paste, each with what it shows."""
        url = f"{base}/api/v1/sessions"
        ann = self.token(*ANNS_CHATS, actor="ann")
        bob = self.token("chat-live", actor="bob")
        return f"""
The gateway answers at {base}, a pretend Trigger.dev API stands behind it.
Open {base} in a browser to see it at work, or paste:

ANN='Authorization: Bearer {ann}'
BOB='Authorization: Bearer {bob}'

# What the browser gets: no triggerConfig, of metadata and tags only what the policy names.
# Again within two seconds, 'cache-status' says hit: upstream was not asked.
curl -siw '\\n' {url}/chat-live -H "$ANN"

# A session that the token does not name: 403, whether or not it exists.
curl -siw '\\n' {url}/chat-of-bob -H "$ANN"

# All of her chats in one request.
curl -sw '\\n' {url} -H "$ANN"

# A browser that holds the current copy: 304, no body.
ETAG=$(curl -sI {url}/chat-done -H "$ANN" | tr -d '\\r' | sed -n 's/^etag: //p')
curl -siw '\\n' {url}/chat-done -H "$ANN" -H "If-None-Match: $ETAG"

# 60 a minute are allowed to each caller here, so the 61st is a 429 that says when to return.
curl -s -o /dev/null -w '%{{http_code}}\\n' '{url}/chat-live?n=[1-61]' -H "$BOB" | sort | uniq -c

Ctrl-C ends the demo.
"""


def make(clock: Callable[[], float]) -> Demo:
    """Set the stage: a chat that runs, one that closes soon, one that is done, one of Bob's."""
    started = clock()
    root_key = f"tr_dev_{secrets.token_hex(12)}"
    environment = Environment(ENVIRONMENT_ID, root_key)
    begun = {"createdAt": iso(started), "updatedAt": iso(started)}
    environment.add(session(1, "chat-live", **begun))
    environment.add(session(2, "chat-closing", **begun))
    environment.add(
        session(3, "chat-done", **begun, closedAt=iso(started), closedReason="the user left")
    )

    environment.add(session(4, "chat-of-bob", **begun))

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

    return Demo(PretendUpstream(environment, clock=clock, live=live), root_key, clock)
