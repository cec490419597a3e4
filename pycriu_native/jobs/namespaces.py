"""The process of the supervisor: the first one of a new pid and mount namespace.

All processes of the job end with it, and it ends with the process that runs the job. Its parent
stays outside of the namespaces: it forwards signals, and exits with the supervisor's exit code.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .._support.held_signals import HeldSignals, ignore, unblock, until_ended
from .._support.unpatched import readable
from .._system.new_namespaces import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    end_with_parent,
    map_to_root,
    mount_proc,
    unshare,
)
from .._system.process import stat_of
from .directory import JobDirectory
from .job import FAILED, read_spec


def main(spec: dict[str, Any]) -> int:
    """Make the namespaces and run the supervisor in them."""
    end_with_parent()
    if readable(spec["alive"]):  # the process that runs the job has ended
        return FAILED
    signals = HeldSignals()
    signals.install()  # they are still blocked: each comes to one of both processes below
    directory = JobDirectory(spec["directory"])
    try:
        user, group = os.geteuid(), os.getegid()
        if spec["unprivileged"]:
            unshare(CLONE_NEWUSER)
            map_to_root(user, group)
        unshare(CLONE_NEWPID | CLONE_NEWNS)
    except OSError as error:
        directory.failed(f"no namespace can be made for the job: {error.strerror}")
        return FAILED
    pid = os.fork()
    if pid == 0:
        end_with_parent()
        unblock()
        return _first(spec, directory, signals)
    with signals.passed_on(pid) as end:
        unblock()
        until_ended(end)
        ignore()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _first(spec: dict[str, Any], directory: JobDirectory, signals: HeldSignals) -> int:
    """The first process of the pid namespace; ``signals`` are those that have come so far."""
    outside = int(os.readlink("/proc/self"))  # still that of the namespace outside
    seen = stat_of(outside)
    if readable(spec["alive"]):  # the process that runs the job has ended
        return FAILED
    try:
        mount_proc()
    except OSError as error:
        directory.failed(f"no /proc can be mounted for the job: {error.strerror}")
        return FAILED
    from .supervisor import Supervisor

    start = 0 if seen is None else seen.start
    return Supervisor(spec, directory, signals, outside, start).run()


if __name__ == "__main__":
    sys.exit(main(read_spec()))
