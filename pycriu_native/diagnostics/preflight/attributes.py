"""Attributes of a process that CRIU does not save: a restored process has those of the worker.

Seen with CRIU 4.2.1 on Linux 6.18; ``docs/not_restored.md`` has all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..._system.host import read
from ..._system.process_snapshot import Process
from ..._system.system_calls import io_priority
from .context import Context, Findings, lost


def _file(name: str) -> Callable[[Process], str]:
    return lambda process: read(f"/proc/{process.pid}/{name}").strip()


def _io_priority(process: Process) -> str:
    with contextlib.suppress(OSError):
        kind, level = io_priority(process.pid)
        return f"class {kind}, level {level}"
    return ""


ATTRIBUTES: dict[str, tuple[str, Callable[[Process], str]]] = {
    "cpu-affinity": (
        "the processors that it may run on (sched_setaffinity)",
        lambda process: process.status.get("Cpus_allowed_list", ""),
    ),
    "coredump-filter": ("what its core dumps hold (coredump_filter)", _file("coredump_filter")),
    "personality": ("its personality(2)", _file("personality")),
    "timer-slack": ("its timer slack, in nanoseconds", _file("timerslack_ns")),
    "io-priority": ("its I/O priority (ioprio_set)", _io_priority),
}
"""By id of the finding: name, and function that reads the value (empty if unreadable)."""


def look(context: Context) -> Findings:
    """Attributes of a process that differ from the caller's, and so from a restore's."""
    for name, (words, value_of) in ATTRIBUTES.items():
        ours = value_of(context.tree.ours)
        for process in context.tree.alive:
            theirs = value_of(process)
            if theirs and ours and theirs != ours:
                message = (
                    f"CRIU does not save {words}: it is {theirs}, and would be {ours} after a "
                    "restore that is started like this call"
                )
                yield lost(name, message, pid=process.pid, cure="set it again after the restore")
