"""The mounts of all mount namespaces of a process tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ..._system.process_snapshot import Process, Tree, link, read


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    number: int
    parent: int
    device: str
    """``major:minor``."""
    root: str
    """Directory of the file system that is mounted."""
    place: str
    """Mount point, in its own namespace."""
    shared: int
    """Its peer group; 0 for none."""
    master: int
    """The peer group that it is a slave of; 0 for none."""
    kind: str
    """The type of the file system."""
    namespace: str
    options: str
    """Options of the file system, joined with commas."""

    @property
    def whole(self) -> bool:
        """Whether it is the root of its file system."""
        return self.root == "/"

    @property
    def key(self) -> str:
        """Its key in ``external``."""
        return f"mnt[{self.place}]"


def parse(text: str, namespace: str) -> list[Mount]:
    """The lines of a mountinfo."""
    result = []
    for line in filter(None, text.split("\n")):
        before, _, after = line.partition(" - ")
        number, parent, device, root, place, _, *marks = before.split(" ")
        groups = dict(mark.split(":") for mark in marks if ":" in mark)
        result.append(
            Mount(
                number=int(number),
                parent=int(parent),
                device=device,
                root=_unescaped(root),
                place=_unescaped(place),
                shared=int(groups.get("shared", 0)),
                master=int(groups.get("master", 0)),
                kind=after.split(" ")[0],
                namespace=namespace,
                options=after.rpartition(" ")[2],
            )
        )
    return result


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


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
        return [
            mount
            for namespace, process in self.owners.items()
            for mount in parse(read(f"/proc/{self._visible_process(process)}/mountinfo"), namespace)
        ]

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
        return frozenset(int(n) for text in options for n in re.findall(r"pipe_ino=(\d+)", text))

    def base(self, mount: Mount) -> str:
        """A path that leads to the root of the mount's namespace."""
        return f"/proc/{self._visible_process(self.owners[mount.namespace])}/root"

    def covered(self, mount: Mount) -> bool:
        """Whether another mount lies over it."""
        at = mount
        while at.parent in self.by_number and at.parent != at.number:
            for other in self._below(at.parent):
                if other is not at and is_below(at.place, other.place):
                    return True
            at = self.by_number[at.parent]
        return any(other.place == mount.place for other in self._below(mount.number))

    @cached_property
    def _children(self) -> dict[int, list[Mount]]:
        result: dict[int, list[Mount]] = {}
        for mount in self.all:
            if mount.parent != mount.number:
                result.setdefault(mount.parent, []).append(mount)
        return result

    def _below(self, number: int) -> list[Mount]:
        return self._children.get(number, [])

    @cached_property
    def checked(self) -> bool:
        """Whether CRIU checks the mounts: a namespace is not its own."""
        return set(self.owners) != {self.tree.ours.namespaces["mnt"]}


def is_below(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip("/") + "/")
