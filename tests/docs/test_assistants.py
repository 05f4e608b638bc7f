"""docs/ASSISTANTS.md and llms.txt say what the gateway does."""

import json
import re
from pathlib import Path

from docs.test_recipes import ROUTES
from support.world import ENVIRONMENT_ID, World, sign

from bff.config.settings import SETTINGS
from bff.errors import REFUSALS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ASSISTANTS.md").read_text()
INDEX = (ROOT / "llms.txt").read_text()


async def test_described_claims_make_a_token_that_works(world: World) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    claims = json.loads(block)
    assert claims["exp"] - claims["iat"] == 15 * 60
    now = int(world.clock.wall)
    claims |= {"iat": now, "exp": now + 900}
    shared = claims | {"sub": ENVIRONMENT_ID}
    assert (await world.get("chat-1", token=sign(shared))).status_code == 200

    one = await world.get("chat-1", token=sign(claims))
    foreign = await world.get("chat-closed", token=sign(claims))
    sent = {"authorization": f"Bearer {sign(claims)}"}
    listed = await world.browser.get("/api/v1/sessions", headers=sent)

    assert (one.status_code, foreign.status_code) == (200, 403)
    assert "triggerConfig" not in one.json()
    assert (one.json()["metadata"], one.json()["tags"]) == (None, [])
    assert [chat["externalId"] for chat in listed.json()["data"]] == ["chat-1", "chat-2"]
    for claim in claims.keys() - {"act", "iat"}:
        fewer = {name: value for name, value in claims.items() if name != claim}
        refused = await world.get("chat-1", token=sign(fewer))
        assert refused.status_code == (403 if claim == "scopes" else 401), claim


async def test_described_events_are_those_of_a_stream(world: World) -> None:
    (names,) = re.findall(r"`Accept: text/event-stream` send (.+?)\(connect again", PAGE)
    document = (await world.browser.get("/openapi.json")).json()
    kinds = document["components"]["schemas"]["LiveEvent"]["anyOf"]

    described = [kind["properties"]["event"]["const"] for kind in kinds]
    assert re.findall(r"`(\w+)`", names) == described
    schemas = document["components"]["schemas"]
    for name, schema in (("gone", "LiveGone"), ("end", "LiveEnd")):
        (member,) = schemas[schema]["properties"]
        assert f'of `{name}` `{{"{member}": …}}`' in PAGE
    assert not schemas["LiveSessions"]["properties"].keys() - {"data", "unavailable"}


def test_requests_errors_and_settings_are_those_of_the_code() -> None:
    assert set(re.findall(r"^\| `((?:GET|POST) \S+)`", PAGE, re.MULTILINE)) == set(ROUTES.values())
    statuses = {int(one) for one in re.findall(r"\b(4\d\d|50\d)\b", PAGE)}
    assert statuses <= {row.status for row in REFUSALS.values()}
    assert statuses >= {401, 403, 404, 409, 410, 429, 502, 503, 504}
    assert set(re.findall(r"`((?:BFF|TRIGGER)_\w+)`", PAGE)) <= set(SETTINGS)


def test_index_links_each_page_for_integrators_and_operators() -> None:
    assert re.match(r"# bff\n\n> [^\n]+\n", INDEX), "the form of llms.txt"
    linked = set(re.findall(r"\]\(([^)]+)\)", INDEX))
    assert all((ROOT / path).is_file() for path in linked)
    internal = {"VOCABULARY", "INCIDENTS", "PERFORMANCE"}
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == {f"docs/{name}.md" for name in internal}
