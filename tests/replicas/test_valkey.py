"""The store's address, its permissions, TLS and clusters, and the errors that name a remedy."""

import asyncio
import io
import logging
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.engines import ENGINES, Cluster, Engine, free_port
from support.replicas import (
    PATIENT,
    RealClock,
    Relay,
    Replicas,
    contents,
    events,
    purge,
    until,
    written,
)
from support.world import (
    FRIENDLY,
    PATIENCE,
    ROOT_KEY,
    Gateway,
    World,
    claims,
    environ,
    read,
    running_upstream,
    sign,
)
from support.world import until as wait_until

from bff.config import reader, settings
from bff.demo.upstream import session
from bff.limits.budget import Budget
from bff.ops.check import Finding, Result
from bff.ops.check_upstream import UpstreamChecker
from bff.replicas import keys
from bff.replicas.keys import REPLICAS
from bff.replicas.valkey import ClientFactory, StoreAddress, StoreError

FLEET = Path(__file__).parent.parent.parent / "docs" / "FLEET.md"


def address(url: str) -> StoreAddress:
    parsed = reader.load(environ(BFF_STORE_URL=url)).store_url
    assert parsed is not None
    return parsed


def test_parts_of_an_address_are_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    plain: dict[str, Any] = {
        "username": None,
        "password": None,
        "database": 0,
        "tls": False,
        "cluster": False,
    }

    assert address("valkey://host") == StoreAddress("host", 6379, **plain)
    assert address("redis://host:7/2") == StoreAddress("host", 7, **plain | {"database": 2})
    assert address("valkeys://:p%40%2Fss@host") == StoreAddress(
        "host", 6379, **plain | {"password": "p@/ss", "tls": True}
    )
    assert address(f"rediss+cluster://u:p@[::1]:7?ca_file={ca}") == StoreAddress(
        "::1", 7, "u", "p", 0, tls=True, cluster=True, ca_file=str(ca)
    )


