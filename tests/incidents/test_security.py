"""SECURITY.md matches the code: its tests exist, and its emergency plan works as written."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from support.engines import Engine
from support.hostile import eventually, metric
from support.world import (
    OWN_KEY,
    PATH,
    SECRET_KEY,
    Executed,
    Gateway,
    World,
    claims,
    http,
    read,
    running_upstream,
    sign,
)

from bff.chat.appends import MAX_APPENDS, MAX_APPENDS_PER_CALLER, MAX_STOPS, MAX_STOPS_PER_CALLER
from bff.config.builder import STOPS

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
NEW_SIGNING = "new-signing-key-sentinel-0123456789abcdef"
NEW_SECRET = "tr_dev_sk_NEWsentinel00000000001"


def test_every_threat_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`test_[^|]+) \|$", TEXT, re.MULTILINE)
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 10
    for name in re.findall(r"`(test_\w+)`", "".join(rows)):
        assert f"def {name}(" in tests, name


def test_pages_name_the_bounds_on_messages_and_stops() -> None:
    codes = (ROOT / "docs/OPERATIONS.md").read_text()

    assert f"{STOPS.limit} a minute and {MAX_STOPS_PER_CALLER} at once" in TEXT
    assert f"a process {MAX_STOPS} at once" in TEXT
    assert STOPS.seconds == 60
    assert f"{MAX_APPENDS_PER_CALLER} messages, or {MAX_STOPS_PER_CALLER} stops, at once" in codes
    assert f"{MAX_APPENDS} messages ({MAX_STOPS} stops) at once" in codes


async def test_emergency_plan_works_as_written(world: World) -> None:
    lines = re.findall(r"^    ([A-Z_]+)=(\S+)$", TEXT, re.MULTILINE)
    steps = [(name, value) for name, value in lines if name != "BFF_STORE_URL"]
    assert [name for name, _ in steps] == ["BFF_SIGNING_KEYS"] * 3 + ["TRIGGER_SECRET_KEY"] * 2
    keys = world.upstream.environments[0].additional_keys

    for name, value in steps:
        signing = name == "BFF_SIGNING_KEYS"
        old, new = (OWN_KEY, NEW_SIGNING) if signing else (SECRET_KEY, NEW_SECRET)
        if not signing:
            keys.clear()
            if "<old>" in value:  # both keys work until the old one is revoked
                keys[old] = ("read:sessions",)
            keys[new] = ("read:sessions",)
        settings = {name: value.replace("<new>", new).replace("<old>", old)}
        await world.start(**settings)

        def token(key: str) -> str:
            return sign(claims(world.clock.wall, *read("chat-1")), key)

        if signing:
            assert (await world.get("chat-1", token=token(new))).status_code == 200
            of_old = (await world.get("chat-1", token=token(old))).status_code
            assert of_old == (200 if "<old>" in value else 401)
        else:
            assert (await world.get("chat-1", token=token(OWN_KEY))).status_code == 200
            if "<old>" in value:
                del keys[old]  # revoked
                assert (await world.get("chat-2")).status_code == 200
            assert world.upstream.seen[-1].header("authorization") == f"Bearer {new}"


def _asked(gateway: Gateway, id_: str, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return http.get(gateway.url + PATH + id_, headers=headers).status_code


def test_revocations_work_as_written(gateway: Gateway) -> None:
    lines = re.findall(r"^    bff (revoke .+)$", TEXT, re.MULTILINE)
    old, ids = time.time() - 60, ("chat-1", "chat-2")

    def token(**more: object) -> str:
        return sign(claims(old, *read(*ids), exp=int(old) + 900, **more))

    hit = [
        (token(jti="sentinel-jti"), "chat-2", 401),
        (token(), "chat-1", 403),
        (token(act={"sub": "user-7"}), "chat-2", 401),
        (token(), "chat-2", 401),
    ]
    assert len(lines) == len(hit)
    settings = {"PATH": os.environ["PATH"], "BFF_OPS_PORT": str(gateway.ops_port)}
    for line, (taken, id_, status) in zip(lines, hit, strict=True):
        assert _asked(gateway, id_, taken) == 200
        words = line.replace("<jti>", "sentinel-jti").replace("<moment>", str(time.time() - 1))
        command = [sys.executable, "-m", "bff", *words.split()]
        subprocess.run(command, env=settings, check=True, capture_output=True)
        assert _asked(gateway, id_, taken) == status, line
    shown = gateway.output + http.get(gateway.ops_url + "/metrics").text
    for hidden in ("sentinel-jti", "user-7", "chat-1"):
        assert hidden not in shown, "no output shows whom a revocation is about"


def test_store_password_rotates_as_written(tmp_path: Path) -> None:
    old, new = "old-store-sentinel", "new-store-sentinel"
    plan = TEXT[TEXT.index("**The store's password leaked.**") :]
    add, url, *rest = re.findall(r"^    (.+)$", plan, re.MULTILINE)
    options = ("--user", "gateway", "on", f">{old}", "~bff1:*", "+@all")

    def filled(line: str) -> str:
        return line.replace("<old>", old).replace("<new>", new)

    with running_upstream() as upstream, Engine("valkey", tmp_path, *options) as engine:
        origin = f"127.0.0.1:{engine.port}"

        def gateway(password: str) -> Gateway:
            address = url.partition("=")[2].replace("<new>", password).replace("<store>", origin)
            return Executed(upstream.port, BFF_STORE_URL=address, BFF_STORE_TIMEOUT="2")

        with gateway(old) as first:
            engine.execute(*filled(add).split())
            with gateway(new) as second:
                for line in rest:
                    engine.execute(*filled(line).split())
                token = second.token(*read("chat-1"))
                assert _asked(second, "chat-1", token) == 200, "the new one works"
                assert eventually(lambda: metric(first, "bff_store_up") == 0), (
                    "the old one does not"
                )
                assert eventually(lambda: metric(second, "bff_store_up") == 1)
                assert _asked(first, "chat-1", token) == 200, "alone"
                output = first.output + second.output
                for path in ("/metrics", "/readyz"):
                    output += http.get(second.ops_url + path).text
                arguments = Path(f"/proc/{second.process.pid}/cmdline").read_text()
    assert "store-sentinel" not in output + arguments
