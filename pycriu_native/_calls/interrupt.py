"""Interrupts CRIU between two notifications, so that it undoes its work.

For a large process, notifications are many seconds apart, and CRIU cannot be interrupted in
between. But it checks the result of each write, so its writes are made to fail: those to files by
a file size limit that is set from outside (a worker ignores SIGXFSZ, and write(2) returns EFBIG),
those of pages to another host by a shutdown of their connection (CRIU ignores SIGPIPE). Both are
safe: while CRIU's code runs in a process, it does not write. A restore writes little; its
half-restored processes are killed instead, and CRIU receives SIGCHLD. CRIU waits for the end of an
action script, which is killed too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal

from .._recovery.half_restored import half_restored
from .._support.lazy import socket
from .._support.sockets import of_another
from .._system.descriptors import descriptors_of, sockets_of
from .._system.process import read_small, status_of
from .._system.process_tree import process_tree

SCRIPT = b"CRTOOLS_SCRIPT_ACTION="
"""The variable in the environment of CRIU's action scripts."""

XFSZ = 1 << (signal.SIGXFSZ - 1)
"""SIGXFSZ in a set of signals, as /proc/PID/status prints them."""


def fail_writes(worker: int, dumped: int | None) -> None:
    """Make the next write of a worker that dumps fail, to a file or to a page server.

    Its descendants are limited too, since a child makes a pre-dump. A process that does not ignore
    SIGXFSZ is not limited.
    """
    _limit(worker)  # first: children that it forks from now on inherit the limit
    tree = process_tree(worker)
    for pid in tree[1:]:
        _limit(pid)
    # CRIU has copies of the connections of the dumped processes, which must not be shut down.
    spared_tree = [] if dumped is None else process_tree(dumped)
    spared = {inode for pid in spared_tree for inode in sockets_of(pid)}
    for pid in tree:
        with contextlib.suppress(OSError):
            _disconnect(pid, spared)


def end_restored(worker: int, images: str, since: float, known: list[int]) -> list[int]:
    """End the processes that a worker is restoring; returns their pids.

    They have a pid of the images; in a pid namespace of their own, ``known`` has the first one.
    """
    made = half_restored(images, since)
    below = set(process_tree(worker)[1:])
    result = [pid for pid in (*made, *known) if pid in below or pid in made]
    for pid in result:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return result


def end_scripts(worker: int, restored: list[int]) -> None:
    """Kill the action scripts that a worker waits for, and the processes below them.

    CRIU sets a variable in their environment, which those below them inherit. A script that undoes
    a network lock is not killed, and neither is a process that was restored: an action script could
    have started its program.
    """
    spared = set(process_tree(restored[0])) if restored else set()
    for pid in process_tree(worker)[1:]:
        if pid in spared:
            continue
        with contextlib.suppress(OSError):
            variables = read_small(f"/proc/{pid}/environ").split(b"\0")
            actions = {each for each in variables if each.startswith(SCRIPT)}
            if actions - {SCRIPT + b"network-unlock"}:
                os.kill(pid, signal.SIGKILL)


def _limit(pid: int) -> None:
    if not int(status_of(pid).get("SigIgn", "0"), 16) & XFSZ:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def _disconnect(pid: int, spared: set[int]) -> None:
    """Shut down the connections of a process, except for those in ``spared``."""
    for fd in descriptors_of(pid, "socket:"):
        with of_another(fd) as copy:
            kind = copy.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            if kind == socket.SOCK_STREAM and os.fstat(copy.fileno()).st_ino not in spared:
                with contextlib.suppress(OSError):
                    copy.shutdown(socket.SHUT_RDWR)
