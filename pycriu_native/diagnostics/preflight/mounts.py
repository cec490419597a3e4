"""Mounts: file systems that CRIU cannot rebuild, mounts from outside, unreachable sharing.

CRIU reads all mounts of the tree's mount namespaces, and those of its own namespace if the root
process is in that one. It checks only namespaces that are not its own (``criu/mount.c``:
``collect_mnt_namespaces``, ``resolve_shared_mounts``, ``validate_mounts``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..._failures.log_excerpt import known
from ..._system.host import lines
from ..._system.mount_table import is_below
from ..._system.mountinfo import Mount, mounts_of
from ...findings import Finding
from .context import Context, Findings, note, stops
from .files import all_used

_REBUILT = """
    proc sysfs devtmpfs binfmt_misc tmpfs devpts simfs pstore mqueue securityfs fusectl debugfs
    tracefs cgroup cgroup2 aufs fuse overlay autofs
"""
REBUILT = frozenset(_REBUILT.split())
"""File systems that CRIU 4.2 supports; ``fuse`` only as an external mount."""


_MOUNTED_WITH = {
    "tmpfs": "user",
    "devpts": "user",
    "overlay": "user",
    "fuse": "user",
    "proc": "pid",
    "mqueue": "ipc",
    "sysfs": "net",
    "cgroup": "cgroup",
    "cgroup2": "cgroup",
}
"""File systems that a user namespace may mount, and the namespace that must be its own for that
(user_namespaces(7), "Capabilities"). Others only the first user namespace may mount."""


def look(context: Context) -> Findings:
    if not context.mounts.checked:
        return
    if without_root := _without_root(context):
        yield without_root
        return
    mounts = _Mounts(context)
    packed = False
    yield from mounts.of_user_namespace()
    for mount in mounts.checked():
        if mount in mounts.left_out:
            continue
        # The first finding of a mount explains it: the later checks depend on the earlier.
        if mounts.is_locked_below(mount):
            yield context.needs(
                "child-overmount",
                "another mount covers it at the same place, and both are from outside of its user "
                "namespace: the kernel locks them",
                sets={"skip_mnts": (mount.place,)},
                pid=context.mounts.owners[mount.namespace].pid,
                path=mount.place,
                failure="child-overmount",
            )
            continue
        if mounts.is_tmpfs_of_the_host(mount):
            yield note(
                "tmpfs-of-the-host",
                "it is a tmpfs of the host too: the dump copies it, and fails if a file in it "
                "changes meanwhile",
                pid=context.mounts.owners[mount.namespace].pid,
                path=mount.place,
                failure="tmpfs-content",
                cure=known("tmpfs-content").cure.replace("/dev/shm", mount.place),
            )
        finding = mounts.unreachable_sharing(mount)
        packed |= mounts.is_packed(mount)
        if finding is None and not mounts.has_source(mount):
            finding = mounts.unsupported(mount) or mounts.from_outside(mount)
        if finding is not None:
            yield finding
    if packed:
        yield from context.needs_programs("the files of a tmpfs", "tar", "gzip")


def _without_root(context: Context) -> Finding | None:
    """A mount namespace whose root directory is not a mount point."""
    for namespace, process in context.mounts.owners.items():
        if namespace not in context.mounts.tops:
            message = "the root of its mount namespace is no mount point, as in a chroot"
            return stops("no-root-mount", message, pid=process.pid, failure="no-parent-mount")
    return None


class _Mounts:
    """The checks of one mount, and what they compare it with."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.table = table = context.mounts
        root = context.tree.root.namespaces["mnt"]
        self.top = table.tops.get(root)
        self.groups = {mount.shared for mount in table.all if mount.shared}
        self.given = {m for m in table.all if m.namespace == root and _is_external(context, m)}
        """Mounts that an option makes external."""
        ours = list(mounts_of("self", context.tree.ours.namespaces["mnt"]))
        self.ours = {mount.device for mount in ours}
        """Devices of the mounts that the caller sees."""
        self.left_out: set[Mount] = set()
        """Mounts that a finding names for ``skip_mnts``, or as external."""
        if "auto_ext_mnt" in context.finds_external_mounts:
            self.given |= {m for m in table.all if m.place != "/" and _is_found(context, m, ours)}

    def checked(self) -> Iterator[Mount]:
        skipped = {str(place) for place in self.context.in_force("skip_mnts") or ()}
        tree = self.context.tree
        foreign = tree.ours.namespaces["mnt"] if tree.has_own("mnt") else None
        for mount in self.table.all:
            if mount.namespace != foreign and mount.place not in skipped:
                yield mount

    def of_user_namespace(self) -> Findings:
        """Mounts from outside, of file systems that the user namespace of the tree may not mount.

        Those that the tree uses must be external; others are omitted, with all mounts below them.
        """
        tree = self.context.tree
        if not (tree.has_own("user") and tree.has_own("mnt")):
            return
        used = {each.mount for each in all_used(self.context)}
        for mount in list(self.checked()):
            if mount in self.left_out or (why := self._not_mountable(mount)) is None:
                continue
            within = [
                each
                for each in self.table.all
                if each.namespace == mount.namespace and is_below(each.place, mount.place)
            ]
            is_used = any(each.number in used for each in within)
            self.left_out |= {mount} if is_used else set(within)
            if is_used:
                cure = (
                    f'name it as external, and give on restore external="{mount.key}:PATH", '
                    f"a mount point without mounts below it: mount --bind {mount.place} PATH"
                )
                sets: dict[str, tuple[str, ...]] = {"external": (f"{mount.key}:{mount.place}",)}
            else:
                cure = "leave it out with skip_mnts, with all that is mounted below it"
                sets = {"skip_mnts": tuple(dict.fromkeys(each.place for each in within))}
            yield self._needs(
                mount,
                "user-namespace-mount",
                f"a restore cannot mount it: {why}",
                cure=cure,
                sets=sets,
            )

    def _not_mountable(self, mount: Mount) -> str | None:
        """Why the user namespace of the tree cannot mount a file system again; None: it can."""
        if mount.place == "/" or mount.kind not in REBUILT or self.has_source(mount):
            return None
        namespace = _MOUNTED_WITH.get(mount.kind)
        if namespace is None or not self.context.tree.has_own(namespace):
            return f"its user namespace may not mount {mount.kind}"
        if mount.kind == "devpts":  # the kernel refuses ids without a mapping
            for option in sorted(mount.options):
                key, _, value = option.partition("=")
                if key in ("uid", "gid") and not self._is_mapped(f"{key}_map", int(value)):
                    return f"its user namespace has no {key} {value}, an option of the file system"
        return None

    def _is_mapped(self, file: str, number: int) -> bool:
        ranges = (line.split() for line in lines(f"/proc/{self.context.tree.root.pid}/{file}"))
        return any(int(first) <= number < int(first) + int(n) for first, _, n in ranges)

    def is_tmpfs_of_the_host(self, mount: Mount) -> bool:
        """Whether other processes than the tree can write to a tmpfs whose contents are saved."""
        return mount.kind == "tmpfs" and mount.device in self.ours and not self.is_given(mount)

    def is_locked_below(self, mount: Mount) -> bool:
        """Whether CRIU would have to unmount a mount that the kernel has locked.

        The kernel locks mounts of another user namespace that were copied into this one.
        """
        return (
            self.context.tree.has_own("user")
            and self.is_tmpfs_of_the_host(mount)
            and any(m.parent == mount.number and m.place == mount.place for m in self.table.all)
        )

    def is_given(self, mount: Mount) -> bool:
        """Whether the mount is external, or shows a part of an external one."""
        return mount in self.given or any(_is_part(mount, other) for other in self.given)

    def has_source(self, mount: Mount) -> bool:
        """Whether a restore makes the mount from an external one or from the root mount."""
        return self.is_given(mount) or (self.top is not None and _is_part(mount, self.top))

    def is_packed(self, mount: Mount) -> bool:
        """Whether CRIU saves the files of a tmpfs: also of one that is external by its device."""
        if mount.kind != "tmpfs":
            return False
        return not self.has_source(mount) or (mount.whole and _is_device(self.context, mount))

    def unreachable_sharing(self, mount: Mount) -> Finding | None:
        """A slave of a peer group that no mount of the tree is in."""
        if not mount.master or mount.master in self.groups or self.is_given(mount):
            return None
        if self.top and _is_part(mount, self.top) and self.top.master == mount.master:
            return None
        return self._needs(
            mount,
            "unreachable-sharing",
            "the mount is a slave of a mount outside",
            cure=_cure(self.context, mount) + "; or make it private",
        )

    def unsupported(self, mount: Mount) -> Finding | None:
        """A whole file system of a type that CRIU cannot rebuild."""
        enabled = self.context.opts.enable_fs or ()
        if not mount.whole or (mount.kind in REBUILT and mount.kind != "fuse"):
            return None
        if mount.kind in enabled or enabled == ("all",):
            return None
        failure = "fuse" if mount.kind == "fuse" else "fs-unsupported"
        return self._needs(
            mount,
            failure,
            f"CRIU cannot rebuild a file system of type {mount.kind}",
            cure=known(failure).cure,
            sets={"external": (f"{mount.key}:{mount.place}",)},
        )

    def from_outside(self, mount: Mount) -> Finding | None:
        """A part of a file system whose root is not mounted in the tree."""
        if mount.whole or any(m.device == mount.device and m.whole for m in self.table.all):
            return None
        return self._needs(
            mount,
            "mount-from-outside",
            f"{mount.root} of a file system from outside ({mount.kind}) is mounted",
            failure="root-mount",
            cure=_cure(self.context, mount),
        )

    def _needs(self, mount: Mount, id: str, message: str, cure: str, **more: Any) -> Finding:
        more = {"sets": _sets(self.context, mount), "failure": id} | more
        pid = self.table.owners[mount.namespace].pid
        return self.context.needs(id, message, cure=cure, pid=pid, path=mount.place, **more)


