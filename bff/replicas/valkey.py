"""What replicas share, as far as Valkey sees it. The only user of the Valkey client.

Commands of one moment leave together on one connection, and each answer goes to the command in its
place: whoever leaves while a command is under way cancels nothing, so no answer can ever reach
another's question. Nobody waits for an answer longer than `Store.timeout`; when one is late, wrong
or impossible, the store counts as away, everyone goes on locally at once, and a heartbeat finds out
when it is back.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bff.replicas import scripts

HEARTBEAT_SECONDS: Final = 1.0


SEEN_SECONDS: Final = 5.0
"""A replica that was not heard of for so long is none."""


LONGEST_SECONDS: Final = 60.0
"""Upstream's word on its bucket counts no longer than this, whatever it says."""


UNKNOWN_REPLICAS: Final = 4
"""Taken for the number of replicas while the store has never been seen."""


_SOCKET_SECONDS: Final = 1.0
"""A connection that says nothing for so long is closed, and a new one opened."""


_OPEN_SECONDS: Final = 3.0


_CATCH_UP_SECONDS: Final = 30.0


_BLOCK_MILLISECONDS: Final = 1000


_LISTEN_SECONDS: Final = 2 * _SOCKET_SECONDS + _BLOCK_MILLISECONDS / 1000


_SETTLED: Final = 5
"""Heartbeats after which a store that came back counts as there to stay."""


_MAX_PAUSE_SECONDS: Final = 4.0
"""Between heartbeats to a store that comes and goes, so that few wait for it, and no log fills."""


_MAX_BATCH: Final = 500


_GRACE_SECONDS: Final = 0.001


_PREFIX: Final = "bff1"


Command = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the store is, from its address."""

    host: str
    port: int
    username: str | None
    password: str | None
    database: int
    tls: bool
    cluster: bool
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"Place({self.host}:{self.port})"  # the credentials are nobody's business


class StoreError(Exception):
    """The store cannot be used, and what to do; never a credential, never the server's words."""


class StoreUnavailable(Exception):
    """The store is not to be had at the moment."""


