"""Cgroups (``criu/cgroup.c``)."""

from __future__ import annotations

import contextlib
import os

from ..._system.host import lines
from ..._system.mountinfo import hierarchy
from ...errors import CriuError
from .context import Context, Findings, predicted, stops


def cgroups(context: Context) -> Findings:
    mode = str(getattr(context.opts.manage_cgroups_mode, "name", "") or "").upper()
    if mode == "IGNORE":
        return
    if any(each.kind == "cgroup" and not each.host for each in context.images.namespaces):
        yield from _cgroup_namespace(context)
    if not context.images.cgroups:
        return
    here = {
        name for line in lines("/proc/self/cgroup") for name in line.split(":", 2)[1].split(",")
    }
    for each in context.images.cgroups:
        for name in each.controllers:
            if name not in here:
                yield stops(
                    f"cgroup {name}:{each.path}",
                    "no hierarchy here has this controller",
                    "mount it, or manage_cgroups_mode='ignore'",
                    "manage_cgroups_mode",
                )
    if mode in ("NONE", "PROPS", "STRICT") and not (context.opts.cg_roots or context.opts.cg_yard):
        yield from _cgroup_directories(context, mode)


def _cgroup_namespace(context: Context) -> Findings:
    """Whether the set of cgroups of each process is saved, or is that of its parent."""
    with contextlib.suppress(CriuError):  # ``complete`` reports what is missing
        cgroup = context.entries("cgroup.img")
        saved = {each["id"] for entry in cgroup for each in entry.get("sets", ())}
        sets = {
            each.pid: core.get("thread_core", {}).get("cg_set")
            for each in context.images.processes
            for core in context.entries(f"core-{each.pid}.img")
        }
        parents = {each.pid: each.parent for each in context.images.processes}
        if any(
            own and own not in saved and own != sets.get(parents[pid], own)
            for pid, own in sets.items()
        ):
            yield predicted("cgroup namespace", "cg-namespace", "manage_cgroups_mode")


def _cgroup_directories(context: Context, mode: str) -> Findings:
    """Modes that need all directories of the cgroups, or (strict) none of them."""
    for each in context.images.cgroups:
        name = ",".join(each.controllers)
        point = hierarchy("cgroup" if name else "cgroup2", name)
        if point is None or each.path == "/":
            continue
        exists = os.path.isdir(point + each.path)
        if exists == (mode == "STRICT"):
            yield stops(
                f"cgroup {name}:{each.path}",
                "exists, which manage_cgroups_mode='strict' does not accept"
                if exists
                else f"does not exist, and manage_cgroups_mode={mode.lower()!r} needs it",
                "manage_cgroups_mode='soft'",
                "manage_cgroups_mode",
            )
