"""`make api-lint`: writes the API description of gateways with several settings into files.

python tests/programs/api_descriptions.py build/openapi
"""

import json
import sys
from pathlib import Path
from typing import Any

import bff
from bff.sessions import openapi
from bff.sessions.policy import Policy

_OPEN = Policy(metadata=("plan",), tags=("public:*",))


def descriptions() -> dict[str, dict[str, Any]]:
    """Describe gateways by name: with few features, and with each of them."""
    return {
        "closed": openapi.document(Policy(), {}, bff.__version__),
        "live": openapi.document(
            Policy(), {"chat.agent": _OPEN}, bff.__version__, live=True, answering=True
        ),
        "chats": openapi.document(_OPEN, {}, bff.__version__, chat=True, live=True, answering=True),
        "types": openapi.document(
            Policy(),
            {"chat.agent": _OPEN, "chat.support": Policy()},
            bff.__version__,
            cookie="__Host-bff-token",
            chat=True,
            any_message=True,
        ),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, described in descriptions().items():
        (folder / f"{name}.json").write_text(json.dumps(described, indent=1))
