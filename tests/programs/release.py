"""`make release`: builds the sdist, and the wheel from it, checks both and lists them.

    python tests/programs/release.py [DIRECTORY]

It publishes nothing.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

from flit_core import buildapi

import bff

ROOT = Path(__file__).parents[2]


def build(directory: Path) -> tuple[Path, Path]:
    """Build the sdist and the wheel; the wheel comes from the sdist alone."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with chdir(ROOT):
        sdist = directory / buildapi.build_sdist(str(directory))
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = Path(unpacked).iterdir()
        with chdir(source):
            wheel = directory / buildapi.build_wheel(str(directory))
    return sdist, wheel


def metadata(wheel: Path) -> Message:
    """Read the metadata of a wheel."""
    with ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def problems(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with a wheel: missing or foreign files, or another version."""
    listed = subprocess.run(
        ["git", "ls-files", "bff"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    yield from (f"the wheel lacks {name}" for name in sorted(tracked - packed))
    yield from (f"the wheel has {name}, which git does not" for name in sorted(packed - tracked))
    if not licences:
        yield "the wheel has no LICENSE"
    version = metadata(wheel)["Version"]
    if version != bff.__version__:
        yield f"the wheel has the version {version}, and bff/__init__.py has {bff.__version__}"
    if f"\n## {version}" not in (ROOT / "CHANGELOG.md").read_text():
        yield f"CHANGELOG.md has no section for {version}"


def main(directory: Path) -> int:
    """Print the files, or every problem."""
    sdist, wheel = build(directory)
    if wrong := [*problems(wheel)]:
        print("\n".join(wrong))
        return 1
    for path in (sdist, wheel):
        path.chmod(0o644)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}  {path.stat().st_size:,} bytes  sha256:{digest}")
    if f"\n## {bff.__version__} (unreleased)" in (ROOT / "CHANGELOG.md").read_text():
        print(f"CHANGELOG.md calls {bff.__version__} unreleased: write the date before you tag it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:]) if sys.argv[1:] else ROOT / "build/dist"))
