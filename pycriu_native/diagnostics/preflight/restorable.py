"""Limits and capabilities that this caller lacks for a restore: the process would be lost.

A restore on another host, or by a caller with more capabilities, can still succeed.
"""

from __future__ import annotations

import contextlib
import os
import resource

from ..._checks import service_fds
from ..._system.capabilities import (
    ALL,
    CAP_SETPCAP,
    has_capability,
    lacking_for_restore,
    not_permitted,
)
from ..._system.process_tree import holders
from ..._system.scheduling import is_restored
from .context import Context, Findings, no_restore
from .tasks import bits, owner_of
from .values import in_units

CRIU_ITSELF = 16 << 20
"""Approximate memory in bytes that CRIU needs besides that of the restored process."""


def look(context: Context) -> Findings:
    """Findings that make a restore by this caller fail."""
    if context.via.ours:
        yield from _descriptors(context)
        yield from _memory(context)
        yield from _rights(context)
    yield from _proc(context)
    yield from _numbers(context)
    yield from _policies(context)


def _descriptors(context: Context) -> Findings:
    limit = service_fds.limit_here()
    for process in context.tree.alive:
        highest = max((fd.number for fd in process.descriptors), default=-1)
        if not service_fds.fits(highest, limit):
            yield no_restore(
                "descriptors-near-limit",
                f"its descriptor {highest} and CRIU's own need a limit of "
                f"{service_fds.needed(highest)} descriptors, and it is {limit} here",
                pid=process.pid,
                fd=highest,
                failure="service-fds",
            )


def _memory(context: Context) -> Findings:
    """CRIU has the caller's limits while it makes the memory of a process."""
    for name, kind, field in (
        ("RLIMIT_AS", resource.RLIMIT_AS, "VmSize"),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, "VmData"),
    ):
        limit = resource.getrlimit(kind)[0]
        for process in context.tree.alive if limit != resource.RLIM_INFINITY else ():
            size = int(process.status.get(field, "0").split()[0]) * 1024
            if size + CRIU_ITSELF > limit:
                message = (
                    f"it has {in_units(size)} of memory, and {name} of the caller is "
                    f"{in_units(limit)}"
                )
                yield no_restore("memory-limit", message, pid=process.pid, failure="address-space")


def _policies(context: Context) -> Findings:
    for process in context.tree.alive:
        for tid in process.threads:
            with contextlib.suppress(OSError):
                policy = os.sched_getscheduler(tid)
                if not is_restored(policy, context.is_older_than):
                    yield no_restore(
                        "scheduling-policy",
                        f"its thread {tid} has the scheduling policy {policy} of sched(7)",
                        pid=process.pid,
                        failure="sched-policy",
                    )


def _rights(context: Context) -> Findings:
    if context.tree.has_own("user"):
        return
    for name, failure in () if context.opts.unprivileged else lacking_for_restore():
        yield no_restore(
            "rights", f"the caller lacks {name}, which a restore needs", failure=failure
        )
    for process in () if has_capability(CAP_SETPCAP) else context.tree.alive:
        if bits(process, "CapBnd") != ALL and process.status.get("NoNewPrivs") != "1":
            message = (
                "its bounding set lacks capabilities, and the caller lacks CAP_SETPCAP, with which "
                "a restore takes them away"
            )
            yield no_restore("bounding-set", message, pid=process.pid, failure="bounding-set")
    for process in context.tree.alive:
        lacking = not_permitted(bits(process, "CapPrm"))
        if lacking:
            message = f"it has capabilities that the caller lacks: {', '.join(lacking)}"
            yield no_restore("capabilities", message, pid=process.pid, failure="capabilities")


def _proc(context: Context) -> Findings:
    """A restore mounts /proc in the tree's namespaces (``criu/cr-restore.c``: ``mount_proc``)."""
    if not context.tree.has_own("user"):
        return
    root = context.tree.root
    for kind in ("pid", "mnt"):
        if owner_of(root, kind) not in (None, root.namespaces["user"]):
            yield no_restore(
                "proc-of-user-namespace",
                f"its {kind} namespace does not belong to its user namespace",
                pid=root.pid,
                failure="proc-of-user-namespace",
            )
            return


def _numbers(context: Context) -> Findings:
    """Sessions and process groups that outlive the tree keep its pids in use."""
    if context.tree.has_own("pid"):
        return
    held = holders(context.tree.pids)
    root = context.tree.root
    kept = {root.stat.group, root.stat.session} - {root.pid}  # shell_job has others
    for process in context.tree.processes:
        stat = process.stat
        numbers = {process.pid, *process.threads, stat.group, stat.session} - kept - {0}
        for number in sorted(numbers & held.keys()):
            holder, kind = held[number]
            if not context.is_outside(holder):
                continue
            yield no_restore(
                "number-held",
                f"{number} is also the {kind} of pid {holder}, which is outside of the tree: no "
                "process can get that number again while it exists",
                pid=process.pid,
                failure="pid-in-use",
                cure=f"end pid {holder} before the restore, or dump a tree that contains it, or "
                "restore in a pid namespace of its own",
            )
