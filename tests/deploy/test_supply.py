"""The image: its bill of materials names every package, and it holds no secret."""

import ast
import fnmatch
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions

from programs import sbom
from support.world import OWN_KEY

ROOT = sbom.PINS.parent.parent
DISTRIBUTIONS = packages_distributions()


def test_a_bill_of_materials_names_every_pin_and_nothing_else() -> None:
    pins = sbom.PINS.read_text()
    pinned = re.findall(r"^([\w.-]+)==([^\s;\\]+)", pins, re.MULTILINE)
    parts = [{"name": name, "version": version} for name, version in pinned]

    assert len(parts) > 10
    assert sbom.differences(json.dumps({"components": parts}), pins) == set()
    assert sbom.differences(json.dumps({"components": parts[1:]}), pins) == {pinned[0]}
    older = [parts[0] | {"version": "0"}, *parts[1:]]
    assert sbom.differences(json.dumps({"components": older}), pins)


def imports(text: str) -> Iterator[str]:
    """Yield the module of each absolute import, wherever in the text it stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[><=!~\[; ]", requirement)[0]).lower()


def distributions(module: str) -> set[str]:
    """Return the installed distributions that hold *module*: one, but for a namespace."""
    package = module.partition(".")[0]
    candidates = DISTRIBUTIONS.get(package, [package])
    files = {module.replace(".", "/") + end for end in (".py", "/__init__.py")}
    holders = [
        name
        for name in candidates
        if len(candidates) == 1 or files & {str(file) for file in distribution(name).files or ()}
    ]
    return {canonical(name) for name in holders}


def test_bff_imports_only_packages_that_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    named = {canonical(one) for one in project["dependencies"] + extras}

    imported = {
        (module, str(path.relative_to(ROOT)))
        for path in ROOT.glob("bff/**/*.py")
        for module in imports(path.read_text())
        if module.partition(".")[0] not in sys.stdlib_module_names | {"bff"}
    }
    assert {"httpx2", "opentelemetry.trace"} <= {module for module, _ in imported}
    for module, path in sorted(imported):
        assert distributions(module) & named, f"{path} imports {module}: pyproject must name it"


def let_in(path: str) -> bool:
    """Whether a build may see *path*: the last rule of .dockerignore that fits it decides."""
    seen = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        names = above + (parts if "**/" in rule else [])
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            seen = rule.startswith("!")
    return seen


def test_no_secret_of_a_working_copy_gets_into_the_image() -> None:
    for secret in (
        *(
            "secrets/secret_key",
            "secrets/signing_keys",
            ".env",
            "bff.env",
            "bff.toml",
            ".git/config",
        ),
        *(
            "deploy/systemd/bff.service",
            "tests/support/world.py",
            "requirements/dev.txt",
            ".venv/bin/pip",
        ),
        *("build/sbom.json", "bff/__pycache__/auth.cpython-311.pyc", "docker-compose.yml"),
    ):
        assert not let_in(secret), secret
    files = [str(p.relative_to(ROOT)) for p in ROOT.glob("bff/**/*") if p.is_file()]
    files += ["pyproject.toml", "README.md", "LICENSE", "requirements/run.txt"]
    copied = [file for file in files if let_in(file)]
    assert {"bff/gateway/decide.py", "requirements/run.txt", "README.md"} <= set(copied)
    looks_secret = re.compile(
        rb"tr_(?:dev|prod|stg|preview)_(?:sk_)?[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE"
    )
    for file in copied:
        text = (ROOT / file).read_bytes()
        assert OWN_KEY.encode() not in text
        told = {m for m in looks_secret.findall(text) if b"0123456789abcdefghijklmn" not in m}
        assert not [m for m in told if b"demo" not in m.lower()], file
