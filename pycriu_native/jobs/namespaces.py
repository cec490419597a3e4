"""The process of the supervisor, which is the init process of a new pid and mount namespace.

When it ends, all processes of the job end; it ends when the process that runs the job ends. Its
parent is outside of the namespaces, forwards signals, and exits with the supervisor's exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from .._support.held_signals import HeldSignals, ignore, unblock, until_ended
from .._support.unpatched import readable
from .._system.id_maps import NO_ID, unmapped
from .._system.mounts import mount_devpts
from .._system.new_namespaces import IN_CONTAINER, end_with_parent, enter, mount_proc
from .._system.process import stat_of
from .directory import JobDirectory
from .job import FAILED, read_spec


def main(spec: dict[str, Any]) -> int:
    """Create the namespaces, and run the supervisor in them."""
    signals = HeldSignals()
    signals.install()  # signals are blocked until one of the two processes below unblocks them
    directory = JobDirectory(spec["directory"])
    try:
        enter(new_user=spec["user_namespace"])
    except OSError as error:
        what = "no namespace can be created for the job"
        directory.record("failed", f"{what}: {error.strerror}; {IN_CONTAINER}")
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
    """The init process of the pid namespace; ``signals`` has those that were received so far."""
    outside = int(os.readlink("/proc/self"))  # /proc is still that of the outer namespace
    seen = stat_of(outside)
    if readable(spec["alive"]):  # the process that runs the job has ended
        return FAILED
    try:
        mount_proc()
    except OSError as error:
        what = "no /proc can be mounted for the job"
        directory.record("failed", f"{what}: {error.strerror}; {IN_CONTAINER}")
        return FAILED
    if unmapped("gid") != NO_ID:
        with contextlib.suppress(OSError):  # checkpoints of jobs with terminals then fail
            mount_devpts()
    try:
        from .supervisor import Supervisor
    except (ImportError, OSError) as error:
        if not spec["user_namespace"]:
            raise
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        directory.record(
            "failed",
            f"root of a user namespace cannot read the files of another user in {package} "
            f"({error}): install pycriu_native and Python where all users can read them, or run "
            "the job without a user namespace (--unprivileged)",
        )
        return FAILED

    start = 0 if seen is None else seen.start
    return Supervisor(spec, directory, signals, outside, start).run()


if __name__ == "__main__":
    sys.exit(main(read_spec()))
