"""Opens the stream of a chat: waits for upstream's head, then hands both sides to the server."""

from dataclasses import dataclass
from functools import partial

from bff.chat.records import RecordFilter
from bff.chat.streams import ChatStream
from bff.errors import Refusal, Refused, UpstreamError
from bff.gateway.chats import Chats
from bff.gateway.context import RequestContext
from bff.gateway.pending import Pending, Resumable
from bff.response import Response
from bff.tokens.caller import Caller
from bff.upstream.chats import StreamOptions


def decide_stream(
    chats: Chats, request: RequestContext, caller: Caller, session_id: str
) -> Pending:
    """Decide a request for a stream.

    Raises:
        Refused: 400 410 429 503.
    """
    options = chats.admit_stream(request, caller)
    if options.cursor is not None or not options.latest:
        chats.streams.refuse_unreadable((caller.environment, session_id), _cursor(options))
    return PendingStream(request, caller, session_id, options, chats)


@dataclass(slots=True, eq=False)
class PendingStream:
    """Waits for the session's pair of ids, then for the head of upstream's stream."""

    request: RequestContext
    caller: Caller
    session_id: str
    options: StreamOptions
    chats: Chats
    _stream: ChatStream | None = None
    _idle: bool = False
    _refusal: Refusal | None = None

    async def wait(self, gateway: Resumable) -> None:
        """Open upstream's side; `conclude` tells what goes wrong."""
        try:
            await self._open(gateway)
        except Refused as refused:
            self._refusal = refused.refusal
        except UpstreamError as error:
            self._refusal = Refusal(error.code, retry_after=error.retry_after)

    async def _open(self, gateway: Resumable) -> None:
        request, caller, chats = self.request, self.caller, self.chats
        if chats.must_load(caller, self.session_id):
            await chats.load_pair(gateway, request, caller, self.session_id)
            chats.refuse_revoked_session(request, caller, self.session_id)
        chats.refuse_stream(request, caller)
        self._stream = stream = ChatStream(
            streams=chats.streams,
            caller=chats.key(request, caller),
            address=request.address,
            session=(caller.environment, self.session_id),
            grounds=chats.grounds(request, caller, self.session_id, self.options),
            records=RecordFilter(
                chats.counts, shows_reason=chats.chat.shows_reason, cursor=_cursor(self.options)
            ),
            began=request.now,
            passed=partial(
                chats.turns.passed, caller.environment, chats.ids_of(caller, self.session_id)
            ),
        )
        chats.streams.add(stream)
        try:
            upstream = await chats.environment(caller).chat.open(self.session_id, self.options)
        except BaseException:
            stream.release("failed")
            self._stream = None
            raise
        self._idle = upstream.headers.get("x-session-settled") == "true"
        stream.connect(upstream)

    def conclude(self, gateway: Resumable) -> Response | Pending:
        """Answer with the stream, which the server then owns.

        Raises:
            Refused: upstream's trouble, or the session is revoked.
        """
        if self._refusal is not None:
            raise Refused.of(self._refusal)
        assert self._stream is not None  # noqa: S101  `wait` opened it
        self.chats.refuse_revoked_session(self.request, self.caller, self.session_id)
        stream, self._stream = self._stream, None
        return gateway.answers.stream(self.request, stream, idle=self._idle)

    def abandon(self) -> None:
        """Release what `conclude` did not hand over."""
        if self._stream is not None:
            self._stream.release("refused")
            self._stream = None


def _cursor(options: StreamOptions) -> int:
    return -1 if options.cursor is None else int(options.cursor)
