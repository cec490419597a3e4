"""Mounts: which of them CRIU finds, cannot rebuild, or cannot tie to the rest.

CRIU looks at all mounts of the tree's mount namespaces, and at those of its own if the root
process is in that one. Only namespaces that are not CRIU's are checked (``criu/mount.c``:
``collect_mnt_namespaces``, ``resolve_shared_mounts``, ``validate_mounts``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..._failures.log_excerpt import known
from ..._system.mount_table import is_below
from ..._system.mountinfo import Mount, mounts_of
from .context import Context, needs, stops
from .values import Finding

_REBUILT = """
    proc sysfs devtmpfs binfmt_misc tmpfs devpts simfs pstore mqueue securityfs fusectl debugfs
    tracefs cgroup cgroup2 aufs fuse overlay autofs
"""
REBUILT = frozenset(_REBUILT.split())
"""File systems that CRIU 4.2 knows; of ``fuse`` only that it must be external."""


def look(context: Context) -> Iterator[Finding]:
    """What of the mounts CRIU cannot save by itself."""
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
        ours = list(mounts_of("self", context.tree.ours.namespaces["mnt"]))
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
    return mount.device == other.device and is_below(mount.root, other.root)


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
