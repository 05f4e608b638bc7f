"""The Lua scripts of `lua/`, read once at import.

The comment at the top of each file states what the script does, its KEYS, ARGV and result. Replicas
send the text of a script with each use, without comments and indentation. So neither a restart nor
a failover of the store can lose it.
"""

from importlib.resources import files
from typing import Final

_FOLDER = files("bff.replicas") / "lua"


def _read(name: str) -> str:
    lines = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if not line.startswith("--"))


AGREE: Final = _read("agree")
ALLOW: Final = _read("allow")
DATA: Final = _read("data")
HEARTBEAT: Final = _read("heartbeat")
KEEP: Final = _read("keep")
LOAD: Final = _read("load")
PERMITTED: Final = _read("permitted")
RENEW: Final = _read("renew")
REPUBLISH: Final = _read("republish")
TAKE: Final = _read("take")
