"""The official chat transport with the AI SDK's chat, unmodified, on Node.

Each conversation is held twice, through `bff serve` and straight with the pretend upstream, and the
messages that the page shows must be the same.
"""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
from support.clients import SDK, Node
from support.world import OFF, ROOT_KEY, Gateway, claims, running_upstream, sign

from bff.demo.chat_upstream import Channel
from bff.demo.upstream import session

SCOPES = ("read:sessions:chat-1", "write:sessions:chat-1")
CHAT = OFF | {
    "BFF_CHAT": "true",
    "BFF_STREAM_OPEN_LIMIT": "off",
    "BFF_MESSAGE_LIMIT": "off",
    "BFF_IDENTITY_FIELD": "__bff",
    "BFF_IDENTITY_KEY": "agent-key-sentinel-0123456789abcdef",
}

TESTED = ("trigger-sdk-oldest", "@trigger.dev/sdk", "ai", "ai-newest")
"""Packages that the conversations use; two names stand for other versions of a package."""


class Side:
    """One way to chat: the address and the tokens that a page has."""

    def __init__(
        self, upstream: running_upstream, url: str, key: str | None, *packages: str
    ) -> None:
        self.upstream, self.url, self._key = upstream, url, key
        self.node = Node("chat.mjs", *packages)

    def token(self, seconds: float = 900.0) -> str:
        now = time.time()
        actor = {"act": {"sub": "ann"}, "exp": int(now + seconds)}
        payload = claims(now, *SCOPES, **actor)
        return sign(payload) if self._key is None else sign(payload, self._key)

    def open(self, *tokens: str, **options: Any) -> None:
        """Start a page; the chat of a new one has no history upstream."""
        opened = self.call("open", tokens=list(tokens) or [self.token()], **options)
        assert opened == {"value": None}

    def call(self, call: str, **told: Any) -> dict[str, Any]:
        return self.node.call(call, self.url, "", **told)

    @property
    def channel(self) -> Channel:
        return self.upstream.app.chats.channel(self.upstream.app.environments[0], "chat-1")


@pytest.fixture(scope="module")
def sides() -> Iterator[list[Side]]:
    """Straight to the pretend upstream, and through the gateway."""
    with running_upstream() as upstream, Gateway(upstream.port, **CHAT) as gateway:
        url = f"http://127.0.0.1:{upstream.port}"
        sides = [Side(upstream, url, ROOT_KEY), Side(upstream, gateway.url, None)]
        yield sides
        for side in sides:
            side.node.__exit__()


@pytest.fixture
def both(sides: list[Side]) -> Callable[[Any], dict[str, Any]]:
    """Hold a conversation on both sides and return what the gateway's side reported."""
    return partial(hold, sides)


def hold(sides: list[Side], conversation: Callable[[Side], dict[str, Any]]) -> dict[str, Any]:
    straight, through = [_held(side, conversation) for side in sides]
    assert through["messages"] == straight["messages"]
    assert through["status"] == straight["status"]
    assert through["started"] == straight["started"]
    return through


def _held(side: Side, conversation: Callable[[Side], dict[str, Any]]) -> dict[str, Any]:
    chats, environment = side.upstream.app.chats, side.upstream.app.environments[0]
    chats.channels.clear()
    chats.pace, chats.ping, chats.legacy, chats.cut_after = 0.002, 5.0, False, 0
    chats.closed_status = 400
    environment.add(session(1, "chat-1"))
    answer = conversation(side)
    assert "value" in answer, answer
    report: dict[str, Any] = answer["value"]
    return report


def text_of(message: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in message["parts"])


