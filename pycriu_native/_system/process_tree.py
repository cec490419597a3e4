"""A tree of processes: its pids, its ancestors, and waiting for its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable

from .._support.unpatched import sleep
from .process import all_pids, children_of, leader_of, stat_of, threads_of


def process_tree(pid: int) -> list[int]:
    """The pids of a process and its descendants; those that end meanwhile may be missing."""
    result = [pid]
    for parent in result:
        result += children_of(parent)
    return result


def is_above(pid: int, below: int) -> bool:
    """Whether ``below`` is the process of ``pid``, which may be a thread's number, or descends
    from it. Ancestors in outer pid namespaces have no number here.
    """
    leader = leader_of(pid)
    root, result = None if leader is None else stat_of(leader), stat_of(below)
    if root is None or result is None or root.start > result.start:
        return False  # an ancestor is older
    while below not in (0, leader):
        result = stat_of(below)
        below = 0 if result is None else result.parent
    return below == leader


def holders(but: Collection[int] = ()) -> dict[int, tuple[int, str]]:
    """The numbers of sessions and process groups: a process in each, and the kind of number.

    No new process can get such a number. Processes in ``but`` are left out.
    """
    result: dict[int, tuple[int, str]] = {}
    for pid in all_pids():
        stat = None if pid in but else stat_of(pid)
        if stat is not None:
            result.setdefault(stat.group, (pid, "process group"))
            result[stat.session] = pid, "session"
    return result


def wait_until_stopped(pids: Iterable[int], seconds: float) -> None:
    """Wait until all threads of these processes are stopped or have ended, ``seconds`` at most."""
    until = time.monotonic() + seconds
    pause = 0.0005
    for pid in pids:
        while not all(map(_is_still, threads_of(pid))) and time.monotonic() < until:
            sleep(pause)
            pause = min(pause * 2, 0.05)


def _is_still(tid: int) -> bool:
    stat = stat_of(tid)
    return stat is None or stat.state in "TtZX"


def wait_until_gone(
    pids: Iterable[int], seconds: float, is_hurried: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until no process has any of these pids; False if one stays.

    ``seconds`` is the limit; the wait ends early when ``is_hurried`` returns true. A zombie child
    of the caller is not waited for, since only the caller can reap it.
    """
    until = time.monotonic() + seconds
    pause = 0.0005
    own = os.getpid()
    has_child = False
    remaining = list(pids)
    while True:
        parents = {pid: stat.parent for pid in remaining if (stat := stat_of(pid)) is not None}
        has_child |= own in parents.values()
        remaining = [pid for pid, parent in parents.items() if parent != own]
        if not remaining:
            return not has_child
        if time.monotonic() > until or is_hurried():
            return False
        sleep(pause)
        pause = min(pause * 2, 0.05)
