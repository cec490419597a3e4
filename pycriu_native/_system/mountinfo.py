"""The mounts of a process, from ``/proc/PID/mountinfo`` (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._support.frozen_dataclass import dataclass
from .._support.kernel_text import read_lines
from .._support.unpatched import closing
from .descriptors import descriptor_info


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """A line of mountinfo."""

    number: int
    parent: int
    device: str
    """``major:minor``."""
    root: str
    """The directory of the file system that is mounted."""
    place: str
    """The mount point, as the process sees it."""
    shared: int
    """The peer group; 0 for none."""
    master: int
    """The peer group that propagates its mounts to this one; 0 for none."""
    kind: str
    """The type of the file system."""
    options: frozenset[str]
    """The options of the file system; those of cgroup v1 include the controllers."""
    namespace: str = ""
    """The mount namespace, where the caller of :func:`parse` gives it."""

    @property
    def whole(self) -> bool:
        """Whether the root of the file system is mounted."""
        return self.root == "/"

    @property
    def key(self) -> str:
        """The name of the mount in CRIU's option ``external``."""
        return f"mnt[{self.place}]"


def mounts_of(pid: int | str, namespace: str = "") -> Iterator[Mount]:
    """The mounts that a process sees. Raises ``OSError``."""
    for line in read_lines(f"/proc/{pid}/mountinfo"):
        yield parse(line, namespace)


def parse(line: str, namespace: str = "") -> Mount:
    """A line of mountinfo."""
    before, _, after = line.partition(" - ")
    number, parent, device, root, place, _, *marks = before.split(" ")
    groups = dict(mark.split(":") for mark in marks if ":" in mark)
    return Mount(
        number=int(number),
        parent=int(parent),
        device=device,
        root=_unescaped(root),
        place=_unescaped(place),
        shared=int(groups.get("shared", 0)),
        master=int(groups.get("master", 0)),
        kind=after.partition(" ")[0],
        options=frozenset(after.rpartition(" ")[2].split(",")),
        namespace=namespace,
    )


def _unescaped(text: str) -> str:
    r"""The text without the kernel's octal escapes, such as ``\040`` for a space."""
    first, *others = text.split("\\")
    return first + "".join(chr(int(each[:3], 8)) + each[3:] for each in others)


def cgroup_hierarchies() -> Iterator[Mount]:
    """The mounts of whole cgroup hierarchies, of both versions, that the caller sees."""
    for mount in mounts_of("self"):
        if mount.kind in ("cgroup", "cgroup2") and mount.whole:
            yield mount


def hierarchy(kind: str, controllers: str = "") -> str | None:
    """The mount point of a whole cgroup hierarchy; None if there is none.

    ``kind`` is ``cgroup`` (v1) or ``cgroup2``; ``controllers`` is separated by commas.
    """
    expected = set(filter(None, controllers.split(",")))
    for mount in cgroup_hierarchies():
        if mount.kind == kind and mount.options >= expected:
            return mount.place
    return None


def filesystem_of(directory: str) -> str | None:
    """The type of the file system that a directory is on; None if there is no such directory."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    with closing(fd):
        try:
            number = int(descriptor_info("self", fd)["mnt_id"][0])
            return next(mount.kind for mount in mounts_of("self") if mount.number == number)
        except (OSError, KeyError, StopIteration):
            return "an unknown file system"
