"""Files that an epoll watches: CRIU must find each of them among the descriptors of the tree.

CRIU saves an epoll once, with the first process that has it open. A file that it watches must be
open there, or must have been saved first with that process (``criu/eventpoll.c``:
``find_tfd_bsearch``, ``flush_eventpoll_dinfo_queue``). kcmp(2) identifies the file: the
number alone is ambiguous.
"""

from __future__ import annotations

import errno
import os
from collections import Counter

from ..._system.process_snapshot import Descriptor, Process
from ..._system.system_calls import is_same_file, kcmp_epoll
from .context import Context, Findings, stops


def look(context: Context) -> Findings:
    """Findings on the epolls of the tree, each once."""
    processes = context.in_order_of_dump()
    seen: list[Descriptor] = []
    for process in processes:
        for fd in process.descriptors:
            if fd.link == "anon_inode:[eventpoll]" and not any(is_same_file(fd, o) for o in seen):
                seen.append(fd)
                yield from _epoll(processes, fd)


def _epoll(processes: list[Process], epoll: Descriptor) -> Findings:
    before: Counter[int] = Counter()
    for line in epoll.info.get("tfd", ()):
        words = line.replace(": ", ":").split()
        values = dict(word.split(":", 1) for word in words if ":" in word)
        if "ino" not in values:
            return  # a kernel before 4.14
        watched = int(words[0])
        file = int(values["ino"], 16), int(values["sdev"], 16)
        is_found = _is_found(processes, epoll, watched, before[watched], file)
        before[watched] += 1  # the number of a closed descriptor can be there again
        if not is_found and line in epoll.read_again().get("tfd", ()):
            yield stops(
                "epoll-of-a-closed-file",
                f"an epoll watches descriptor {watched}, which the process has closed while "
                "another holds it open",
                pid=epoll.pid,
                fd=epoll.number,
                failure="epoll-closed",
            )


def _is_found(
    processes: list[Process], epoll: Descriptor, watched: int, nth: int, file: tuple[int, int]
) -> bool:
    """Whether CRIU finds a file of an epoll with the epoll's own process."""
    if _is_watched(epoll, epoll.pid, watched, watched, nth):
        return True
    for process in processes:
        for fd in process.descriptors:
            device = os.major(fd.stat.st_dev) << 20 | os.minor(fd.stat.st_dev)
            is_alike = (fd.stat.st_ino, device) == file
            if is_alike and _is_watched(epoll, process.pid, fd.number, watched, nth):
                return process.pid == epoll.pid
    return False


def _is_watched(epoll: Descriptor, pid: int, number: int, watched: int, nth: int) -> bool:
    """Whether a descriptor is a file of an epoll; True if kcmp(2) is not available."""
    try:
        return kcmp_epoll(pid, number, epoll.pid, epoll.number, watched, nth)
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ESRCH)  # it is closed
