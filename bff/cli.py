"""The command line: the only module that prints or exits."""

import asyncio
import errno
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any, NoReturn

import click
import uvicorn
import uvloop

from bff import __version__
from bff.app import Service
from bff.clock import system_clock
from bff.config import reader, settings
from bff.config.reload import WATCH_SECONDS
from bff.demo import demo as demo_
from bff.ops import check as checks
from bff.ops.tracing import Tracing, TracingError
from bff.replicas.valkey import StoreError
from bff.server import run as server
from bff.server.hardening import harden
from bff.server.supervisor import Worker, supervise
from bff.server.worker_ipc import WorkerPeers, WorkerSockets
from bff.sessions.ids import is_id
from bff.telemetry import Telemetry
from bff.tokens.mint import mint


@click.group()
@click.version_option(__version__, prog_name="bff")
def main() -> None:
    """Run the browser-facing gateway of Trigger.dev sessions."""


def _environ(**overrides: Any) -> dict[str, str]:
    environ = dict(os.environ)  # noqa: TID251  the one place
    return environ | {name: str(v) for name, v in overrides.items() if v is not None}


def _settings(environ: dict[str, str]) -> settings.Settings:
    try:
        return reader.load(environ)
    except settings.SettingsError as exc:
        _refuse(exc)


def _refuse(exc: settings.SettingsError) -> NoReturn:
    lines = "\n".join(f"  - {problem.replace('`', '')}" for problem in exc.problems)
    click.echo(f"These settings cannot be used:\n{lines}", err=True)
    sys.exit(2)


def _listen(host: str, port: int, name: str) -> socket.socket:
    try:
        return server.listen(host, port)
    except OSError as exc:
        # Of a name that is not known, the number is getaddrinfo's, and negative.
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no such host"
        if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
            name = name.replace("PORT", "HOST")
        click.echo(f"Cannot listen on {host}:{port} ({reason}); set {name}", err=True)
        sys.exit(2)


def _fork(
    workers: int, told: settings.Settings, telemetry: Telemetry
) -> tuple[WorkerPeers | None, Worker]:
    """Return in each worker, with its peers."""
    if workers == 1:
        return None, Worker()
    if told.store_url is None:
        telemetry.log.warning(
            "workers_count_alone",
            workers=workers,
            each="has copies, limits and an upstream budget of its own, so all of them together "
            f"allow up to {workers} times what is set; set BFF_STORE_URL to share them",
        )
    sockets = WorkerSockets(workers)
    worker = supervise(workers, telemetry.log)
    telemetry.be(worker.number)
    return WorkerPeers(sockets, worker.number), worker


def _settings_now(
    environ: dict[str, str], began: settings.Settings, telemetry: Telemetry
) -> settings.Settings:
    """Read what has changed since the supervisor *began*: a key that was removed stays removed.

    What waits for a restart waits here too. While they cannot be read the others go on by what they
    know, and this worker waits.
    """
    problems: list[str] = []
    while True:
        try:
            now = reader.load(environ)
            return replace(now, **{name: getattr(began, name) for name in settings.FIXED})
        except settings.SettingsError as exc:
            if exc.problems != problems:
                telemetry.log.error("settings_not_reloaded", problems=exc.problems)
            problems = list(exc.problems)
            time.sleep(WATCH_SECONDS)


def _browser(service: Service) -> uvicorn.Config:
    return server.config(service.browser_app, lifespan=True, protocol=service.protocol)


def _run(main_: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_)


