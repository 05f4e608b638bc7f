"""SECURITY.md holds to the code: its tests are there, and its emergency plan works as written."""

import re
from pathlib import Path

from world import OWN_KEY, SECRET_KEY, World, claims, read, sign

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
NEW_SIGNING = "new-signing-key-sentinel-0123456789abcdef"
NEW_SECRET = "tr_dev_sk_NEWsentinel00000000001"


def test_every_threat_names_tests_that_there_are() -> None:
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`test_[^|]+) \|$", TEXT, re.MULTILINE)
    there = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 10
    for name in re.findall(r"`(test_\w+)`", "".join(rows)):
        assert f"def {name}(" in there, name


async def test_the_emergency_plan_works_as_written(world: World) -> None:
    steps = re.findall(r"^    ([A-Z_]+)=(\S+)$", TEXT, re.MULTILINE)
    assert [name for name, _ in steps] == ["BFF_SIGNING_KEYS"] * 3 + ["TRIGGER_SECRET_KEY"] * 2
    keys = world.upstream.environments[0].additional_keys

    for name, value in steps:
        signing = name == "BFF_SIGNING_KEYS"
        old, new = (OWN_KEY, NEW_SIGNING) if signing else (SECRET_KEY, NEW_SECRET)
        if not signing:
            keys.clear()
            if "<old>" in value:  # as long as it is not revoked, either is good
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
