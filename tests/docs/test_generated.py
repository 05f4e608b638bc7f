"""The generated tables and drawings of the documentation are up to date, and none is forgotten."""

import re
from pathlib import Path

import pytest
from programs.generate_docs import PAGES, ROOT, generated, tables

GENERATED = generated()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generating_the_documentation_changes_nothing(path: Path) -> None:
    assert path.read_text() == GENERATED[path], "run: make docs"


def test_each_table_stands_on_one_page_and_each_mark_has_a_table() -> None:
    marks = [name for page in PAGES for name in re.findall(r"<!-- /(\w+) -->", page.read_text())]

    assert sorted(marks) == sorted(tables())


def test_generating_restores_a_row_that_an_editor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs/SETTINGS.md"
    edited = tmp_path / page.name
    edited.write_text(page.read_text().replace("| `BFF_PORT` |", "| `BFF_PROT` |"))
    monkeypatch.setattr("programs.generate_docs.PAGES", [edited])

    assert edited.read_text() != page.read_text()
    assert generated()[edited] == page.read_text()
