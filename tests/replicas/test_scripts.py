"""The Lua scripts are files of the package, and each of them is used."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from bff.replicas import scripts

ROOT = Path(__file__).parent.parent.parent
REPLICAS = ROOT / "bff" / "replicas"
FILES = {path.stem: path for path in (REPLICAS / "lua").iterdir()}
NAMES = {name for name in vars(scripts) if name.isupper() and name[0] != "_"}


def test_every_file_has_a_name_and_every_name_a_file() -> None:
    assert {name.lower() for name in NAMES} == set(FILES)
    assert {path.suffix for path in FILES.values()} == {".lua"}


def test_every_script_is_used() -> None:
    code = "".join(path.read_text() for path in REPLICAS.glob("*.py"))

    assert set(re.findall(r"\bscripts\.([A-Z]+)\b", code)) == NAMES


def test_every_script_states_its_keys_arguments_and_result() -> None:
    for name, path in FILES.items():
        text = path.read_text()
        comment = "".join(re.findall(r"^--.*\n", text, re.MULTILINE))
        code = text.removeprefix(comment)
        assert "\n--" not in code, f"{name}: the comment is at the top"
        assert "-- Result" in comment, name
        used = set(re.findall(r"(?:KEYS|ARGV)\[\d\]", code))
        assert used == set(re.findall(r"(?:KEYS|ARGV)\[\d\](?=  )", comment)), name


def test_scripts_are_sent_without_their_comments() -> None:
    assert all("--" not in getattr(scripts, name) for name in NAMES)


def test_the_wheel_and_the_source_archive_hold_the_scripts(tmp_path: Path) -> None:
    build = (
        "import sys, flit_core.buildapi as flit;"
        "flit.build_wheel(sys.argv[1]); flit.build_sdist(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True)
    (wheel,), (archive,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")

    expected = {f"bff/replicas/lua/{path.name}" for path in FILES.values()}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(archive) as opened:
        assert expected <= {name.partition("/")[2] for name in opened.getnames()}