@pytest.mark.parametrize("packages", [("trigger-sdk-oldest",), ("@trigger.dev/sdk", "ai-newest")])
def test_oldest_and_newest_packages_chat(sides: list[Side], packages: tuple[str, ...]) -> None:
    """The oldest transport, and the newest transport with the newest AI SDK."""

    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.cut_after = 5  # older transports lose the rest of the answer
        side.open()
        side.call("send", text="one")
        side.upstream.app.chats.cut_after = 0
        side.call("regenerate")
        asked = side.call("send", text="use the tool")["value"]["messages"][-1]
        (part,) = (one for one in asked["parts"] if one["type"] == "tool-weather")
        return side.call("approve", id=part["approval"]["id"])

    with ExitStack() as stack:
        others = [Side(side.upstream, side.url, side._key, *packages) for side in sides]
        for other in others:
            stack.enter_context(other.node)
        report = hold(others, conversation)

    assert text_of(report["messages"][-1]).startswith("approval-responded — answered")
    assert report["status"] == "ready"


def test_documentation_names_the_tested_packages() -> None:
    packages = json.loads((SDK / "package-lock.json").read_text())["packages"]
    versions = {name: packages[f"node_modules/{name}"]["version"] for name in TESTED}

    text = (SDK.parent.parent / "docs/FRONTEND.md").read_text()
    rows = re.findall(r"^\| `(.*?)` (\S+) to (\S+) \|", text, re.MULTILINE)

    assert rows == [
        ("@trigger.dev/sdk", versions["trigger-sdk-oldest"], versions["@trigger.dev/sdk"]),
        ("ai", versions["ai"], versions["ai-newest"]),
    ]


def test_wrong_base_url_starts_no_run(sides: list[Side]) -> None:
    """The transport starts a run, which is paid, when an answer is 404."""
    through = sides[1]
    token = through.token()
    options = {"tokens": [token], "session": {"publicAccessToken": token}}
    through.node.call("open", f"{through.url}/trigger", "", **options)
    report = through.call("send", text="hello")["value"]

    assert report["started"] == 0
    assert "The base URL is wrong" in report["error"]


