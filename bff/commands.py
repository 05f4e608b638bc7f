"""The commands that serve nothing: they mint and explain tokens, and talk to a running gateway."""

import asyncio
import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from typing import Any, Final, NoReturn, TypeVar

import click

from bff.clock import system_clock
from bff.config import reader, values
from bff.config.settings import EnvironmentSettings, Settings, SettingsError
from bff.config.typed import InvalidValue
from bff.health import address
from bff.ops import client
from bff.ops import revoke as revoke_
from bff.ops import status as status_
from bff.ops.check import Page
from bff.ops.check_token import explain_token
from bff.server.hardening import has_threads, least_files, least_threads, max_files
from bff.sessions.ids import is_id
from bff.tokens.mint import mint

T = TypeVar("T")

_REFRESH_SECONDS: Final = 2.0
"""Seconds between two screens of `bff status`."""


def read_environ(**overrides: Any) -> dict[str, str]:
    """Read the variables; *overrides* that are not None replace some of them."""
    environ = dict(os.environ)  # noqa: TID251  the one place
    return environ | {name: str(v) for name, v in overrides.items() if v is not None}


def load(environ: dict[str, str]) -> Settings:
    """Read the settings, or exit with all problems."""
    try:
        return reader.load(environ)
    except SettingsError as exc:
        refuse(exc)


def refuse(exc: SettingsError) -> NoReturn:
    """Exit with the problems of the settings."""
    problems = "\n".join(f"  - {problem.replace('`', '')}" for problem in exc.problems)
    exit_with(f"These settings cannot be used:\n{problems}\nSee {Page.SETTINGS}")


def exit_with(text: str, status: int = 2) -> NoReturn:
    """Exit with a text for the operator."""
    click.echo(text, err=True)
    sys.exit(status)


def check_limits(workers: int) -> None:
    """Exit if the system allows too little: workers would end and start for ever."""
    if max_files() < least_files(workers):
        exit_with(
            f"The limit of open files is {max_files()}, but a start with --workers {workers} needs "
            f"at least {least_files(workers)}; raise it (ulimit -n, LimitNOFILE=)"
        )
    if not has_threads(workers):
        exit_with(
            f"A start with --workers {workers} needs {least_threads(workers)} threads, which the "
            "system does not allow; raise its limits of tasks (TasksMax=, pids_limit) and of "
            "memory (ulimit -v)"
        )


_NOT_WRITTEN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _is_of_output(exc: BaseException) -> bool:
    """Whether a write of `click.echo` failed; another file may have no space either."""
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    return frame.f_code is click.echo.__code__


class Command(click.Command):
    """A command that takes each option once, unless the option is repeatable, and with a value.

    If an option were given twice, click would use the last value alone: one revocation would be
    missing, or a token would name another person. An empty value is that of an unset variable.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a repeated option, and one without a value."""
        if not ctx.resilient_parsing:  # while a shell completes, a word may be missing
            parsed, _, given = self.make_parser(ctx).parse_args(list(args))
            for option in given:
                if not isinstance(option, click.Option) or option.is_flag:
                    continue
                if not option.multiple and given.count(option) > 1:
                    raise click.UsageError(f"Give {option.opts[0]} once", ctx)
                value = parsed[str(option.name)]
                if not all(text.strip() for text in (value if option.multiple else [value])):
                    raise click.UsageError(f"{option.opts[0]} is empty; give it a value", ctx)
        return super().parse_args(ctx, args)


