"""Processes in /proc: a tree of them, and waiting for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable

from .._support.unpatched import sleep
from .process import all_pids, children_of, is_running, stat_of, status_of


def process_tree(pid: int) -> list[int]:
    """The pids of a process and of all below it; those that end meanwhile may be missing."""
    result = [pid]
    for parent in result:
        result += children_of(parent)
    return result


def is_above(pid: int, below: int) -> bool:
    """Whether ``below`` is the process of ``pid``, which may be a thread's number, or descends
    from it. Ancestors in outer pid namespaces have no number here.
    """
    leader = int(status_of(pid).get("Tgid", 0))
    root, result = stat_of(leader), stat_of(below)
    if root is None or result is None or root.start > result.start:
        return False  # whatever is above a process is older than it
    while below not in (0, leader):
        result = stat_of(below)
        below = 0 if result is None else result.parent
    return below == leader


def holders(but: Collection[int] = ()) -> dict[int, tuple[int, str]]:
    """The numbers of sessions and process groups: a process in each, and which of both it is.

    The kernel gives such a number to no new process. ``but``: processes that do not count.
    """
    result: dict[int, tuple[int, str]] = {}
    for pid in all_pids():
        stat = None if pid in but else stat_of(pid)
        if stat is not None:
            result.setdefault(stat.group, (pid, "process group"))
            result[stat.session] = pid, "session"
    return result


def half_restored(images: str, since: float) -> list[int]:
    """The processes that a lost CRIU has begun to make from images, and told nobody of.

    They have left its process group, and have another parent by now. A process has a pid of the
    images, which was free for CRIU to take, and is younger than the call: ``since`` is its
    beginning, in seconds of CLOCK_BOOTTIME. (Of a pid namespace of its own, CRIU tells.)
    """
    result = []
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        names = os.listdir(images)
    except OSError:
        return []
    for name in names:
        pid = name.removeprefix("core-").removesuffix(".img")
        if f"core-{pid}.img" != name or not pid.isascii() or not pid.isdigit():
            continue
        if status_of(int(pid)).get("Tgid") != pid:
            continue  # there is none, or the number is a thread's
        stat = stat_of(int(pid))
        if stat is not None and stat.start >= int(since * ticks):
            result.append(int(pid))
    return result


def wait_until_gone(
    pids: Iterable[int], seconds: float, is_hurried: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until no process has any of these pids; False if one stays.

    ``is_hurried`` is asked whether to wait no longer. A zombie child of ours is not waited for:
    only the caller can reap it.
    """
    until = time.monotonic() + seconds
    pause = 0.0005
    ours = False
    remaining = list(pids)
    while remaining:
        still = []
        for pid in remaining:
            result = stat_of(pid)
            if result is None:
                continue
            if result.parent == os.getpid():
                ours = True
            else:
                still.append(pid)
        remaining = still
        if remaining:
            if time.monotonic() > until or is_hurried():
                return False
            sleep(pause)
            pause = min(pause * 2, 0.05)
    return not ours


def end_processes(pids: Iterable[int], seconds: float, *, kill: bool) -> None:
    """Wait for the end of half-restored processes; ``kill``: CRIU did not live to kill them."""
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
