"""How a gateway reaches Valkey, and what its errors mean. The only user of the Valkey client."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

T = TypeVar("T")
SOCKET_SECONDS: Final = 1.0
"""Seconds: a connection that is silent for longer is closed, and a new one is opened."""
_DENIED: Final = ("has no permissions to run", "can't run this command or subcommand")
"""Texts of the errors of a script that runs a command which the store does not permit."""
_FOREIGN_ERRORS: Final = ("WRONGTYPE", "not an integer", "attempt to", "FOREIGN")
"""Texts of the errors of a command or script whose key holds a value that no gateway wrote."""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """The parts of the address of the store."""

    host: str
    port: int
    username: str | None
    password: str | None
    database: int
    tls: bool
    cluster: bool
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"StoreAddress({self.host}:{self.port})"  # without the credentials


class StoreError(Exception):
    """The store cannot be used, and why; the text holds no credential and no text of the server."""


class StoreUnavailable(Exception):
    """The store does not answer, answers too late, or answers with an error."""


async def if_available(answer: Awaitable[T]) -> T | None:
    """Wait for an answer of the store; None if the store is unavailable.

    Other code catches `StoreUnavailable` only where the ops port refuses a purge or a revocation.
    """
    try:
        return await answer
    except StoreUnavailable:
        return None


class ClientFactory:
    """Makes clients for one address, and explains their errors.

    Attributes:
        errors: what a client raises when it cannot reach the store.
        pack: writes a command.
        cluster: whether the address is that of a cluster.
    """

    def __init__(self, address: StoreAddress) -> None:
        from valkey import exceptions  # noqa: PLC0415  takes 0.1 s; only a store needs it

        self.errors = (
            exceptions.ValkeyError,
            exceptions.ValkeyClusterException,  # not derived from ValkeyError
            OSError,
            TimeoutError,
        )
        from libvalkey import pack_command  # noqa: PLC0415

        self.pack: Callable[[tuple[Any, ...]], bytes] = pack_command
        self.cluster = address.cluster
        self._exceptions = exceptions
        self._address = address

    def connect(self, socket_timeout: float) -> Any:
        """Make a client; it opens connections when it is used."""
        from valkey.asyncio import Valkey, ValkeyCluster  # noqa: PLC0415  as above
        from valkey.asyncio.retry import Retry  # noqa: PLC0415
        from valkey.backoff import NoBackoff  # noqa: PLC0415

        address = self._address
        options: dict[str, Any] = {
            "username": address.username,
            "password": address.password,
            "socket_timeout": socket_timeout,
            "socket_connect_timeout": SOCKET_SECONDS,
            "socket_keepalive": True,
            "lib_name": None,  # CLIENT SETINFO would need one more permission
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
        client: Any
        if address.cluster:
            client = ValkeyCluster(
                address.host, address.port, connection_error_retry_attempts=0, **options
            )
            if address.tls:
                nodes = client.nodes_manager
                nodes.connection_kwargs["connection_class"] = _tls_connection()
                for node in nodes.startup_nodes.values():
                    node.connection_class = _tls_connection()
        else:
            client = Valkey(
                host=address.host,
                port=address.port,
                db=address.database,
                max_connections=2,  # for commands, and for heartbeats
                retry=Retry(NoBackoff(), 0),
                **options,
            )
            if address.tls:
                client.connection_pool.connection_class = _tls_connection()
        # The client's own reading drops all but the last of the fields that a message repeats.
        for command in ("XREAD", "XREVRANGE"):
            client.set_response_callback(command, _unread)
        return client

    # -- a connection of our own

    def endpoint(self) -> dict[str, Any]:
        """Say where, and how, to open a connection to the server."""
        address = self._address
        if not address.tls:
            return {"host": address.host, "port": address.port}
        context = ssl.create_default_context(cafile=address.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # see `_tls_connection`
        return {"host": address.host, "port": address.port, "ssl": context}

    def greeting(self) -> list[tuple[Any, ...]]:
        """List the commands that a new connection begins with."""
        address, commands = self._address, list[tuple[Any, ...]]()
        if address.password is not None:
            names = (address.username,) if address.username else ()
            commands.append(("AUTH", *names, address.password))
        if address.database:
            commands.append(("SELECT", address.database))
        return commands

    def reader(self) -> Any:
        """Make a reader of answers; errors among them are the client's."""
        from libvalkey import Reader  # noqa: PLC0415  only a store needs it
        from valkey.asyncio.connection import DefaultParser  # noqa: PLC0415

        return Reader(
            protocolError=self._exceptions.InvalidResponse, replyError=DefaultParser.parse_error
        )

    # -- the client

    async def reconnect(self, client: Any, socket_timeout: float) -> Any:
        """Replace a client: its connections may lead to a former server of the address."""
        await self.close(client)
        return self.connect(socket_timeout)

    async def close(self, client: Any) -> None:
        with contextlib.suppress(*self.errors):
            await client.aclose()

    def is_foreign(self, exc: Exception) -> bool:
        """Whether a command failed because no gateway wrote the value under its key."""
        response_error = type(exc) is self._exceptions.ResponseError
        return response_error and any(text in str(exc) for text in _FOREIGN_ERRORS)

    def not_valkey(self) -> Exception:
        """Make the error of a server that is not a Valkey server."""
        return self._exceptions.InvalidResponse()

    def explain(self, exc: Exception) -> StoreError:
        """Say what an operator can mend, without a text of the server."""
        exceptions, text, cause = self._exceptions, str(exc), exc.__cause__ or exc.__context__
        reasons = (
            (
                isinstance(exc, exceptions.AuthenticationError),
                "rejects the name or the password",
            ),
            (
                isinstance(exc, exceptions.NoPermissionError) or any(d in text for d in _DENIED),
                "does not permit a command that the gateway needs (docs/FLEET.md)",
            ),
            ("DB index" in text, "has no database with that number"),
            ("Cluster mode is not enabled" in text, "is not a cluster: leave +cluster out"),
            ("MOVED" in text, "is a cluster: write +cluster://"),
            (
                isinstance(cause, ssl.SSLCertVerificationError),
                f"cannot be reached (its certificate is not trusted): {_verify_message(cause)}",
            ),
            (isinstance(cause, ssl.SSLError), "cannot be reached (the TLS handshake fails)"),
            (
                isinstance(exc, exceptions.InvalidResponse),
                "is not a Valkey server, or requires TLS: valkeys://",
            ),
            (isinstance(exc, exceptions.ResponseError), f"cannot be used ({type(exc).__name__})"),
            (True, "cannot be reached"),
        )
        return self.error(next(reason for applies, reason in reasons if applies))

    def error(self, reason: str) -> StoreError:
        """Make the error of this address."""
        return StoreError(f"the store at {self._address.host}:{self._address.port} {reason}")


def _verify_message(cause: BaseException | None) -> str:
    """Return the reason of the TLS library; it quotes nothing of the certificate."""
    return str(getattr(cause, "verify_message", ""))


@cache
def _tls_connection() -> Any:
    """Make the class of a TLS connection, with the same rules in every version of Python.

    From 3.13 on, Python refuses certificates without some extensions of RFC 5280, which many
    private authorities leave out. A store often has such an authority, so the gateway verifies the
    chain and the host name, and not the extensions.
    """
    from valkey.asyncio.connection import SSLConnection  # noqa: PLC0415

    class TlsConnection(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.get().verify_flags &= ~ssl.VERIFY_X509_STRICT

    return TlsConnection


def _unread(answer: Any, **_: Any) -> Any:
    return answer


async def cancel(tasks: Collection["asyncio.Task[None]"]) -> None:
    """Cancel tasks that use a client, until all of them end.

    The client may mistake a cancellation for its timeout, so one may not be enough.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=SOCKET_SECONDS / 4)