class Commands(click.Group):
    """The commands of `bff`."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; if its output cannot be written, say so in one line."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # Latin-1 has not every letter of a name
                with contextlib.suppress(OSError):  # a write fails too, which is reported below
                    stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:
            if exc.errno not in _NOT_WRITTEN or not _is_of_output(exc):
                raise
            # Python writes the rest at the end of the process, and that must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            exit_with(f"Cannot write the output ({exc.strerror})", 1)


_ops_option = click.option(
    "--ops",
    metavar="HOST:PORT",
    help="Address of the gateway's ops port; default: BFF_OPS_HOST and BFF_OPS_PORT.",
)


def _session_ids(*ids: str) -> tuple[str, ...]:
    if not all(map(is_id, ids)):  # an empty id would make a scope that covers every session
        raise click.UsageError("A session's id has 1 to 256 characters and is neither . nor ..")
    return ids


def _browser_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    """Refuse an address that no browser uses, or that holds a password."""
    try:
        return None if url is None else values.url(url, "https://gateway.example.com")
    except InvalidValue as exc:
        raise click.UsageError(f"--url {exc}") from None


url_option = click.option(
    "--url",
    callback=_browser_url,
    help="With --probe: also test the gateway at this address, as browsers do.",
)


def _renamed(_: click.Context, __: click.Parameter, used: bool) -> None:
    if used:
        raise click.UsageError("bff token --revoke is renamed to bff revoke")


@click.command(cls=Command)
@click.option("--session", "sessions", multiple=True, help="Id of a session to allow; repeatable.")
@click.argument("more", nargs=-1, metavar="[ID]...")
@click.option(
    "--ttl",
    type=click.IntRange(1, 86400 * 30),
    default=900,
    show_default=True,
    help="Seconds until the token expires.",
)
@click.option("--actor", help="Holder of the token (act.sub); rate limits count per actor.")
@click.option("--jti", help="Id of the token, which bff revoke --jti takes.")
@click.option("--environment", "name", help="Environment of the token, if there are several.")
@click.option(
    "--explain",
    "explained",
    metavar="TOKEN",
    help="Explain a token instead, check by check; - reads it from standard input.",
)
@click.option(
    "--revoke",
    "--issued-before",
    is_flag=True,
    hidden=True,
    is_eager=True,
    expose_value=False,
    callback=_renamed,
)
def token(
    sessions: tuple[str, ...],
    more: tuple[str, ...],
    ttl: int,
    actor: str | None,
    jti: str | None,
    name: str | None,
    explained: str | None,
) -> None:
    """Mint a token for named sessions, or explain one."""
    if explained is not None:
        if sessions or more or actor or jti:
            raise click.UsageError("--explain mints no token; give it without those options")
        text = sys.stdin.read() if explained == "-" else explained
        sys.exit(_explain(text.strip().removeprefix("Bearer ").strip()))
    ids = _session_ids(*sessions, *more)
    if not ids:
        raise click.UsageError("Name a session: --session ID")
    environment = _environment(load(read_environ()), name)
    if not environment.signing_keys or environment.learn:
        exit_with(
            "Minting needs "
            + (
                "BFF_ENVIRONMENT_ID, which is not set; bff check --probe shows it"
                if environment.signing_keys
                else "a signing key; set BFF_SIGNING_KEYS to a new one: openssl rand -hex 32"
            )
        )
    click.echo(
        mint(
            environment.signing_keys[0].reveal(),
            environment_id=environment.id or "bff",
            scopes=[f"read:sessions:{id_}" for id_ in ids],
            issued=int(system_clock()[1]),
            ttl=ttl,
            actor=actor,
            jti=jti,
        )
    )


def _explain(text: str) -> int:
    """Print every check of a token, and what it may read; returns 1 if one failed."""
    settings = load(read_environ())
    clock = system_clock()
    checks, granted = asyncio.run(explain_token(settings, text, clock[1]))
    labels = {True: "OK", False: "PROBLEM", None: "UNSURE"}
    for check in checks:
        click.echo(f"{labels[check.passed]:<7}  {check.name}: {check.text}")
    click.echo(f"\nSessions that its scopes name: {granted}")
    return int(any(check.passed is False for check in checks))


def _environment(settings: Settings, name: str | None) -> EnvironmentSettings:
    environments = {environment.name: environment for environment in settings.environments}
    if name is None and len(environments) == 1:
        return settings.environments[0]
    if name not in environments:
        exit_with(f"Name the environment: --environment {'|'.join(environments)}")
    return environments[name]


@click.command(cls=Command)
@click.option("--session", "sessions", multiple=True, help="Session, by either id; repeatable.")
@click.argument("more", nargs=-1, metavar="[ID]...")
@click.option("--actor", "subject", metavar="SUBJECT", help="Tokens with this act.sub or sub.")
@click.option("--jti", metavar="ID", help="The one token with this id.")
@click.option(
    "--issued-before",
    type=float,
    metavar="SECONDS",
    help="Only tokens issued before this moment (Unix seconds; default: now). Alone: all such.",
)
@click.option(
    "--ttl",
    type=float,
    metavar="SECONDS",
    help="How long the revocation is kept (default: 30 days); longer than your tokens live.",
)
@click.option("--list", "listing", is_flag=True, help="List the revocations in force.")
@click.option("--undo", is_flag=True, help="Undo the revocation that the other options name.")
@_ops_option
def revoke(
    sessions: tuple[str, ...],
    more: tuple[str, ...],
    ops: str | None,
    listing: bool,
    undo: bool,
    **members: str | float | None,
) -> None:
    """Revoke tokens at a running gateway, or list or undo revocations.

    Name one of --session, --actor and --jti, or --issued-before alone.
    """
    if listing:
        if sessions or more or undo or any(value is not None for value in members.values()):
            raise click.UsageError("--list shows all revocations; give it with --ops alone")
        click.echo("\n".join(_at_ops_port(ops, revoke_.listed)))
        return
    ids = _session_ids(*sessions, *more)
    body = {name: value for name, value in members.items() if value is not None}
    kinds = bool(ids) + len(body.keys() & {"subject", "jti"})
    if kinds > 1 or (not kinds and "issued_before" not in body):
        raise click.UsageError(
            "Name what to revoke: one of --session, --actor and --jti, or --issued-before"
        )
    for one in [body | {"session": id_} for id_ in ids] or [body]:
        click.echo(_at_ops_port(ops, partial(revoke_.revoke, body=one, undo=undo)))


@click.command(cls=Command)
@click.option("--watch", is_flag=True, help="Refresh it; the default on a terminal.")
@click.option("--once", is_flag=True, help="Print it once, also on a terminal.")
@_ops_option
def status(watch: bool, once: bool, ops: str | None) -> None:
    """Show a running gateway on one screen."""
    if watch and once:
        raise click.UsageError("Give one of --watch and --once")

    def read(host: str, port: int) -> status_.Reading:
        return status_.read(host, port, system_clock()[0])

    before = None
    watch = (watch or sys.stdout.isatty()) and not once
    while True:
        now = _at_ops_port(ops, read)
        text = status_.screen(now, before)
        click.echo(f"\x1b[2J\x1b[H{text}" if sys.stdout.isatty() and watch else text)
        if not watch:
            return
        before = now
        try:
            time.sleep(_REFRESH_SECONDS)
        except KeyboardInterrupt:
            return


def _at_ops_port(ops: str | None, action: Callable[[str, int], T]) -> T:
    """Do something at the ops port; exit if no gateway answers there, or if it refuses."""
    try:
        address_ = client.parse_address(ops or _ops_address(read_environ()))
    except ValueError:
        raise click.UsageError(
            "The ops port's address is HOST:PORT or http://HOST:PORT; it comes from --ops, or from "
            "BFF_OPS_HOST and BFF_OPS_PORT"
        ) from None
    try:
        return action(*address_)
    except client.OpsError as exc:
        exit_with(str(exc), 1)
    except (ValueError, KeyError, TypeError, AttributeError):  # the browser port, another server
        exit_with(
            "The server at {}:{} is not the ops port of a gateway; name its address: --ops, or "
            "BFF_OPS_HOST and BFF_OPS_PORT".format(*address_),
            1,
        )


def _ops_address(environ: dict[str, str]) -> str:
    host, port = address(environ)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
