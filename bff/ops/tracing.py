"""Makes OpenTelemetry spans (the extra ``bff-gateway[tracing]``); without it nothing is imported.

The gateway continues a browser's ``traceparent``; upstream gets neither it nor ``baggage``. A span
holds route names, methods, status codes and outcomes, never an id, a token or an address. The
standard ``OTEL_*`` variables set the exporter and the sampler.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from starlette.types import Receive, Scope, Send

from bff import __version__
from bff.clock import Clock
from bff.errors import Refused, UpstreamError
from bff.gateway.decide import Gateway
from bff.gateway.introspection import PendingIntrospection
from bff.gateway.pending import Pending, PendingLoad
from bff.request import RequestHead
from bff.response import Response
from bff.server.asgi import BrowserLeft, prepare, read_head, write
from bff.sessions.ids import LIST_ROUTE, ROUTE
from bff.upstream.api import Upstream

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

MAX_SPANS: Final = 2048
"""Spans that wait for their export; more are dropped and counted."""
CLOSE_SECONDS: Final = 2.0
"""Seconds that the end of the process may wait for a collector."""

MAX_ANSWER_BYTES: Final = 65536
"""Bytes of a collector's answer that are read; nothing uses them."""
_CREDENTIALS: Final = tuple(
    f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{part}CREDENTIAL_PROVIDER" for part in ("", "TRACES_")
)
"""The variables that name a program which makes the session."""

_CONTINUED = (b"traceparent", b"tracestate")
_P = ParamSpec("_P")
_T = TypeVar("_T")
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


class TracingError(Exception):
    """OpenTelemetry is not installed; the text is the remedy."""


class Tracing:
    """Makes the spans.

    Args:
        exporter: receives the spans; by default a thread sends them in batches over OTLP/HTTP.

    Raises:
        TracingError: OpenTelemetry is not installed.
    """

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        try:
            import requests  # noqa: PLC0415
            from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider, export  # noqa: PLC0415
            from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415
            from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415
        except ImportError:
            raise TracingError(
                "BFF_TRACING needs OpenTelemetry; install it: pip install 'bff-gateway[tracing]'"
            ) from None
        resource = Resource.create({"service.name": "bff", "service.version": __version__})
        # The provider's own hook at exit would wait for a collector that does not answer.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._success = export.SpanExportResult.SUCCESS
        self._waiting = 0
        self._lock = threading.Lock()
        self.lost = 0
        """Spans that were not sent."""
        if exporter is None and not any(map(os.environ.get, _CREDENTIALS)):  # noqa: TID251  as the library
            session = requests.Session()
            session.hooks["response"].append(_bound_answer)
            exporter = trace_exporter.OTLPSpanExporter(session=session)
        exporter = (
            exporter or trace_exporter.OTLPSpanExporter()
        )  # with the session of the operator's provider
        self._count_exports(exporter)
        batches = export.BatchSpanProcessor(
            exporter, max_queue_size=MAX_SPANS, max_export_batch_size=min(MAX_SPANS, 512)
        )
        self._count_ends(batches)
        self._provider.add_span_processor(batches)
        self._tracer = self._provider.get_tracer("bff", __version__)
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._kinds, self._statuses = SpanKind, StatusCode

    async def close(self) -> None:
        """Send the remaining spans, within `CLOSE_SECONDS`.

        It takes a daemon thread, because the event loop waits for its executor without a bound.
        """
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=shut_down, daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), CLOSE_SECONDS)

    def _count_ends(self, processor: "SpanProcessor") -> None:
        """Count the spans that *processor* has no room for, and keep them from it."""
        on_end = processor.on_end

        def counted(span: "ReadableSpan") -> None:
            if not (span.context and span.context.trace_flags.sampled):
                return
            with self._lock:
                full = self._waiting >= MAX_SPANS
                self.lost += full
                self._waiting += not full
            if not full:
                on_end(span)

        processor.on_end = counted  # type: ignore[method-assign]

    def _count_exports(self, exporter: "SpanExporter") -> None:
        """Count the spans that *exporter* does not send."""
        export, success = exporter.export, self._success

        def counted(spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
            sent = False
            try:
                result = export(spans)
                sent = result is success
                return result
            finally:
                with self._lock:
                    self._waiting -= len(spans)
                    self.lost += 0 if sent else len(spans)

        exporter.export = counted  # type: ignore[method-assign]

    def request(
        self, head: RequestHead, headers: Iterable[tuple[bytes, bytes]]
    ) -> "AbstractContextManager[Span]":
        """Make the span of one request, as a child of the span in its ``traceparent``."""
        carrier = {n.decode(): v.decode("latin-1") for n, v in headers if n in _CONTINUED}
        route = "other"
        if head.path == LIST_ROUTE:
            route = LIST_ROUTE.decode()
        elif head.path.startswith(ROUTE):
            route = ROUTE.decode() + "{session}"
        method = head.method if head.method in _METHODS else "_OTHER"
        return self._tracer.start_as_current_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=self._kinds.SERVER,
            attributes={"http.request.method": method, "http.route": route},
            record_exception=False,
        )

    def decide(self) -> "AbstractContextManager[Span]":
        """Make a span for a decision, below the request's."""
        return self._tracer.start_as_current_span("decide", record_exception=False)

    def answered(self, span: "Span", response: Response, answer: Response | Pending) -> None:
        """Set the status of the answer, and whether the request waited for another's load."""
        span.set_attribute("http.response.status_code", response.status)
        if isinstance(answer, PendingLoad | PendingIntrospection):
            span.set_attribute("bff.joined", answer.collapsed)
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(self._statuses.ERROR)

    def upstream(self, upstream: Upstream) -> Upstream:
        """Make *upstream* open a span for each load, below the request that started it."""
        upstream.get = self._spanned(upstream.get)  # type: ignore[method-assign]
        upstream.get_as = self._spanned(upstream.get_as)  # type: ignore[method-assign]
        return upstream

    def _spanned(
        self, get: Callable[_P, Coroutine[Any, Any, _T]]
    ) -> Callable[_P, Coroutine[Any, Any, _T]]:
        async def traced(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with self._tracer.start_as_current_span(
                "load", kind=self._kinds.CLIENT, record_exception=False
            ) as span:
                try:
                    answer = await get(*args, **kwargs)
                except (UpstreamError, Refused) as error:
                    span.set_attribute(
                        "bff.outcome",
                        error.refusal.code if isinstance(error, Refused) else error.code,
                    )
                    raise
                span.set_attribute("bff.outcome", "ok")
                return answer

        return traced


def _bound_answer(answer: Any, *_: Any, **__: Any) -> None:
    """Read the body of a collector's answer to its bound; the session would read it whole."""
    try:
        answer._content = answer.raw.read(MAX_ANSWER_BYTES)  # noqa: SLF001  the session's own way
    except Exception:  # noqa: BLE001  the status is enough
        answer._content = b""  # noqa: SLF001
    answer._content_consumed = True  # noqa: SLF001
    answer.close()


@dataclass(eq=False)
class TracedEndpoint:
    """Answers browsers as `asgi.Endpoint` does, with a span for each request."""

    gateway: Gateway
    clock: Clock
    tracing: Tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the span of a stream ends with its head."""
        with suppress(BrowserLeft):
            await write(await self._answer(scope, receive), scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        head = read_head(scope)
        with self.tracing.request(head, scope["headers"]) as span:
            with self.tracing.decide():
                answer = self.gateway.decide(head, *self.clock())
            prepare(answer, scope, receive)
            response = answer if isinstance(answer, Response) else await self.gateway.finish(answer)
            self.tracing.answered(span, response, answer)
            return response
