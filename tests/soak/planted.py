"""A fault for each promise of the soak, which breaks the promise."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    promise: str
    """A key of `weather.PROMISES`."""
    file: str
    old: str
    """Occurs in the file once."""
    new: str
    seconds: float = 20
    calm: bool = True
    """Nothing else fails in this run, so the bounds need no allowance."""


_LEAK = "self.__dict__.setdefault('leak', []).append"

PLANTED = [
    Planted(
        "an unentitled caller was answered",
        "bff/gateway/admission.py",
        "            copy.environment != caller.environment\n            or not",
        "            False and not",
    ),
    Planted(
        "an entitled caller was refused as if it were not",
        "bff/tokens/verify.py",
        "if wall >= holder.expires:",
        "if wall >= holder.expires - 4000:",
    ),
    Planted(
        "a 5xx while a usable copy existed",
        "bff/gateway/pending.py",
        'elif fallback and brought.code != "not_found":',
        "elif False:",
        calm=False,
    ),
    Planted(
        "an answer beyond the age bounds",
        "bff/sessions/copy.py",
        "return age < (self.closed_ttl",
        "return age < 90 or age < (self.closed_ttl",
        seconds=60,
    ),
    Planted(
        "an answer was lost",
        "bff/server/connection.py",
        "        self._read_bytes = len(data)\n",
        "        self._read_bytes = len(data)\n        len(data) % 7 or self.transport.abort()\n",
    ),
    Planted(
        "the budget was exceeded",
        "bff/upstream/api.py",
        '        answer = await self._send("GET", path, credentials.signed(used))\n',
        "        for _ in range(12):\n"
        '            answer = await self._send("GET", path, credentials.signed(used))\n',
    ),
    Planted(
        "a limit was exceeded",
        "bff/limits/rate.py",
        "        window.used += 1\n        return window",
        "        return window",
    ),
    Planted(
        "memory grew",
        "bff/gateway/answers.py",
        "        self._counts[key] += 1\n",
        f"        self._counts[key] += 1\n        {_LEAK}(bytearray(200000))\n",
    ),
    Planted(
        "descriptors grew",
        "bff/copies/loader.py",
        "        if wait <= 0:\n",
        f"        if wait <= 0:\n            {_LEAK}(open('/dev/null'))\n",
    ),
    Planted(
        "tasks grew",
        "bff/copies/loader.py",
        "        if wait <= 0:\n",
        f"        if wait <= 0:\n            {_LEAK}(asyncio.create_task(asyncio.sleep(9999)))\n",
    ),
    Planted(
        "connections were left open",
        "bff/server/connection.py",
        "        self._connections.leave(self.peer)\n",
        "",
    ),
    Planted(
        "loads were left in flight",
        "bff/copies/single_flight.py",
        "        self._in_flight -= 1\n",
        "",
    ),
    Planted(
        "nothing was answered",
        "bff/tokens/verify.py",
        "verified = TRIGGER_ALGORITHM.verify(token, key)",
        "raise Refused('token_invalid')",
    ),
]
