"""Each snippet of README.md is a test: this module is what the page says."""

import re
from pathlib import Path

PAGE = Path(__file__).with_name("README.md")
for snippet in re.finditer(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
    above = "\n" * PAGE.read_text()[: snippet.start(1)].count("\n")  # so that errors name the line
    exec(compile(above + snippet[1], PAGE, "exec"))  # noqa: S102  the repository's own page


def test_page_names_only_what_exists() -> None:
    text = PAGE.read_text()
    tests = PAGE.parents[1]

    for path in re.findall(r"`(tests/(?!a/)[\w/]+(?:\.py)?)`", text):
        assert (tests.parent / path).exists(), path
    for names, module in re.findall(r"`(\w+)`(?: is)? in `support\.(\w+)`", text):
        assert re.search(rf"\b(class|def) {names}\b", (tests / f"support/{module}.py").read_text())
    fixtures = (tests / "conftest.py").read_text()
    for fixture in re.findall(r"fixture `(\w+)`", text):
        assert f"def {fixture}(" in fixtures, fixture
