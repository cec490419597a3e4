"""A process tree whose properties are read from /proc once and kept.

The processes run meanwhile. Readers return an empty value for a process that has ended.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from .._support.cached_property import cached_property
from .descriptors import descriptor_info, link
from .mappings import Mapping, mappings_of
from .process import ProcessStat, stat_of, status_of, threads_of
from .process_tree import process_tree

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


_FIRST = {"pid": 4026531836, "user": 4026531837}
"""Inodes of the first namespaces of a system (``PROC_PID_INIT_INO`` and its like)."""


def in_first(kind: str) -> bool:
    """Whether the caller's namespace of a kind is the first one of the system."""
    return link(f"/proc/self/ns/{kind}") == f"{kind}:[{_FIRST[kind]}]"


def _info(pid: int, number: int) -> dict[str, list[str]]:
    """The lines of a descriptor's fdinfo; none where it is closed."""
    try:
        return descriptor_info(pid, number)
    except OSError:
        return {}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open descriptor of a process."""

    pid: int
    number: int
    link: str
    """The target of its link in /proc."""
    stat: os.stat_result
    info: dict[str, list[str]] = field(compare=False, hash=False)
    """The lines of its fdinfo by their first word, which several lines can share."""

    @property
    def path(self) -> str:
        """Its path in /proc."""
        return f"/proc/{self.pid}/fd/{self.number}"

    def read_again(self) -> dict[str, list[str]]:
        """``info`` as it is now."""
        return _info(self.pid, self.number)

    def value(self, name: str) -> str:
        """A line of its fdinfo; empty where there is none."""
        return self.info.get(name, [""])[0]

    @property
    def flags(self) -> int:
        """The flags with which it was opened."""
        return int(self.value("flags") or "0", 8)

    @property
    def mount(self) -> int:
        """The number of the mount that it is on."""
        return int(self.value("mnt_id") or "-1")

    @property
    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.stat.st_mode)

    @property
    def is_pipe(self) -> bool:
        """A pipe without a name."""
        return self.link.startswith("pipe:")

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number of the device; (0, 0) for other files."""
        return os.major(self.stat.st_rdev), os.minor(self.stat.st_rdev)


class Process:
    """One process of the tree."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @cached_property
    def status(self) -> dict[str, str]:
        """/proc/PID/status."""
        return status_of(self.pid)

    @cached_property
    def stat(self) -> ProcessStat:
        """/proc/PID/stat; an empty state and zeros where there is no such process."""
        return stat_of(self.pid) or ProcessStat("", "", 0, 0, 0, 0, 0, 0)

    @property
    def state(self) -> str:
        """The state's letter; empty where there is no such process."""
        return self.stat.state

    @cached_property
    def threads(self) -> list[int]:
        """The numbers of its threads."""
        return threads_of(self.pid)

    def inner(self, name: str) -> int:
        """``NSpid`` or ``NSsid`` as seen in the innermost pid namespace."""
        return int((self.status.get(name) or "-1").split()[-1])

    @cached_property
    def namespaces(self) -> dict[str, str]:
        """The namespace of each kind, as its link in /proc."""
        return {kind: self.namespace(kind) for kind in NAMESPACES}

    def namespace(self, kind: str) -> str:
        """The namespace of a kind; empty for a zombie or a kernel without this kind."""
        return link(f"/proc/{self.pid}/ns/{kind}")

    @cached_property
    def descriptors(self) -> list[Descriptor]:
        """Its open descriptors."""
        result = []
        with contextlib.suppress(OSError):
            for number in sorted(map(int, os.listdir(f"/proc/{self.pid}/fd"))):
                path = f"/proc/{self.pid}/fd/{number}"
                with contextlib.suppress(OSError):  # it is closed now
                    seen, info = os.stat(path), _info(self.pid, number)
                    result.append(Descriptor(self.pid, number, link(path), seen, info))
        return result

    @cached_property
    def mappings(self) -> list[Mapping]:
        """The mappings of its memory."""
        try:
            return list(mappings_of(self.pid))
        except OSError:
            return []


class Tree:
    """The process to dump, its descendants, and the calling process."""

    def __init__(self, pid: int) -> None:
        self.root = Process(pid)
        self.processes = [self.root]
        if self.root.state not in ("", "Z", "X"):
            self.processes += [Process(below) for below in process_tree(pid)[1:]]
        self.ours = Process(os.getpid())
        """The calling process, whose namespaces the worker shares."""

    @cached_property
    def pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in self.processes)

    @cached_property
    def alive(self) -> list[Process]:
        """The processes that are no zombies."""
        return [process for process in self.processes if process.state not in ("", "Z", "X")]

    def has_own(self, kind: str) -> bool:
        """Whether the root process has a namespace that is not CRIU's. False if unreadable."""
        own = self.root.namespaces[kind]
        return bool(own) and own != self.ours.namespaces[kind]

    def descriptors(self) -> Iterator[Descriptor]:
        """The open descriptors of all processes."""
        for process in self.alive:
            yield from process.descriptors

    def in_namespaces(self, kind: str) -> dict[str, Process]:
        """Each namespace of a kind that is in the tree, with the first process in it."""
        result: dict[str, Process] = {}
        for process in self.alive:
            if process.namespaces[kind]:
                result.setdefault(process.namespaces[kind], process)
        return result
