"""The adapter to uvicorn: what it uses is tested, and no other module uses more."""

import asyncio
import inspect
import re
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from support.differential import GOOD, PREFLIGHT, FakeTransport, both_sides, request
from support.world import Clock, World
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bff.server import connection, fast_path, uvicorn_adapter
from bff.server.connection import BoundedProtocol
from bff.server.uvicorn_adapter import UvicornProtocol

pytestmark = pytest.mark.anyio


def test_installed_uvicorn_is_a_tested_one() -> None:
    assert uvicorn_adapter.why_unusable() is None, "run the tests with it, then add its digest"


async def test_fast_path_is_off_with_an_untested_uvicorn(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_adapter, "_SUPPORTED", frozenset())
    async with World(clock) as world:
        assert world.service.protocol is world.service.bounded_protocol
        assert world.service.protocol.func is BoundedProtocol
        (line,) = world.logged()
        assert line["event"] == "fast_path_off"
        assert line["reason"] == f"it was not tested with uvicorn {uvicorn.__version__}"


def test_fast_path_is_off_without_the_sources_of_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvicorn.protocols.http.flow_control.__file__", "/nonexistent")
    assert "not installed" in (uvicorn_adapter.why_unusable() or "")


async def test_shutdown_closes_idle_connections_and_finishes_loads(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        side = sides[1]
        idle, loading = side.connect(), side.connect()
        await side.feed(idle, PREFLIGHT)
        loading.protocol.data_received(request(GOOD))
        for transport in (idle, loading):
            transport.protocol.shutdown()
        assert idle.closed
        assert not loading.closed
        await side.settle()
        assert b"HTTP/1.1 200" in loading.sent
        assert b"connection: close" in loading.sent
        assert loading.closed


async def test_answer_on_a_closed_connection_does_not_fail(clock: Clock) -> None:
    async with both_sides(clock) as sides:
        for side in sides:
            transport = side.connect()

            def write(data: Any, transport: FakeTransport = transport) -> None:
                if transport.closed:  # as the transport of uvloop
                    raise RuntimeError("the handler is closed")
                transport.sent += data
                transport.close()

            transport.write = write
            await side.feed(transport, request(GOOD))
            counts, lines = side.records()
            assert transport.sent.startswith(b"HTTP/1.1 200")
            assert [key for key in counts if key[0] == "bff_requests" and key[2] == 500] == []
            assert [line["event"] for line in lines if line["event"] == "request_failed"] == []


PARSER_CALLBACKS = {
    *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete")
}


@pytest.mark.parametrize("module", [connection, fast_path])
def test_other_modules_use_uvicorn_through_the_adapter_only(module: ModuleType) -> None:
    """They may also override the callbacks of asyncio and of the parser."""
    source = inspect.getsource(module)
    used = set(re.findall(r"(?:self|super\(\))\.(\w+)", source))
    of_uvicorn = set(vars(HttpToolsProtocol)) | set(HttpToolsProtocol.__init__.__code__.co_names)
    adapter = set(vars(UvicornProtocol)) | set(UvicornProtocol.__annotations__)

    assert used & of_uvicorn <= adapter | set(dir(asyncio.Protocol)) | PARSER_CALLBACKS
    assert not re.findall(r"^(?:from|import) uvicorn", source, re.MULTILINE)
