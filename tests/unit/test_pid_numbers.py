"""Numbers of processes that have ended, until the kernel has freed them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pycriu_native._system import pid_numbers

LEADER = """
import os, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=[1e6], daemon=True).start()
print("ready", flush=True)
time.sleep(1e6)
"""


def _is_free(number: int) -> bool:
    probe = os.eventfd(0)
    try:
        return not pid_numbers._is_taken(probe, number)
    finally:
        os.close(probe)


def test_numbers_of_a_process_that_was_reaped() -> None:
    """The numbers of its threads are free after the wait: Linux (6.18) frees them late."""
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            numbers = [int(each) for each in os.listdir(f"/proc/{process.pid}/task")]
            assert not any(map(_is_free, numbers))
            process.kill()
            process.wait()
            pid_numbers.wait_until_freed(numbers)
            assert all(map(_is_free, numbers))


def test_a_number_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no wait for a number that a process or a session has."""
    monkeypatch.setattr(pid_numbers, "UNTIL_FREED", 1e6)
    started = time.monotonic()
    pid_numbers.wait_until_freed([os.getpid(), 1])
    words = ["sh", "-c", "sleep 1000 >/dev/null & echo $!"]
    leader = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    member = int(leader.communicate()[0])
    try:
        pid_numbers.wait_until_freed([leader.pid])
        assert not _is_free(leader.pid)
    finally:
        os.kill(member, signal.SIGKILL)
    assert time.monotonic() - started < 1e5
