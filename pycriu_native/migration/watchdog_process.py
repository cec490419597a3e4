"""The watchdog process of a migration: it undoes the migration when its parent is killed.

The parent sends the required actions, again after each change. When the connection ends without a
release, the watchdog carries them out: it ends or stops the restored processes, ends the lazy-pages
daemon, removes the images, and makes the CRIU of a dump resume or end its process. It also has
copies of the userfaultfds: without them the kernel would fill missing pages with zeros at the
daemon's end, and the process would continue with wrong memory.

It runs as a program by its path, with few imports of the standard library only, not ``_system``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

DEATH_TIMEOUT = 10.0
"""Seconds to wait for the end of killed processes."""

INVALID_COMMAND = b"\xff" * 32
"""Not a command of the page protocol: CRIU stops serving, and resumes the process."""

LARGEST_MESSAGE = 64 * 1024
FDS = 64


def start_of(pid: int) -> str:
    """Start time of a process in clock ticks: pid and start time identify it. Empty if it ended."""
    return _stat(pid, 19)


def _stat(pid: int, field: int) -> str:
    """A field of ``/proc/PID/stat``, counted from the state on; empty if the process ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="surrogateescape") as file:
            return file.read().rpartition(")")[2].split()[field]
    except OSError:
        return ""


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    result = [pid]
    for parent in result:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    result += map(int, file.read().split())
    return result


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_tree(pid: int, start: str) -> None:
    """Stop a process and its descendants; twice, to include those that were forked meanwhile."""
    if start_of(pid) == start:
        _signal_all(tree(pid), signal.SIGSTOP)
        _signal_all(tree(pid), signal.SIGSTOP)


def end_tree(pid: int, start: str) -> None:
    """Kill a process and its descendants, and wait for their end."""
    if not start or start_of(pid) != start:
        return
    _signal_all(tree(pid), signal.SIGSTOP)
    remaining = tree(pid)
    until = time.monotonic() + DEATH_TIMEOUT
    while remaining and time.monotonic() < until:
        _signal_all(remaining, signal.SIGKILL)
        remaining = [one for one in remaining if _stat(one, 0) not in ("", "Z", "X")]
        if remaining:
            time.sleep(0.002)


def settle(cleanup: dict[str, Any], criu: list[int]) -> None:
    """Make the CRIU of a dump end or resume its process, through the first of its descriptors.

    ``accept``: the destination's copy runs, and CRIU continues with this reply. Otherwise the
    process is resumed after a wait, in which the destination ends its copy: ``hold`` for a CRIU
    that waits for a reply, ``abort_serving`` for one that serves pages.
    """
    with socket.socket(fileno=criu[0]) as connection:
        if cleanup.get("accept") is not None:
            connection.settimeout(DEATH_TIMEOUT)
            connection.sendall(bytes.fromhex(cleanup["accept"]))
        elif cleanup.get("hold") is not None:
            time.sleep(cleanup["hold"])
            return  # CRIU fails at the end of the connection
        elif cleanup.get("abort_serving") is not None:
            time.sleep(cleanup["abort_serving"])
            connection.sendall(INVALID_COMMAND)
            for other in criu[1:]:
                os.close(other)  # if CRIU does not serve yet, it waits at this one, and fails
        else:
            return
        while connection.recv(2**20):
            pass  # read, since a CRIU that is blocked in a write reads no commands


def undo(cleanup: dict[str, Any], criu: list[int]) -> None:
    """Undo the migration. ``criu``: the descriptors that ``settle`` needs, if there are any."""
    for pid, start in cleanup.get("end", ()):
        end_tree(pid, start)
    for pid, start in cleanup.get("stop", ()):
        stop_tree(pid, start)
    if criu:
        with contextlib.suppress(OSError):
            settle(cleanup, criu)
    if cleanup.get("remove"):
        import shutil

        for directory in cleanup["remove"]:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Receive cleanups until the release, or until the parent's end of the connection closes."""
    os.chdir("/")
    parent = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cleanup: dict[str, Any] = {}
    criu: list[int] = []
    while True:
        message, fds, _, _ = socket.recv_fds(parent, LARGEST_MESSAGE, FDS)
        if not message:
            undo(cleanup, criu)
            return
        cleanup = json.loads(message)
        if cleanup.get("release"):
            return
        if cleanup.get("to_criu"):
            criu = list(fds)


if __name__ == "__main__":
    main()
