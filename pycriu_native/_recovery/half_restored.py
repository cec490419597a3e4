"""Processes that a killed CRIU had begun to restore."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

from .._support.lazy import signal
from .._support.unpatched import sleep
from .._system.process import is_running, leader_of, stat_of


def half_restored(images: str, since: float) -> list[int]:
    """The pids of processes that a killed CRIU had begun to make from images.

    They have left CRIU's process group and have another parent. Each has a pid of the images, which
    was free when CRIU used it, and is younger than the call, which began at ``since`` (seconds of
    CLOCK_BOOTTIME). Processes in a pid namespace of their own are not found here: CRIU reports the
    pid of the first one.
    """
    first = int(since * os.sysconf("SC_CLK_TCK"))
    result = []
    for pid in pids_in(images):
        if leader_of(pid) == pid:  # not the number of a thread
            stat = stat_of(pid)
            if stat is not None and stat.start >= first:
                result.append(pid)
    return result


def pids_in(images: str) -> Iterator[int]:
    """The pids in the images, in the pid namespace of the processes; none without a directory."""
    with contextlib.suppress(OSError):
        for name in os.listdir(images):
            pid = name.removeprefix("core-").removesuffix(".img")
            if f"core-{pid}.img" == name and pid.isascii() and pid.isdigit():
                yield int(pid)


def end_processes(pids: Iterable[int], seconds: float, *, kill: bool) -> None:
    """Wait up to ``seconds`` for the end of half-restored processes.

    ``kill``: send SIGKILL first, since CRIU was killed before it could.
    """
    until = time.monotonic() + seconds
    remaining = list(pids)
    while remaining and time.monotonic() < until:
        if kill:
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        remaining = [pid for pid in remaining if is_running(pid)]
        if remaining:
            sleep(0.001)
