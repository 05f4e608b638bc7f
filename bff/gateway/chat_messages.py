"""Sends a message to a chat: reads it, applies the policy, charges it, and sends it once.

The message waits up to four times: for its body, for the session's pair of ids, for a lease of its
limits, and for upstream. After each wait but the last the gateway admits the request again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from bff import metrics
from bff.chat.appends import MAX_STOP_BYTES, Places
from bff.chat.identity import Speaker
from bff.chat.messages import Message, MessagePolicy
from bff.errors import REFUSALS, ErrorCode, Refusal, Refused, UpstreamError, UpstreamRateLimited
from bff.gateway.chats import Chats
from bff.gateway.context import RequestContext
from bff.gateway.pending import Pending, Resumable
from bff.limits.rate import LeasePending
from bff.response import Response
from bff.tokens.caller import Caller
from bff.upstream.connection import Answer

PAUSE_SECONDS: Final = 1.0
"""Seconds without a message after an upstream 429 that names no time."""
_CLOSED: Final = "Cannot append to a closed session"
"""The text by which servers before 4.8 tell that a session is closed."""


def decide_message(
    chats: Chats, request: RequestContext, caller: Caller, session_id: str
) -> Pending:
    """Decide a request to send a message, before its body is read.

    Only the body tells whether a message is a stop, and a stop has bounds of its own. So the
    gateway reads a body that is small enough for a stop, even if its caller may send no message
    now.

    Raises:
        Refused: 400 413 429 503.
    """
    appends, is_small, late = chats.appends, _may_be_stop(chats, request), None
    try:
        chats.admission.charge_caller(request, caller)
    except Refused as refused:
        if not is_small:
            raise
        late = refused.refusal
    chats.refuse_paused(request, caller)
    chats.refuse_large(request)
    places = appends.stops if is_small else appends.messages
    places.refuse(chats.key(request, caller))
    part_id = chats.part_id(request)
    return PendingMessage(request, caller, session_id, part_id, chats, places, late)


def _may_be_stop(chats: Chats, request: RequestContext) -> bool:
    if chats.chat.messages is None:  # nothing tells a stop from other bodies
        return False
    lengths = [value for name, value in request.head.lines if name == b"content-length"]
    return len(lengths) == 1 and len(lengths[0]) <= 3 and int(lengths[0]) <= MAX_STOP_BYTES  # noqa: PLR2004  digits


@dataclass(slots=True, eq=False)
class PendingMessage:
    """Waits for the next step of a message."""

    request: RequestContext
    caller: Caller
    session_id: str
    part_id: str
    chats: Chats
    places: Places
    """Where it is counted."""
    late: Refusal | None
    """The refusal of a message that is not a stop; None if its caller may send one."""
    _work: "Callable[[Resumable], Awaitable[None]] | None" = None
    _then: "Callable[[Resumable], Response | Pending] | None" = None
    _body: bytes = b""
    _message: Message | None = None
    _kind: str = "other"
    _answer: Answer | None = None
    _counted: bool = False
    _refusal: Refusal | None = None
    _lease: LeasePending | None = None

    async def wait(self, gateway: Resumable) -> None:
        """Do the next step; `conclude` reports its failure."""
        try:
            await (self._work or self._read_body)(gateway)
        except Refused as refused:
            self._refusal = refused.refusal

    def conclude(self, gateway: Resumable) -> Response | Pending:
        """Answer, or return what to wait for next.

        Raises:
            Refused: the policy, a limit, or upstream's trouble.
        """
        if self._refusal is not None:
            self._count(self._refusal.code)
            raise Refused.of(self._refusal)
        try:
            return (self._then or self._check_body)(gateway)
        except Refused as refused:
            self._count(refused.refusal.code)
            raise

    def abandon(self) -> None:
        """Count the message as ended."""
        if self._counted:
            self.places.end(self._key)
            self._counted = False

    @property
    def _key(self) -> Hashable:
        return self.chats.key(self.request, self.caller)

    def _count(self, code: str) -> None:
        self.chats.counts[metrics.MESSAGES, self._kind, code] += 1

    # -- the body

    async def _read_body(self, _: Resumable) -> None:
        chats, body = self.chats, self.request.head.body
        assert body is not None  # noqa: S101  the request is for a chat
        self.places.begin(self._key)
        self._counted = True
        data = await body.receive(chats.chat.max_message_bytes)
        if data is None:
            raise Refused("message_too_large")
        self._body = data

    def _check_body(self, gateway: Resumable) -> Response | Pending:
        chats, caller = self.chats, self.caller
        policy = chats.chat.messages
        if policy is not None:
            self._message = message = self._read_message(policy)
            self._kind = message.kind
            chats.counts[metrics.MESSAGE_FIELDS_DROPPED,] += message.dropped
        has_pair = chats.pairs.has(caller.environment, self.session_id)
        if chats.must_load(caller, self.session_id) or not (has_pair or self._names_session()):
            return self._next(self._load_pair, self._check_session)
        return self._check_session(gateway)

    def _read_message(self, policy: MessagePolicy) -> Message:
        """Read the body. Only a stop passes without the room and the quota of a message."""
        try:
            message = policy.read(self._body)
        except Refused as refused:
            raise Refused.of(self.late or refused.refusal) from None
        if message.kind != "stop":
            if self.late is not None:
                raise Refused.of(self.late)
            messages = self.chats.appends.messages
            if self.places is not messages:
                messages.begin(self._key)
                self.places.end(self._key)
                self.places = messages
        return message

    def _names_session(self) -> bool:
        """Whether the gateway knows that the message's `chatId` is an id of the session."""
        message = self._message
        return message is None or message.chat_id in (
            None,
            *self.chats.ids_of(self.caller, self.session_id),
        )

    async def _load_pair(self, gateway: Resumable) -> None:
        await self.chats.load_pair(gateway, self.request, self.caller, self.session_id)

    def _check_session(self, gateway: Resumable) -> Response | Pending:
        self.chats.refuse_revoked_session(self.request, self.caller, self.session_id)
        if self._message is not None:
            self._message.check_chat(self.chats.ids_of(self.caller, self.session_id))
        return self._charge(gateway)

    # -- the limits

    def _charge(self, _: Resumable) -> Response | Pending:
        part = self.session_id, self.part_id
        try:
            if self._message is not None and self._message.kind == "stop":
                self.chats.admission.charge_stop(self.request, self.caller)
            else:
                self.chats.charge_message(self.request, self.caller, part, self._body)
        except LeasePending as pending:
            self._lease = pending
            return self._next(self._wait_for_lease, self._charge)
        self.chats.refuse_paused(self.request, self.caller)
        return self._next(self._send, self._finish)

    async def _wait_for_lease(self, gateway: Resumable) -> None:
        assert self._lease is not None  # noqa: S101  `_charge` set it
        await asyncio.wait([self._lease.lease], timeout=gateway.sharing.timeout)
        if not self._lease.lease.done():
            self._lease.window.count_alone(gateway.clock()[0])
            gateway.sharing.check()

    # -- upstream

    async def _send(self, gateway: Resumable) -> None:
        chats, caller = self.chats, self.caller
        _, wall = gateway.clock()
        if self._message is not None:
            self._body = self._message.encode(self.session_id, lambda: self._sign(wall))
        self.request.config = None  # the browser gets its answer in any case
        try:
            environment = chats.environment(caller)
            self._answer = await environment.chat.append(self.session_id, self._body, self.part_id)
        except UpstreamRateLimited as limited:
            seconds = PAUSE_SECONDS if limited.retry_after is None else limited.retry_after
            chats.pauses[caller.environment] = gateway.clock()[0] + seconds
            raise Refused("over_budget", retry_after=seconds) from None
        except UpstreamError as error:
            lost = error.sent and error.code in (
                "upstream_timeout",
                "upstream_unavailable",
                "upstream_invalid",
            )
            if lost:
                self._note(None)
            raise Refused(
                "message_unconfirmed" if lost else error.code, retry_after=error.retry_after
            ) from None

    def _sign(self, wall: float) -> str:
        signer, caller, head = self.chats.chat.signer, self.caller, self.request.head
        assert signer is not None  # noqa: S101  the settings require it with the field
        *actors, subject = caller.subjects
        speaker = Speaker(
            subject=subject,
            actor=actors[0] if actors else None,
            session_id=self.session_id,
            part_id=self.part_id,
            address=self.chats.browser_address(head),
            headers=self.chats.proxy_headers(head),
        )
        return signer.sign(speaker, wall)

    def _finish(self, gateway: Resumable) -> Response:
        assert self._answer is not None  # noqa: S101  `_send` set it
        try:
            answer = read_answer(self._answer, shows_reason=self.chats.chat.shows_reason)
        except Refused:
            self._note(None)
            raise
        self._count(answer.code)
        if not answer.code:
            number = answer.body.get("seq")  # none if upstream has stored the message before
            self._note(number)
            gateway.answers.log_message(
                self.request, self.caller, self.session_id, self._kind, number
            )
        return gateway.answers.message(self.request, answer.status, answer.body, answer.code)

    def _note(self, number: int | None) -> None:
        """Let listeners know of the message; None if only upstream knows what became of it."""
        if self._kind != "stop":
            ids = self.chats.ids_of(self.caller, self.session_id)
            self.chats.turns.appended(self.caller.environment, ids, number)

    def _next(
        self,
        work: "Callable[[Resumable], Awaitable[None]]",
        then: "Callable[[Resumable], Response | Pending]",
    ) -> Pending:
        self._work, self._then = work, then
        return self


