"""What replicas share, as far as Valkey sees it. The only user of the Valkey client.

Commands of one moment leave together on one connection, and each answer goes to the command in its
place: whoever leaves while a command is under way cancels nothing, so no answer can ever reach
another's question. Nobody waits for an answer longer than `Store.timeout`; when one is late, wrong
or impossible, the store counts as away, everyone goes on locally at once, and a heartbeat finds out
when it is back.

Scripts are sent as text with each use: they are short, and so neither a restart nor a failover can
lose them.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

HEARTBEAT_SECONDS: Final = 1.0
SEEN_SECONDS: Final = 5.0
"""A replica that was not heard of for so long is none."""
UNKNOWN_REPLICAS: Final = 4
"""Taken for the number of replicas while the store has never been seen."""
_SOCKET_SECONDS: Final = 1.0
"""A connection that says nothing for so long is closed, and a new one opened."""
_OPEN_SECONDS: Final = 3.0
_BLOCK_MILLISECONDS: Final = 1000
_HEARD_AT_ONCE: Final = 1000
_HEAR_SECONDS: Final = 30.0
"""To hear what was told before this replica started; a hundred thousand take two."""
_MAX_BATCH: Final = 500
_GRACE_SECONDS: Final = 0.001
_PREFIX: Final = "bff1"

Command = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Place:
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


class Away(Exception):  # noqa: N818  a state of the world rather than a mistake
    """The store is not to be had at the moment."""


class Store:
    """One Valkey server or cluster.

    Args:
        place: where it is.
        timeout: seconds that a request may wait for it.
        name: this replica's, unlike any other's.
        wall: Unix seconds.
        count: told of commands by outcome: ok, late, error, foreign.
        changed: told when it goes away (with a reason) or comes back (with None).
    """

    def __init__(
        self,
        place: Place,
        *,
        timeout: float,
        name: str,
        wall: Callable[[], float],
        count: Callable[[str, int], None],
        changed: Callable[[str | None], None],
    ) -> None:
        self.up = False
        self.replicas = UNKNOWN_REPLICAS
        self.timeout = timeout
        self.reason: str | None = "not asked yet"
        self._place = place
        self._name = name
        self._wall = wall
        self._count = count
        self._changed = changed
        self._queue: list[tuple[Command, asyncio.Future[Any]]] = []
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._told: set[asyncio.Task[None]] = set()
        self._closed = False
        self._heard_all = asyncio.Event()
        """Set once all that was told before this replica started has been heard."""
        from valkey import exceptions  # noqa: PLC0415  a tenth of a second: who has no store saves it

        self._errors = exceptions
        self._failures = (exceptions.ValkeyError, OSError, TimeoutError)
        self._client = _client(place, _SOCKET_SECONDS)
        # A listener waits for seconds at a time, on a connection of its own.
        self._listener = _client(place, 2 * _SOCKET_SECONDS + _BLOCK_MILLISECONDS / 1000)

    async def open(self, heard: Callable[[dict[str, str]], None]) -> None:
        """Connect, begin to beat, and hear what was published that who starts has to know.

        Raises:
            StoreError: it cannot be used now; it goes on being tried all the same.
        """
        for work in (self._pump(), self._beat(), self._listen(heard)):
            self._tasks.append(asyncio.create_task(work))
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._greet()
            async with asyncio.timeout(_HEAR_SECONDS):
                await self._heard_all.wait()
        except Away:
            raise self._trouble(f"cannot be used ({self.reason})") from None
        except self._errors.AuthenticationError:
            raise self._trouble("rejects the name or the password") from None
        except self._errors.ResponseError as exc:
            raise self._trouble(f"answers with an error ({type(exc).__name__})") from None
        except self._failures as exc:
            tls = isinstance(exc.__cause__ or exc.__context__, ssl.SSLError)
            raise self._trouble(
                "cannot be reached" + (" (its certificate is not trusted)" if tls else "")
            ) from None

    async def _greet(self) -> None:
        await self._client.ping()
        await self._send_beat(_OPEN_SECONDS)

    def _trouble(self, what: str) -> StoreError:
        place = self._place
        return StoreError(f"the store at {place.host}:{place.port} {what}")

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

    async def ask(self, *commands: Command, within: float) -> list[Any]:
        """Send *commands* and wait for their answers, *within* seconds.

        Raises:
            Away: there are none.
        """
        if not self.up:
            raise Away
        return await self._ask(commands, within)

    def tell(self, *commands: Command) -> None:
        """Send *commands* without waiting; when the store is away they are dropped."""
        if self.up:
            task = asyncio.create_task(self._tell(commands, self._enqueue(commands)))
            self._told.add(task)
            task.add_done_callback(self._told.discard)

    async def _tell(self, commands: Sequence[Command], answers: list[asyncio.Future[Any]]) -> None:
        with contextlib.suppress(Away):
            await self._answers(commands, answers, self.timeout)

    async def _ask(self, commands: Sequence[Command], within: float) -> list[Any]:
        return await self._answers(commands, self._enqueue(commands), within)

    def _enqueue(self, commands: Sequence[Command]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        self._queue.extend(zip(commands, answers, strict=True))
        self._wanted.set()
        return answers

    async def _answers(
        self, commands: Sequence[Command], answers: list[asyncio.Future[Any]], within: float
    ) -> list[Any]:
        _, late = await asyncio.wait(answers, timeout=within)
        if late:
            # What arrived while this process was busy itself is not late.
            await asyncio.sleep(_GRACE_SECONDS)
            late = {answer for answer in answers if not answer.done()}
        for answer in late:
            answer.cancel()  # what was not sent yet is never sent
        if late:
            self._count("late", len(commands))
            self._lost("slow")
            raise Away
        found = [answer.result() for answer in answers]
        errors = [one for one in found if isinstance(one, Exception)]
        if errors:
            self._count("error", len(commands))
            if all(self._is_foreign(error) for error in errors):
                self._drop_foreign(commands)
            else:
                self._lost(type(errors[0]).__name__)  # not its text, which may be anyone's
            raise Away
        self._count("ok", len(commands))
        return found

    def _is_foreign(self, exc: Exception) -> bool:
        """Whether the server says that a value is not of the kind that we write."""
        signs = ("WRONGTYPE", "not an integer", "attempt to")
        return type(exc) is self._errors.ResponseError and any(s in str(exc) for s in signs)

    def _drop_foreign(self, commands: Sequence[Command]) -> None:
        """Something that is not ours stands under our keys: it goes, and is counted."""
        self._count("foreign", 1)
        for command in commands:
            keys = command[3 : 3 + command[2]] if command[0] == "EVAL" else command[1:2]
            for key in keys:
                self.tell(("UNLINK", key))

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
            pipeline = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
        except Exception as exc:  # noqa: BLE001  whatever it was, each has to hear of it
            answers = [exc] * len(batch)
        for (_, answer), got in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(got)

    # -- away and back

    def _lost(self, reason: str) -> None:
        self.reason = reason
        if self.up:
            self.up = False
            self._changed(reason)

    def give_up(self) -> None:
        """Count the store as away: someone has waited for it as long as may be."""
        self._lost("slow")

    async def _beat(self) -> None:
        while not self._closed:
            await asyncio.sleep(HEARTBEAT_SECONDS if self.up else HEARTBEAT_SECONDS / 4)
            with contextlib.suppress(Away):
                await self._send_beat(self.timeout)

    async def _send_beat(self, within: float) -> None:
        """Write that this replica is there, and read how many are; so a full store is away too."""
        key, now = f"{_PREFIX}:replicas", round(self._wall() * 1000)
        oldest = now - round(SEEN_SECONDS * 1000)
        _, _, replicas = await self._ask(
            [
                ("ZADD", key, now, self._name),
                ("ZREMRANGEBYSCORE", key, "-inf", oldest),
                ("ZCARD", key),
            ],
            within,
        )
        self.replicas = max(1, replicas)
        self.reason = None
        if not self.up:
            self.up = True
            self._changed(None)

    # -- what is asked

    async def take(
        self, key: str, *, limit: int, want: int, seconds: float, within: float
    ) -> tuple[int, int, float]:
        """Take up to *want* of a window of *limit*, which begins with the first to take of it.

        Returns:
            How many were given, how many are left for others, and the seconds the window lasts.
        """
        name = f"{_PREFIX}:w:{key}"
        command = ("EVAL", _TAKE, 1, name, limit, want, round(seconds * 1000))
        ((given, rest, milliseconds),) = await self.ask(command, within=within)
        return given, rest, milliseconds / 1000

    async def spend(self, key: str, *, limit: int | None, seconds: float, within: float) -> float:
        """Spend one of a budget: at most *limit* in any *seconds*; returns seconds to wait or 0."""
        names = [f"{_PREFIX}:{{{key}}}:{what}" for what in ("spent", "allowance", "pause")]
        command = ("EVAL", _SPEND, 3, *names, limit or 0, round(seconds * 1000))
        (milliseconds,) = await self.ask(command, within=within)
        return float(milliseconds) / 1000

    def allow(self, key: str, allowance: int, seconds: float) -> None:
        """Share what upstream's bucket leaves for the next *seconds*."""
        name = f"{_PREFIX}:{{{key}}}:allowance"
        self.tell(("SET", name, allowance, "PX", max(1, round(seconds * 1000))))

    def pause(self, key: str, seconds: float) -> None:
        """Share that upstream wants nothing for *seconds*."""
        self.tell(("SET", f"{_PREFIX}:{{{key}}}:pause", 1, "PX", max(1, round(seconds * 1000))))

    async def read(self, space: str, id_: str, *, within: float) -> tuple[bytes | None, float]:
        """Read a copy: its value, and the seconds until it expires."""
        key = _copy_key(space, id_)
        value, milliseconds = await self.ask(("GET", key), ("PTTL", key), within=within)
        return value, milliseconds / 1000

    async def claim(
        self, space: str, id_: str, token: str, seconds: float, *, within: float
    ) -> tuple[bool, bytes | None, float, int]:
        """Claim the one load of a session for *seconds*, and read its copy after that.

        Returns:
            Whether it is ours now; the copy and its seconds as in `read`; and the store's time,
            which tells purges before the load from purges during it.
        """
        copy = _copy_key(space, id_)
        command = ("EVAL", _CLAIM, 2, copy, f"{copy}:load", token, round(seconds * 1000))
        ((held, value, milliseconds, time),) = await self.ask(command, within=within)
        return bool(held), value, milliseconds / 1000, time

    def hold(self, space: str, id_: str, token: str, seconds: float) -> None:
        """Keep a claim for *seconds* more."""
        name = f"{_copy_key(space, id_)}:load"
        self.tell(("EVAL", _HOLD, 1, name, token, round(seconds * 1000)))

    def release(self, space: str, id_: str, token: str) -> None:
        """Give a claim up."""
        self.tell(("EVAL", _HOLD, 1, f"{_copy_key(space, id_)}:load", token, 0))

    async def keep(
        self, space: str, ids: Sequence[str], value: bytes, seconds: float, *, claimed: int
    ) -> bool:
        """Keep a copy under each of its *ids* for *seconds*, unless one was purged since *claimed*.

        Returns:
            Whether it is kept.
        """
        keys = [_copy_key(space, id_) for id_ in ids]
        purges = await self.ask(*(("GET", f"{key}:purged") for key in keys), within=self.timeout)
        if any(purged is not None and int(purged) >= claimed for purged in purges):
            return False
        milliseconds = max(1, round(seconds * 1000))
        kept = await self.ask(
            *(
                ("EVAL", _KEEP, 2, key, f"{key}:purged", value, milliseconds, claimed)
                for key in keys
            ),
            within=self.timeout,
        )
        if not all(kept):  # purged between the two: under the other id too, then
            await self.ask(*(("UNLINK", key) for key in keys), within=self.timeout)
            return False
        return True

    async def purge(self, space: str, id_: str, *, remembered: float) -> bytes | None:
        """Forget a copy, and for *remembered* seconds what was asked for before this; returns it.

        The whole timeout may be waited for: it is an operator who waits.
        """
        key = _copy_key(space, id_)
        command = ("EVAL", _PURGE, 2, key, f"{key}:purged", round(remembered * 1000))
        (value,) = await self.ask(command, within=self.timeout)
        return value  # type: ignore[no-any-return]

    def drop(self, space: str, id_: str) -> None:
        """Forget what is under an id, whatever it is."""
        self.tell(("UNLINK", _copy_key(space, id_)))

    async def publish(self, stream: str, **fields: str) -> None:
        """Tell all replicas, this one included, on one of `_STREAMS`."""
        pairs = [part for pair in fields.items() for part in pair]
        key, kept = _stream_key(stream), _STREAMS[stream].kept
        command = ("XADD", key, "MAXLEN", "~", kept, "*", *pairs)
        await self.ask(command, within=self.timeout)

    async def is_silent(self, stream: str) -> bool:
        """Whether nothing was published on *stream* that is still kept."""
        command = ("XREVRANGE", _stream_key(stream), "+", "-", "COUNT", 1)
        (newest,) = await self.ask(command, within=self.timeout)
        return not newest

    async def _listen(self, heard: Callable[[dict[str, str]], None]) -> None:
        """Hear what is published, for ever.

        A stream and not a channel: who was cut off reads afterwards what was said meanwhile.
        """
        last: dict[str, Any] = {}
        block: int | None = None
        while not self._closed:
            try:
                for name, stream in _STREAMS.items():
                    if (key := _stream_key(name)) not in last:
                        newest = () if stream.from_the_first else await self._newest(key)
                        last[key] = newest[0][0] if newest else "0-0"
                streams = await self._listener.xread(last, count=_HEARD_AT_ONCE, block=block)
            except self._failures:
                await asyncio.sleep(HEARTBEAT_SECONDS / 4)
                continue
            for key, messages in streams or ():
                for number, fields in messages:
                    last[key.decode()] = number
                    heard({k.decode(): v.decode(errors="replace") for k, v in fields.items()})
            if not streams:
                block = _BLOCK_MILLISECONDS
                self._heard_all.set()

    async def _newest(self, key: str) -> Any:
        return await self._listener.xrevrange(key, count=1)


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


