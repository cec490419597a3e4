"""Threads and waits are the interpreter's, also if gevent or eventlet replace them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pycriu_native

REPLACED = {
    "select": {"epoll", "poll", "select"},
    "time": {"sleep"},
    "threading": {"Condition", "Event", "Lock", "RLock", "Semaphore", "Thread"},
    "queue": {"Queue", "SimpleQueue"},
    "os": {"close"},
    "socket": {"socketpair"},
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
