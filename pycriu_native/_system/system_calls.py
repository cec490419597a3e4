"""System calls without a function in Python 3.11 (``native/kernel.c``)."""

from __future__ import annotations

import os

from .._native.ffi import checked, ffi, native
from .process_snapshot import Descriptor

KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_EPOLL_TFD = 0, 1, 2, 3, 4, 7
"""Types of resources of ``kcmp`` (``linux/kcmp.h``)."""


def kcmp(pid: int, other: int, type: int) -> bool:
    """Whether two threads share a resource; False where the kernel refuses the request."""
    return bool(native.pn_kcmp(pid, other, type, 0, 0) == 0)


def differs(pid: int, other: int, type: int) -> bool:
    """Whether each of two threads has its own of a resource; False where that is not known."""
    return bool(native.pn_kcmp(pid, other, type, 0, 0) > 0)


def is_same_file(one: Descriptor, other: Descriptor) -> bool:
    """Whether two descriptors are one open file; False where the kernel refuses the request."""
    numbers = one.number, other.number
    return bool(native.pn_kcmp(one.pid, other.pid, KCMP_FILE, *numbers) == 0)


def kcmp_epoll(pid: int, fd: int, of: int, epoll: int, watched: int, nth: int) -> bool:
    """Whether a descriptor of ``pid`` is the file that an epoll of ``of`` watches under a number.

    ``nth`` counts the files under that number from 0. ``OSError``: ENOENT if there are not so many,
    EBADF if a descriptor is closed.
    """
    slot = ffi.new("uint32_t[3]", [epoll, watched, nth])  # struct kcmp_epoll_slot
    place = int(ffi.cast("uintptr_t", slot))
    return checked(native.pn_kcmp(pid, of, KCMP_EPOLL_TFD, fd, place)) == 0


def io_priority(pid: int) -> tuple[int, int]:
    """Class and level of a thread's I/O priority. ``OSError``."""
    priority = checked(native.pn_io_priority(pid))
    return priority >> 13, priority & 0x1FFF


def namespace_owner(fd: int) -> int:
    """A new descriptor of the user namespace that owns a namespace. ``OSError``."""
    return checked(native.pn_namespace_owner(fd))


def clone_file(target: int, source: int) -> None:
    """Make an empty file share the blocks of another one (FICLONE). ``OSError``."""
    checked(native.pn_clone_file(target, source))


def kill_at(moment: float) -> None:
    """Send SIGKILL to this process at a time of CLOCK_BOOTTIME, in seconds; 0: never.

    The kernel sends it, also to a stopped process. The last call counts. ``OSError``.
    """
    checked(native.pn_kill_at(int(moment * 1e9)))


def file_system_type(path: str) -> int:
    """The type of a path's file system, a constant of ``linux/magic.h``. ``OSError``."""
    return checked(native.pn_file_system_type(os.fsencode(path)))


def open_by_handle(mount: int, type: int, handle: bytes) -> int:
    """A new descriptor (O_PATH) of the file of a handle on an open mount. ``OSError``."""
    return checked(native.pn_open_by_handle(mount, type, handle, len(handle)))