class Store:
    """One Valkey server or cluster.

    Args:
        address: where it is.
        timeout: seconds that a request may wait for it.
        name: this replica's, unlike any other's.
        count: told of commands by outcome: ok, late, error, foreign.
        changed: told when it goes away (with a reason) or comes back (with None).
    """

    def __init__(
        self,
        address: StoreAddress,
        *,
        timeout: float,
        name: str,
        count: Callable[[str, int], None],
        changed: Callable[[str | None], None],
    ) -> None:
        self.up = False
        self.replicas = UNKNOWN_REPLICAS
        self.timeout = timeout
        self.reason: str | None = "not asked yet"
        self._address = address
        self._name = name
        self._count = count
        self._changed = changed
        self._queue: list[tuple[Command, asyncio.Future[Any]]] = []
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._told: set[asyncio.Task[None]] = set()
        self._closed = False
        self._beats = 0
        self._pause = HEARTBEAT_SECONDS / 4
        self._must_reconnect = False
        self._losses = 0
        self._error: Exception | None = None
        from valkey import exceptions  # noqa: PLC0415  a tenth of a second: who has no store saves it

        self._errors = exceptions
        cluster = exceptions.ValkeyClusterException  # no ValkeyError
        self._failures = (exceptions.ValkeyError, cluster, OSError, TimeoutError)
        self._client = _client(address, _SOCKET_SECONDS)
        # A listener waits for seconds at a time, on a connection of its own.
        self._listener = _client(address, _LISTEN_SECONDS)

    async def open(self, heard: Callable[[dict[str, str]], None]) -> None:
        """Connect, begin to beat, and hear what was published that who starts has to know.

        Raises:
            StoreError: it cannot be used now; it goes on being tried all the same.
        """
        caught_up = asyncio.Event()
        for work in (self._pump(), self._beat(), self._listen(heard, caught_up)):
            self._tasks.append(asyncio.create_task(work))
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._greet()
        except StoreUnavailable:
            error = self._error
            what = (
                "does not answer in time" if error is None else _what_is_wrong(error, self._errors)
            )
            raise self._trouble(what) from None
        except self._failures as exc:
            raise self._trouble(_what_is_wrong(exc, self._errors)) from None
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await caught_up.wait()  # or a token that was revoked would be good for a moment
        except TimeoutError:
            raise self._trouble("is too slow to tell what was revoked") from None

    async def _greet(self) -> None:
        await self._client.ping()
        await self._send_beat(_OPEN_SECONDS)

    def _trouble(self, what: str) -> StoreError:
        address = self._address
        return StoreError(f"the store at {address.host}:{address.port} {what}")

    async def close(self) -> None:
        """Send what is queued, within a moment, and disconnect."""
        if self._told:
            await asyncio.wait(self._told, timeout=self.timeout)
        self._closed = True
        tasks = set(self._tasks)
        while tasks:  # the client may take one cancellation for a timeout of its own
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_SOCKET_SECONDS / 4)
        for client in (self._client, self._listener):
            with contextlib.suppress(*self._failures):
                await client.aclose()

    # -- commands

    async def execute(self, *commands: Command, timeout: float) -> list[Any]:
        """Send *commands* and wait for their answers, *timeout* seconds.

        Raises:
            Away: there are none.
        """
        if not self.up:
            raise StoreUnavailable
        return await self._execute(commands, timeout)

    def execute_nowait(self, *commands: Command) -> None:
        """Send *commands* without waiting; when the store is away they are dropped."""
        if self.up:
            task = asyncio.create_task(self._execute_nowait(commands, self._enqueue(commands)))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    async def _execute_nowait(
        self, commands: Sequence[Command], answers: list[asyncio.Future[Any]]
    ) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._answers(commands, answers, self.timeout)

    async def _execute(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        return await self._answers(commands, self._enqueue(commands), timeout)

    def _enqueue(self, commands: Sequence[Command]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        self._queue.extend(zip(commands, answers, strict=True))
        self._wanted.set()
        return answers

    async def _answers(
        self, commands: Sequence[Command], answers: list[asyncio.Future[Any]], timeout: float
    ) -> list[Any]:
        _, late = await asyncio.wait(answers, timeout=timeout)
        if late:
            # What arrived while this process was busy itself is not late.
            await asyncio.sleep(_GRACE_SECONDS)
            late = {answer for answer in answers if not answer.done()}
        for answer in late:
            answer.cancel()  # what was not sent yet is never sent
        if late:
            self._count("late", len(commands))
            self._lost("slow")
            raise StoreUnavailable
        found = [answer.result() for answer in answers]
        errors = [one for one in found if isinstance(one, Exception)]
        if errors:
            self._count("error", len(commands))
            if all(self._is_foreign(error) for error in errors):
                self._drop_foreign(commands)
            else:
                self._must_reconnect, self._error = True, errors[0]
                self._lost(type(errors[0]).__name__)  # not its text, which may be anyone's
            raise StoreUnavailable
        self._count("ok", len(commands))
        return found

    def _is_foreign(self, exc: Exception) -> bool:
        """Whether the server, or a script of ours, says that a value is not as we write it."""
        signs = ("WRONGTYPE", "not an integer", "attempt to", "FOREIGN")
        return type(exc) is self._errors.ResponseError and any(s in str(exc) for s in signs)

    def _drop_foreign(self, commands: Sequence[Command]) -> None:
        """Something that is not ours stands under our keys: it goes, and is counted."""
        self._count("foreign", 1)
        for command in commands:
            keys = command[3 : 3 + command[2]] if command[0] == "EVAL" else command[1:2]
            for key in keys:
                self.execute_nowait(("UNLINK", key))

    async def _pump(self) -> None:
        """Send what is queued, batch after batch; nobody who waits for an answer cancels this."""
        while not self._closed:
            await self._wanted.wait()
            batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
            if not self._queue:
                self._wanted.clear()
            batch = [(command, answer) for command, answer in batch if not answer.done()]
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        answers: list[Any]
        try:
            if self._must_reconnect:
                # The address may lead elsewhere by now, and an open connection never would.
                self._must_reconnect = False
                self._client = await self._another(self._client, _SOCKET_SECONDS)
            pipeline = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
        except Exception as exc:  # noqa: BLE001  whatever it was, each has to hear of it
            answers = [exc] * len(batch)
        for (_, answer), got in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(got)

    async def _another(self, client: Any, socket_timeout: float) -> Any:
        with contextlib.suppress(*self._failures):
            await client.aclose()
        return _client(self._address, socket_timeout)

    # -- away and back

    def _lost(self, reason: str) -> None:
        self.reason = reason
        if self.up:
            self.up = False
            self._losses += 1
            settled = self._beats >= _SETTLED
            least, most = HEARTBEAT_SECONDS / 4, _MAX_PAUSE_SECONDS
            self._pause = least if settled else min(2 * self._pause, most)
            self._beats = 0
            self._changed(reason)

    def mark_down(self) -> None:
        """Count the store as away: someone has waited for it as long as may be."""
        self._lost("slow")

    async def _beat(self) -> None:
        while not self._closed:
            await asyncio.sleep(HEARTBEAT_SECONDS if self.up else self._pause)
            with contextlib.suppress(StoreUnavailable):
                # Who is to come back has to be as quick as a request will want it.
                await self._send_beat(self.timeout if self.up else self.timeout / 4)

    async def _send_beat(self, timeout: float) -> None:
        """Write that this replica is there, and read how many are; so a full store is away too."""
        seen = round(SEEN_SECONDS * 1000)
        command = ("EVAL", scripts.HEARTBEAT, 1, f"{_PREFIX}:replicas", self._name, seen)
        (replicas,) = await self._execute([command], timeout)
        if not isinstance(replicas, int):  # whoever says that is no store
            self._must_reconnect, self._error = True, self._errors.InvalidResponse()
            self._lost("InvalidResponse")
            raise StoreUnavailable
        self.replicas = max(1, replicas)
        self.reason = None
        self._beats += 1
        if not self.up:
            self.up = True
            self._changed(None)

    # -- what is asked

    async def take(
        self, key: str, *, limit: int, want: int, seconds: float, timeout: float
    ) -> tuple[int, int, float]:
        """Take up to *want* of a window of *limit*, which begins with the first to take of it.

        Returns:
            How many were given, how many are left for others, and the seconds the window lasts.
        """
        name = f"{_PREFIX}:w:{key}"
        command = ("EVAL", scripts.TAKE, 1, name, limit, want, round(seconds * 1000))
        ((given, rest, milliseconds),) = await self.execute(command, timeout=timeout)
        return given, rest, milliseconds / 1000

    async def spend(self, key: str, *, limit: int | None, seconds: float, timeout: float) -> float:
        """Spend one of a budget: at most *limit* in any *seconds*; returns seconds to wait or 0."""
        names = [f"{_PREFIX}:{{{key}}}:{what}" for what in ("spent", "allowance", "pause")]
        most = round(LONGEST_SECONDS * 1000)
        command = ("EVAL", scripts.SPEND, 3, *names, limit or 0, round(seconds * 1000), most)
        (milliseconds,) = await self.execute(command, timeout=timeout)
        return float(milliseconds) / 1000

    def allow(self, key: str, allowance: int, seconds: float) -> None:
        """Share what upstream's bucket leaves for the next *seconds*."""
        name = f"{_PREFIX}:{{{key}}}:allowance"
        self.execute_nowait(("EVAL", scripts.ALLOW, 1, name, allowance, _milliseconds(seconds)))

    def pause(self, key: str, seconds: float) -> None:
        """Share that upstream wants nothing for *seconds*."""
        self.execute_nowait(("SET", f"{_PREFIX}:{{{key}}}:pause", 1, "PX", _milliseconds(seconds)))

    async def read(self, namespace: str, id_: str, *, timeout: float) -> tuple[bytes | None, float]:
        """Read a copy: its value, and the seconds until it expires."""
        key = _copy_key(namespace, id_)
        # In this order: of a copy that is replaced between the two, the older's time counts.
        milliseconds, value = await self.execute(("PTTL", key), ("GET", key), timeout=timeout)
        return (None if milliseconds == _NO_KEY else value), milliseconds / 1000

    async def claim(
        self, namespace: str, id_: str, token: str, seconds: float, *, timeout: float
    ) -> tuple[bool, bytes | None, float, int]:
        """Claim the one load of a session for *seconds*, and read its copy after that.

        Returns:
            Whether it is ours now; the copy and its seconds as in `read`; and the store's time,
            which tells purges before the load from purges during it.
        """
        copy = _copy_key(namespace, id_)
        command = ("EVAL", scripts.CLAIM, 2, copy, f"{copy}:load", token, round(seconds * 1000))
        ((held, value, milliseconds, time),) = await self.execute(command, timeout=timeout)
        return bool(held), value, milliseconds / 1000, time

    def hold(self, namespace: str, id_: str, token: str, seconds: float) -> None:
        """Keep a claim for *seconds* more."""
        name = f"{_copy_key(namespace, id_)}:load"
        self.execute_nowait(("EVAL", scripts.RENEW, 1, name, token, round(seconds * 1000)))

    def release(self, namespace: str, id_: str, token: str) -> None:
        """Give a claim up."""
        self.execute_nowait(
            ("EVAL", scripts.RENEW, 1, f"{_copy_key(namespace, id_)}:load", token, 0)
        )

    async def keep(
        self,
        namespace: str,
        ids: Sequence[str],
        value: bytes,
        *,
        token: str,
        claimed: int,
        until: float,
    ) -> str:
        """Keep a copy under each of its *ids*, the claimed one first, *until* the store's time.

        Only while the claim lasts: without it another replica has loaded or will, or the store has
        lost what it knew, purges too. Not over a copy that was asked for later, and came sooner.

        Returns:
            What became of it: kept, purged (since *claimed*) or superseded.
        """
        keys = [_copy_key(namespace, id_) for id_ in ids]
        purged = [("EVAL", scripts.PURGED, 1, f"{key}:purged", claimed) for key in keys]
        if any(await self.execute(*purged, timeout=self.timeout)):
            return "purged"
        about = (value, round(until * 1000), claimed)
        results = await self.execute(
            (
                "EVAL",
                scripts.KEEP,
                3,
                keys[0],
                f"{keys[0]}:purged",
                f"{keys[0]}:load",
                *about,
                token,
            ),
            *(("EVAL", scripts.KEEP, 2, key, f"{key}:purged", *about) for key in keys[1:]),
            timeout=self.timeout,
        )
        if all(result == _KEPT for result in results):
            return "kept"
        kept = [key for key, result in zip(keys, results, strict=True) if result == _KEPT]
        if kept:  # under all of its ids, or under none
            await self.execute(*(("UNLINK", key) for key in kept), timeout=self.timeout)
        return "purged" if _WAS_PURGED in results else "superseded"

    async def purge(self, namespace: str, id_: str, *, remembered: float) -> bytes | None:
        """Forget a copy, and for *remembered* seconds what was asked for before this; returns it.

        The whole timeout may be waited for: it is an operator who waits.
        """
        key = _copy_key(namespace, id_)
        command = ("EVAL", scripts.PURGE, 2, key, f"{key}:purged", round(remembered * 1000))
        (value,) = await self.execute(command, timeout=self.timeout)
        return value  # type: ignore[no-any-return]

    def drop(self, namespace: str, id_: str) -> None:
        """Forget what is under an id, whatever it is."""
        self.execute_nowait(("UNLINK", _copy_key(namespace, id_)))

    async def publish(self, stream: str, **fields: str) -> None:
        """Tell all replicas, this one included, on one of `_STREAMS`."""
        pairs = [part for pair in fields.items() for part in pair]
        key, kept = _stream_key(stream), _STREAMS[stream].kept
        command = ("XADD", key, "MAXLEN", "~", kept, "*", *pairs)
        await self.execute(command, timeout=self.timeout)

    async def is_silent(self, stream: str) -> bool:
        """Whether nothing was published on *stream* that is still kept."""
        command = ("XREVRANGE", _stream_key(stream), "+", "-", "COUNT", 1)
        (newest,) = await self.execute(command, timeout=self.timeout)
        return not newest

    async def _listen(
        self, heard: Callable[[dict[str, str]], None], caught_up: asyncio.Event
    ) -> None:
        """Hear what is published, for ever.

        A stream and not a channel: who was cut off reads afterwards what was said meanwhile.
        """
        last: dict[str, Any] = {}
        losses, connected, late = 0, False, False
        while not self._closed:
            try:
                if not connected or losses != self._losses:
                    losses = self._losses
                    # Whoever is there now, it may be another.
                    self._listener = await self._another(self._listener, _LISTEN_SECONDS)
                    await self._find_place(last, late=late)
                    connected = True
                block = _BLOCK_MILLISECONDS if caught_up.is_set() else None
                streams = await self._listener.xread(last, count=_MAX_BATCH, block=block)
                for key, messages in streams or ():
                    for number, fields in messages:
                        last[key.decode()] = number
                        self._hear(heard, fields)
            except Exception as exc:  # noqa: BLE001  whoever it was: what comes next is to be heard
                if self._is_foreign(exc):
                    await self._drop_foreign_streams()
                connected, late = False, True
                await asyncio.sleep(HEARTBEAT_SECONDS / 4)
                continue
            if not streams:
                caught_up.set()

    async def _drop_foreign_streams(self) -> None:
        for key in map(_stream_key, _STREAMS):
            try:
                await self._listener.xrevrange(key, count=1)
            except Exception as exc:  # noqa: BLE001
                if self._is_foreign(exc):
                    self._count("foreign", 1)
                    self.execute_nowait(("UNLINK", key))

    def _hear(self, heard: Callable[[dict[str, str]], None], fields: dict[bytes, bytes]) -> None:
        def text(data: bytes) -> str:
            return data.decode(errors="replace")

        try:
            heard({text(name): text(value) for name, value in fields.items()})
        except Exception:  # noqa: BLE001  whatever it is, the next message is to be heard
            self._count("foreign", 1)

    async def _find_place(self, last: dict[str, Any], *, late: bool) -> None:
        """Find after which messages to go on: where it was, or where a stream begins anew."""
        for name, stream in _STREAMS.items():
            key = _stream_key(name)
            newest = await self._listener.xrevrange(key, count=1)
            if key not in last:
                last[key] = "0-0" if late or stream.from_the_first or not newest else newest[0][0]
            elif not newest or _moment(newest[0][0]) < _moment(last[key]):
                last[key] = "0-0"


def _moment(number: bytes | str) -> tuple[int, ...]:
    text = number if isinstance(number, str) else number.decode()
    return tuple(map(int, text.split("-")))


def _what_is_wrong(exc: Exception, errors: Any) -> str:
    """Say what an operator can mend, in our words."""
    text, cause = str(exc), exc.__cause__ or exc.__context__
    known = (
        (isinstance(exc, errors.AuthenticationError), "rejects the name or the password"),
        (isinstance(exc, errors.NoPermissionError), "does not let its user do all that it has to"),
        ("DB index" in text, "has no database of that number"),
        ("Cluster mode is not enabled" in text, "is no cluster: leave +cluster out"),
        ("MOVED" in text, "is a cluster: write +cluster://"),
        (
            isinstance(cause, ssl.SSLCertVerificationError),
            "cannot be reached (its certificate is not trusted)",
        ),
        (isinstance(cause, ssl.SSLError), "cannot be reached (it does not speak TLS with us)"),
        (isinstance(exc, errors.InvalidResponse), "is no Valkey server, or wants TLS: valkeys://"),
        (isinstance(exc, errors.ResponseError), f"cannot be used ({type(exc).__name__})"),
    )
    return next((words for so, words in known if so), "cannot be reached")


@dataclass(frozen=True, slots=True)
class _Stream:
    """What replicas tell one another, and how much of it is kept."""

    kept: int
    from_the_first: bool
    """Whether a replica that starts hears all that is kept, or only what is new."""


_STREAMS = {
    "purges": _Stream(10_000, from_the_first=False),
    "revocations": _Stream(100_000, from_the_first=True),
}


def _milliseconds(seconds: float) -> int:
    return round(1000 * min(max(seconds, 0.001), LONGEST_SECONDS))


def _stream_key(name: str) -> str:
    # One hash tag, for all are read at once.
    return f"{_PREFIX}:{{told}}:{name}"


def _copy_key(namespace: str, id_: str) -> str:
    # In a cluster, what belongs to one id lives in one place, so that a script can see it all.
    return f"{_PREFIX}:{{{namespace}:{id_}}}"


def _client(address: StoreAddress, socket_timeout: float) -> Any:
    from valkey.asyncio import Valkey, ValkeyCluster  # noqa: PLC0415  as above
    from valkey.asyncio.retry import Retry  # noqa: PLC0415
    from valkey.backoff import NoBackoff  # noqa: PLC0415

    options: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": _SOCKET_SECONDS,
        "socket_keepalive": True,
        "lib_name": None,  # its user may do nothing that is not needed
        "lib_version": None,
    }
    if address.tls:
        options |= {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": address.ca_file,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    if address.cluster:
        return ValkeyCluster(
            address.host, address.port, connection_error_retry_attempts=0, **options
        )
    return Valkey(
        host=address.host,
        port=address.port,
        db=address.database,
        max_connections=2,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


_KEPT, _WAS_PURGED, _NO_KEY = 1, 0, -2
