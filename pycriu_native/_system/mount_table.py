"""The mounts of all mount namespaces of a process tree."""

from __future__ import annotations

import contextlib

from .._support.cached_property import cached_property
from .descriptors import link
from .mountinfo import Mount, mounts_of
from .process_snapshot import Process, Tree


class MountTable:
    """The mounts that CRIU reads, and a process in each of their namespaces."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.owners = dict(tree.in_namespaces("mnt"))
        if not tree.has_own("mnt"):
            self.owners[tree.ours.namespaces["mnt"]] = tree.ours

    @cached_property
    def all(self) -> list[Mount]:
        """Every mount of every namespace."""
        result: list[Mount] = []
        for namespace, process in self.owners.items():
            with contextlib.suppress(OSError):
                result += mounts_of(self._visible_process(process), namespace)
        return result

    def _visible_process(self, process: Process) -> int:
        """The pid of a process of the same namespace that is in no chroot, if there is one."""
        others = (p for p in self.tree.alive if p.namespaces["mnt"] == process.namespaces["mnt"])
        for other in (process, *others):
            if link(f"/proc/{other.pid}/root") == "/":
                return other.pid
        return process.pid

    @cached_property
    def tops(self) -> dict[str, Mount]:
        """The root mount of each namespace that has one."""
        return {
            mount.namespace: mount
            for mount in self.all
            if mount.place == "/" and mount.parent not in self.by_number
        }

    @cached_property
    def by_number(self) -> dict[int, Mount]:
        """Mounts by their number, which is unique on the machine."""
        return {mount.number: mount for mount in self.all}

    @cached_property
    def autofs_pipes(self) -> frozenset[int]:
        """Pipes over which the kernel requests automatic mounts; they are packet pipes."""
        options = (mount.options for mount in self.all if mount.kind == "autofs")
        pairs = (option.partition("=") for each in options for option in each)
        return frozenset(int(value) for name, _, value in pairs if name == "pipe_ino")

    def base(self, mount: Mount) -> str:
        """A path that leads to the root of the mount's namespace."""
        return f"/proc/{self._visible_process(self.owners[mount.namespace])}/root"

    def covered(self, mount: Mount) -> bool:
        """Whether another mount covers it."""
        at = mount
        while at.parent in self.by_number and at.parent != at.number:
            for other in self._children.get(at.parent, ()):
                if other is not at and is_below(at.place, other.place):
                    return True
            at = self.by_number[at.parent]
        return any(other.place == mount.place for other in self._children.get(mount.number, ()))

    @cached_property
    def _children(self) -> dict[int, list[Mount]]:
        result: dict[int, list[Mount]] = {}
        for mount in self.all:
            if mount.parent != mount.number:
                result.setdefault(mount.parent, []).append(mount)
        return result

    @cached_property
    def checked(self) -> bool:
        """Whether CRIU checks the mounts: if a namespace is not the caller's."""
        return set(self.owners) != {self.tree.ours.namespaces["mnt"]}


def is_below(path: str, above: str) -> bool:
    """Whether a path is this directory or below it; both are normalized."""
    return path == above or path.startswith(above.rstrip("/") + "/")
