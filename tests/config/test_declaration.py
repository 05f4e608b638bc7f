"""How a declared setting is found again, and how its default is documented."""

from dataclasses import dataclass

import pytest

from bff.config import values
from bff.config.declaration import Setting, declared, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    port: int = setting(values.port, "the port", default="1", reloadable=False)
    on: bool = setting(values.flag, "whether it is on", name="BFF_EXAMPLE")
    composed: str


def test_declared_finds_settings_by_field_and_skips_other_fields() -> None:
    assert declared(Example) == {
        "port": Setting(values.port, "the port", "BFF_PORT", "1", reloadable=False),
        "on": Setting(values.flag, "whether it is on", "BFF_EXAMPLE"),
    }


def test_declared_field_is_a_required_argument() -> None:
    assert Example(port=3, on=True, composed="x").port == 3
    with pytest.raises(TypeError, match="port"):
        Example(on=True, composed="x")


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
    assert Setting(values.text, "a text", **options).shown_default == shown
