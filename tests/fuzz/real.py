"""Make a real dump as a seed: ``python -m tests.fuzz.real DIRECTORY``.

A process with many kinds of resources is dumped. The directory then has its images, and CRIU's log
and statistics. Exit status 3: CRIU does not work here, and the fuzzer starts with generated seeds.
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
    from ..integration.support.sample_images import make_sample  # it needs a CRIU that works

    place = Path(sys.argv[1])
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="pycriu-native-fuzz-") as scratch:
        shutil.copytree(make_sample(Path(scratch)).images, place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
