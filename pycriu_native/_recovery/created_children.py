"""Reaps the children of the caller that a failed call made; only the caller can reap them.

``restore_child`` makes the restored root a child of the caller, and a caller that is a subreaper
(prctl(2), ``PR_SET_CHILD_SUBREAPER``) becomes the parent of the processes that a killed CRIU
leaves. A zombie keeps its pid, so that the next restore fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container, Iterator, Mapping

from .._support.pidfd import reap, sigkill
from .._support.unpatched import closing, readable
from .._system.descriptors import link
from .._system.process import children_of, own_number_of, read_small, stat_of
from .._wire.fields import message_fields, messages_of
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
    until = time.monotonic() + seconds
    tried: dict[int, int | None] = {}
    # The children of a process that ends become those of a subreaper.
    while made := tuple(_made(expected, worker, program, since, namespace, tried)):
        for pid in made:
            tried[pid] = _reap(pid, until, kill=kill)
    return {pid: status for pid, status in tried.items() if status is not None}


def _made(
    expected: Mapping[int, str],
    worker: int,
    program: str,
    since: float,
    namespace: str,
    tried: Container[int],
) -> Iterator[int]:
    """Other children younger than the call that are CRIU's or that CRIU was restoring.

    CRIU's children begin in the process group that the worker leads. Those that have left it have
    a pid of the images, in their own pid namespace, and the name of CRIU or of the dumped process.
    """
    first = int(since * os.sysconf("SC_CLK_TCK"))
    for pid in children_of(os.getpid()):
        stat = stat_of(pid)
        if (
            pid == worker
            or pid in tried
            or stat is None
            or stat.parent != os.getpid()
            or stat.start < first
        ):
            continue
        number = own_number_of(pid)
        known = number in expected and stat.name in (program, expected[number])
        known = known and (not namespace or link(f"/proc/{pid}/ns/pid") == namespace)
        if known or stat.group == worker:
            yield pid


def _name_in(core: str) -> str:
    """The process's name in a core image; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for message in messages_of(read_small(core)):
            task = dict(message_fields(message)).get(TASK_CORE)
            name = dict(message_fields(task)).get(COMM) if isinstance(task, bytes) else None
            if isinstance(name, bytes):
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
