"""The repository keeps its own promises: what the documentation says is what the code does."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from support.world import Gateway, environ

import bff
from bff.config import reader
from bff.config.settings import SETTINGS
from bff.demo.upstream import session
from bff.errors import REFUSALS
from bff.metrics import METRICS
from bff.sessions.policy import Policy

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
MAX_FILE_LINES, MAX_CLASS_LINES = 400, 250
DESIGN, SETTINGS_PAGE = (ROOT / "docs" / f"{name}.md" for name in ("DESIGN", "SETTINGS"))


def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_setting_error_and_metric_has_a_description() -> None:
    assert all(row.meaning for row in SETTINGS.values())
    assert all(row.help.endswith(".") for row in METRICS.values())
    assert all(kind.text.isascii() and '"' not in kind.text for kind in REFUSALS.values())


def test_readme_shows_a_real_document_and_its_projection() -> None:
    row = next(line for line in README.read_text().splitlines() if line.startswith("| <pre>"))
    before, after = re.findall(r"<pre>(.*?)</pre>", row)
    document = session(1, "chat-1")

    shown = json.loads(after.replace("<br>", "\n").replace("**", ""))
    assert shown == Policy().project(document)
    plain = before.replace("<br>", "\n").replace("**", "")
    for name, value in document.items():
        assert f'"{name}": ' in plain
        if not isinstance(value, dict | list):
            assert f'"{name}": {json.dumps(value)}' in plain
    for bold in re.findall(r"\*\*(.*?)\*\*", before):
        first = re.search(r'"(\w+)"', bold)[1]
        assert shown.get(first, None) != document[first]


def test_documented_configuration_is_accepted(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", SETTINGS_PAGE.read_text(), re.DOTALL)
    for name in ("preview-key", "preview-signing-keys"):
        (tmp_path / name).write_text("tr_preview_" + "k" * 24)
    config = tmp_path / "bff.toml"
    config.write_text(text.replace("/run/secrets", str(tmp_path)))

    settings = reader.load({"BFF_CONFIG": str(config)})

    assert [environment.name for environment in settings.environments] == ["preview"]
    assert settings.policies["chat.support"].metadata == ("plan", "steps.*.title")


def test_readme_commands_work(tmp_path: Path, gateway: Gateway) -> None:
    text = README.read_text()
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert commands[0].split() == ["make", "demo", "make", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)
    run = commands[1].replace("bff serve &", "bff token --session chat-1")

    def pasted(lines: str, **environment: str) -> str:
        return subprocess.run(
            ["bash", "-ec", lines.replace("bff ", f"{sys.executable} -m bff ")],
            env={"PATH": os.environ["PATH"]} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    minted = pasted(run)
    assert "The settings can be used." in minted
    assert minted.splitlines()[-1].count(".") == 2
    curl = commands[2].replace("http://127.0.0.1:8787", gateway.url)
    assert pasted(curl, **environ()).startswith("HTTP/1.1 200")


def test_readme_names_the_versions_and_settings_of_the_code() -> None:
    text = README.read_text()
    sdk = json.loads((ROOT / "tests/sdk/package.json").read_text())["dependencies"]
    (docker,) = re.findall(r"^    (docker run .+)$", text, re.MULTILINE)
    ci = (ROOT / ".ci/run").read_text()

    assert f"**Status**: version {bff.__version__}, " in text
    assert f"bff_gateway-{bff.__version__}-py3-none-any.whl" in text
    assert f"`@trigger.dev/sdk` {sdk['@trigger.dev/sdk']}." in text
    assert "Python 3.11 and 3.13" in text
    assert "python3.13" in ci
    assert "-p 8787:8787" in docker
    assert SETTINGS["BFF_PORT"].shown_default == "`8787`"
    assert set(re.findall(r"-e (\w+)", docker)) <= set(SETTINGS)
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_changelog_has_this_version() -> None:
    assert f"\n## {bff.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_design_tree_lists_every_module() -> None:
    (tree,) = re.findall(r"```\nbff/\n(.*?)```", DESIGN.read_text(), re.DOTALL)
    shown = {
        (folder if folder.endswith("/") else "", module)
        for folder, modules in re.findall(
            r"^  (\w+/|at the top) .*?  (\w+(?: · \w+)*)$", tree, re.MULTILINE
        )
        for module in modules.split(" · ")
    }
    files = [path.relative_to(ROOT / "bff") for path in (ROOT / "bff").rglob("*.py")]
    modules = {(f"{path.parent}/".removeprefix("./"), path.stem) for path in files}

    assert shown == {pair for pair in modules if not pair[1].startswith("__")}


def test_files_and_classes_are_short() -> None:
    long = []
    for path in (ROOT / "bff").rglob("*.py"):
        text = path.read_text()
        lines = {"": len(text.splitlines())} | {
            node.name: (node.end_lineno or 0) - node.lineno + 1
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef)
        }
        long += [
            (str(path.relative_to(ROOT)), name, count)
            for name, count in lines.items()
            if count > (MAX_CLASS_LINES if name else MAX_FILE_LINES)
        ]

    assert long == [], "docs/DESIGN.md tells the bounds: cut where a part has a name of its own"


def test_every_file_that_a_page_names_exists() -> None:
    for page in (
        README,
        ROOT / "SECURITY.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ):
        for name in re.findall(r"`((?:bff|tests|deploy|docs)/[\w./-]+)", page.read_text()):
            assert (ROOT / name).exists(), (page.name, name)


def test_no_file_names_a_registry_or_a_machine() -> None:
    hosts = (
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "registry.npm" + "js.org",
        "deb.debian" + ".org",
    )
    for name in files():
        text = (ROOT / name).read_bytes().decode(errors="replace")
        for hidden in (
            *hosts,
            "/" + "work/",
            "/" + "root/",
            "find-" + "links",
            "extra-index" + "-url",
        ):
            assert hidden not in text, (name, hidden)


def test_every_dependency_is_pinned_with_a_hash() -> None:
    for name in ("run", "tracing", "dev", "audit", "bench", "fuzz", "mutants", "release"):
        pins = (ROOT / "requirements" / f"{name}.txt").read_text()
        for pin in re.split(r"\n(?=\S)", pins.strip()):
            assert re.match(r"[a-z0-9._-]+==\S+", pin, re.IGNORECASE), pin
            assert "--hash=sha256:" in pin, pin
    run, tracing = (
        set(re.findall(r"^\S+==\S+", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE))
        for name in ("run", "tracing")
    )
    assert run < tracing
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "requirements" / "run.txt").read_text().lower()
    for needed in project["dependencies"]:
        assert f"\n{re.split('[><=]', needed)[0].lower()}==" in "\n" + pinned


def test_fixed_bounds_are_those_of_the_code() -> None:
    page = (ROOT / "docs/OPERATIONS.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([\d,]+) \| [^|]+ \| `(\S+): (\w+)` \|$", page, re.MULTILINE)

    assert len(rows) > 10
    for number, file, name in rows:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert int(number.replace(",", "")) == getattr(module, name), (file, name)


def test_every_link_has_a_target() -> None:
    # Of git's files alone: `make example` puts the pages of other people's packages below docs/.
    for page in [ROOT / name for name in files() if name.endswith((".md", "llms.txt"))]:
        for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), (page.name, path)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                anchors = {
                    re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads
                }
                assert anchor in anchors, (page.name, path, anchor)
