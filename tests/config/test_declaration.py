"""How a declared setting is found again, and how its default is documented."""

from dataclasses import dataclass

import pytest

from bff.config import values
from bff.config.declaration import Setting, declared, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    port: int = setting("BFF_PORT", values.port, "the port", default="1", reloadable=False)
    composed: str


def test_declared_finds_settings_by_field_and_skips_other_fields() -> None:
    assert declared(Example) == {
        "port": Setting("BFF_PORT", values.port, "the port", "1", reloadable=False)
    }


def test_declared_field_is_a_required_argument() -> None:
    assert Example(port=3, composed="x").port == 3
    with pytest.raises(TypeError, match="port"):
        Example(composed="x")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"required": True}, "required"),
        ({"default": "2"}, "`2`"),
        ({"default": ""}, "none"),
        ({}, "none"),
        ({"derived": "the only environment"}, "the only environment"),
    ],
)
def test_default_is_shown_as_text_or_in_words(options: dict, shown: str) -> None:
    assert Setting("BFF_X", values.text, "a text", **options).shown_default == shown
