"""Files of settings: one that would wait or fill the memory is a problem, at start and later."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.world import OWN_KEY, Clock, World, environ

from bff.config import files
from bff.config.reader import load
from bff.config.settings import SettingsError


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**10)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))


_NOT_REGULAR = "not a regular file"
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, _NOT_REGULAR),
    "a directory": (Path.mkdir, _NOT_REGULAR),
    "a device without an end": (lambda path: path.symlink_to("/dev/zero"), _NOT_REGULAR),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels"),
    "a socket": (_socket, "No such device"),
    "an enormous file": (_sparse, "larger than 1048576 bytes"),
    "many keys": (
        lambda path: path.write_text("".join(f"{n:040}\n" for n in range(3000))),
        "more than 100 keys",
    ),
    "half a key": (lambda path: path.write_text(OWN_KEY[:9]), "key of 9 bytes"),
}
"""By name: how to make the odd file, and the problem that is reported."""


@pytest.mark.parametrize(("make", "reason"), ODD.values(), ids=ODD)
def test_odd_file_of_keys_is_a_problem_at_once(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(SettingsError) as raised:
        load(environ(BFF_SIGNING_KEYS=None, BFF_SIGNING_KEYS_FILE=str(path)))

    (problem,) = raised.value.problems
    assert problem.startswith("BFF_SIGNING_KEYS ")
    assert reason in problem


@pytest.mark.parametrize("name", ["BFF_CONFIG", "BFF_UPSTREAM_CA_FILE", "SSL_CERT_FILE"])
def test_pipe_is_a_problem_for_every_setting(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    with pytest.raises(SettingsError, match=f"{name} .*{_NOT_REGULAR}"):
        load(environ(**{name: str(path)}))


@pytest.mark.parametrize("make", [make for make, _ in ODD.values()], ids=ODD)
async def test_odd_file_in_place_of_keys_stops_nothing(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "keys"
    path.write_text(OWN_KEY)
    async with World(Clock(), BFF_SIGNING_KEYS=None, BFF_SIGNING_KEYS_FILE=str(path)) as world:
        path.unlink()
        make(path)
        world.service.reload()

        assert (await world.get("chat-1")).status_code == 200
        assert not world.service.reload.current
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_text(OWN_KEY)
        world.service.reload()
        assert world.service.reload.current


def test_line_ends_of_every_system_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\ufeffa\r\nb\rc\n".encode())

    assert files.read_text(str(path)) == "a\nb\nc\n"


def test_directory_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="not a regular file"):
            files.opened(str(tmp_path))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
