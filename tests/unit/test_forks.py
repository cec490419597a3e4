"""A forked child has one thread, and forks wait for imports on other threads."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycriu_native
from pycriu_native._support import no_fork, unpatched
from pycriu_native._support.cached_property import cached_property
from pycriu_native._support.unpatched import RawThread

# Python warns of a fork beside other threads, which is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def _fork(child: object) -> int:
    """Run a function in a forked child; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child()  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_thread_has_ended_in_a_child() -> None:
    """A forked child does not wait for a thread of its parent."""
    over = threading.Event()
    thread = RawThread(over.wait, "test", daemon=True)
    thread.start()
    try:

        def child() -> int:
            thread.join(10)
            return 3 if thread.is_alive() else 7

        assert _fork(child) == 7
        assert thread.is_alive()
    finally:
        over.set()
        thread.join()
    assert not thread.is_alive()


FORKS = """
import os
threads = []
os.register_at_fork(before=lambda: threads.append(len(os.listdir("/proc/self/task"))))
from pycriu_native._support.unpatched import RawThread
for _ in range(500):
    thread = RawThread(lambda: None, "test")
    thread.start()
    thread.join()
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
print(max(threads))
"""


def test_a_fork_waits_for_the_end_of_a_joined_thread() -> None:
    """Its thread of the kernel has ended too: ``os.fork`` counts those, and would warn of it."""
    assert subprocess.check_output([sys.executable, "-c", FORKS], text=True) == "1\n"


def test_another_thread_waits_for_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that fork at once share the list of threads to wait for."""

    class Shared(deque[int]):
        def __bool__(self) -> bool:
            return True  # before the other thread has taken the last one

    monkeypatch.setattr(unpatched, "_ending", Shared())
    unpatched._wait_for_ending()


LOADED = """
import os, sys
os.register_at_fork(before=lambda: __import__(sys.argv[1]))
if not (pid := os.fork()):
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("module", ["pool", "forkserver"])
def test_a_module_that_is_loaded_during_a_fork(module: str) -> None:
    """It has not locked what it releases after a fork, as if another thread had imported it."""
    words = [sys.executable, "-c", LOADED, f"pycriu_native._transport.{module}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_does_not_wait_endlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that does not end delays a fork only; its lock stays with its thread."""
    monkeypatch.setattr(no_fork, "UNTIL_IMPORTED", 0.05)
    held, over = threading.Event(), threading.Event()

    def importing() -> None:
        with no_fork.no_fork:
            held.set()
            over.wait()

    thread = threading.Thread(target=importing)
    thread.start()
    try:
        assert held.wait(60)
        assert _fork(lambda: 7) == 7
        assert not no_fork.no_fork.acquire(False)
    finally:
        over.set()
        thread.join()
    assert no_fork.no_fork.acquire(False)
    no_fork.no_fork.release()


def test_a_cached_property_that_another_thread_computes() -> None:
    """A forked child computes a cached property itself, and waits for no lock."""
    begun, over = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, waits: bool) -> None:
            self.waits = waits

        @cached_property
        def value(self) -> int:
            if self.waits:
                begun.set()
                over.wait()
            return 7

    slow = Slow(waits=True)
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    try:
        begun.wait()

        def child() -> int:
            signal.alarm(10)
            return Slow(waits=False).value

        assert _fork(child) == 7
    finally:
        over.set()
        thread.join()
    assert vars(slow)["value"] == 7


FORKING = """
import os, sys, threading
from pycriu_native import CriuOpts
from pycriu_native.archive.streaming import SERVE, _place

inside, over = threading.Event(), threading.Event()

def stream():
    with _place(CriuOpts(), SERVE) as (directory, _, _):
        places.append(directory)
        inside.set()
        over.wait()
    assert not os.path.exists(directory)

places = []
thread = threading.Thread(target=stream, daemon=True)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
assert os.path.exists(places[0]), "the child has removed it"
over.set()
thread.join()
"""


def test_the_directory_of_a_stream() -> None:
    """A child that another thread forks, and that ends, does not remove it."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True)


LATE = """
import os, signal, sys, threading

def late():
    if during:
        threading.Thread(target=other, daemon=True).start()
        held.wait()

os.register_at_fork(before=late)  # called last: after the functions that are registered below
from pycriu_native import WorkerPool
from pycriu_native._support.forked_child import hold_at_fork
from pycriu_native._support.unpatched import Lock

def other():
    pools.append(WorkerPool(1))
    hold_at_fork(lock)
    with pools[0]._stock.changed, lock:
        held.set()
        over.wait()

during, held, over, lock, pools = False, threading.Event(), threading.Event(), Lock(), []
WorkerPool(1).close()
during = True
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    with lock:
        sys.exit()
status = os.waitpid(pid, 0)[1]
over.set()
pools[0].close()
assert status == 0, "the child has waited"
"""


def test_a_pool_that_is_made_during_a_fork() -> None:
    """The child waits neither for its lock nor for a lock that forks are to wait for."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", LATE], check=True)


WORKING = (
    *(f"_calls/{name}" for name in ("run", "prepare", "safeguards", "conversation", "exchange")),
    *(f"_calls/{name}" for name in ("completion", "interrupt", "logs")),
    *("_failures/*", "_integrity/*", "_recovery/*", "_rollback/*", "_system/*", "_wire/*"),
)
"""The modules whose functions run on the threads of calls."""

ELSEWHERE = {
    "_failures/log_excerpt": "re is loaded by the module that uses it there",
    "_integrity/manifest": "sets are sealed and verified by the caller",
    "_system/cgroups": "checked before the call",
}


def _bare_imports(block: ast.AST, lines: list[str]) -> Iterator[int]:
    """The lines of imports that hold no lock, and have no comment that they are loaded."""
    accepted = False
    for node in ast.iter_child_nodes(block):
        if isinstance(node, ast.Import | ast.ImportFrom):
            accepted |= "loaded" in "".join(lines[node.lineno - 2 : node.lineno]).lower()
            if not accepted:
                yield node.lineno
            continue
        accepted = False
        if not isinstance(node, ast.With) or "no_fork" not in lines[node.lineno - 1]:
            yield from _bare_imports(node, lines)


def test_imports_on_the_threads_of_calls_hold_the_lock() -> None:
    """A child that is forked during another import could never import the module."""
    bare = []
    root = Path(str(pycriu_native.__file__)).parent
    for path in (path for pattern in WORKING for path in root.glob(f"{pattern}.py")):
        name = path.relative_to(root).with_suffix("").as_posix()
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and name not in ELSEWHERE:
                bare += [f"{name}:{line}" for line in _bare_imports(node, text.splitlines())]
    assert bare == []


def _evaluated(block: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that its import evaluates."""
    for node in ast.iter_child_nodes(block):
        if isinstance(node, ast.AnnAssign):
            yield from () if node.value is None else ast.walk(node.value)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _evaluated(node)


def test_imports_use_no_name_that_takes_the_lock() -> None:
    """A thread that has the lock, and waits for the same import, would never release it."""
    used = []
    root = Path(str(pycriu_native.__file__)).parent
    for path in root.rglob("*.py"):
        nodes = list(_evaluated(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        lazy = {
            each.name
            for node in imports
            if str(node.module).endswith("_support.lazy")
            for each in node.names
        }
        uses = [node for node in nodes if isinstance(node, ast.Name) and node.id in lazy]
        used += [f"{path.relative_to(root)}:{node.lineno}" for node in uses]
    assert used == []
