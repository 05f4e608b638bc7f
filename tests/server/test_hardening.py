"""`harden` hides the memory of the process, and raises its limit of open files."""

import json
import subprocess
import sys

SHOW = """
import ctypes, json, resource
from bff.server.hardening import harden

harden()
limits = [resource.getrlimit(n) for n in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
print(json.dumps([ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *limits]))  # PR_GET_DUMPABLE
"""


def test_harden_hides_memory_and_raises_the_limit_of_files() -> None:
    run = subprocess.run([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, check=True)

    dumpable, core, (soft, hard) = json.loads(run.stdout)
    assert dumpable == 0
    assert core == [0, 0]
    assert soft == hard
