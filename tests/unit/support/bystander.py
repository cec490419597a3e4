"""A process whose pid tests pass to a dump: a dump refuses the caller's ancestors and pid 1."""

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
"""Pid of the process, which sleeps until the tests end."""
