"""`make soak`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import soak

found = soak.run(float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)
print(found.lines())
for promise in found.broken():
    print("BROKEN:", promise)
sys.exit(bool(found.broken()))
