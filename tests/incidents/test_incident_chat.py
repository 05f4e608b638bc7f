"""Incidents of chats: whose stream it is, when it ends, and what of it a browser sees."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.chats import (
    BOTH,
    CHAT,
    ROUTE,
    Live,
    append,
    batch,
    code,
    inputs,
    message,
    out,
    sent,
    streams,
)
from support.workers import by_worker, running_workers
from support.world import (
    FRIENDLY,
    NEW_KEY,
    OWN_KEY,
    PATIENCE,
    Gateway,
    World,
    claims,
    http,
    running_upstream,
    sign,
    until,
)

from bff import metrics
from bff.config.builder import MAX_DRAIN_SECONDS
from bff.response import StreamResponse


@pytest.fixture
async def chats(world: World) -> World:
    await world.start(**CHAT, BFF_MESSAGE_LIMIT="off", BFF_STREAM_OPEN_LIMIT="off")
    return world


@pytest.mark.parametrize("id_", ["chat-2", "chat-closed", "never", FRIENDLY["chat-2"]])
async def test_55_only_named_chats_are_carried(chats: World, id_: str) -> None:
    token = chats.token(*BOTH)

    assert code(await append(chats, id_=id_, token=token)) == (403, "unauthorized")
    assert code(await out(chats, id_=id_, token=token)) == (403, "unauthorized")
    assert chats.calls == 0


ENDS: dict[str, tuple[str, dict[str, Any], dict[str, str | None]]] = {
    "jti": ("revoked", {"jti": "j1"}, {}),
    "actor": ("revoked", {"subject": "ann"}, {}),
    "session": ("revoked", {"session": "chat-1"}, {}),
    "session by its other id": ("revoked", {"session": FRIENDLY["chat-1"]}, {}),
    "removed key": ("key", {}, {"BFF_SIGNING_KEYS": NEW_KEY}),
    "kill switch": ("policy", {}, {"BFF_CHAT": "false"}),
    "stricter policy": ("policy", {}, {"BFF_EXPOSE_FIELDS": "id,externalId,type,taskIdentifier,"
                        "createdAt,updatedAt,closedAt,expiresAt"}),
    "another environment": ("policy", {}, {"TRIGGER_API_URL": "http://127.0.0.1:2"}),
}  # fmt: skip


@pytest.mark.parametrize("why", ENDS)
async def test_56_stream_ends_when_what_allowed_it_is_gone(chats: World, why: str) -> None:
    reason, revocation, changes = ENDS[why]
    live = Live(chats)
    token = chats.token(*BOTH, jti="j1", act={"sub": "ann"})
    assert isinstance(await live.open(token), StreamResponse)
    await live.send(batch({"type": "start"}))
    assert not await live.ended()

    chats.clock.advance(5)
    if revocation:
        await chats.ops.post("/revocations", json=revocation)
    else:
        chats.reload(**changes)

    assert await live.ended()
    assert live.closed, "upstream's side too"
    assert b"[DONE]" not in live.received, "so that the page comes back"
    assert chats.telemetry.counts[metrics.STREAM_ENDS, reason] == 1


async def test_56_stream_ends_with_its_token(chats: World) -> None:
    live = Live(chats)
    await live.open(chats.token(*BOTH, exp=int(chats.clock.wall) + 10))

    chats.clock.advance(9)
    assert not await live.ended()
    chats.clock.advance(1)
    assert await live.ended()
    assert chats.telemetry.counts[metrics.STREAM_ENDS, "expired"] == 1


async def test_56_unrelated_changes_end_no_stream(chats: World) -> None:
    await chats.get("chat-1")
    live = Live(chats)
    await live.open(chats.token(*BOTH, jti="j1"))

    chats.clock.advance(5)
    await chats.ops.post("/revocations", json={"session": "chat-2"})
    await chats.ops.post("/revocations", json={"jti": "other"})
    chats.reload(BFF_SIGNING_KEYS=f"{OWN_KEY},{NEW_KEY}", BFF_RATE_LIMIT="5/minute")

    assert not await live.ended()
    live.reading.cancel()


@pytest.mark.parametrize("cursor", ["7", "0", "9999999999999999"])
async def test_57_cursor_goes_below_the_sessions_own_path(chats: World, cursor: str) -> None:
    streams(chats)
    await out(chats, last_event_id=cursor)
    refused = await out(chats, last_event_id="../chat-2/out?x=")

    (seen,) = chats.upstream.seen
    assert (seen.raw_path, seen.header("last-event-id")) == (f"{ROUTE}chat-1/out", cursor)
    assert code(refused) == (400, "bad_request")


async def test_94_foreign_chat_id_is_refused(chats: World) -> None:
    await chats.get("chat-1")

    for foreign in ("chat-2", FRIENDLY["chat-2"], "", "CHAT-1"):
        assert code(await append(chats, message(chatId=foreign))) == (400, "foreign_chat")
    assert sent(chats) == []
    assert inputs(chats) == []


SENTINEL = "eyJhbGciOiJIUzI1NiJ9.c2VudGluZWw.token-of-upstream"


async def test_95_token_of_a_finished_turn_never_passes(chats: World) -> None:
    legacy = {"type": "trigger:turn-complete", "publicAccessToken": SENTINEL}
    control = {
        "seq_num": 9, "body": SENTINEL, "token": SENTINEL,
        "headers": [["trigger-control", "turn-complete"], ["public-access-token", SENTINEL]],
    }  # fmt: skip
    end = json.dumps({"records": [control], "token": SENTINEL})
    stream = (
        batch(legacy, json.dumps(legacy), {"type": "text-delta", "delta": "said"})
        + f"event: batch\nid: {SENTINEL}\ndata: {end}\n\n".encode()
        + f"event: error\ndata: {SENTINEL}\n\nevent: x\ndata: {SENTINEL}\n\n".encode()
    )
    streams(chats, stream, x_trigger_jwt=SENTINEL)

    response = await out(chats)

    assert "said" in response.text
    assert "turn-complete" in response.text
    assert SENTINEL not in response.text + str(response.headers)


# -- on sockets; `make streams` opens more of them

OPENS = int(os.environ.get("OPENS", "300"))
"""Streams that are opened and cut one after the other."""
STREAMS = int(os.environ.get("STREAMS", "60"))
"""Streams that are open when a gateway stops."""


class Page:
    """A stream on a socket of its own."""

    def __init__(
        self, gateway: Gateway, token: str, seconds: int = 60, cursor: int | None = None
    ) -> None:
        resumed = "" if cursor is None else f"last-event-id: {cursor}\r\n"
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
        self.socket.sendall(
            f"GET {ROUTE}chat-1/out HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {token}\r\n"
            f"timeout-seconds: {seconds}\r\n{resumed}\r\n".encode()
        )
        self.received = b""
        while b"\r\n\r\n" not in self.received:
            self.received += self.read()

    def read(self) -> bytes:
        part = self.socket.recv(65536)
        if not part:
            raise EOFError
        return part

    def rest(self) -> bytes:
        while True:
            try:
                self.received += self.read()
            except EOFError:
                self.socket.close()
                return self.received

    @property
    def numbers(self) -> list[int]:
        """The numbers of the records that have come."""
        return [int(number) for number in re.findall(rb'"seq_num":(\d+)', self.received)]


DRAIN_SECONDS = 4
LIVE = CHAT | {
    "BFF_STREAM_OPEN_LIMIT": "off",
    "BFF_MAX_STREAMS_PER_CALLER": "1000",
    "BFF_MAX_STREAMS": "4000",
    "BFF_DRAIN_SECONDS": str(DRAIN_SECONDS),
}


@pytest.fixture(params=["true", "false"], ids=["fast path", "asgi"])
def live(request: pytest.FixtureRequest) -> Iterator[tuple[running_upstream, Gateway]]:
    with (
        running_upstream() as upstream,
        Gateway(upstream.port, **LIVE, BFF_FAST_PATH=request.param) as gateway,
    ):
        yield upstream, gateway


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def gauge(gateway: Gateway, name: str) -> float:
    text = http.get(gateway.ops_url + "/metrics").text
    assert f"\n{name.rstrip()}" in text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_58_streams_that_browsers_leave_leave_nothing(
    live: tuple[running_upstream, Gateway],
) -> None:
    upstream, gateway = live
    channel = upstream.app.chats.channel(upstream.app.environments[0], "chat-1")
    token = gateway.token(*BOTH)
    upstream.app.chats.ping = 600.0  # no event shows that the browser has left
    Page(gateway, token).socket.close()  # what the first stream makes for good
    until(lambda: gauge(gateway, "bff_streams ") == 0)
    before = descriptors(gateway)
    for number in range(OPENS):
        page = Page(gateway, token, seconds=600)
        if number % 2:  # the browser ends its side only
            page.socket.shutdown(socket.SHUT_WR)
        page.socket.close()

    until(lambda: gauge(gateway, "bff_streams ") == 0)
    until(lambda: not channel._readers, lambda: f"{len(channel._readers)} are open upstream")
    assert gauge(gateway, "bff_stream_ends_total") == OPENS + 1
    assert gauge(gateway, "bff_connections ") <= 1
    until(lambda: descriptors(gateway) <= before, lambda: f"{descriptors(gateway)} > {before}")


def test_59_ends_of_a_shutdown_are_spread_and_lose_nothing(
    live: tuple[running_upstream, Gateway],
) -> None:
    """An agent writes while one gateway stops; every page resumes at another gateway."""
    upstream, gateway = live
    channel = upstream.app.chats.channel(upstream.app.environments[0], "chat-1")
    token, done = gateway.token(*BOTH), threading.Event()

    def write() -> None:
        while not done.wait(0.02):
            channel.write(timestamp=1, headers=[], body='{"data":{"type":"text-delta"}}')

    with Gateway(upstream.port, **LIVE) as other:
        pages = [Page(gateway, token) for _ in range(STREAMS)]
        writer = threading.Thread(target=write)
        writer.start()
        try:
            gateway.process.send_signal(signal.SIGTERM)
            began = time.monotonic()

            def seconds(page: Page) -> float:
                page.rest()
                return time.monotonic() - began

            with ThreadPoolExecutor(STREAMS) as pool:
                ends = list(pool.map(seconds, pages))
            assert gateway.process.wait(timeout=PATIENCE) == 0
            assert time.monotonic() - began < 40, "the streams would last for a minute"
        finally:
            done.set()
            writer.join()
        for page in pages:
            assert page.received.endswith(b"0\r\n\r\n"), "a clean end"
            assert b"[DONE]" not in page.received
            last = page.numbers[-1] if page.numbers else None
            resumed = Page(other, token, cursor=last)
            while len(page.numbers) + len(resumed.numbers) < len(channel.out):
                resumed.received += resumed.read()
            resumed.socket.close()
            assert page.numbers + resumed.numbers == list(range(len(channel.out)))
    # A busy machine delays ends, so it makes neither bound fail.
    early = sum(end < DRAIN_SECONDS / 2 for end in ends)
    assert early <= STREAMS * 0.6, "at half of the time about half of the streams have ended"
    assert len({len(page.numbers) for page in pages}) > 5, "and not all of them together"


@pytest.mark.parametrize("fast", ["true", "false"], ids=["fast path", "asgi"])
def test_56_every_end_reaches_the_sockets_of_all_workers(tmp_path: Path, fast: str) -> None:
    file = tmp_path / "bff.toml"

    def write(*keys: str, chat: str = "true") -> None:
        file.write_text(f"BFF_SIGNING_KEYS = {json.dumps(keys)}\nBFF_CHAT = {chat}\n")

    write(OWN_KEY, NEW_KEY)
    settings = LIVE | {"BFF_CONFIG": str(file), "BFF_SIGNING_KEYS": None, "BFF_CHAT": None}
    with (
        running_upstream() as upstream,
        running_workers(upstream, **settings, BFF_FAST_PATH=fast) as gateway,
    ):
        soon, issued = time.time() + 8, int(time.time()) - 5

        def pages(key: str = OWN_KEY, **changes: Any) -> list[Page]:
            token = sign(claims(issued, *BOTH, **changes), key)
            return [Page(gateway, token) for _ in range(4)]

        kinds = {
            "expired": pages(exp=int(soon)),
            "jti": pages(jti="j1"),
            "actor": pages(act={"sub": "bob"}),
            "key": pages(NEW_KEY),
            "policy": pages(act={"sub": "eve"}),
        }
        session = pages(act={"sub": "eve"}, iat=issued - 60)
        until(lambda: all(n > 0 for n in by_worker(gateway, "bff_streams")))

        def revoke(**what: Any) -> None:
            assert http.post(f"{gateway.ops_url}/revocations", json=what).status_code == 200

        def change(*keys: str, chat: str = "true") -> None:
            write(*keys, chat=chat)
            gateway.process.send_signal(signal.SIGHUP)

        for ended, cause in (
            (kinds["jti"], lambda: revoke(jti="j1")),
            (kinds["actor"], lambda: revoke(subject="bob")),
            (session, lambda: revoke(session=FRIENDLY["chat-1"], issued_before=issued - 30)),
            (kinds["expired"], lambda: None),
            (kinds["key"], lambda: change(OWN_KEY)),
            (kinds["policy"], lambda: change(OWN_KEY, chat="false")),
        ):
            cause()
            for page in ended:
                assert page.rest().endswith(b"0\r\n\r\n"), "a clean end"
        assert sum(by_worker(gateway, "bff_streams")) == 0
        until(
            lambda: not upstream.app.chats.channel(upstream.app.environments[0], "chat-1")._readers
        )


def test_92_shutdown_does_not_wait_for_endless_streams(
    live: tuple[running_upstream, Gateway],
) -> None:
    _, gateway = live
    page = Page(gateway, gateway.token(*BOTH), seconds=600)

    gateway.process.send_signal(signal.SIGTERM)

    assert gateway.process.wait(timeout=PATIENCE) == 0
    assert page.rest().endswith(b"0\r\n\r\n")
    assert MAX_DRAIN_SECONDS < 10


def test_93_stream_is_not_stored_and_not_collected(live: tuple[running_upstream, Gateway]) -> None:
    upstream, gateway = live
    channel = upstream.app.chats.channel(upstream.app.environments[0], "chat-1")
    page = Page(gateway, gateway.token(*BOTH), seconds=60)
    began = time.monotonic()
    channel.write(timestamp=1, headers=[], body='{"data":{"type":"text-delta","delta":"one"}}')
    while b"text-delta" not in page.received:
        page.received += page.read()

    assert time.monotonic() - began < 50, "the first delta comes before the end"
    head = page.received.lower()
    for line in (b"cache-control: no-store, no-transform", b"x-accel-buffering: no"):
        assert line in head
    assert b"content-encoding" not in head
    page.socket.close()
