"""Holds a bill of materials to the pins it was made of.

python tests/programs/sbom.py build/sbom.json
"""

import json
import re
import sys
from pathlib import Path

PINS = Path(__file__).parent.parent.parent / "requirements/run.txt"


def differences(sbom: str, pins: str) -> set[tuple[str, str]]:
    """Names and versions that stand in one of them only."""
    parts = {(part["name"].lower(), part["version"]) for part in json.loads(sbom)["components"]}
    pinned = re.findall(r"^([\w.-]+)==([^\s;\\]+)", pins, re.MULTILINE)
    return parts ^ {(name.lower(), version) for name, version in pinned}


if __name__ == "__main__":
    found = differences(Path(sys.argv[1]).read_text(), PINS.read_text())
    if found:
        sys.exit(f"The bill of materials and {PINS.name} differ: {sorted(found)}")
    print("The bill of materials names every pin of run.txt, and nothing else.")