@pytest.mark.parametrize(
    "url",
    [
        "host:6379",
        "http://host",
        "valkey://",
        "valkey://host:port",
        "valkey://host/name",
        "valkey+cluster://host/1",
        "valkeys://host?ssl_cert_reqs=none",
        "valkey://host?ca_file=/nowhere",
        "valkeys://host?ca_file=/nowhere",
        "valkey://host#0",
        "unix:///tmp/socket",
    ],
)
def test_invalid_address_is_a_problem_with_a_remedy(url: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        address(url.replace("//host", "//u:sentinel@host"))

    (problem,) = caught.value.problems
    assert problem.startswith("BFF_STORE_URL ")
    assert "sentinel" not in problem


def test_repr_of_an_address_hides_the_credentials() -> None:
    parsed = reader.load(environ(BFF_STORE_URL="valkey://name:sentinel@host"))

    assert "sentinel" not in repr(parsed)
    assert repr(parsed.store_url) == "StoreAddress(host:6379)"


def test_gateway_exits_when_its_store_is_unreachable() -> None:
    variables = environ(
        BFF_STORE_URL=f"valkey://name:sentinel@127.0.0.1:{free_port()}",
        BFF_PORT="0",
        BFF_OPS_PORT="0",
    )

    done = subprocess.run(
        [sys.executable, "-m", "bff", "serve"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("BFF_STORE_URL: the store at 127.0.0.1:")
    assert "cannot be reached" in done.stderr
    assert "sentinel" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_gateway_starts_alone_when_the_store_is_optional(tmp_path: Path) -> None:
    engine = Engine("valkey", tmp_path)
    changes = {"BFF_STORE_URL": engine.url, "BFF_STORE_OPTIONAL": "true"}
    with running_upstream() as upstream, Gateway(upstream.port, **changes) as gateway:
        wait_until(lambda: gateway.output.count('"store_away"') == 1)


async def test_error_says_why_the_store_cannot_be_used(own_engine: Engine) -> None:
    user = ["ACL", "SETUSER", "little", "on", ">s3ntinel", "~bff1:*", "+ping", "+get"]
    own_engine.execute(*user)
    cases = {
        f"valkey://127.0.0.1:{free_port()}": "cannot be reached",
        "valkey://no-such-host.invalid": "cannot be reached",
        f"valkey://:s3ntinel@127.0.0.1:{own_engine.port}": "rejects the name or the password",
        f"valkey://u:s3ntinel@127.0.0.1:{own_engine.port}": "rejects the name or the password",
        f"valkey://little:s3ntinel@127.0.0.1:{own_engine.port}": "does not permit a command",
        f"valkey://127.0.0.1:{own_engine.port}/999": "has no database with that number",
        f"valkey+cluster://127.0.0.1:{own_engine.port}": "is not a cluster: leave +cluster out",
        f"valkeys://127.0.0.1:{own_engine.port}": "cannot be reached",
    }
    with running_upstream() as web:
        cases[f"valkey://127.0.0.1:{web.port}"] = "is not a Valkey server"
        for url, words in cases.items():
            with pytest.raises(StoreError, match=re.escape(words)) as caught:
                async with World(RealClock(), BFF_STORE_URL=url):
                    pass
            assert "s3ntinel" not in str(caught.value), url
    own_engine.execute("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreError, match=r"cannot be used \(OutOfMemoryError\)"):
        async with World(RealClock(), BFF_STORE_URL=own_engine.url):
            pass


# -- permissions


def documented_commands() -> set[str]:
    """Read from docs/FLEET.md which commands the gateway needs."""
    (text,) = re.findall(
        r"The gateway needs the commands (.*?), on keys", FLEET.read_text(), re.DOTALL
    )
    return {name for part in re.findall(r"`([^`]+)`", text) for name in part.split()}


async def use_every_command(replicas: Replicas, **changes: str | None) -> list[World]:
    changes |= {"BFF_CACHE_TTL": "60", "BFF_VERIFY": "local,upstream"}
    one, two = await replicas.several(2, **changes)
    replicas.upstream.environments[0].bucket.limit = 1000
    for id_ in ("chat-1", FRIENDLY["chat-2"], "nobody"):
        for world in (one, two):
            assert (await world.get(id_)).status_code in (200, 404)
            await written(world)
    assert len(replicas.upstream.seen) in (3, 4), "an absence is kept for a second"
    token = sign(claims(time.time(), *read("chat-1")), ROOT_KEY)
    for world, result in ((one, "kept"), (two, "used")):
        assert (await world.get("chat-1", token=token)).status_code == 200
        await until(lambda: world.telemetry.counts["bff_shared_verdicts", result] == 1)  # noqa: B023
    one.service.sharing.limits.pause("default", 0.001)
    two.service.sharing.store.drop(
        keys.value(two.service.sharing.namespaces["default"].copies_prefix, "chat-9")
    )
    await purge(one, "chat-1")
    assert (await one.ops.post("/revocations", json={"jti": "lost"})).status_code == 200
    await until(lambda: len(two.service.gateway.revocations) == 1)
    await until(lambda: not two.service.gateway.cache.find("default", "chat-1", 0))
    for world in (one, two):
        await until(lambda: world.service.sharing.up)  # noqa: B023
    return [one, two]


@pytest.mark.parametrize("kind", ENGINES)
async def test_documented_permissions_are_enough_and_all_needed(tmp_path: Path, kind: str) -> None:
    with Engine(kind, tmp_path, "--requirepass", "0perator") as engine, engine.client(
        password="0perator"
    ) as operator:  # fmt: skip
        allowed = [f"+{name.lower()}" for name in documented_commands()]
        operator.execute_command(
            *("ACL", "SETUSER", "gateway", "on", ">s3ntinel/p@ss", "resetkeys", "~bff1:*"),
            *("resetchannels", "-@all", *allowed),
        )
        async with AsyncExitStack() as stack:
            replicas = Replicas(engine, stack)
            password = quote("s3ntinel/p@ss", safe="")
            engine.url = f"valkey://gateway:{password}@127.0.0.1:{engine.port}/3"
            worlds = await use_every_command(replicas)
            waits = [
                await worlds[n].service.sharing.limits.spend(
                    "default", Budget(1, 60.0), timeout=2.0
                )
                for n in (0, 1)
            ]
            assert waits[0] > 50.0 or waits[1] > 50.0
            assert operator.execute_command("ACL", "LOG") == []
            used = {name.removeprefix("cmdstat_") for name in operator.info("commandstats")}
            assert {name.lower() for name in documented_commands()} <= used, "each is needed"
            assert int(operator.info("keyspace")["db3"]["keys"]) > 5
            assert "db0" not in operator.info("keyspace")
            for world in worlds:
                store = world.service.sharing.store
                clients = [
                    store.connection._requests,
                    store.connection._heart.client,
                    store.listener._client,
                ]
                shown = (
                    world.log.getvalue()
                    + (await world.ops.get("/readyz")).text
                    + (await world.ops.get("/metrics")).text
                    + repr([world.service.reload.settings, store, *clients])
                )
                assert "s3ntinel" not in shown


async def test_credentials_are_never_logged(own_engine: Engine) -> None:
    """Neither by the gateway nor by the client, asyncio or an uncaught exception."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        own_engine.execute("ACL", "SETUSER", "gateway", "on", ">s3ntinel", "~bff1:*", "+@all")
        async with AsyncExitStack() as stack:
            replicas = Replicas(own_engine, stack)
            own_engine.url = f"valkey://gateway:s3ntinel@127.0.0.1:{own_engine.port}"
            world = await replicas.add(BFF_STORE_TIMEOUT="2")
            own_engine.execute("ACL", "SETUSER", "gateway", "resetpass", ">another")
            own_engine.execute("CLIENT", "KILL", "USER", "gateway")
            await until(lambda: not world.service.sharing.up)
            assert (await world.get("chat-1")).status_code == 200
            assert events(world, "store_away")[0]["reason"] in (
                "ConnectionError",
                "AuthenticationError",
            )
            own_engine.execute("ACL", "SETUSER", "gateway", "resetpass", ">s3ntinel")
            await until(lambda: world.service.sharing.up)
            own_engine.freeze()
            await world.get("chat-2")
            own_engine.kill()
            await until(lambda: world.service.sharing.store.reason == "ConnectionError")
            assert "s3ntinel" not in world.log.getvalue()
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert "s3ntinel" not in written.getvalue()


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key",
            "-out", "ca.pem")  # fmt: skip
    for name, address in (("good", "127.0.0.1"), ("other", "127.0.0.2")):
        openssl("req", *curve, "-subj", "/CN=store", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        (folder / f"{name}.ext").write_text(f"subjectAltName=IP:{address}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
                "-out", f"{name}.pem")  # fmt: skip
    return folder


async def tls(stack: AsyncExitStack, kind: str, folder: Path, name: str) -> str:
    """Start a store behind TLS; returns its address. Valkey's wheel is built without TLS."""
    files = {suffix: str(folder / f"{name}.{suffix}") for suffix in ("pem", "key")}
    if kind == "redis":
        port = free_port()
        options = (
            *("--tls-port", port, "--tls-auth-clients", "no", "--tls-cert-file", files["pem"]),
            *("--tls-key-file", files["key"], "--tls-ca-cert-file", folder / "ca.pem"),
        )
        stack.enter_context(Engine(kind, folder, *map(str, options)))
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files["pem"], files["key"])
        engine = stack.enter_context(Engine(kind, folder))
        port = (await stack.enter_async_context(Relay(engine.port, context))).port
    return f"valkeys://127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ENGINES)
async def test_certificate_and_host_name_are_checked(certificates: Path, kind: str) -> None:
    ca = f"?ca_file={certificates}/ca.pem"
    async with AsyncExitStack() as stack:
        good = await tls(stack, kind, certificates, "good")
        other = await tls(stack, kind, certificates, "other")
        for attempt in range(5):
            try:
                async with World(RealClock(), **PATIENT, BFF_STORE_URL=good + ca) as world:
                    assert (await world.get("chat-1")).status_code == 200
                    assert world.service.sharing.up
            except StoreError as exc:
                # A busy machine may need longer for a handshake than a connection may take.
                assert str(exc).endswith("cannot be reached"), exc
                assert attempt < 4
            else:
                break
        for url, words in (
            (good, r"cannot be reached \(its certificate is not trusted\)"),
            (other + ca, r"cannot be reached \(its certificate is not trusted\)"),
            (
                good.replace("valkeys", "valkey"),
                r"cannot be reached|is not a Valkey server, or requires",
            ),
        ):
            with pytest.raises(StoreError, match=words):
                async with World(RealClock(), BFF_STORE_URL=url):
                    pass


async def test_certificate_is_checked_alike_in_every_python(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 and later refuse certificates without an authority key identifier, as these."""
    usual = ssl.create_default_context

    def strict(cafile: str | None = None) -> ssl.SSLContext:
        context = usual(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    store = address(f"valkeys+cluster://127.0.0.1?ca_file={certificates}/ca.pem")
    async with AsyncExitStack() as stack:
        url = await tls(stack, "valkey", certificates, "good")
        changes = {"BFF_STORE_URL": f"{url}?ca_file={certificates}/ca.pem"}
        async with World(RealClock(), **PATIENT, **changes) as world:
            assert (await world.get("chat-1")).status_code == 200
            assert world.service.sharing.up
        untrusted = re.escape("(its certificate is not trusted): ") + ".+"
        with pytest.raises(StoreError, match=untrusted):
            async with World(RealClock(), BFF_STORE_URL=url):
                pass
    (node,) = ClientFactory(store).connect(1.0).nodes_manager.startup_nodes.values()
    connection = node.connection_class(**node.connection_kwargs)
    assert not connection.ssl_context.get().verify_flags & ssl.VERIFY_X509_STRICT
    assert connection.ssl_context.get().check_hostname is True


@pytest.mark.parametrize("kind", ENGINES)
async def test_check_finds_every_missing_permission(tmp_path: Path, kind: str) -> None:
    """Permissions of an earlier version let a gateway connect, and fail later."""
    with Engine(kind, tmp_path) as engine:
        url = engine.url.replace("//", "//gateway:s3ntinel@")
        loaded = reader.load(environ(BFF_STORE_URL=url, **PATIENT))
        commands = documented_commands()

        async def check(allowed: set[str]) -> Finding:
            engine.execute(
                *("ACL", "SETUSER", "gateway", "reset", "on", ">s3ntinel", "~bff1:*", "-@all"),
                *(f"+{name.lower()}" for name in allowed),
            )
            async with aclosing(UpstreamChecker(loaded, RealClock())) as checker:
                (finding,) = [one async for one in checker.store()]
            return finding

        before = contents(engine)
        assert (await check(commands)).result is Result.OK
        assert contents(engine).keys() - before.keys() <= {REPLICAS.encode()}
        for missing in commands - {"SELECT"}:  # this address names no database
            finding = await check(commands - {missing})
            assert finding.result is Result.PROBLEM, missing
            assert "does not permit a command that the gateway needs" in finding.text, missing


# -- clusters


@pytest.fixture(params=ENGINES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(request.param, tmp_path) as cluster:
        yield cluster


@pytest.mark.usefixtures("patient_store")
async def test_cluster_serves_while_one_of_its_nodes_dies(cluster: Cluster) -> None:
    cluster_commands = {"CLUSTER|SLOTS", "CLUSTER|SHARDS", "COMMAND"}
    for node in cluster.nodes:
        node.execute(
            *("ACL", "SETUSER", "gateway", "on", ">s3ntinel", "~bff1:*", "-@all"),
            *(f"+{name.lower()}" for name in documented_commands() | cluster_commands),
        )
    async with AsyncExitStack() as stack:
        with pytest.raises(StoreError, match=r"is a cluster: write \+cluster"):
            async with World(RealClock(), BFF_STORE_URL=cluster.nodes[1].url):
                pass
        url = cluster.url.replace("//", "//gateway:s3ntinel@")
        replicas = Replicas(cluster, stack)  # type: ignore[arg-type]
        cluster.url = url
        one, two = await use_every_command(replicas, BFF_UPSTREAM_BUDGET="999/second")
        for node in cluster.nodes:
            assert node.execute("ACL", "LOG") == "[]"
        for n in range(100, 130):
            replicas.upstream.environments[0].add(session(n, f"many-{n}"))
        before = len(replicas.upstream.seen)
        ids = [f"many-{n}" for n in range(100, 130)]
        # The commands of a batch go to several nodes, and each answer to its command.
        for world in (one, two):
            responses = await asyncio.gather(*map(world.get, ids))
            assert [response.json()["externalId"] for response in responses] == ids
            await written(world)
        assert len(replicas.upstream.seen) == before + 30
        assert [node.execute("DBSIZE") != "0" for node in cluster.nodes] == [True] * 4

        # All keys of the environment are on one node, which may be the one that dies.
        affected = ":spent" in cluster.nodes[0].execute("KEYS", "*:spent")
        cluster.nodes[0].kill()
        for n in range(30):
            two.service.gateway.cache.drop("default", ids[n])
            assert (await two.get(ids[n])).status_code == 200
        if affected:
            await until(lambda: not two.service.sharing.up)
        await until(lambda: one.service.sharing.up and two.service.sharing.up)
        await purge(one, "many-100")
        await until(lambda: not two.service.gateway.cache.find("default", "many-100", 0))
        for world in (one, two):
            assert int(affected) <= len(events(world, "store_away")) <= 6
            assert "s3ntinel" not in world.log.getvalue()
