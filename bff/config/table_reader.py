"""Reads the settings of one table: of the environment, or of a section of the file."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bff.config import files, typed
from bff.config.declaration import DEFAULT, Setting, SettingReport, declared
from bff.config.typed import InvalidValue, mend, texts

CLOSE_MATCH = 0.8
"""Lowest similarity (0 to 1) of an unknown name and the setting that is suggested for it: about two
wrong letters. A wrong suggestion misleads more than a missing one."""


@dataclass(eq=False, repr=False)
class TableReader:
    """Reads tables and collects all problems, so that an operator sees them at once.

    Args:
        environ: the environment variables.
        settings: the top level's settings, for the hint that a name belongs there.
        renamed: former names, each with its replacement.
    """

    environ: Mapping[str, str]
    settings: Collection[str]
    renamed: Mapping[str, str]
    problems: list[str] = field(default_factory=list, init=False)
    files: list[str] = field(default_factory=list, init=False)
    """Every file that was read."""
    _reports: list[SettingReport] = field(default_factory=list, init=False)
    _secrets: set[str] = field(default_factory=set, init=False)

    def redact(self, text: str) -> str:
        """Hide in *text* every secret that was read, and every text that looks like one."""
        return typed.redact(text, self._secrets)

    @property
    def reports(self) -> tuple[SettingReport, ...]:
        """Every setting that was read. Read it after all of them, because it hides all secrets."""
        return tuple(
            replace(one, section=self.redact(one.section), shown=self.redact(one.shown))
            for one in self._reports
        )

    def values(
        self, settings_class: type, table: Mapping[str, object], prefix: str
    ) -> dict[str, Any]:
        """Read the settings that *settings_class* declares, by field.

        An invalid setting has the value None, as does one that is not set and has no default.
        *prefix* begins each problem: empty for the top level, else ``BFF_CONFIG: <section>: ``.
        """
        rows = declared(settings_class).items()
        return {name: self._value(row, table, prefix) for name, row in rows}

    def _value(self, row: Setting, table: Mapping[str, object], prefix: str) -> Any:
        try:
            text = self._text(row, table)
            value = None if text is None else row.read(text)
            shown = _shown(row, text)
        except InvalidValue as problem:
            self.problems.append(f"{prefix}{row.name} {problem}")
            value = None
            # The text is not quoted: it may be a key in the wrong variable.
            is_default = self._source(row, table) == DEFAULT
            shown = "not set (required)" if is_default else "(invalid)"
        section = prefix.removeprefix("BFF_CONFIG: ").removesuffix(": ")
        self._reports.append(SettingReport(section, row.name, shown, self._source(row, table)))
        return value

    def _text(self, row: Setting, table: Mapping[str, object]) -> str | None:
        """Return the text of a setting, of its file, or of its default."""
        text = mend(_as_text(table.get(row.name)))
        path = mend(_as_text(table.get(row.file_name))) if row.secret else ""
        if path:
            text_of_file = self._secret_file(row, path)
            if text:
                raise InvalidValue(f"and {row.file_name} are both set; keep one")
            text = mend(text_of_file)
        if row.required and not text:
            either = f"{row.name} or {row.file_name}" if row.secret else row.name
            raise InvalidValue(f"is not set; set {either}: {row.meaning.partition('. ')[0]}")
        if not text:
            return row.default
        if row.secret:
            self._secrets.update((text, *texts(text)))
        typed.check(row.name, text, secret=row.secret)
        return text

    def _secret_file(self, row: Setting, path: str) -> str:
        try:
            typed.check_path(row.name, path)
        except InvalidValue as problem:
            raise InvalidValue(
                f"has a {row.file_name} that {problem}; set {row.file_name} to the path of a file "
                "that holds it"
            ) from None
        try:
            text = self._read(path)
        except OSError as exc:
            # The problem omits the path: an operator may have put the key itself there.
            raise InvalidValue(
                f"cannot be read from its file ({exc.strerror}); set {row.file_name} to the path "
                "of a file that holds it"
            ) from None
        if not mend(text):
            raise InvalidValue(f"is empty in the file that {row.file_name} names; write it there")
        return text

    def _source(self, row: Setting, table: Mapping[str, object]) -> str:
        value = table.get(row.name)
        try:
            path = mend(_as_text(table.get(row.file_name))) if row.secret else ""
            if path:
                return self.redact(path) if path in self.files else "(not a readable file)"
            if not mend(_as_text(value)):
                return DEFAULT
        except InvalidValue:
            return "BFF_CONFIG"
        # Compared by identity: the file may hold an equal text, but the variable wins.
        return "environment" if value is self.environ.get(row.name) else "BFF_CONFIG"

    def file(self, name: str, path: str) -> str | None:
        """Read the file that the setting *name* names; on a problem report it and return None."""
        path = mend(path)
        try:
            typed.check_path(name, path)
            return self._read(path)
        except InvalidValue as problem:
            self.problems.append(f"{name} {problem}")
        except OSError as exc:
            # The problem omits the path: an operator may have put a key there.
            self.problems.append(
                f"{name} names a file that cannot be read ({exc.strerror}); check the path"
            )
        return None

    def _read(self, path: str) -> str:
        try:
            text = files.read_text(path)
        except ValueError:  # a path with a NUL
            raise OSError(0, "no such path") from None
        self.files.append(path)
        return text

    def report_unknown(self, names: Collection[str], allowed: Collection[str], prefix: str) -> None:
        """Report *names* that are not settings: a misspelt limit would not be in force."""
        for name in sorted(set(names) - set(allowed)):
            if _SERVICE_LINK.fullmatch(name):
                hint = (
                    "comes from Kubernetes' service links; set enableServiceLinks: false in the pod"
                )
            elif name in self.renamed:
                hint = f"is renamed to {self.renamed[name]}"
            elif name in self.settings:
                hint = "is not a setting of this section; set it at the top level"
            elif close := _closest(name, allowed) or _closest(name.removesuffix("_FILE"), allowed):
                hint = f"is not a setting; did you mean {close}?"
            else:
                hint = "is not a setting; docs/SETTINGS.md lists all settings"
            shown = name if name.isascii() and name.isprintable() else repr(name)
            self.problems.append(f"{prefix}{shown} {hint}")


_SERVICE_LINK = re.compile(r"BFF_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+)")
"""Variables that Kubernetes sets in every pod beside a Service named bff."""


def keys_of(settings_class: type) -> set[str]:
    """Return the keys that a table of *settings_class* may have, ``NAME_FILE`` included."""
    rows = declared(settings_class).values()
    return {row.name for row in rows} | {row.file_name for row in rows if row.secret}


def _shown(row: Setting, text: str | None) -> str:
    if text is None or text == row.default:
        return row.shown_default
    if row.secret:
        count = len(texts(text))
        return "set" if count == 1 else f"set, {count} of them"
    return text.replace("\n", ",")


def _as_text(value: object) -> str:
    """Convert a TOML value to the text that a variable would have."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(part, dict | list) for part in value)
    ):
        raise InvalidValue("is a table; write a text, a number or a list of texts")
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0") if abs(value) < _LONG else repr(value)
    if isinstance(value, int) and abs(value) >= _LONG:
        raise InvalidValue("is too large a number; write a smaller one")
    return str(value)


_LONG: Final = 10**15
"""Larger than any setting; Python may refuse to write larger numbers."""


def _closest(name: str, allowed: Collection[str]) -> str | None:
    import difflib  # noqa: PLC0415  costs milliseconds at start, and only a mistake needs it

    # Without the common prefixes, which make any two settings similar.
    stems = {_stem(setting): setting for setting in allowed}
    matches = difflib.get_close_matches(_stem(name), stems, n=1, cutoff=CLOSE_MATCH)
    return stems[matches[0]] if matches else None


def _stem(name: str) -> str:
    return plain_name(name).removeprefix("BFF_").removeprefix("TRIGGER_")


def plain_name(name: str) -> str:
    """Return the name that a person meant, without what tools and env files add to it."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper().removeprefix("EXPORT ")).strip("_")
