"""docs/INCIDENTS.md matches the code, and every incident has a test and a fault."""

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NUMBERS = {*range(1, 60), *range(64, 74), *range(80, 100)}


def _table() -> dict[int, tuple[str, str]]:
    rows = re.findall(
        r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$",
        (ROOT / "docs/INCIDENTS.md").read_text(),
        re.MULTILINE,
    )
    return {int(number): (tests, protection) for number, tests, protection in rows}


def _tests() -> dict[str, str]:
    return {
        name: file.stem
        for file in Path(__file__).parent.glob("test_incident_*.py")
        for name in re.findall(r"^(?:async )?def (test_\d\d_\w+)\(", file.read_text(), re.MULTILINE)
    }


def test_every_incident_is_in_the_table_with_its_tests() -> None:
    table, tests = _table(), _tests()
    assert set(table) == NUMBERS
    for number, (named, _) in table.items():
        names = re.findall(r"`(test_\d\d_\w+)`", named)
        assert names, number
        assert all(name in tests and name.startswith(f"test_{number:02}_") for name in names)
    unlisted = set(tests) - {
        n for named, _ in table.values() for n in re.findall(r"`(\w+)`", named)
    }
    assert unlisted == set()


def test_every_protection_names_code_that_exists() -> None:
    for number, (_, protection) in _table().items():
        places = re.findall(r"`(bff/[\w/]+\.py)(?:: ([\w.]+))?`", protection)
        assert places, number
        for file, name in places:
            text = (ROOT / file).read_text()
            last = name.rpartition(".")[2]
            defined = rf"\b(?:def|class) {last}\b|^\s*(?:self\.)?{last}\b(?:: [^=\n]+)? = "
            assert not name or re.search(defined, text, re.MULTILINE), (file, name)


def test_every_incident_has_a_fault_that_applies() -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "tests/faults/table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["table"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    assert {fault.incident for fault in module.FAULTS} == NUMBERS | {0}
    for fault in module.FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault
        file, _, name = fault.test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(), fault