def test_three_turns_show_the_same_messages(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.open(clientData={"plan": "free"})
        for text in ("one", "two"):
            side.call("send", text=text)
        return side.call("send", text="three")

    report = both(conversation)

    assert [text_of(message) for message in report["messages"]][::2] == ["one", "two", "three"]
    assert text_of(report["messages"][-1]) == "three — answered, üñí 😀 done."
    assert (report["minted"], report["started"]) == (1, 1), "one token lasts"


def test_token_of_a_turn_never_reaches_the_page(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.open(token := side.token())
        report = side.call("send", text="hello")
        kept = report["value"]["session"]["publicAccessToken"]
        assert (kept == token) is (side._key is None), "straight, it does"
        return report

    both(conversation)


def test_old_agents_turn_ends_without_its_token(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.legacy = True
        side.open(token := side.token())
        side.call("send", text="one")
        report = side.call("send", text="two")
        kept = report["value"]["session"]["publicAccessToken"]
        assert (kept == token) is (side._key is None)
        return report

    assert both(conversation)["status"] == "ready"


def test_stop_ends_the_answer_and_not_the_chat(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.pace = 0.3
        side.open()
        side.call("begin", text="a b c d e f g h")
        side.call("partial", length=2)
        stopped = side.call("stop")["value"]
        assert "done" not in text_of(stopped["messages"][-1])
        side.upstream.app.chats.pace = 0.002
        report = side.call("send", text="again")
        report["value"]["messages"] = report["value"]["messages"][2:]  # where it stopped is chance
        return report

    assert text_of(both(conversation)["messages"][-1]) == "again — answered, üñí 😀 done."


def test_regenerate_and_action_work(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.open()
        side.call("send", text="one")
        side.call("action", action={"type": "undo"})
        return side.call("regenerate")

    assert text_of(both(conversation)["messages"][-1]).startswith("regenerate-message — answered")


def test_reload_resumes_the_answer(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.pace = 0.05
        side.open()
        side.call("begin", text="a b c d e f g h i j k l m")
        before = side.call("partial", length=4)["value"]
        side.open(session=before["session"], messages=before["messages"][:1])
        return side.call("resume")

    assert text_of(both(conversation)["messages"][-1]).endswith("m — answered, üñí 😀 done.")


def test_tool_approval_continues_the_answer(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.open()
        asked = side.call("send", text="use the tool")["value"]["messages"][-1]
        (part,) = (one for one in asked["parts"] if one["type"] == "tool-weather")
        assert part["state"] == "approval-requested"
        return side.call("approve", id=part["approval"]["id"])

    (part,) = (
        one for one in both(conversation)["messages"][-1]["parts"] if one["type"] == "tool-weather"
    )
    assert (part["state"], part["output"]) == ("output-available", 21)


@pytest.mark.parametrize("status", [400, 409])
def test_closed_session_ends_the_chat(both: Callable[..., dict[str, Any]], status: int) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.closed_status = status
        closed = session(1, "chat-1", closedAt="2026-02-01T00:00:00.500Z", closedReason="spam")
        side.upstream.app.environments[0].add(closed)
        side.open()
        report = side.call("send", text="hello")
        if status == 409:
            assert report["value"]["session"]["closedReason"] == "spam"
        return report

    report = both(conversation)

    assert report["status"] == "error"
    assert f"message-send-failed {status}" in report["events"]
    assert ("session-closed" in report["events"]) is (status == 409)


def test_expired_token_in_mid_answer_is_replaced(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.pace = 0.25
        side.open(side.token(3), side.token())
        return side.call("send", text=" ".join("abcdefghijklmnopq"))

    report = both(conversation)

    assert text_of(report["messages"][-1]).endswith("q — answered, üñí 😀 done.")
    assert report["minted"] == 2, "the gateway's stream ended with its token"


def test_stream_that_upstream_cuts_loses_nothing(both: Callable[..., dict[str, Any]]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.cut_after = 6
        side.open()
        return side.call("send", text="a b c d e f")

    assert text_of(both(conversation)["messages"][-1]) == "a b c d e f — answered, üñí 😀 done."


class CuttingRelay:
    """Passes connections on, and resets the browser's side of the first stream within an event."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                browser, _ = self._server.accept()
                threading.Thread(target=self._relay, args=(browser,), daemon=True).start()

    def _relay(self, browser: socket.socket) -> None:
        with browser, socket.create_connection(("127.0.0.1", self._port)) as server:
            asking = threading.Thread(target=self._ask, args=(browser, server), daemon=True)
            asking.start()
            passed = b""
            with suppress(OSError):
                while part := server.recv(65536):
                    passed += part
                    if not self.cut and passed.count(b"text-delta") >= 3:
                        self.cut += 1
                        browser.sendall(part[: part.rfind(b"text-delta") + 30])
                        reset = struct.pack("ii", 1, 0)
                        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                        break
                    browser.sendall(part)
            with suppress(OSError):
                browser.shutdown(socket.SHUT_RD)
            asking.join()

    def _ask(self, browser: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while part := browser.recv(65536):
                server.sendall(part)
            server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def test_socket_that_is_cut_in_mid_word_loses_nothing(
    sides: list[Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.upstream.app.chats.pace = 0.02
        side.open()
        return side.call("send", text="a b c d e f")

    relays = [CuttingRelay(int(side.url.rpartition(":")[2])) for side in sides]
    for side, relay in zip(sides, relays, strict=True):
        monkeypatch.setattr(side, "url", relay.url)
    report = hold(sides, conversation)

    assert text_of(report["messages"][-1]) == "a b c d e f — answered, üñí 😀 done."
    assert [relay.cut for relay in relays] == [1, 1]
    for relay in relays:
        relay.close()


def test_unreadable_event_ends_the_turn_for_good(sides: list[Side]) -> None:
    def conversation(side: Side) -> dict[str, Any]:
        side.channel.write(timestamp=1, headers=[], body='{"data":{"type":"start"}}')
        side.channel.write(timestamp=1, headers=[], body="not JSON")
        side.open()
        return side.call("send", text="hello")

    report = _held(sides[1], conversation)

    assert report["status"] == "error"
    assert "stream-error 410" in report["events"]
