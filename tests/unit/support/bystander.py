"""A process that tests name: a dump refuses the ancestors of its caller."""

from __future__ import annotations

import atexit
import subprocess

_process = subprocess.Popen(
    ["sleep", "infinity"],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)


def _end() -> None:
    _process.kill()
    _process.wait()


atexit.register(_end)

PID = _process.pid
"""Its pid."""
