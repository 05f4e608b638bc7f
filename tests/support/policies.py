"""Strategies for policies and documents, and the answers of the service for them."""

from typing import Any

from hypothesis import strategies as st
from support.world import Clock, World, read

from bff.demo.upstream import session
from bff.sessions.policy import DEFAULT_FIELDS, REQUIRED_FIELDS

_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_dates = st.sampled_from(
    ["2026-01-02T03:04:05.678Z", "1970-01-01T00:00:00Z", "2024-02-29T23:59:59.999999Z"]
)
documents = st.fixed_dictionaries(
    {
        "tags": st.lists(st.sampled_from(["user:1", "public:a", "ü", ""]), max_size=3),
        "metadata": st.none()
        | st.dictionaries(st.sampled_from(["plan", "steps", "a.b", "__proto__"]), _json),
        "closedAt": st.none() | _dates,
        "closedReason": st.none() | _texts,
        "expiresAt": st.none() | _dates,
        "createdAt": _dates,
    },
    optional={"newUpstream": _json, "triggerConfig": st.just({})},
)
policies = st.fixed_dictionaries(
    {
        "BFF_EXPOSE_FIELDS": st.sets(
            st.sampled_from([*DEFAULT_FIELDS, "triggerConfig", "newUpstream"])
        ).map(lambda some: ",".join({*some, *REQUIRED_FIELDS})),
        "BFF_EXPOSE_METADATA": st.sampled_from(["", "plan", "*", "steps.*.title,plan", "*.*"]),
        "BFF_EXPOSE_TAGS": st.sampled_from(["", "*", "public:*"]),
    }
)


async def answers(policy: dict[str, str], documents: list[dict[str, object]]) -> dict[str, Any]:
    """Get single sessions, a list with unavailable sessions, and the OpenAPI document."""
    async with World(Clock(), **policy) as world:
        names = [f"random-{number}" for number, _ in enumerate(documents)]
        for number, (name, document) in enumerate(zip(names, documents, strict=True), start=50):
            world.upstream.environments[0].add(session(number, name, **document))
        responses = [await world.get(name) for name in names]
        assert [response.status_code for response in responses] == [200] * len(names)
        openapi = (await world.browser.get("/openapi.json")).json()
        await world.start(**policy, BFF_UPSTREAM_BUDGET="1/second")  # the list reports two of them
        headers = {"authorization": f"Bearer {world.token(*read(*names))}"}
        listed = await world.browser.get("/api/v1/sessions?page[size]=2", headers=headers)
        return {
            "retrieve": [response.json() for response in responses],
            "list": [listed.json()],
            "openapi": openapi,
        }
