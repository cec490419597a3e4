"""Checks whether a caller without rights can checkpoint in a user namespace of its own.

``python -m pycriu_native.diagnostics.doctor.user_namespace [PROGRAM]`` creates one and runs CRIU's
check in it, since a process with threads cannot enter a user namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ..._support.unpatched import close
from ..._system.new_namespaces import IN_CONTAINER, enter, mount_proc
from ..._transport.worker import Worker
from ...findings import Finding, Severity
from . import program
from .subject import Subject
from .values import ID

TIMEOUT = 60.0
"""Time limit of the check, in seconds."""
WORKS = "can be created, and CRIU works in it"
LIMITS = (
    "not saved in it: TCP connections, unless the network namespace is separate too; mapped files "
    "that were deleted (semaphores of multiprocessing). inotify needs irmap_paths; terminals need "
    "a devpts that is mounted in it, as pycriu-native run does"
)
USE = (
    "pycriu-native run creates one; for other calls start the program and this library in it, and "
    "set unprivileged=True: unshare --user --map-root-user --pid --fork --mount-proc"
)


def look(worker: Worker) -> Finding:
    """The finding on user namespaces: ``WARNING`` if CRIU works in one, else ``STOPS``."""
    about = Subject(ID, "rights", "user namespace of the caller")
    words = [sys.executable, "-P", "-m", __name__]
    if worker.program is not None:
        words.append(os.fspath(worker.program))
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        refusal = json.loads(done.stdout)
    except ValueError:
        refusal = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        refusal = str(error)
    if refusal is None:
        return about.warning(WORKS, costs=LIMITS, cure=USE)
    return about.stops(
        f"cannot be used: {refusal}",
        costs="nothing works without CAP_SYS_ADMIN, pycriu-native run included",
        cure=IN_CONTAINER,
    )


def _refusal(words: list[str]) -> str | None:
    """Create the namespaces, and check CRIU there; returns why it does not work, or None."""
    try:
        enter(new_user=True)
    except OSError as error:
        return f"it cannot be created: {error.strerror}"
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            mount_proc()
            finding = program.checked(
                Worker(program=words[0] if words else None), unprivileged=True
            )
            stops = finding.severity is Severity.STOPS
            refusal = finding.message if stops else None
        except OSError as error:
            refusal = f"no /proc can be mounted in it: {error.strerror}"
        os.write(write, json.dumps(refusal).encode())
        os._exit(0)
    close(write)
    with open(read, "rb") as pipe:
        result: str | None = json.loads(pipe.read())
    os.wait()
    return result


if __name__ == "__main__":
    print(json.dumps(_refusal(sys.argv[1:])))
