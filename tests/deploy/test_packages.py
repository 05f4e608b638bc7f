"""The sdist and the wheel hold the package, and run in an environment that has nothing else."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from programs import release
from support.demos import running_demo
from support.world import http

import bff
from bff.ops.check import Page

BIN = Path(sys.executable).parent
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("BFF_")}
EXTRAS = sorted(
    {
        extra
        for page in (release.ROOT / "README.md", *(release.ROOT / "docs").glob("*.md"))
        for extra in re.findall(r"bff-gateway\[(\w+)\]", page.read_text())
    }
)
"""The extras that the documentation names."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return release.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


def test_sdist_holds_the_pages_and_the_files_to_deploy(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    patterns = ("*.md", "llms.txt", "docs/*.md", "deploy", "docker-compose.yml")
    tracked = subprocess.check_output(["git", "ls-files", *patterns], cwd=release.ROOT, text=True)
    elsewhere = ("tests/", "docs/bench/", "docs/examples/")

    assert {page.partition("#")[0] for page in Page} <= packed
    assert {name for name in tracked.splitlines() if not name.startswith(elsewhere)} <= packed


def test_wheel_holds_each_file_of_the_package(wheel: Path) -> None:
    fields = release.metadata(wheel)

    assert [*release.problems(wheel)] == []
    assert wheel.name == f"bff_gateway-{bff.__version__}-py3-none-any.whl"
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Description-Content-Type"] == "text/markdown"
    assert fields.get_all("Provides-Extra") == EXTRAS == ["tracing"]
    assert "Typing :: Typed" in (fields.get_all("Classifier") or [])


def test_pages_name_no_stranger_of_the_index() -> None:
    """The distribution `bff` of the public index is another project."""
    stranger = re.compile(r"(?:pip install|pipx \w+|uvx|--spec|--from|--with) +['\"]?bff(?![\w/-])")
    listed = subprocess.check_output(["git", "ls-files"], cwd=release.ROOT, text=True)
    for name in listed.splitlines():
        if (path := release.ROOT / name).is_file() and path != Path(__file__):
            assert not stranger.search(path.read_bytes().decode(errors="replace")), name


def test_uvx_runs_the_demo_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """It installs the wheel, its packages and each extra, and nothing else."""
    spec = f"{wheel}[{','.join(EXTRAS)}]"
    uvx = (BIN / "uvx", "--python", sys.executable, "--from", spec)
    code = (
        "from importlib.metadata import version; from bff.ops.tracing import Tracing; Tracing(); "
        "print(version('bff-gateway'))"
    )
    done = subprocess.run(
        [*map(str, uvx), "python", "-c", code],
        cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (f"{bff.__version__}\n", 0), done.stderr

    with running_demo(*uvx, "bff", "demo", "--port", "0", cwd=tmp_path, environ=ENVIRON) as printed:
        base = re.search(r"A gateway answers at (http://[\d.]+:\d+)", printed)[1]
        page = http.get(base + "/", headers={"accept": "text/html"})

    assert page.status_code == 200
    assert "<!doctype html>" in page.text.lower()
