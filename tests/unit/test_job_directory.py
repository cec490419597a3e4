"""The directory of a job: whether its last supervisor has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycriu_native._system.host import boot_id
from pycriu_native._system.process import stat_of
from pycriu_native.jobs import JobStatus, State
from pycriu_native.jobs.directory import JobDirectory

EXIT = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
"""exit(2), which ends one thread."""

ENDED_FIRST = f"""
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({EXIT}, 0)
"""


@pytest.mark.skipif(EXIT is None, reason="the number of exit(2) is not known here")
def test_a_supervisor_whose_first_thread_has_ended(tmp_path: Path) -> None:
    """The job is busy until the last thread has ended, with which its pid namespace ends."""
    directory = JobDirectory(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ENDED_FIRST], stdin=subprocess.PIPE)
    assert process.stdin is not None
    started = stat_of(process.pid)
    assert started is not None
    status = JobStatus(
        state=State.RUNNING,
        supervisor=process.pid,
        supervisor_start=started.start,
        boot_id=boot_id(),
    )
    directory.keep(status)
    try:
        while not (seen := stat_of(process.pid)) or not seen.has_ended:
            time.sleep(0.01)
        assert directory.is_busy()
        assert directory.lock() is None
    finally:
        process.stdin.close()
    lock = directory.lock(5)  # it is a zombie now
    assert lock is not None
    os.close(lock)
    process.wait()
