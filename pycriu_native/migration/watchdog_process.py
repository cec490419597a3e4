"""The guard of a migration: a process that undoes it when the one that migrates is killed.

Whoever migrates tells its guard what there is to undo, as it comes and goes; when the
connection to it ends without a release, the guard undoes it: ends (or stops) the restored
processes, ends the lazy-pages daemon, removes the images, has a CRIU that serves pages let the
process run on. It also holds copies of the userfaultfds: when the daemon that had them ends, the
kernel would fill the missing pages with zeros, and the process would go on with wrong memory.

Run as a program by its path, it needs the standard library only, and imports little.
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

UNTIL_DEAD = 10.0
"""Seconds in which killed processes are looked at again."""

SPOIL = b"\xff" * 32
"""No command of a page server's: CRIU gives up serving, and the process runs on."""

LARGEST_TOLD = 64 * 1024
FDS = 64


def start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks: with the pid, a name that is never reused."""
    try:
        with open(f"/proc/{pid}/stat", errors="surrogateescape") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    result = [pid]
    for parent in result:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    result += map(int, file.read().split())
    return result


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", errors="surrogateescape") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_tree(pid: int, start: str) -> None:
    """Stop a process and all below it; twice, for what was forked meanwhile."""
    if start_of(pid) == start:
        _signal_all(tree(pid), signal.SIGSTOP)
        _signal_all(tree(pid), signal.SIGSTOP)


def end_tree(pid: int, start: str) -> bool:
    """Kill a process and all below it, and wait until they are dead; whether they are."""
    if not start or start_of(pid) != start:
        return True
    _signal_all(tree(pid), signal.SIGSTOP)
    remaining = tree(pid)
    until = time.monotonic() + UNTIL_DEAD
    while remaining and time.monotonic() < until:
        _signal_all(remaining, signal.SIGKILL)
        remaining = [one for one in remaining if _state(one) not in ("", "Z", "X")]
        if remaining:
            time.sleep(0.002)
    return not remaining


def undo(duty: dict[str, Any], abort_serving: int) -> None:
    """Do what is to be done when the one that migrates is gone."""
    for pid, start in duty.get("end", ()):
        end_tree(pid, start)
    for pid, start in duty.get("stop", ()):
        stop_tree(pid, start)
    if duty.get("abort_serving") is not None and abort_serving >= 0:
        time.sleep(duty["abort_serving"])
        with contextlib.suppress(OSError), socket.socket(fileno=abort_serving) as line:
            line.sendall(SPOIL)
            while line.recv(2**20):
                pass  # a CRIU that waits for room to write would not read it
    if duty.get("remove"):
        import shutil

        for directory in duty["remove"]:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Listen until the release, or until the other end is gone."""
    line = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    duty: dict[str, Any] = {}
    abort_serving = -1
    while True:
        message, fds, _, _ = socket.recv_fds(line, LARGEST_TOLD, FDS)
        if not message:
            undo(duty, abort_serving)
            return
        duty = json.loads(message)
        if duty.get("release"):
            return
        if duty.get("spoiler"):
            abort_serving = fds[0]


if __name__ == "__main__":
    main()
