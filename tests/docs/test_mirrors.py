"""Each module bff/a/b.py has its tests in tests/a/test_b.py, and bff/b.py in tests/test_b.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

TEST = re.compile(r"^(?:async )?def test_", re.MULTILINE)

EXCEPTIONS = {
    "bff/__main__.py": "It calls bff.cli.main; each test that starts a gateway runs it.",
    "bff/chat/config.py": "It holds settings and decides nothing.",
    "bff/gateway/context.py": "It holds the data of one request and decides nothing.",
}


def mirror(module: str) -> Path:
    """Return where the tests of *module* belong."""
    path = Path(module).relative_to("bff")
    return ROOT / "tests" / path.with_name(f"test_{path.name}")


def modules() -> list[str]:
    paths = (ROOT / "bff").rglob("*.py")
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py")


def test_each_module_has_tests_at_its_mirror() -> None:
    missing = [
        str(mirror(module).relative_to(ROOT))
        for module in modules()
        if module not in EXCEPTIONS
        and not (mirror(module).is_file() and TEST.search(mirror(module).read_text()))
    ]

    assert missing == []


def test_each_exception_is_a_module_without_a_mirror() -> None:
    for module, reason in EXCEPTIONS.items():
        assert module in modules()
        assert not mirror(module).exists(), f"{module} has tests: remove it from EXCEPTIONS"
        assert reason.endswith(".")