def _stream_key(name: str) -> str:
    # One hash tag, for all are read at once.
    return f"{_PREFIX}:{{told}}:{name}"


def _copy_key(space: str, id_: str) -> str:
    # In a cluster, what belongs to one id lives in one place, so that a script can see it all.
    return f"{_PREFIX}:{{{space}:{id_}}}"


def _client(place: Place, socket_timeout: float) -> Any:
    from valkey.asyncio import Valkey, ValkeyCluster  # noqa: PLC0415  as above
    from valkey.asyncio.retry import Retry  # noqa: PLC0415
    from valkey.backoff import NoBackoff  # noqa: PLC0415

    options: dict[str, Any] = {
        "username": place.username,
        "password": place.password,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": _SOCKET_SECONDS,
        "socket_keepalive": True,
    }
    if place.tls:
        options |= {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": place.ca_file,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    if place.cluster:
        return ValkeyCluster(place.host, place.port, connection_error_retry_attempts=0, **options)
    return Valkey(
        host=place.host,
        port=place.port,
        db=place.database,
        max_connections=2,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


# Copies, claims and purges of one id share a hash tag. Times are the server's own.

_TAKE = """
local used = tonumber(redis.call('GET', KEYS[1]) or 0)
local given = math.max(0, math.min(tonumber(ARGV[2]), tonumber(ARGV[1]) - used))
if given > 0 then redis.call('INCRBY', KEYS[1], given) end
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  left = tonumber(ARGV[3])
end
return {given, math.max(0, tonumber(ARGV[1]) - used - given), left}
"""

_SPEND = """
local wait = redis.call('PTTL', KEYS[3])
if wait > 0 then return wait end
local allowance = redis.call('GET', KEYS[2])
if allowance and tonumber(allowance) < 1 then return math.max(1, redis.call('PTTL', KEYS[2])) end
local limit = tonumber(ARGV[1])
if limit > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  if redis.call('LLEN', KEYS[1]) >= limit then
    local oldest = tonumber(redis.call('LINDEX', KEYS[1], limit - 1))
    local wait = math.ceil((oldest - now) / 1000) + ARGV[2]
    if wait > 0 then return wait end
  end
  redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
  redis.call('LTRIM', KEYS[1], 0, limit - 1)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if allowance then redis.call('DECR', KEYS[2]) end
return 0
"""

_CLAIM = """
local held = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
local time = redis.call('TIME')
local copy = redis.call('GET', KEYS[1])
return {held and 1 or 0, copy, redis.call('PTTL', KEYS[1]), time[1] * 1000000 + time[2]}
"""

_HOLD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

_KEEP = """
local purged = redis.call('GET', KEYS[2])
if purged and tonumber(purged) >= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_PURGE = """
local time = redis.call('TIME')
local copy = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], string.format('%.0f', time[1] * 1000000 + time[2]), 'PX', ARGV[1])
return copy
"""
