"""The pretend upstream as a process that the soak kills and freezes.

    python tests/soak/upstream.py HOST PORT SESSIONS FOLDER

In FOLDER, the file `upstream` holds one byte of weather, one with a bit for each valid secret key,
and one of the address that is current. The file `calls` gets the monotonic time of each call, which
a machine's processes share.
"""

import asyncio
import logging
import mmap
import os
import socket
import struct
import sys
import time
from pathlib import Path

import uvicorn
from support.world import ENVIRONMENT_ID, ROOT_KEY
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bff.demo.upstream import Answer, Environment, PretendUpstream, Seen, session

WEATHER = ["fine", "500", "401", "HTML", "slow", "closes", "429", "wrong session", "half-closes"]
SECRET_KEYS = [f"tr_dev_sk_SOAKsentinel000000000{number}" for number in range(3)]


def main(host: str, port: int, sessions: int, folder: Path) -> None:  # noqa: C901  one story
    with (folder / "upstream").open("r+b") as opened:
        control = mmap.mmap(opened.fileno(), 3)
    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    environment = Environment(ENVIRONMENT_ID, ROOT_KEY)
    environment.bucket.limit = environment.bucket.remaining = 10**9
    for number in range(sessions):
        environment.add(session(number, f"chat-{number}"))
    by_external_id = {d["externalId"]: d for d in environment.sessions.values()}
    environment.find = lambda id_: environment.sessions.get(id_) or by_external_id.get(id_)

    async def override(seen: Seen) -> Answer | None:  # noqa: PLR0911  a case a weather
        if seen.raw_path.startswith("/api/v1/auth/"):  # no load
            return None
        os.write(calls, struct.pack("d", time.monotonic()))
        app.seen.clear()
        good = {key for bit, key in enumerate(SECRET_KEYS) if control[1] & 1 << bit}
        if seen.header("authorization").removeprefix("Bearer ") not in good:
            return Answer(401, {"error": "Invalid API key"})
        environment.additional_keys = dict.fromkeys(good, ("read:sessions",))
        match WEATHER[control[0]]:
            case "500":
                return Answer(500, {"error": "down"})
            case "401":
                return Answer(401, {"error": "Invalid API key"})
            case "HTML":
                return Answer(200, b"<html>")
            case "closes":
                return Answer(200, b"", {"content-length": "99"})
            case "429":
                reset = str(int((time.time() + 1) * 1000))
                names = ("limit", "remaining", "reset")
                values = zip(names, ("9", "0", reset), strict=True)
                return Answer(429, {"error": "limited"}, {f"x-ratelimit-{n}": v for n, v in values})
            case "wrong session":
                return Answer(200, session(sessions + 1, "of-nobody"))
            case "slow":
                await asyncio.sleep(0.3)
        return None

    class Protocol(HttpToolsProtocol):
        """In the weather for it, sends nothing more after an answer, and keeps reading."""

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if WEATHER[control[0]] == "half-closes" and not self.transport.is_closing():
                self.transport.write_eof()

    # uvicorn logs the answers that this upstream cuts off; they are intended.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    app = PretendUpstream(environment, clock=time.time)
    app.override = override
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=Protocol)
    with socket.create_server((host, port), backlog=512, reuse_port=True) as sock:
        asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
