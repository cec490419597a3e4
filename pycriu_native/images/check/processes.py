"""Pids, sessions, rights and limits (``criu/pstree.c``, ``criu/cr-restore.c``)."""

from __future__ import annotations

import collections
import os

from ..._checks import service_fds
from ..._failures.log_excerpt import known
from ..._system.capabilities import (
    CAP_SETPCAP,
    CAPABILITIES,
    has_capability,
    lacking_for_restore,
    permitted,
)
from ..._system.host import number
from ..._system.process import name_of, stat_of
from ..._system.process_tree import holders, is_above
from ..._system.scheduling import is_restored
from .context import Context, Findings, predicted, stops


def pids(context: Context) -> Findings:
    if "pid" not in context.host or context.joins("pid"):
        return
    highest = number("/proc/sys/kernel/pid_max")
    held = holders()
    for process in context.images.processes:
        for tid in dict.fromkeys((process.pid, *(each.tid for each in process.threads))):
            stat = stat_of(tid)
            now = "" if stat is None else stat.state
            if highest and tid >= highest:
                yield stops(
                    tid, f"kernel.pid_max is {highest} here", f"sysctl kernel.pid_max={tid + 1}"
                )
            elif now == "Z":
                yield stops(
                    tid,
                    f"taken by {name_of(tid)}, a zombie that its parent did not wait for",
                    "let its parent wait for it",
                )
            elif now:
                whose = ", which this process has started" if is_above(os.getpid(), tid) else ""
                yield stops(
                    tid,
                    f"taken by {name_of(tid)}{whose}",
                    "end that process, or restore in a pid namespace of its own",
                )
            elif tid in held:
                holder, kind = held[tid]
                yield stops(
                    tid,
                    f"the {kind} of pid {holder} ({name_of(holder)}), so no process can get it",
                    f"end pid {holder} and others of that {kind}, or restore in a pid "
                    "namespace of its own",
                )


def rights(context: Context) -> Findings:
    """Capabilities of the caller, which a worker inherits."""
    if "user" not in context.host or not (context.via is None or context.via.ours):
        return
    for _, failure in () if context.opts.unprivileged else lacking_for_restore():
        yield predicted("criu", failure, "unprivileged")
    held = {name.lower() for name in permitted()}
    for process in context.images.processes:
        credentials = process.credentials
        if credentials is None:
            continue
        lacking = [name.upper() for name in credentials.permitted if name not in held]
        if lacking:
            yield stops(
                process.pid,
                f"had capabilities that the caller lacks: {', '.join(lacking)}",
                known("capabilities").cure,
            )
        is_bounded = len(credentials.bounding) < len(CAPABILITIES)
        if is_bounded and not credentials.no_new_privileges and not has_capability(CAP_SETPCAP):
            yield predicted(process.pid, "bounding-set")


def security_module(context: Context) -> Findings:
    """The module that has confined the processes (``criu/lsm.c``: ``validate_lsm``)."""
    path = {"APPARMOR": "/sys/kernel/security/apparmor", "SELINUX": "/sys/fs/selinux"}.get(
        context.images.lsm
    )
    for process in () if path is None or os.path.exists(path) else context.images.processes:
        if process.credentials and process.credentials.lsm_profile:
            yield predicted(process.pid, "lsm-mismatch")


def policies(context: Context) -> Findings:
    """Scheduling policies (``criu/cr-restore.c``: ``validate_sched_parm``)."""
    for thread in (each for process in context.images.processes for each in process.threads):
        if not is_restored(thread.policy, context.is_older_than):
            yield predicted(thread.tid, "sched-policy")


def descriptors(context: Context) -> Findings:
    """Space for CRIU's own descriptors above those of a process."""
    if not (context.via is None or context.via.ours):
        return  # that process has other limits
    limit = service_fds.limit_here()
    sharing = collections.Counter(each.files_table for each in context.images.processes)
    for process in context.images.processes:
        highest = max((each.fd for each in process.descriptors), default=-1)
        together = sharing[process.files_table] if process.files_table is not None else 1
        if not service_fds.fits(highest, limit, together):
            yield stops(
                process.pid,
                f"descriptor {highest} and CRIU's own need a limit of "
                f"{service_fds.needed(highest, together)} descriptors, and it is {limit} here",
                known("service-fds").cure,
            )


def sessions(context: Context) -> Findings:
    root = context.images.root
    if root is None or "pid" not in context.host:
        return
    known = {each.pid for each in context.images.processes}
    if root.session not in known and not context.opts.shell_job:
        yield stops(
            root.pid,
            f"its session was led by {root.session}, which is not in the images",
            "shell_job=True, with the terminal as the worker's standard input",
            "shell_job",
        )
