"""Debian's ``crit``, the reference for decoded images, run in a process of its own.

Its package (python3-pycriu) is looked for beside each CRIU that ``tools/install-criu`` has
unpacked, and on the system. It prints all images of some directories as one JSON object.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLACES = (
    *sorted(glob.glob("/opt/pycriu-native*/root/usr/lib/python3/dist-packages"), reverse=True),
    "/usr/lib/python3/dist-packages",
)
_LOAD = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import pycriu
found, took = {}, 0.0
for path in sys.argv[3:]:
    with open(path, "rb") as file:
        start = time.perf_counter()
        try:
            found[path] = pycriu.images.load(file, sys.argv[2] == "pretty")
        except Exception as error:
            found[path] = repr(error)
        took += time.perf_counter() - start
found[""] = took
json.dump(found, sys.stdout)
"""


def packages() -> list[Path]:
    """The directories of crit's package, the newest first."""
    given = os.environ.get("CRIT_PACKAGES")
    places = [given] if given else PLACES
    return [Path(place) for place in places if _works(place)]


def _works(place: str) -> bool:
    """Whether it exists and works with the installed protobuf: Debian 12's does not."""
    if not os.path.exists(os.path.join(place, "pycriu/images/images.py")):
        return False
    words = [sys.executable, "-c", "import pycriu.images"]
    environment = {**os.environ, "PYTHONPATH": place}
    return subprocess.run(words, env=environment, capture_output=True).returncode == 0


def required() -> Path:
    """The directory of crit's package, or the test is skipped with the reason."""
    result = packages()
    if not result:
        pytest.skip("no crit: tools/install-criu --unpack python3-pycriu gets it")
    return result[0]


def load(place: Path, paths: list[Path], *, pretty: bool = False) -> dict[str, Any]:
    """Each image as crit decodes it, ``pretty`` or not, and under "" the seconds that it took."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _LOAD,
            str(place),
            "pretty" if pretty else "plain",
            *map(str, paths),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def printed(place: Path, path: Path) -> str:
    """What ``crit decode --pretty`` prints."""
    words = [sys.executable, "-m", "crit", "decode", "--pretty", "-i", str(path)]
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(place)},
    ).stdout


def compress(place: Path, directory: Path) -> bool:
    """Compress the memory of a set with crit, if it supports that (4.3)."""
    words = [sys.executable, "-m", "crit", "compress", "--in-place", str(directory)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(place)}
    )
    older = done.returncode == 2 or "No module named crit" in done.stderr
    assert done.returncode == 0 or older, done.stderr
    return done.returncode == 0
