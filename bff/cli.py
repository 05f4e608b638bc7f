"""The command line: the commands that serve and check; `bff.commands` has the others.

These two modules alone print, exit or read the environment.
"""

import asyncio
import errno
import gc
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from bff import __version__
from bff.app import Service
from bff.clock import system_clock
from bff.commands import (
    Commands,
    check_limits,
    exit_with,
    load,
    read_environ,
    refuse,
    revoke,
    status,
    token,
    url_option,
)
from bff.config import reader
from bff.config.reload import wait_for_settings
from bff.config.settings import Settings, SettingsError
from bff.demo import demo as demo_
from bff.log_writer import LogWriter, standard_output
from bff.ops import check as checks
from bff.ops.check_gateway import GatewayChecker
from bff.ops.check_upstream import UpstreamChecker
from bff.ops.tracing import Tracing, TracingError
from bff.replicas.valkey import StoreError
from bff.server import run as server
from bff.server.hardening import (
    bounded_connections,
    harden,
    max_files,
    warn_of_few_files,
)
from bff.server.supervisor import Worker, supervise
from bff.server.worker_ipc import WorkerPeers, WorkerSockets
from bff.telemetry import ServerLog, Telemetry


@click.group(
    cls=Commands,
    epilog="Settings are environment variables, or a TOML file: bff check lists them.",
)
@click.version_option(__version__, prog_name="bff")
def main() -> None:
    """Run the browser-facing gateway of Trigger.dev sessions."""


def _confirm_ids(settings: Settings) -> frozenset[str]:
    """Compare each environment's id with upstream's; exit if one is wrong.

    Returns the environments whose id upstream did not return; the gateway asks again later. It does
    not wait, because an upstream outage must not keep a gateway from starting.
    """

    async def confirm() -> tuple[list[str], frozenset[str]]:
        async with aclosing(UpstreamChecker(settings, system_clock)) as checker:
            return await checker.confirm_ids()

    problems, unconfirmed = asyncio.run(confirm())
    if problems:
        refuse(SettingsError(problems))
    return unconfirmed


def _listen(host: str, port: int, name: str) -> socket.socket:
    try:
        return server.listen(host, port)
    except OSError as exc:
        # An unknown host name has getaddrinfo's error number, which is negative.
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no such host"
        if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
            name = name.replace("PORT", "HOST")
        exit_with(f"Cannot listen on {host}:{port} ({reason}); set {name}")


def _sockets(environ: dict[str, str], settings: Settings) -> tuple[socket.socket, socket.socket]:
    """Return the listening sockets for browsers and for operators."""
    try:
        sockets = server.inherited(environ)
    except server.InheritedError as exc:
        exit_with(str(exc))
    return (
        sockets.get("browser") or _listen(settings.host, settings.port, "BFF_PORT"),
        sockets.get("ops") or _listen(settings.ops_host, settings.ops_port, "BFF_OPS_PORT"),
    )


_NEXT_PORTS: Final = 20
"""Ports that the demo tries, so that it starts beside another demo or a gateway."""


def _listen_near(first: int) -> socket.socket:
    """Listen on loopback at the first free port from *first* on; print another port."""
    for port in range(first, first + _NEXT_PORTS):
        try:
            browser = server.listen("127.0.0.1", port)
        except OSError:
            continue
        if port != first:
            click.echo(f"Port {first} is taken, so the demo uses {port} (--port chooses another).")
        return browser
    return _listen("127.0.0.1", first, "--port")


def own_command() -> str:
    """Return what runs this program in another shell, where `.venv/bin` need not be on PATH."""
    own = Path(sys.argv[0]).resolve()
    if own.name != "bff":
        return f"{shlex.quote(sys.executable)} -m bff"
    path = shutil.which("bff")
    return "bff" if path and Path(path).resolve() == own else shlex.quote(str(own))


def _fork(
    workers: int, settings: Settings, telemetry: Telemetry
) -> tuple[WorkerPeers | None, Worker]:
    """Fork the workers; return in each its peers and its `Worker`."""
    if workers == 1:
        return None, Worker()
    if settings.store_url is None:
        telemetry.log.warning(
            "workers_count_alone",
            workers=workers,
            each="has its own copies, limits and upstream budget, so all workers together allow "
            f"up to {workers} times the limits and the budget; set BFF_STORE_URL to share them",
        )
    sockets = WorkerSockets(workers)
    worker = supervise(workers, telemetry.log)
    telemetry.set_worker(worker.number)
    return WorkerPeers(sockets, worker.number), worker


