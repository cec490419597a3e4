"""Make a real dump to begin with: ``python -m tests.fuzz.real DIRECTORY``.

A process with a bit of everything is dumped. In the directory are then its images, CRIU's log and
statistics. Exit status 3: CRIU cannot work here, and the fuzzer begins with what is made by hand.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pycriu_native
from pycriu_native import CriuError


def main() -> int:
    """Dump, and keep the images."""
    try:
        pycriu_native.check()
    except CriuError as error:
        print(f"no real dump to begin with: {error}", file=sys.stderr)
        return 3
    from ..integration.support.zoo import menagerie  # it needs a CRIU that works

    place = Path(sys.argv[1])
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pycriu-native-fuzz-") as scratch:
        shutil.copytree(menagerie(Path(scratch)).images, place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
