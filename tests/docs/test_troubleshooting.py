"""Each command of docs/TROUBLESHOOTING.md shows its symptom on a gateway that has it."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.engines import free_port
from support.world import KEPT, Gateway, claims, environ, read, running_upstream, sign

from bff.ops import check

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/TROUBLESHOOTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = {
    name: command
    for name, text in SECTIONS.items()
    for command in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
}
SYMPTOMS = {
    "CORS error": "this origin is not allowed",
    "401 every time": "PROBLEM  signature",
    "403 for a new chat": "name: chat-1",
    "404 for a session": '"code": "not_found"',
    "Empty list": "name: none\n403",
    "Requests wait in the browser": "HTTP/1.1\n",
    "410 for a chat": '"code": "token_missing"',
    "429 for everybody": "BFF_TRUSTED_PROXIES",
    "Stale state": "cache-status: bff;",
    "A stream stops after a minute": "ended after 1.",
    "502 for every session": "PROBLEM  ",
    "503 over_budget": " loads left now",
    "503 not_ready": "health ",
    "It does not start": "The settings can be used.",
    "A proxy changes answers": "OK       isolation",
    "The store is down": "PROBLEM",
}
"""A part of what each command prints."""
CHATS = {"404 for a session": "chat-of-nobody"}
"""Chats that a symptom is about, in place of chat-1."""
CAUSES = {
    "502 for every session": {"TRIGGER_API_URL": "http://127.0.0.1:1"},
    "The store is down": {"BFF_STORE_URL": "redis://127.0.0.1:1/0"},
}
"""Settings that cause a symptom."""


def test_each_symptom_has_a_command() -> None:
    assert list(COMMANDS) == list(SECTIONS) == list(SYMPTOMS)


def test_page_names_the_checks_of_a_token() -> None:
    source = (ROOT / "bff/tokens/explain.py").read_text()
    for name in ("signature", "environment", "expiry", "not before"):
        assert f'"{name}"' in source
        assert f"`{name}`" in SECTIONS["401 every time"]


def test_page_quotes_the_texts_of_unknown_paths() -> None:
    source = (ROOT / "bff/gateway/routes.py").read_text()
    for name, text in (
        ("404 for a session", "The gateway has no such route"),
        ("410 for a chat", "The base URL is wrong"),
    ):
        assert f'"{text}' in source
        assert f"`{text}`" in SECTIONS[name]


def test_each_page_that_a_check_names_has_its_section() -> None:
    for page in check.Page:
        path, _, anchor = page.partition("#")
        text = (ROOT / path).read_text()
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in heads}


def test_commands_ask_only_routes_that_proxies_pass() -> None:
    """Beyond these a shipped proxy answers itself, and a command would show a wrong cause."""
    paths = re.findall(r"\$GATEWAY(/[^\s\"]*)", "\n".join(COMMANDS.values()))
    routed = ("/api/v1/sessions", "/realtime/v1/sessions/")
    own = {path for path in paths if not path.startswith(routed)}

    assert own == {"/healthz"}, "any answer shows the version of HTTP"


def test_commands_show_their_symptoms(upstream: running_upstream) -> None:
    changes: dict[str, str | None] = {
        "BFF_CHAT": "true",
        "BFF_ALLOWED_ORIGINS": "https://other.example.com",
        "BFF_OPS_PORT": str(free_port()),
    }
    with Gateway(upstream.port, **changes) as gateway:
        good = gateway.token(*read("chat-1"))
        foreign = sign(claims(time.time(), *read("chat-1")), "a key that the gateway does not have")
        tokens = {
            "401 every time": foreign,
            "404 for a session": gateway.token(*read("chat-of-nobody")),
            "Empty list": gateway.token(),
        }

        def shown(name: str) -> str:
            settings = environ(**changes | {"TRIGGER_API_URL": f"http://127.0.0.1:{upstream.port}"})
            settings |= CAUSES.get(name, {})
            token, chat = tokens.get(name, good), CHATS.get(name, "chat-1")
            text = re.sub(r"^bff ", f"{sys.executable} -m bff ", COMMANDS[name], flags=re.MULTILINE)
            done = subprocess.run(
                ["bash", "-c", text.replace("Timeout-Seconds: 90", "Timeout-Seconds: 1")],
                env=KEPT | settings | {"GATEWAY": gateway.url, "CHAT": chat, "TOKEN": token},
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout + done.stderr

        with ThreadPoolExecutor(3) as pool:
            printed = dict(zip(COMMANDS, pool.map(shown, COMMANDS), strict=True))
    assert {name for name in COMMANDS if SYMPTOMS[name] not in printed[name]} == set(), printed
