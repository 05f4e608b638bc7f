"""The acceptor: it shares a socket with others, and waits when the system is short of something."""

import asyncio
import errno
import socket
from collections.abc import Callable

import pytest

from bff.server.accept import Acceptor
from bff.server.supervisor import UNAVAILABLE, Worker


class Listening:
    """A socket that a test connects to, and the acceptors of it."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.short = 0
        self.opened: list[socket.socket] = []

    def acceptor(self, worker: Worker | None = None) -> tuple[Acceptor, list[asyncio.Protocol]]:
        protocols: list[asyncio.Protocol] = []

        def make() -> asyncio.Protocol:
            protocols.append(asyncio.Protocol())
            return protocols[-1]

        acceptor = Acceptor(
            self.sock.dup(),
            make,
            worker=worker,
            count=lambda: len(protocols),
            on_short=self._note_short,
        )
        return acceptor, protocols

    def _note_short(self) -> None:
        self.short += 1

    def connect(self, number: int) -> None:
        port = self.sock.getsockname()[1]
        self.opened += [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]

    def close(self, *acceptors: Acceptor) -> None:
        for acceptor in acceptors:
            acceptor.close()
        for sock in (self.sock, *self.opened):
            sock.close()


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.005)


async def test_workers_share_connections_evenly() -> None:
    listening, shared = Listening(), memoryview(bytearray(8)).cast("I")
    one, of_one = listening.acceptor(Worker(0, connections=shared))
    two, of_two = listening.acceptor(Worker(1, connections=shared))
    listening.connect(40)
    await until(lambda: len(of_one) + len(of_two) == 40)

    assert min(len(of_one), len(of_two)) >= 15
    listening.close(one, two)
    assert list(shared) == [UNAVAILABLE] * 2


async def test_worker_does_not_wait_for_one_that_accepts_nothing() -> None:
    listening, shared = Listening(), memoryview(bytearray(8)).cast("I")
    one, of_one = listening.acceptor(Worker(0, connections=shared))  # the other never accepts
    listening.connect(20)
    await until(lambda: len(of_one) == 20)
    listening.close(one)


async def test_connections_wait_while_descriptors_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listening = Listening()
    acceptor, protocols = listening.acceptor()

    class Short:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        acceptor._loop.remove_reader(acceptor._sock)
        whole, acceptor._sock = acceptor._sock, Short()
        patch.setattr(acceptor, "_wait", lambda _: None)
        assert not acceptor._accept()
        acceptor._sock = whole
    assert listening.short == 1
    acceptor._wait(0.01)
    listening.connect(3)
    await until(lambda: len(protocols) == 3)
    listening.close(acceptor)


async def test_end_accepts_what_waits() -> None:
    listening = Listening()
    acceptor, protocols = listening.acceptor()
    listening.connect(50)
    acceptor.close()
    await until(lambda: len(protocols) == 50)
    listening.close()
