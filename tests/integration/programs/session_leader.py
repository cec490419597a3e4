"""Leads a session on the terminal at standard input, with one job as its child.

Run in a new session as ``python session_leader.py run COMMAND...``, or as ``python
session_leader.py restore OPTIONS STDIN`` to restore the job from images: OPTIONS are those of
``restore`` as JSON, STDIN is the path of CRIU's standard input. Then it waits for the job, as a
login shell does. It reports the start of the job and its exit status on standard error, one line
of JSON each.

A process of its own does this because a terminal is the controlling one of one session
only, and because CRIU's worker must be in that session and must not lead it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios


def tell(**what: object) -> None:
    """Write one line of JSON for the test."""
    os.write(2, (json.dumps(what) + "\n").encode())


def run(*command: str) -> int:
    """Start the job."""
    return subprocess.Popen(command, stderr=0).pid


def restore(options: str, stdin: str) -> int:
    """Restore the job."""
    from pycriu_native import CriuOpts, Worker, restore_child

    terminal = os.open(stdin, os.O_RDWR)  # both ways: it becomes the job's input and output
    try:
        opts = CriuOpts.from_dict(json.loads(options))
        return restore_child(opts, via=Worker(stdin=terminal)).pid
    finally:
        os.close(terminal)


def main() -> None:
    """Start or restore the job, wait for it, report its status."""
    assert os.getsid(0) == os.getpid(), "start this in a session of its own"
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    verb = run if sys.argv[1] == "run" else restore
    try:
        pid = verb(*sys.argv[2:])
    except Exception as error:
        tell(error=type(error).__name__, message=str(error))
        return
    tell(pid=pid)
    tell(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