def _sets(context: Context, mount: Mount) -> dict[str, Any]:
    """The options that make a mount external."""
    if "auto_ext_mnt" in context.finds_external_mounts and (mount.shared or mount.master):
        result = {"ext_sharing": mount.shared, "ext_masters": mount.master}
        return {name: True for name, group in result.items() if group}
    return {"external": (f"{mount.key}:{mount.place}",)}


def _cure(context: Context, mount: Mount) -> str:
    if "external" not in (sets := _sets(context, mount)):
        return " and ".join(f"{name}=True" for name in sets)
    return f'name it as external, and give it on restore with external="mnt[{mount.place}]:PATH"'


def _is_part(mount: Mount, other: Mount) -> bool:
    """Whether a mount shows the same as another, or a part of it."""
    return mount.device == other.device and is_below(mount.root, other.root)


def _is_found(context: Context, mount: Mount, ours: list[Mount]) -> bool:
    """Whether ``auto_ext_mnt`` matches the mount with one of CRIU's own namespace."""
    alike = [other for other in ours if _is_part(mount, other)]
    options = context.finds_external_mounts
    if not alike or (mount.shared and "ext_sharing" not in options):
        return False
    best = max(alike, key=lambda other: len(other.root))
    return not mount.master or bool(
        "ext_masters" in options and mount.master in (best.shared, best.master)
    )


def _is_external(context: Context, mount: Mount) -> bool:
    named = {getattr(item, "key", None) for item in context.opts.ext_mounts or ()}
    return (
        context.external(mount.key)
        or mount.place in named
        or (mount.whole and _is_device(context, mount))
    )


def _is_device(context: Context, mount: Mount) -> bool:
    return context.external(f"dev[{mount.device.replace(':', '/')}]")