@dataclass(frozen=True, slots=True)
class MessageAnswer:
    """The answer to a message, for the browser."""

    status: int
    body: dict[str, Any]
    code: str
    """Empty if the message was accepted."""


def read_answer(answer: Answer, *, shows_reason: bool) -> MessageAnswer:
    """Read upstream's answer to a message.

    Raises:
        Refused: ``message_unconfirmed``: the answer is not one of upstream's.
    """
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused("message_unconfirmed")
    if answer.status == HTTPStatus.OK and body.get("ok") is True:
        return MessageAnswer(HTTPStatus.OK, _accepted(body), "")
    if isinstance(body.get("error"), str):
        if answer.status == HTTPStatus.BAD_REQUEST:
            closed = body["error"] == _CLOSED
            return _refused(answer.status, "session_closed" if closed else "invalid_message")
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return _refused(answer.status, "message_too_large")
        if answer.status == HTTPStatus.CONFLICT:
            reason = body.get("closedReason") if shows_reason else None
            return _refused(answer.status, "session_closed", reason)
    raise Refused("message_unconfirmed")


def _accepted(body: dict[str, Any]) -> dict[str, Any]:
    accepted: dict[str, Any] = {"ok": True}
    if type(body.get("seq")) is int:
        accepted["seq"] = body["seq"]
    if isinstance(body.get("pendingVersion"), bool):
        accepted["pendingVersion"] = body["pendingVersion"]
    return accepted


def _refused(status: int, code: ErrorCode, reason: object = None) -> MessageAnswer:
    body: dict[str, Any] = {"ok": False, "error": REFUSALS[code].text, "code": code}
    if isinstance(reason, str):
        body["closedReason"] = reason
    return MessageAnswer(status, body, code)
