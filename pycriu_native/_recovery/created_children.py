"""Reaps the children of the caller that a failed call made; only the caller can reap them.

``restore_child`` makes the restored root a child of the caller, and a caller that is a subreaper
(prctl(2), ``PR_SET_CHILD_SUBREAPER``) becomes the parent of the processes that a killed CRIU
leaves. A zombie keeps its pid, so that the next restore fails.
"""

from __future__ import annotations

import contextlib
import os
import time

from .._support.pidfd import reap, sigkill
from .._support.unpatched import closing, readable
from .._system.descriptors import link
from .._system.process import children_of, own_number_of, read_small, stat_of
from .._wire.fields import byte_fields, messages_of
from .half_restored import pids_in

TASK_CORE, COMM = 3, 6
"""Fields of ``core-PID.img`` (CRIU's ``images/core.proto``)."""

COMM_LENGTH = 15
"""Bytes of a process's name that the kernel keeps."""


def reap_made(
    images: str,
    worker: int,
    program: str,
    since: float,
    seconds: float,
    *,
    kill: bool,
    namespace: str = "",
) -> dict[int, int]:
    """Reap the children of the caller that a failed call made, waiting ``seconds`` for their end.

    Returns the exit status of each that has ended, by its pid; negative for a signal.

    ``kill`` sends SIGKILL first, since CRIU was killed before it could. ``worker`` is the pid that
    CRIU had, ``since`` the beginning of the call in seconds of CLOCK_BOOTTIME; ``images`` is empty
    for a call that restores nothing. ``namespace``: the pid namespace of the processes, whose pids
    other namespaces have too; empty: that of the caller. Other children of the caller are not
    touched.
    """
    expected = {pid: _name_in(f"{images}/core-{pid}.img") for pid in pids_in(images)}
    program = os.path.basename(program)[:COMM_LENGTH]
    first = int(since * os.sysconf("SC_CLK_TCK"))
    until = time.monotonic() + seconds
    tried: dict[int, int | None] = {}

    def is_made(pid: int) -> bool:
        """Whether a child is younger than the call, and CRIU's or one that CRIU was restoring.

        CRIU's children begin in the process group that the worker leads. Those that have left it
        have a pid of the images, in their own pid namespace, and the name of CRIU or of the dumped
        process.
        """
        stat = stat_of(pid)
        if pid == worker or stat is None or stat.parent != os.getpid() or stat.start < first:
            return False
        number = own_number_of(pid)
        known = number in expected and stat.name in (program, expected[number])
        known = known and (not namespace or link(f"/proc/{pid}/ns/pid") == namespace)
        return known or stat.group == worker

    # The children of a process that ends become those of a subreaper.
    while made := [pid for pid in children_of(os.getpid()) if pid not in tried and is_made(pid)]:
        for pid in made:
            tried[pid] = _reap(pid, until, kill=kill)
    return {pid: status for pid, status in tried.items() if status is not None}


def _name_in(core: str) -> str:
    """The process's name in a core image; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for message in messages_of(read_small(core)):
            for task in byte_fields(message, TASK_CORE):
                for name in byte_fields(task, COMM):
                    return os.fsdecode(name)
    return ""


def _reap(pid: int, until: float, *, kill: bool) -> int | None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None  # reaped meanwhile, for example by the caller's handler of SIGCHLD
    with closing(pidfd):
        if kill:
            with contextlib.suppress(OSError):
                sigkill(pidfd)
        readable(pidfd, seconds=until - time.monotonic())
        return reap(pidfd, wait=False)
