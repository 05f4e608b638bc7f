"""The health check's idea of where the ops port is."""

import os
from pathlib import Path

import pytest

from bff.health import address


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1", 9787)),
        ({"BFF_OPS_HOST": "0.0.0.0", "BFF_OPS_PORT": "1"}, ("127.0.0.1", 1)),  # noqa: S104
        ({"BFF_OPS_HOST": "::"}, ("::1", 9787)),
        ({"BFF_OPS_HOST": " 10.0.0.7 \n", "BFF_OPS_PORT": ""}, ("10.0.0.7", 9787)),
        ({"BFF_CONFIG": "/no/such/file"}, ("127.0.0.1", 9787)),
    ],
)
def test_address_is_where_the_gateway_listens(
    environ: dict[str, str], expected: tuple[str, int]
) -> None:
    assert address(environ) == expected


def test_address_may_be_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bff.toml"
    file.write_text('BFF_OPS_PORT = 1234\nBFF_OPS_HOST = "::1"\n')

    assert address({"BFF_CONFIG": str(file)}) == ("::1", 1234)
    assert address({"BFF_CONFIG": str(file), "BFF_OPS_PORT": "5"}) == ("::1", 5)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "nested too deeply", "large"])
def test_address_is_the_default_if_the_file_cannot_be_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "bff.toml"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "device":
            file = Path("/dev/zero")
        case "large":
            file.write_text("BFF_OPS_PORT = 1\n" + "#" * 2**21)
        case _:
            file.write_text("BFF_OPS_PORT = " + "[" * 100_000)

    assert address({"BFF_CONFIG": str(file)}) == ("127.0.0.1", 9787)
