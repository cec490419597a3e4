"""Files that an epoll watches: CRIU must find each of them among the descriptors of the tree.

CRIU saves an epoll once, with the first process that has it open. A file that it watches must be
open there, or must have been saved first with that process (``criu/eventpoll.c``:
``find_tfd_bsearch``, ``flush_eventpoll_dinfo_queue``). kcmp(2) tells whether it is that file: the
number alone is ambiguous.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import Counter
from collections.abc import Iterator

from ..._system.process_snapshot import Descriptor, Process
from ...findings import Finding
from .context import Context, stops
from .kcmp import EPOLL_TFD, is_same_file, kcmp

CLOSED = (errno.EBADF, errno.ESRCH)
"""Errors of kcmp(2) for a descriptor that is not open."""


def look(context: Context) -> Iterator[Finding]:
    """Findings on the epolls of the tree, each once."""
    processes = context.in_order_of_dump()
    seen: list[Descriptor] = []
    for process in processes:
        for fd in process.descriptors:
            if fd.link == "anon_inode:[eventpoll]" and not any(is_same_file(fd, o) for o in seen):
                seen.append(fd)
                yield from _epoll(processes, fd)


def _epoll(processes: list[Process], epoll: Descriptor) -> Iterator[Finding]:
    before: Counter[int] = Counter()
    for line in epoll.info.get("tfd", ()):
        words = line.replace(": ", ":").split()
        values = dict(word.split(":", 1) for word in words if ":" in word)
        if "ino" not in values:
            return  # a kernel before 4.14
        number = int(words[0])
        slot = struct.pack("=III", epoll.number, number, before[number])
        before[number] += 1  # the number of a closed descriptor can be there again
        file = int(values["ino"], 16), int(values["sdev"], 16)
        found = _is_found(processes, epoll, number, slot, file)
        if not found and line in epoll.read_again().get("tfd", ()):
            yield stops(
                "epoll-of-a-closed-file",
                f"an epoll watches descriptor {number}, which the process has closed while "
                "another holds it open",
                pid=epoll.pid,
                fd=epoll.number,
                cure="take it out of the epoll (EPOLL_CTL_DEL) before it is closed",
            )


def _is_found(
    processes: list[Process],
    epoll: Descriptor,
    number: int,
    slot: bytes,
    file: tuple[int, int],
) -> bool:
    """Whether CRIU finds a file of an epoll with the epoll's own process."""
    if _is_watched(epoll, epoll.pid, number, slot) is not False:
        return True
    for process in processes:
        for fd in process.descriptors:
            is_alike = (fd.stat.st_ino, _kernel_device(fd)) == file
            if is_alike and _is_watched(epoll, process.pid, fd.number, slot) is not False:
                return process.pid == epoll.pid
    return False


def _is_watched(epoll: Descriptor, pid: int, number: int, slot: bytes) -> bool | None:
    """Whether a descriptor is the file of a slot of an epoll; None if kcmp(2) does not tell."""
    result = kcmp(pid, epoll.pid, EPOLL_TFD, number, slot)
    if result >= 0:
        return result == 0
    return False if ctypes.get_errno() in CLOSED else None


def _kernel_device(fd: Descriptor) -> int:
    return os.major(fd.stat.st_dev) << 20 | os.minor(fd.stat.st_dev)