async def _serve(
    service: Service,
    browser: Any,
    ops: Any,
    *more: Any,
    worker: Worker | None = None,
    drains: bool = True,
) -> None:
    browser_config = server.config(service.browser_app, lifespan=True, protocol=service.protocol)
    ops_config = server.config(service.ops_app, lifespan=False, protocol=service.ops_protocol)

    def stop() -> None:
        # The loop would remove its handler at its end, and then a reload would end the process.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        service.drain()

    await server.run(
        [*more, (browser_config, browser)],
        (ops_config, ops),
        worker=worker,
        drains=drains,
        on_stop=stop,
        on_short=service.note_short,
    )


@main.command()
@click.option("--host", help="Replaces BFF_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="Replaces BFF_PORT.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Number of processes that share the address.",
)
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve browsers, and operators on the ops port, until SIGTERM."""
    refused = harden()
    # SIGHUP must not end the process before the loop handles it. No change is lost meanwhile: the
    # service watches the files of the settings.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # At PID 1, as in a container, the kernel ignores a signal that has no handler: a stop during
    # the start would be lost.
    signal.signal(signal.SIGTERM, server.end_the_start)
    check_limits(workers)
    environ = read_environ(BFF_HOST=host, BFF_PORT=port)
    settings = load(environ)
    telemetry = Telemetry(LogWriter(standard_output()))
    ServerLog(telemetry).install()
    if refused:
        telemetry.log.warning("not_hardened", refused=refused)
    unconfirmed = _confirm_ids(settings)
    browser, ops = _sockets(environ, settings)
    # Exclude all imported objects from garbage collection: the pause of a full collection is then
    # a sixth as long, and forked workers share more memory.
    gc.freeze()
    # The default of 700 objects makes it scan the requests in flight again and again: a tenth of a
    # miss, and two thirds more at p99.
    gc.set_threshold(20_000, 10, 10)
    peers, worker = _fork(workers, settings, telemetry)
    if worker.replaces:
        settings = wait_for_settings(partial(reader.load, environ), settings, telemetry)
        unconfirmed = frozenset(e.name for e in settings.environments if e.id is not None)
    try:
        tracing = Tracing() if settings.tracing else None  # after the fork: it starts a thread
    except TracingError as exc:
        exit_with(str(exc))
    telemetry.log.info(
        "listening",
        browser=server.address(browser),
        ops=server.address(ops),
        version=__version__,
        open_files=max_files(),
    )
    connections = bounded_connections(max_files(), settings.max_connections)
    if connections < settings.max_connections:
        warn_of_few_files(telemetry.log, max_files(), settings.max_connections, connections)
    server.bound_silence(browser, settings.idle_timeout)
    if server.is_behind_unknown_proxy(browser, settings.trusted_proxies):
        telemetry.log.warning("one_address_for_all", remedy=server.ONE_ADDRESS)

    async def run() -> None:
        reload = partial(reader.load, environ)
        service = Service(
            settings,
            telemetry,
            tracing=tracing,
            peers=peers,
            reload=reload,
            max_connections=connections,
            unconfirmed=unconfirmed,
        )

        async def start() -> None:
            try:
                await service.connect()
            except StoreError as exc:
                if worker.replaces:  # the other workers run without the store, too
                    telemetry.log.warning("store_away", reason=str(exc))
                else:
                    exit_with(
                        f"BFF_STORE_URL: {exc}; correct it, or set BFF_STORE_OPTIONAL=true to "
                        "start without the store"
                    )
            await service.ops.join()

        await server.start(start(), on_stop=service.background.stop)
        worker.start_heartbeat()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload.on_signal)
        await _serve(service, browser, ops, worker=worker if workers > 1 else None)

    server.run_loop(run())


@main.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port of the gateway; default: {demo_.GATEWAY_PORT}, or the next free one. With "
    f"--upstream-only: port of the pretend upstream; default: {demo_.UPSTREAM_PORT}.",
)
@click.option(
    "--upstream-only",
    is_flag=True,
    help="Serve the pretend upstream alone, for a gateway that you start yourself.",
)
@click.option(
    "--origin",
    multiple=True,
    help="Origin of your own pages, such as http://localhost:8080; may be repeated.",
)
def demo(port: int | None, upstream_only: bool, origin: tuple[str, ...]) -> None:
    """Try the gateway in front of a pretend upstream."""
    stage = demo_.make(lambda: system_clock()[1], *origin)
    if upstream_only:
        _serve_upstream(stage, demo_.UPSTREAM_PORT if port is None else port)
        return
    upstream = _listen("127.0.0.1", 0, "another port")
    if port is None:
        browser = _listen_near(demo_.GATEWAY_PORT)
    else:
        browser = _listen("127.0.0.1", port, "--port")
    ops = _listen("127.0.0.1", 0, "another port")
    try:
        settings = stage.settings(*(sock.getsockname()[1] for sock in (upstream, browser, ops)))
    except SettingsError as exc:
        refuse(exc)
    with open(os.devnull, "w", encoding="utf-8") as devnull:  # noqa: PTH123
        telemetry = Telemetry(devnull)

        async def run() -> None:
            service = Service(settings, telemetry, routes=stage.routes(telemetry.counts))
            base, bff = f"http://{server.address(browser)}", own_command()
            click.echo(stage.lines(base, server.address(ops), bff))
            pretend = server.config(stage.upstream, lifespan=False)
            # No proxy is in front, so Ctrl-C ends the demo at once.
            await _serve(service, browser, ops, (pretend, upstream), drains=False)

        server.run_loop(run())


def _serve_upstream(stage: demo_.Demo, port: int) -> None:
    listening = _listen("127.0.0.1", port, "--port")
    pretend = server.config(stage.upstream, lifespan=False)

    async def run() -> None:
        click.echo(stage.upstream_lines(f"http://{server.address(listening)}", own_command()))
        await server.run([], (pretend, listening), worker=None, on_stop=_nothing, on_short=_nothing)

    server.run_loop(run())


def _nothing() -> None:
    pass


@main.command()
@click.option("--probe", is_flag=True, help="Also test the secret key upstream, and the store.")
@url_option
@click.option("--session", help="With --probe: the id of an existing session to test with.")
def check(probe: bool, url: str | None, session: str | None) -> None:
    """Show the settings and every problem with its remedy.

    Exits with 0 if there is no problem, else with 2.
    """
    if (url or session) and not probe:
        raise click.UsageError("--url and --session need --probe")
    try:
        settings = reader.load(read_environ())
    except SettingsError as exc:
        click.echo(f"{checks.report(exc.reports)}\n", err=True)
        refuse(exc)
    click.echo(checks.report(settings.reports))
    click.echo("\n".join(("\nWhat browsers see", *checks.policy_lines(settings))))
    for note in checks.notes(settings):
        click.echo(f"\nNote: {note}")
    click.echo("\nThe settings can be used.")
    if not probe:
        click.echo("Next: bff check --probe tests the secret key upstream, and the store.")
    if probe and not asyncio.run(_probe(settings, url, session)):
        sys.exit(2)


async def _probe(settings: Settings, url: str | None, session: str | None) -> bool:
    problems = 0

    async def show(title: str, findings: AsyncIterator[checks.Finding], page: checks.Page) -> None:
        nonlocal problems
        click.echo(f"\n{title}")
        async for finding in findings:
            click.echo(checks.lines(finding, page))
            problems += finding.result is checks.Result.PROBLEM

    async with (
        aclosing(UpstreamChecker(settings, system_clock)) as upstream,
        aclosing(GatewayChecker(settings, system_clock)) as gateway,
    ):
        if settings.store_url is not None:
            await show("Store", upstream.store(), checks.Page.STORE)
        for configured in settings.environments:
            environment = await upstream.with_id(configured)
            title = f"Environment {environment.name}, "
            findings = upstream.findings(configured, session)
            at_upstream = f"{title}upstream at {environment.api_url}"
            await show(at_upstream, findings, checks.Page.UPSTREAM)
            if url is not None:
                id_ = session or await upstream.first_session(environment)
                findings = gateway.findings(environment, url, id_)
                await show(f"{title}gateway at {url}", findings, checks.Page.PROXY)
    click.echo(f"\nProblems: {problems or 'none'}")
    return not problems


for _command in (token, revoke, status):
    main.add_command(_command)
