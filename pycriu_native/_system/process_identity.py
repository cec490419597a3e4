"""Identifies a process: other processes can have the same pid elsewhere, and later."""

from __future__ import annotations

import contextlib
import operator
import os

from .._support.frozen_dataclass import dataclass
from .._support.unpatched import readable
from ..errors import NoSuchProcessError, OptionError, Problem, ProcessMismatchError
from ..options.values import Descriptor, descriptor_number
from .descriptors import descriptor_info, link
from .host import boot_id
from .process import stat_of


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot of one host: its pid in a pid namespace, and its start time.

    ``ProcessIdentity.of(pid)`` reads it on the host of the process. It can be pickled. A dump of it
    on another host, or after the process has ended, raises ``ProcessMismatchError``.
    """

    pid: int
    """The pid, in the pid namespace of the process that called :meth:`of`."""
    start_time: int | None
    """Start of the process, in clock ticks since boot (proc(5), ``/proc/PID/stat``, field 22);
    None: there was no such process."""
    pid_namespace: int
    """Inode of that pid namespace."""
    boot_id: str
    """``/proc/sys/kernel/random/boot_id``, which identifies a boot of a host."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The process that has this pid now, in the caller's pid namespace."""
        pid = operator.index(pid)
        result = stat_of(pid)
        start = None if result is None else result.start
        return cls(pid, start, os.stat("/proc/self/ns/pid").st_ino, boot_id())

    def check(self, verb: str = "dump") -> None:
        """Raise ``ProcessMismatchError`` if the pid is not that of this process here."""
        here = ProcessIdentity.of(self.pid)
        cause = f"the identity was read in pid:[{self.pid_namespace}] of boot {self.boot_id}, and "
        if here.boot_id != self.boot_id:
            cause += f"this is another host, or another boot of it (boot id {here.boot_id})"
        elif here.pid_namespace != self.pid_namespace:
            cause += f"this is another pid namespace (pid:[{here.pid_namespace}])"
        elif self.start_time is None:
            cause = "no process had this pid when the identity was read"
        else:
            check_start(self.pid, self.start_time, verb)
            return
        raise _mismatch(verb, self.pid, cause)


@dataclass(frozen=True, slots=True)
class Pidfd:
    """A process by its pidfd (``os.pidfd_open``), which the caller closes.

    A verb takes a plain number as a pid. A pidfd cannot be sent to another host: for a job, use
    ``ProcessIdentity.of(pid)``.
    """

    fd: Descriptor
    """The pidfd: its number, or the object that owns it."""

    def process(self, verb: str = "dump") -> ProcessIdentity:
        """The identity of the process.

        ``NoSuchProcessError`` if it has ended; ``OptionError`` if the descriptor is no pidfd, or
        the process has no pid in this pid namespace.
        """
        fd = descriptor_number(self.fd)
        pid = self._pid(fd, verb)
        result = ProcessIdentity.of(pid)
        # Still running: the start that was read is that of this process.
        if readable(fd) or result.start_time is None:
            raise NoSuchProcessError(
                f"{verb}: the process of pidfd {fd} (pid {pid}) has ended", verb=verb, pid=pid
            )
        return result

    def _pid(self, fd: int, verb: str) -> int:
        """From ``/proc/self/fdinfo`` (pidfd_open(2), proc(5))."""
        pid = None
        with contextlib.suppress(OSError, KeyError, ValueError):
            pid = int(descriptor_info("self", fd)["Pid"][0])
        if pid is None:
            rule = "a pidfd is accepted (os.pidfd_open)"
        elif pid == 0:
            rule = "its process is not in this pid namespace, so that it has no pid here"
        elif pid < 0:
            raise NoSuchProcessError(f"{verb}: the process of pidfd {fd} has ended", verb=verb)
        else:
            return pid
        raise OptionError([Problem("pid", self, rule)], verb=verb)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError(
            "a Pidfd cannot be pickled: a descriptor stays in its process; "
            "use ProcessIdentity.of(pid)"
        )


Target = int | Pidfd | ProcessIdentity
"""What a verb accepts as the process to dump."""


def is_pid(value: object) -> bool:
    """Whether a value can be a pid: a whole number that is above 0 and fits ``pid_t``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def identified(target: Target, verb: str = "dump") -> Target:
    """The identity of a target; a pid without a process is returned as it is."""
    if isinstance(target, Pidfd):
        return target.process(verb)
    if isinstance(target, int) and is_pid(target):
        result = ProcessIdentity.of(target)
        return target if result.start_time is None else result
    return target


def number_of(target: Target) -> int:
    """The pid of a target; another value is returned as it is, and refused later."""
    if isinstance(target, Pidfd):
        return target.process().pid
    if isinstance(target, ProcessIdentity):
        return target.pid
    return int(target) if is_pid(target) else target  # a subclass can have another text


def located(target: Target, verb: str) -> tuple[int, int | None]:
    """Pid and start of a target, which must be of this host and pid namespace.

    The start is None if there is no such process: the failure of CRIU reports that.
    """
    if isinstance(target, Pidfd):
        target = target.process(verb)
    elif isinstance(target, ProcessIdentity):
        target.check(verb)
    if isinstance(target, ProcessIdentity):
        return target.pid, target.start_time
    pid = number_of(target)
    result = stat_of(pid) if is_pid(pid) else None
    return pid, None if result is None else result.start


def has_proc() -> bool:
    """Whether /proc is a proc file system; it can be that of another pid namespace."""
    return os.path.exists("/proc/uptime")


def foreign_proc() -> str | None:
    """Why pids are not those of /proc; None if /proc is that of the caller's pid namespace."""
    if link("/proc/self") == str(os.getpid()):
        return None
    if not has_proc():
        return "there is no proc file system on /proc, which shows the processes: mount one"
    return (
        "/proc is not that of the caller's pid namespace, so that a pid is another process there, "
        "or nothing: mount a proc file system of this namespace on /proc"
    )


def check_start(pid: int, start_time: int, verb: str) -> None:
    """Raise ``ProcessMismatchError`` if the pid now belongs to another process or to none."""
    result = stat_of(pid)
    if result is None:
        raise _mismatch(verb, pid, "the process has ended")
    if result.start != start_time:
        cause = f"another process has the pid now (start time {result.start}, not {start_time})"
        raise _mismatch(verb, pid, cause)


def _mismatch(verb: str, pid: int, cause: str) -> ProcessMismatchError:
    cure = "read the identity again, on the host of the process: ProcessIdentity.of(pid)"
    return ProcessMismatchError(
        f"{verb} of pid {pid} refused: {cause}; {cure}",
        verb=verb,
        pid=pid,
        cause=cause,
        cure=cure,
    )
