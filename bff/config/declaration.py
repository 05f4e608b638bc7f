"""How a setting is declared, and how its value is reported."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

T = TypeVar("T")

DEFAULT = "default"
"""The source of a setting that is not set."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting."""

    read: Callable[[str], Any]
    """Converts the text to the value, or raises `values.InvalidValue`."""
    meaning: str
    """A cell of the documentation's table; the first sentence also explains a missing setting."""
    name: str = ""
    """The environment variable, and the key in the file; `declared` fills in an empty one."""
    default: str | None = None
    """The text that is read when the setting is not set; None leaves the value None."""
    derived: str = ""
    """For the documentation: what the default depends on, if it is not a fixed text."""
    required: bool = False
    secret: bool = False
    """The value is never shown, and `NAME_FILE` may name a file that holds it."""
    reloadable: bool = True
    """A reload can change it; otherwise a change needs a restart."""

    @property
    def file_name(self) -> str:
        """The setting that names a file with the value, if the value is secret."""
        return f"{self.name}_FILE"

    @property
    def shown_default(self) -> str:
        """The default, for the documentation."""
        if self.required:
            return "required"
        return self.derived or (f"`{self.default}`" if self.default else "none")


def setting(read: Callable[[str], T], meaning: str, **options: Any) -> T:
    """Declare a field of a settings class; *options* are further fields of `Setting`."""
    declared: T = field(metadata={"setting": Setting(read, meaning, **options)})
    return declared


def fixed(read: Callable[[str], T], meaning: str, **options: Any) -> T:
    """Declare a setting that a reload cannot change: sockets and connections depend on it."""
    return setting(read, meaning, reloadable=False, **options)


def declared(settings_class: type) -> dict[str, Setting]:
    """Return the settings that *settings_class* declares, by field.

    A setting without a name is ``BFF_`` and the field in upper case: `port` is ``BFF_PORT``.
    """
    rows = {row.name: row.metadata.get("setting") for row in fields(settings_class)}
    return {
        name: replace(row, name=row.name or f"BFF_{name.upper()}")
        for name, row in rows.items()
        if row is not None
    }


@dataclass(frozen=True, slots=True)
class SettingReport:
    """One setting as it was read, for `bff check`."""

    section: str
    """The section of the file, such as ``policy 'chat.agent'``; empty for the top level."""
    name: str
    shown: str
    """The value; for a secret only that it is set."""
    source: str
    """``environment``, ``BFF_CONFIG``, `DEFAULT`, or the path of the `NAME_FILE`."""
