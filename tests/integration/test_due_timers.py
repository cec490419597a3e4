"""Periodic timers that were due when a process was dumped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, dump, restore_child

from .support.processes import eventually

TIMERFD = """
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None)
fd = libc.timerfd_create(1, 0)
value, interval = (int(word) for word in sys.argv[2:4])
libc.timerfd_settime(fd, 0, struct.pack("qqqq", 0, interval, 0, value), None)
out = os.open(sys.argv[1], os.O_WRONLY)
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.01)
while True:
    os.write(out, b"%d\\n" % struct.unpack("Q", os.read(fd, 8)))
"""
ITIMER = """
import os, signal, sys, time
out = os.open(sys.argv[1], os.O_WRONLY)
signal.signal(signal.SIGALRM, lambda *_: os.write(out, b"1\\n"))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.01)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
while True:
    time.sleep(1)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The output file of the programs."""
    path = tmp_path / "log"
    path.touch()
    return path


def _moved(program: str, log: Path, images: Path, *arguments: str) -> Iterator[list[str]]:
    """Dump and restore the program while its timer is due; yields its output at each check."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", program, log, *arguments],
        stdin=null, stdout=null, stderr=null, start_new_session=True,
    )  # fmt: skip
    restored = None
    try:
        time.sleep(0.5)  # it is due by then, or the test proves nothing, and passes
        dump(process.pid, CriuOpts(images_directory=images))
        process.wait()
        restored = restore_child(CriuOpts(images_directory=images)).pid
        Path(f"{log}.go").touch()
        while True:
            yield log.read_text().split()
    finally:
        process.kill()
        process.wait()
        if restored is not None:
            os.kill(restored, signal.SIGKILL)
            os.waitpid(restored, 0)


@pytest.mark.parametrize(
    ("program", "arguments"), [(TIMERFD, ("1000000", "1000000")), (ITIMER, ())]
)
def test_a_periodic_timer_fires_again(
    program: str, arguments: tuple[str, ...], log: Path, images: Path
) -> None:
    """A timer that was due at the dump fires again after the restore."""
    looks = _moved(program, log, images, *arguments)
    try:
        eventually(lambda: len(next(looks)) > 20, "twenty expiries")
    finally:
        looks.close()  # type: ignore[attr-defined]


def test_a_timer_that_fires_once(log: Path, images: Path) -> None:
    """An expiration that was not read is read after the restore, and the timer does not
    fire again.
    """
    looks = _moved(TIMERFD, log, images, "1000000", "0")
    try:
        eventually(lambda: next(looks), "its expiry")
        time.sleep(0.2)
        assert next(looks) == ["1"]
    finally:
        looks.close()  # type: ignore[attr-defined]
