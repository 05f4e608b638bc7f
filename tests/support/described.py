"""Holds answers to the OpenAPI document."""

import json
from collections.abc import Iterable
from typing import Any

import jsonschema_rs

_UNDESCRIBED = ("access-control-", "content-", "connection", "date", "server", "transfer-encoding")
"""Headers of HTTP and of CORS, which OpenAPI leaves out."""


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A validator for *schema*, which may refer to parts of *document*."""
    whole = {**schema, "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def check(
    document: dict[str, Any],
    operation: dict[str, Any],
    status: int,
    headers: Iterable[tuple[str, str]],
    body: bytes,
) -> None:
    """Fail unless *operation* describes the answer: status, media type, body, headers, code."""
    described = operation["responses"][str(status)]
    lines = [(name.lower(), value) for name, value in headers]
    media = dict(lines)["content-type"].partition(";")[0]
    content = described["content"][media]
    if body:
        value = json.loads(body)
        validator(document, content["schema"]).validate(value)
        if status >= 400:
            assert value["code"] in content["examples"], (value["code"], [*content["examples"]])
    references = {name.lower(): ref["$ref"] for name, ref in described["headers"].items()}
    for name, value in lines:
        if not name.startswith(_UNDESCRIBED) and name != "allow":
            header = document["components"]["headers"][references[name].split("/")[-1]]
            typed = int(value) if header["schema"].get("type") == "integer" else value
            validator(document, header["schema"]).validate(typed)


def check_stream(document: dict[str, Any], operation: dict[str, Any], text: str) -> list[str]:
    """Fail unless *operation* describes the events of a stream; return the names of the events."""
    content = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    name = content["contentSchema"]["items"]["$ref"].rpartition("/")[2]
    kinds = document["components"]["schemas"][name]["anyOf"]
    seen = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        event = {field: value for field, _, value in lines if field and field != "retry"}
        if not event:
            continue
        (kind,) = [one for one in kinds if validator(document, one).is_valid(event)]
        data = kind["properties"]["data"]
        if "contentSchema" in data:
            validator(document, data["contentSchema"]).validate(json.loads(event["data"]))
        seen.append(event.get("event", event["data"]))
    return seen
