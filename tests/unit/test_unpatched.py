"""Threads and waits are the interpreter's, also if gevent or eventlet replace them."""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

import pycriu_native
from pycriu_native._support import unpatched
from pycriu_native._support.unpatched import RawThread

REPLACED = {
    "select": {"epoll", "poll", "select"},
    "time": {"sleep"},
    "threading": {"Condition", "Event", "Lock", "RLock", "Semaphore", "Thread"},
    "queue": {"Queue", "SimpleQueue"},
    "os": {"close"},
    "socket": {"create_connection", "create_server", "socketpair"},
    "selectors": {"DefaultSelector"},
}
"""What a patcher replaces, or removes (``select.poll`` under eventlet)."""

OWN_PROGRAMS = (
    "_support/sockets.py",
    "_support/unpatched.py",
    "cli/run.py",
    "guest.py",
    "jobs/lease_holder.py",
    "jobs/supervisor.py",
    "jobs/uploads.py",
    "migration/watchdog_process.py",
)
"""The modules that have what is not replaced, and what nothing is imported into."""

FOR_TESTS = ("testing.py",)
"""Its peer runs on threads of the test's own kind."""

AS_THE_CALLER = {
    "_calls/batch_threads.py": {"SimpleQueue"},
    "snapshots/process.py": {"DefaultSelector"},
}
"""A queue that an executor of ``concurrent.futures`` fills is of the same kind as its threads.
``communicate`` waits as that of ``subprocess`` does."""


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in REPLACED.get(node.value.id, ()):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for name in node.names:
                if name.name in REPLACED.get(str(node.module), ()):
                    yield node.lineno, f"{name.name} of {node.module}"


def test_nothing_that_can_be_replaced_is_used() -> None:
    """``_support/unpatched.py`` has the replacements."""
    package = Path(pycriu_native.__file__).parent
    result = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name not in (*OWN_PROGRAMS, *FOR_TESTS):
            allowed = AS_THE_CALLER.get(name, set())
            found = uses(ast.parse(path.read_text()))
            result += [f"{name}:{line}: {use}" for line, use in found if use not in allowed]
    assert not result


def test_a_join_that_is_interrupted() -> None:
    """An exception of a signal's handler, at any line, leaves nothing locked."""
    for number in range(30):
        lines = iter(range(number))

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code.co_filename != unpatched.__file__:
                return None
            if event == "line" and next(lines, None) is None:  # noqa: B023
                raise KeyboardInterrupt
            return trace

        over = threading.Event()
        thread = RawThread(over.wait, "test")
        thread.start()
        timer = threading.Timer(0.02, over.set)
        timer.start()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            thread.join()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        timer.join()
        thread.join(60)
        assert not thread.is_alive(), number


def test_a_thread_while_eventlet_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules lack their functions meanwhile; the thread does its work."""
    for name in ("eventlet.hubs", "eventlet.patcher"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    done: list[None] = []
    thread = RawThread(lambda: done.append(None), "test")
    thread.start()
    thread.join()
    assert done


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for at the end of the interpreter."""

    def fail(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(unpatched, "_start", fail)
    with pytest.raises(RuntimeError):
        RawThread(print, "test").start()
    assert not unpatched._joined_at_exit
