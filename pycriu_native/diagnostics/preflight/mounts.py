"""Mounts: which of them CRIU finds, cannot rebuild, or cannot tie to the rest.

CRIU looks at all mounts of the tree's mount namespaces, and at those of its own if the root
process is in that one. Only namespaces that are not CRIU's are checked (``criu/mount.c``:
``collect_mnt_namespaces``, ``resolve_shared_mounts``, ``validate_mounts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..._failures.log_excerpt import known
from ..._system.process_snapshot import Process, Tree, link, read
from .values import Finding

if TYPE_CHECKING:
    from .context import Context

_REBUILT = """
    proc sysfs devtmpfs binfmt_misc tmpfs devpts simfs pstore mqueue securityfs fusectl debugfs
    tracefs cgroup cgroup2 aufs fuse overlay autofs
"""
REBUILT = frozenset(_REBUILT.split())
"""File systems that CRIU 4.2 knows; of ``fuse`` only that it must be external."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo."""

    number: int
    parent: int
    device: str
    """``major:minor``."""
    root: str
    """What of the file system is mounted."""
    place: str
    """Where, in its own namespace."""
    shared: int
    """Its peer group; 0 for none."""
    master: int
    """The peer group that it gets its changes from; 0 for none."""
    kind: str
    """The type of the file system."""
    namespace: str

    @property
    def whole(self) -> bool:
        """Whether it is the root of its file system."""
        return self.root == "/"

    @property
    def key(self) -> str:
        """How ``external`` calls it."""
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
            )
        )
    return result


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


class MountTable:
    """The mounts that CRIU looks at, and a process through which each namespace can be seen."""

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
            for mount in parse(read(f"/proc/{self._whole(process)}/mountinfo"), namespace)
        ]

    def _whole(self, process: Process) -> int:
        """A process of the same namespace that is in no chroot, if there is one."""
        others = (p for p in self.tree.alive if p.namespaces["mnt"] == process.namespaces["mnt"])
        for other in (process, *others):
            if link(f"/proc/{other.pid}/root") == "/":
                return other.pid
        return process.pid

    @cached_property
    def by_number(self) -> dict[int, Mount]:
        """Mounts by their number, which is unique on the machine."""
        return {mount.number: mount for mount in self.all}

    def base(self, mount: Mount) -> str:
        """A path that leads to the root of the mount's namespace."""
        return f"/proc/{self._whole(self.owners[mount.namespace])}/root"

    def covered(self, mount: Mount) -> bool:
        """Whether another mount lies over it."""
        at = mount
        while at.parent in self.by_number and at.parent != at.number:
            for other in self._below(at.parent):
                if other is not at and _is_below(at.place, other.place):
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
        """Whether CRIU checks them: there is a namespace that is not its own."""
        return set(self.owners) != {self.tree.ours.namespaces["mnt"]}


def _is_below(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip("/") + "/")


def look(context: Context) -> Iterator[Finding]:
    """What of the mounts CRIU cannot save by itself."""
    from .context import needs, stops

    table = context.mounts
    if not table.checked:
        return
    root_of = context.tree.root.namespaces["mnt"]
    tops = {m.namespace: m for m in table.all if m.place == "/" and m.parent not in table.by_number}
    for namespace, process in table.owners.items():
        if namespace not in tops:
            yield stops(
                "no-root-mount",
                "the root of its mount namespace is no mount point, as in a chroot",
                pid=process.pid,
                failure="no-parent-mount",
            )
            return
    outside = {m for m in table.all if m.namespace == root_of and _is_external(context, m)}
    if context.opts.auto_ext_mnt:
        ours = parse(read("/proc/self/mountinfo"), context.tree.ours.namespaces["mnt"])
        outside |= {m for m in table.all if m.place != "/" and _is_found(context, m, ours)}
    top = tops.get(root_of)
    skipped = {str(place) for place in context.opts.skip_mnts or ()}
    groups = {mount.shared for mount in table.all if mount.shared}
    for mount in table.all:
        if mount.namespace == context.tree.ours.namespaces["mnt"] and context.tree.has_own("mnt"):
            continue
        if mount.place in skipped:
            continue
        given = mount in outside or any(_same(mount, other) for other in outside)
        about = {"pid": table.owners[mount.namespace].pid, "path": mount.place}
        if mount.master and mount.master not in groups and not given:
            tied = top and _same(mount, top) and top.master == mount.master
            if not tied:
                yield needs(
                    context,
                    "unreachable-sharing",
                    "the mount gets its changes from one outside (it is a slave)",
                    _cure(context, mount) + "; or make it private",
                    sets=_sets(context, mount),
                    failure="unreachable-sharing",
                    **about,
                )
                continue
        if given or (top is not None and _same(mount, top)):
            continue
        if mount.whole and (mount.kind == "fuse" or mount.kind not in REBUILT):
            if mount.kind in (context.opts.enable_fs or ()) or context.opts.enable_fs == ("all",):
                continue
            failure = "fuse" if mount.kind == "fuse" else "fs-unsupported"
            yield needs(
                context,
                failure,
                f"CRIU cannot rebuild a file system of type {mount.kind}",
                known(failure).cure,
                sets={"external": (f"{mount.key}:{mount.place}",)},
                failure=failure,
                **about,
            )
        elif not mount.whole and not any(
            other.device == mount.device and other.whole for other in table.all
        ):
            yield needs(
                context,
                "mount-from-outside",
                f"{mount.root} of a file system from outside ({mount.kind}) is mounted",
                _cure(context, mount),
                sets=_sets(context, mount),
                failure="root-mount",
                **about,
            )


def _sets(context: Context, mount: Mount) -> dict[str, Any]:
    """The options that let a mount be from outside."""
    if context.opts.auto_ext_mnt and (mount.shared or mount.master):
        result = {"ext_sharing": mount.shared, "ext_masters": mount.master}
        return {name: True for name, group in result.items() if group}
    return {"external": (f"{mount.key}:{mount.place}",)}


def _cure(context: Context, mount: Mount) -> str:
    if "external" not in (sets := _sets(context, mount)):
        return " and ".join(f"{name}=True" for name in sets)
    return f'name it as external, and give it on restore with external="mnt[{mount.place}]:PATH"'


def _same(mount: Mount, other: Mount) -> bool:
    """Whether a mount shows a part of what another shows."""
    return mount.device == other.device and _is_below(mount.root, other.root)


def _is_found(context: Context, mount: Mount, ours: list[Mount]) -> bool:
    """Whether ``auto_ext_mnt`` finds it among the mounts of CRIU's own namespace."""
    alike = [other for other in ours if _same(mount, other)]
    if not alike or (mount.shared and not context.opts.ext_sharing):
        return False
    best = max(alike, key=lambda other: len(other.root))
    return not mount.master or bool(
        context.opts.ext_masters and mount.master in (best.shared, best.master)
    )


def _is_external(context: Context, mount: Mount) -> bool:
    major, _, minor = mount.device.partition(":")
    named = {getattr(item, "key", None) for item in context.opts.ext_mounts or ()}
    return (
        context.external(mount.key)
        or mount.place in named
        or (mount.whole and context.external(f"dev[{major}/{minor}]"))
    )
