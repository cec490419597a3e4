"""Open descriptors of processes, in ``/proc/PID/fd`` and ``/proc/PID/fdinfo`` (proc(5))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from collections.abc import Iterator

from .._native.ffi import checked, native
from .._support.kernel_text import read_lines
from .._support.unpatched import closing
from ..options.values import Descriptor, descriptor_number

PATH_TOO_LONG = "/(a path of more than 4095 bytes)"
"""Instead of a path that is too long for a link of /proc (``do_proc_readlink``)."""


def above_stdio(fd: int) -> int:
    """The same file on a descriptor above 2; a descriptor of 0 to 2 is closed.

    If the caller has closed one of 0 to 2, the next opened file gets its number. libcriu prints to
    2, and the standard descriptors of a worker replace all three.
    """
    if fd > 2:
        return fd
    with closing(fd):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def is_inherited(fd: int) -> bool:
    """Whether a new program would inherit this descriptor, as with ``subprocess``.

    The number of a standard descriptor that the caller has closed is that of a file of this
    library, which is not inheritable.
    """
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def opened_directory(directory: str | os.PathLike[str] | Descriptor) -> closing:
    """A context with a descriptor of a directory, given by path or descriptor. ``OSError``."""
    if isinstance(directory, str | os.PathLike):
        return closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return closing(os.dup(descriptor_number(directory)))


def links_of(pid: int | str) -> Iterator[tuple[int, str]]:
    """The numbers and links of a process's descriptors; none if it has ended or is not readable."""
    with contextlib.suppress(OSError):
        for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
            with contextlib.suppress(OSError):  # closed meanwhile
                yield number, os.readlink(f"/proc/{pid}/fd/{number}")


def free_numbers(pid: int) -> int | None:
    """How many more descriptors a process can open (RLIMIT_NOFILE); None if that is not known."""
    with contextlib.suppress(OSError):
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY:
            used = sum(int(number) < limit for number in os.listdir(f"/proc/{pid}/fd"))
            return max(limit - used, 0)
    return None


def link(path: str) -> str:
    """The target of a link of /proc; empty if it cannot be read, or ``PATH_TOO_LONG``."""
    try:
        return os.readlink(path)
    except OSError as error:
        return PATH_TOO_LONG if error.errno == errno.ENAMETOOLONG else ""


def files_of(pid: int) -> Iterator[tuple[str, str]]:
    """The link in /proc and the path of each file that a process has open or mapped.

    A deleted file has its former path. Files without a path and unreadable ones are left out.
    """
    for kind in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/{kind}"):
                link = f"/proc/{pid}/{kind}/{number}"
                with contextlib.suppress(OSError):
                    path = os.readlink(link)
                    if path.startswith("/"):
                        yield link, path.removesuffix(" (deleted)")


def sockets_of(pid: int) -> dict[int, int]:
    """A descriptor of each socket that a process has open, by inode."""
    return {
        int(link.removeprefix("socket:[")[:-1]): fd
        for fd, link in links_of(pid)
        if link.startswith("socket:[")
    }


def where(fd: int) -> str:
    """The path of an open file or directory of this process; ``OSError``."""
    return os.readlink(f"/proc/self/fd/{fd}")


def descriptor_info(pid: int | str, fd: int) -> dict[str, list[str]]:
    """The lines of fdinfo by their first word, which several lines can share. ``OSError``."""
    result: dict[str, list[str]] = {}
    for line in read_lines(f"/proc/{pid}/fdinfo/{fd}"):
        word, *rest = line.split(None, 1)
        result.setdefault(word.rstrip(":"), []).append(rest[0] if rest else "")
    return result


def descriptors_of(pid: int, kind: str) -> Iterator[int]:
    """Copies of the descriptors whose link begins with ``kind``, such as ``socket:``.

    Each is closed before the next. One that the process closes or replaces meanwhile is left out.
    They are made by ``pidfd_getfd`` (kernel 5.6). Raises ``OSError``.
    """
    with closing(os.pidfd_open(pid)) as pidfd:
        for number, link in links_of(pid):
            if not link.startswith(kind):
                continue
            fd = native.pn_copy_descriptor(pidfd, number)
            if fd == -errno.EBADF:
                continue
            with closing(checked(fd, "pidfd_getfd")):
                if where(fd).startswith(kind):
                    yield fd


@contextlib.contextmanager
def copied(pid: int, number: int) -> Iterator[int]:
    """A copy of one descriptor of another process, which shares its open file; closed at the end.

    Raises ``OSError``: the descriptor is closed, the process has ended, or the caller may not
    trace it.
    """
    with closing(os.pidfd_open(pid)) as pidfd:
        fd = native.pn_copy_descriptor(pidfd, number)
    with closing(checked(fd, "pidfd_getfd")):
        yield fd
