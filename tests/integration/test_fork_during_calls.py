"""A fork on another thread while a call loads its modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Spawn
from .support.processes import PATIENCE

HEAD = """
import os, signal, sys, threading
from pycriu_native._support.no_fork import no_fork
unguarded = []
importing = threading.Event()

class Probe:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            if not no_fork._is_owned():
                unguarded.append(name)
            if name == {slow!r}:
                importing.set()
                threading.Event().wait(0.5)  # a fork that does not wait would be in it

sys.meta_path.insert(0, Probe())
import pycriu_native as criu
pid, other, images = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def calls():
    opts = criu.CriuOpts(images_directory=images)
    late = criu.CriuOpts(images_directory=images, tcp_close=True)
    criu.dump(pid, criu.CriuOpts(images_directory=images, leave_running=True), on_notify=print)
    for call in (
        lambda: criu.restore(opts),
        lambda: criu.dump(1 << 22, opts),
        lambda: criu.dump(pid, late, deadline=1e-9),
    ):
        try:
            call()
        except criu.CriuError as error:
            print(type(error).__name__)
        else:
            raise AssertionError("no error")
"""

IN_A_THREAD = """
thread = threading.Thread(target=calls)
thread.start()
thread.join()
print(unguarded)
"""

FORKS = """
thread = threading.Thread(target=calls)
thread.start()
importing.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    criu.dump(other, criu.CriuOpts(images_directory=images + "-2", leave_running=True))
    os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
thread.join()
print(status)
"""


def _run(program: str, *arguments: object) -> str:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_fork_waits_for_imports_of_a_call(spawn: Spawn, images: Path) -> None:
    """A fork waits for the imports of a call, so that no lock is held in the child."""
    assert _run(HEAD.format(slow="") + IN_A_THREAD, spawn().pid, 0, images) == "[]"


@pytest.mark.parametrize(
    "module", ["_calls.verbs", "_calls.conversation", "_recovery.recovery", "_failures.explain"]
)
def test_a_child_forked_during_a_first_call(spawn: Spawn, images: Path, module: str) -> None:
    """The first call of a forked child works."""
    program = HEAD.format(slow=f"pycriu_native.{module}") + FORKS
    assert _run(program, spawn().pid, spawn().pid, images) == "7"
