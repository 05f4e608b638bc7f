"""The command line: the only module that prints or exits."""

import asyncio
import json
import os
import socket
import sys
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any

import click
import uvloop

from bff import __version__, server, settings
from bff import demo as demo_
from bff.app import Service, system_clock
from bff.auth import mint
from bff.telemetry import Telemetry


@click.group()
@click.version_option(__version__, prog_name="bff")
def main() -> None:
    """Run the browser-facing gateway of Trigger.dev sessions."""


def _settings(**overrides: Any) -> settings.Settings:
    environ = dict(os.environ)  # noqa: TID251  the one place
    environ |= {name: str(value) for name, value in overrides.items() if value is not None}
    try:
        return settings.load(environ)
    except settings.SettingsError as exc:
        lines = "\n".join(f"  - {problem}" for problem in exc.problems)
        click.echo(f"These settings cannot be used:\n{lines}", err=True)
        sys.exit(2)


def _listen(host: str, port: int, name: str) -> socket.socket:
    try:
        return server.listen(host, port)
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else "no such address"
        click.echo(f"Cannot listen on {host}:{port} ({reason}); set {name}", err=True)
        sys.exit(2)


def _run(main_: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_)


@main.command()
@click.option("--host", help="In place of BFF_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="In place of BFF_PORT.")
def serve(host: str | None, port: int | None) -> None:
    """Serve browsers, and operators on the ops port, until SIGTERM."""
    told = _settings(BFF_HOST=host, BFF_PORT=port)
    telemetry = Telemetry()
    browser = _listen(told.host, told.port, "BFF_PORT")
    ops = _listen("127.0.0.1", told.ops_port, "BFF_OPS_PORT")
    telemetry.log.info(
        "listening", browser=_address(browser), ops=_address(ops), version=__version__
    )

    async def go() -> None:
        service = Service(told, telemetry)
        await server.run(
            [
                (server.config(service.browser_app, lifespan=True), browser),
                (server.config(service.ops_app, lifespan=False), ops),
            ],
            telemetry,
        )

    _run(go())


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True)
def demo(port: int) -> None:
    """Serve a gateway in front of a pretend upstream, and print lines to paste."""
    stage = demo_.make(lambda: system_clock()[1])
    upstream = _listen("127.0.0.1", 0, "another port")
    browser = _listen("127.0.0.1", port, "--port")
    ops = _listen("127.0.0.1", 0, "another port")
    told = stage.settings(*(sock.getsockname()[1] for sock in (upstream, browser, ops)))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        telemetry = Telemetry(nowhere)

        async def go() -> None:
            service = Service(told, telemetry)
            click.echo(stage.lines(f"http://{_address(browser)}"))
            await server.run(
                [
                    (server.config(stage.upstream, lifespan=False), upstream),
                    (server.config(service.browser_app, lifespan=True), browser),
                    (server.config(service.ops_app, lifespan=False), ops),
                ],
                telemetry,
            )

        _run(go())


@main.command()
def check() -> None:
    """Read the settings and say what they come to, or what is wrong with them."""
    told = _settings()
    for environment in told.environments:
        id_ = environment.id or ("asked for upstream" if environment.learn else "any")
        how = ", then ".join(environment.verify)
        click.echo(f"environment {environment.name}: id {id_}, tokens verified {how}")
    for source in told.token_sources:
        where = source.jwks_url or "its own file or keys"
        click.echo(
            f"token source {source.name}: {source.issuer}, {'|'.join(source.algorithms)}, "
            f"keys from {where}, for environment {source.environment}"
        )
    click.echo("The settings can be used.")


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
    """Mint a token that lets a browser read the sessions named; or take tokens back."""
    ids, told = (*sessions, *more), _settings()
    if revoke:
        named = {"jti": jti, "subject": actor, "issued_before": issued_before}
        wanted = {key: value for key, value in named.items() if value is not None}
        for part in [wanted | {"session": id_} for id_ in ids] or [wanted]:
            _revoke(told.ops_port, part)
        return
    if not ids:
        raise click.UsageError("Name a session: --session ID")
    environments = {e.name: e for e in told.environments}
    if name is None and len(environments) == 1:
        name = next(iter(environments))
    if name not in environments:
        click.echo(f"Say which environment: --environment {'|'.join(environments)}", err=True)
        sys.exit(2)
    environment = environments[name]
    if not environment.signing_keys or environment.learn:
        missing = "BFF_ENVIRONMENT_ID" if environment.signing_keys else "a signing key"
        click.echo(f"Minting takes {missing}, which is not set", err=True)
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


def _revoke(port: int, wanted: dict[str, Any]) -> None:
    """Tell the gateway that runs on this machine, through its ops port."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
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
