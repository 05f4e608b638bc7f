"""The stand-in answers as the real store does."""

import asyncio
import io
import os
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import Engine
from support.standin import Shared, StandIn
from support.world import environ

from bff.background import Background
from bff.config.reader import load
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.store import Store
from bff.telemetry import Telemetry

_IDS = st.sampled_from(["a", "b"])
_TOKENS = st.sampled_from(["one", "two"])
_VALUES = [b"", b"foreign", b"bff1 0 old", b"bff1 9999999999999999 new"]
"""Two say when their load was claimed: before every command of the test, and after."""
_LONG = 100.0
"""Seconds: nothing expires during a test, for nobody can move the real store's clock."""

_COMMANDS = st.one_of(
    st.tuples(st.just("take"), _IDS, st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.just("spend"), _IDS, st.sampled_from([None, 1, 3])),
    st.tuples(st.just("allow"), _IDS, st.integers(-2, 3)),
    st.tuples(st.just("pause"), _IDS),
    st.tuples(st.just("read"), _IDS),
    st.tuples(
        st.just("load"),
        _IDS,
        st.sampled_from(["", "one", "two"]),
        st.sampled_from([0.0, inf]),
        st.sampled_from([None, 0, 1, 3]),
    ),
    st.tuples(st.just("renew"), _IDS, _TOKENS),
    st.tuples(st.just("release"), _IDS, _TOKENS),
    st.tuples(
        st.just("keep"), st.lists(_IDS, min_size=1, unique=True), _TOKENS, st.sampled_from(_VALUES)
    ),
    st.tuples(st.just("drop"), _IDS),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine("valkey", tmp_path_factory.mktemp("store")) as engine:
        yield engine


async def _run(store: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    """Give the answers of *store*; for seconds, whether there are any."""
    await store.open(lambda *_: None)
    try:
        return await _answers(store, commands)
    finally:
        await store.close()


async def _answers(store: Any, commands: list[tuple[Any, ...]]) -> list[Any]:  # noqa: C901  a table
    answers: list[Any] = []
    free = SharedBudget("free", 0, 0.0)
    first = await store.load("time", "t", _LONG, fresh=0, budget=free, timeout=2)
    claimed = first.time
    for name, key, *rest in commands:
        match name:
            case "take":
                granted, left, ends = await store.take(
                    f"w:{key}", limit=rest[0], want=rest[1], seconds=_LONG, timeout=2
                )
                answers.append((granted, left, ends > _LONG / 2))
            case "spend":
                budget = SharedBudget(key, rest[0], _LONG)
                answers.append(await store.spend(budget, timeout=2) > 0)
            case "allow":
                store.allow(key, rest[0], _LONG)
            case "pause":
                store.pause(key, _LONG)
            case "read":
                value, left = await store.read(key, timeout=2)
                answers.append((value, left > 0))
            case "load":
                token, fresh, limit = rest
                budget = SharedBudget(key, limit, _LONG)
                result = await store.load(key, token, _LONG, fresh=fresh, budget=budget, timeout=2)
                claimed = result.time
                answers.append((result.claimed, result.denied > 0, result.value, result.left > 0))
            case "renew":
                store.renew(key, rest[0], _LONG)
            case "release":
                store.release(key, rest[0])
            case "keep":
                token, value = rest
                until, kept = claimed / 1_000_000 + _LONG, asyncio.Event()

                def done(result: str, kept: asyncio.Event = kept) -> None:
                    answers.append(result)
                    kept.set()

                store.keep(key, value, token=token, claimed=claimed, until=until, done=done)
                await kept.wait()
            case "drop":
                store.drop(key)
    return answers


@settings(max_examples=60, derandomize=True)
@given(st.lists(_COMMANDS, max_size=25))
def test_stand_in_answers_as_the_real_store(
    engine: Engine, commands: list[tuple[Any, ...]]
) -> None:
    engine.empty()
    address = load(environ(BFF_STORE_URL=engine.url)).store_url
    assert address is not None
    real = Store(
        address,
        background=Background(Telemetry(io.StringIO())),
        timeout=2,
        name="0a",
        count=lambda *_: None,
        changed=lambda _: None,
        revocations=lambda: (),
        waits=lambda: None,
        begun=lambda: None,
        random=os.urandom,
    )
    real.key.secrets = [b"secret"]
    # Each reading of the clock is a microsecond later, so no two commands have the same time.
    ticks = iter(range(10**6))
    stand_in = StandIn(Shared(lambda: next(ticks) * 1e-6), timeout=2)

    assert asyncio.run(_run(stand_in, commands)) == asyncio.run(_run(real, commands))
