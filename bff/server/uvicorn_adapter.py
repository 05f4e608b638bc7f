"""uvicorn's HTTP protocol class behind a small interface.

No other module depends on how that class works inside: its request cycles, queue, flow control and
timers. uvicorn does not promise to keep them, so pyproject.toml bounds its version, and the fast
path is used only with the sources that it was tested with.
"""

import asyncio
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import httptools
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl

from bff.response import EventStream

LOCAL_PEER: Final = "127.0.0.1"
"""The address of the other end of a Unix socket: only this machine can reach it."""
_SUPPORTED: Final = frozenset(
    ("ea814cf42e50628dba76b72e12900943da6801b4bcf097f11dff4ea2cdc99455",)  # 0.54.0
)
"""SHA-256 of the sources of uvicorn that the fast path was tested with."""


def why_unusable() -> str | None:
    """Tell why the fast path cannot be used with the installed uvicorn; None if it can."""
    try:
        sources = [Path(str(m.__file__)).read_bytes() for m in (httptools_impl, flow_control)]
    except OSError:
        return "the sources of uvicorn are not installed, so they cannot be compared"
    if sha256(b"".join(sources)).hexdigest() not in _SUPPORTED:
        return f"it was not tested with uvicorn {uvicorn.__version__}"
    return None


class ClosedSafeTransport:
    """A transport for answers that ignores writes after the browser left; uvloop's would raise."""

    __slots__ = ("_write", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._write = transport.write
        self.close, self.is_closing = close, transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, unless the connection is closing."""
        if not self.is_closing():
            self._write(data)


class _UnknownLength:
    """The length of a body that ends with its connection: nothing is too long, or too short."""

    def __lt__(self, size: int) -> bool:
        return False

    def __isub__(self, size: int) -> Self:
        return self

    def __ne__(self, size: object) -> bool:
        return False

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class UvicornProtocol(httptools_impl.HttpToolsProtocol):
    """One connection. Subclasses override the callbacks of asyncio and of the parser.

    Of uvicorn's own attributes they use only those that are declared below; the rest of what they
    need is a method (`tests/server/test_uvicorn_adapter.py`).
    """

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    parser: httptools.HttpRequestParser
    url: bytes
    headers: list[tuple[bytes, bytes]]
    """The headers of the newest request; names are in lower case."""
    _newest_chunk: ClassVar[tuple[bytes, bytes]] = (b"", b"")
    """The event that some connection wrote last, and its chunk: thousands may write the same."""
    paused = False
    """Whether the browser has to read before a stream writes more; no property, for its cost."""
    peer = LOCAL_PEER
    """The address at the other end."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.headers = []
        self.stream: EventStream | None = None
        """The answer, if it is a stream."""
        self._writes_itself = False
        """Whether the stream writes its events to this connection itself."""
        self.draining = False
        """The process ends: the next answer is the last of this connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the connection."""
        super().connection_made(transport)
        if self.client:
            self.peer = self.client[0]

    def hand_over(self, extensions: dict[str, object] | None = None) -> None:
        """Give the request to the application, which answers it after all earlier ones.

        Makes the ASGI scope, for which uvicorn's callbacks of the parser are called now, and not
        while the head is parsed. *extensions* go into the scope.
        """
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers  # the list in the scope
        if extensions is not None:
            self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        super().on_headers_complete()
        self.cycle.transport = ClosedSafeTransport(self.transport, self.close_answered)  # type: ignore[assignment]
        if self.draining or self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work*; the server waits for it when it stops."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- streams

    def begin_stream(self, stream: EventStream) -> None:
        """Let the answer be a stream: the last one, which ends when the browser leaves.

        HTTP/1.0 has no chunks (RFC 9112 §7.1), so there the end of the connection ends the body.
        nginx speaks it to its upstreams by default.
        """
        self.stream = stream
        if self.transport.is_closing():
            stream.release("browser")  # it left while the stream was opened
            return
        if self.parser.get_http_version() == "1.0":
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _UnknownLength()  # type: ignore[assignment]
        self.flow.resume_reading()  # otherwise it would not show that the browser leaves
        self.transport.resume_reading()

    def join(self, head: bytes, stream: EventStream) -> None:
        """Let a stream write its events past the application, without a task."""
        self.transport.write(head)
        self._writes_itself = True
        stream.attach(self)

    def pause_writing(self) -> None:
        """Note that the browser has to read before a stream writes more."""
        super().pause_writing()
        self.paused = True

    def resume_writing(self) -> None:
        """Note that the browser has read."""
        super().resume_writing()
        self.paused = False

    def send_event(self, data: bytes) -> None:
        """Write an event of a joined stream as a chunk (RFC 9112 §7.1)."""
        if not self.transport.is_closing():
            event, chunk = UvicornProtocol._newest_chunk
            if event is not data:
                chunk = b"%x\r\n%b\r\n" % (len(data), data)
                UvicornProtocol._newest_chunk = data, chunk
            self.transport.write(chunk)

    def finish_stream(self) -> None:
        """End a joined stream and the connection, once the browser has read it."""
        if not self.transport.is_closing():
            if self.stream is not None and not self.stream.cut:
                self.transport.write(b"0\r\n\r\n")
            self.transport.close()

    def resume_stream(self) -> None:
        """Let a joined stream go on: the browser reads again."""
        if self._writes_itself and self.stream is not None:
            self.stream.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream: the browser left."""
        super().connection_lost(exc)
        if self.stream is not None:
            self.stream.release("browser")

    # -- the end of a connection

    def close_answered(self) -> None:
        """Close the connection after its last answer."""
        self.transport.close()

    def is_receiving(self) -> bool:
        """Whether the body of the last request has not arrived whole."""
        return self.cycle is not None and self.cycle.more_body

    def drain(self) -> None:
        """End the connection with its next answer: closing it now could lose a request."""
        self.draining = True
        if self.unanswered():
            self.close_after_answer()

    def shutdown(self) -> None:
        """End the connection now if no answer is due; the gateway ends streams."""
        if self.stream is not None:
            return
        if self.unanswered():
            self.close_after_answer()
        else:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the answers that are due: the browser may wait for them.

        Whether it has left altogether shows when the answer is written.
        """
        if self.stream is not None or not self.unanswered():
            return False  # a browser that ended its side does not wait for more events
        self.close_after_answer()
        return True

    # -- the requests that the application answers

    def body_bytes(self) -> int:
        """Count the bytes of the newest request's body that the application has not read."""
        return len(self.cycle.body) if self.is_answering() else 0

    def is_answering(self) -> bool:
        """Tell whether an answer of the application is not complete yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def must_queue(self) -> bool:
        """Tell whether a request has to wait: for an earlier answer, or for a slow reader."""
        # `is_answering`, written out: every hit asks.
        return (
            self.cycle is not None and not self.cycle.response_complete
        ) or self.flow.write_paused

    def unanswered(self) -> int:
        """Count the requests that are not answered yet."""
        return len(self.pipeline) + self.is_answering()

    def is_answer_started(self) -> bool:
        """Tell whether the newest answer of the application has been written in part."""
        return self.cycle.response_started

    def is_closing_after_answer(self) -> bool:
        """Tell whether the connection ends with the newest answer of the application."""
        return self.cycle is not None and not self.cycle.keep_alive

    def close_after_answer(self) -> None:
        """End the connection with the newest answer of the application."""
        self.cycle.keep_alive = False

    def discard_answer(self) -> None:
        """Write nothing of the newest answer of the application."""
        self.cycle.disconnected = True

    def on_response_complete(self) -> None:
        """Start the next queued request, but not uvicorn's idle timer; subclasses have one."""
        super().on_response_complete()
        self._unset_keepalive_if_required()

    def server_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the server's own headers: another list each time they change, once a second."""
        return self.server_state.default_headers