@main.command()
@click.option("--host", help="In place of BFF_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="In place of BFF_PORT.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, help="Processes on one address.")
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve browsers, and operators on the ops port, until SIGTERM."""
    harden()
    # Until the loop takes it: what changes meanwhile is seen in the files.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environ = _environ(BFF_HOST=host, BFF_PORT=port)
    told = _settings(environ)
    telemetry = Telemetry()
    given = server.inherited(environ)
    browser = given.get("browser") or _listen(told.host, told.port, "BFF_PORT")
    ops = given.get("ops") or _listen(told.ops_host, told.ops_port, "BFF_OPS_PORT")
    # What was imported stays, so no collection has to look at it: a full one then stops every
    # browser for a sixth of the time, and forked workers share more memory.
    gc.freeze()
    peers, worker = _fork(workers, told, telemetry)
    if worker.replaces:
        told = _settings_now(environ, told, telemetry)
    try:
        tracing = Tracing() if told.tracing else None  # after the fork: it has threads
    except TracingError as exc:
        click.echo(exc, err=True)
        sys.exit(2)
    telemetry.log.info(
        "listening", browser=_address(browser), ops=_address(ops), version=__version__
    )

    async def go() -> None:
        service = Service(
            told,
            telemetry,
            tracing=tracing,
            peers=peers,
            reload=lambda: reader.load(environ),
        )
        try:
            await service.connect()
        except StoreError as exc:
            if worker.replaces:  # the others go on without it too
                telemetry.log.warning("store_away", reason=str(exc))
            else:
                click.echo(
                    f"BFF_STORE_URL: {exc}; mend it, or set BFF_STORE_OPTIONAL=true to start "
                    "without",
                    err=True,
                )
                sys.exit(2)
        await service.ops.join()
        worker.start_heartbeat()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload)
        await server.run(
            [
                (_browser(service), browser),
                (server.config(service.ops_app, lifespan=False), ops),
            ],
            telemetry,
        )

    _run(go())


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True)
def demo(port: int) -> None:
    """See it work: a gateway in front of a pretend upstream."""
    stage = demo_.make(lambda: system_clock()[1])
    upstream = _listen("127.0.0.1", 0, "another port")
    browser = _listen("127.0.0.1", port, "--port")
    ops = _listen("127.0.0.1", 0, "another port")
    told = stage.settings(*(sock.getsockname()[1] for sock in (upstream, browser, ops)))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        telemetry = Telemetry(nowhere)

        async def go() -> None:
            service = Service(told, telemetry, routes=stage.routes())
            click.echo(stage.lines(f"http://{_address(browser)}"))
            await server.run(
                [
                    (server.config(stage.upstream, lifespan=False), upstream),
                    (_browser(service), browser),
                    (server.config(service.ops_app, lifespan=False), ops),
                ],
                telemetry,
            )

        _run(go())


@main.command()
@click.option("--probe", is_flag=True, help="Ask upstream too, with the key, and the store.")
@click.option("--url", help="With --probe: a running gateway, by the address browsers use.")
@click.option("--session", help="With --probe: the id of a session that exists.")
def check(probe: bool, url: str | None, session: str | None) -> None:
    """Show the settings, and what is wrong with them.

    Each problem comes with its remedy. Exits with 0 if all is well, else with 2.
    """
    if (url or session) and not probe:
        raise click.UsageError("--url and --session are for --probe")
    if url and not url.startswith(("https://", "http://")):
        raise click.UsageError("--url begins with https:// or http://")
    try:
        told = reader.load(_environ())
    except settings.SettingsError as exc:
        click.echo(f"{checks.report(exc.reports)}\n", err=True)
        _refuse(exc)
    click.echo(checks.report(told.reports))
    click.echo("\nWhat browsers see")
    for line in checks.policy_lines(told):
        click.echo(line)
    for note in checks.notes(told):
        click.echo(f"\nNote: {note}")
    click.echo("\nThe settings can be used.")
    if probe and not asyncio.run(_probe(told, url, session)):
        sys.exit(2)


async def _probe(told: settings.Settings, url: str | None, session: str | None) -> bool:
    problems = 0

    async def show(title: str, findings: AsyncIterator[checks.Finding]) -> None:
        nonlocal problems
        click.echo(f"\n{title}")
        async for finding in findings:
            click.echo(f"  {finding.result.name:<7}  {finding.text}")
            problems += finding.result is checks.Result.PROBLEM

    async with aclosing(checks.Checker(told, system_clock)) as prober:
        if told.store_url is not None:
            await show("Store", prober.store())
        for environment in told.environments:
            title = f"Environment {environment.name}, upstream at {environment.api_url}"
            await show(title, prober.upstream(environment, session))
            if url is not None:
                known = session or await prober.first_session(environment)
                title = f"Environment {environment.name}, gateway at {url}"
                await show(title, prober.gateway(environment, url, known))
    click.echo(f"\nProblems: {problems or 'none'}")
    return not problems


@main.command()
@click.option("--session", "sessions", multiple=True, help="An id to allow, or to revoke.")
@click.argument("more", nargs=-1, metavar="[ID]...")
@click.option("--ttl", type=click.IntRange(1, 86400 * 30), default=900, help="Seconds it is valid.")
@click.option("--actor", help="Who holds it (act.sub): limits are counted per actor.")
@click.option("--jti", help="The token's own id, to revoke it by.")
@click.option("--environment", "name", help="Of several environments, the one it is for.")
@click.option("--revoke", is_flag=True, help="Revoke by --jti, --session, --actor or a moment.")
@click.option("--issued-before", type=float, help="With --revoke: Unix seconds; now by default.")
def token(
    sessions: tuple[str, ...],
    more: tuple[str, ...],
    ttl: int,
    actor: str | None,
    jti: str | None,
    name: str | None,
    revoke: bool,
    issued_before: float | None,
) -> None:
    """Mint a token for a browser, or take tokens back.

    It lets who holds it read the sessions named, and nothing else.
    """
    ids = (*sessions, *more)
    if not all(map(is_id, ids)):  # of an empty one the scope would be every session's
        raise click.UsageError("A session's id has 1 to 256 characters, and is neither . nor ..")
    told = _settings(_environ())
    if revoke:
        kinds = sum(map(bool, (ids, actor, jti)))
        if kinds > 1 or (not kinds and issued_before is None):
            raise click.UsageError(
                "Say what to revoke: one of --session, --actor and --jti, or --issued-before"
            )
        named = {"jti": jti, "subject": actor, "issued_before": issued_before}
        wanted = {key: value for key, value in named.items() if value is not None}
        for part in [wanted | {"session": id_} for id_ in ids] or [wanted]:
            _revoke(told.ops_host, told.ops_port, part)
        return
    if not ids or issued_before is not None:
        raise click.UsageError("Name a session: --session ID; --issued-before is for --revoke")
    environments = {e.name: e for e in told.environments}
    if name is None and len(environments) == 1:
        name = next(iter(environments))
    if name not in environments:
        click.echo(f"Say which environment: --environment {'|'.join(environments)}", err=True)
        sys.exit(2)
    environment = environments[name]
    if not environment.signing_keys or environment.learn:
        remedy = (
            "BFF_ENVIRONMENT_ID, which is not set; bff check --probe tells it"
            if environment.signing_keys
            else "a signing key; set BFF_SIGNING_KEYS to one of your own: openssl rand -hex 32"
        )
        click.echo(f"Minting takes {remedy}", err=True)
        sys.exit(2)
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


def _revoke(host: str, port: int, wanted: dict[str, Any]) -> None:
    """Tell the gateway that runs on this machine, through its ops port."""
    connection = HTTPConnection(host, port, timeout=5)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/revocations", json.dumps(wanted), headers)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except OSError as exc:
        click.echo(
            f"No gateway answers on port {port} ({exc.strerror}); see BFF_OPS_PORT", err=True
        )
        sys.exit(1)
    finally:
        connection.close()
    click.echo(body, err=answer.status != HTTPStatus.OK)
    if answer.status != HTTPStatus.OK:
        sys.exit(1)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
