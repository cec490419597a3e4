"""Processes to checkpoint: starts them, sends them requests, ends them by pid."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, DumpResult, dump

TARGET = Path(__file__).parents[1] / "programs" / "target.py"
PATIENCE = float(os.environ.get("PYCRIU_NATIVE_TEST_PATIENCE", "60"))
"""Seconds after which a wait fails: generous, so that load decides no test."""

_numbers = itertools.count()


def eventually(
    condition: Callable[[], object], what: str, describe: Callable[[], str] = lambda: ""
) -> Any:
    """Wait until the condition holds, and return its value.

    ``describe`` returns more text for the message of a failure.
    """
    until = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > until:
            message = f"{what} did not happen within {PATIENCE} s\n{describe()}"
            raise AssertionError(message.rstrip())
        time.sleep(0.002)


def state(pid: int) -> str:
    """The state letter of a process, or an empty string if it does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return state(pid) not in ("", "Z", "X")


def free_pid() -> int:
    """A pid that no process has."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) - 1


def kill(pid: int) -> None:
    """Kill a process, child or not, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    eventually(lambda: not is_alive(pid), f"the end of {pid}")


def adopt_orphans(yes: bool) -> None:
    """Become the parent of orphaned processes (PR_SET_CHILD_SUBREAPER), or stop that.

    A restored process is an orphan and so becomes a child of this process; tests need not wait for
    an init that reaps slowly.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(36, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


_not_ours_to_reap: set[int] = set()
"""The children from before the test, which the run still needs."""


def remember_children() -> None:
    """Exclude the present children from ``reap_all``."""
    _not_ours_to_reap.clear()
    _not_ours_to_reap.update(children())


def children() -> set[int]:
    """The children of this process, zombies included."""
    return set(children_of(os.getpid()))


def children_of(pid: int) -> list[int]:
    """The children of a process, zombies included; empty if it has ended.

    A thread that ends gives its children to another one, which may have been read before.
    """
    result: list[int] | None = None
    while True:
        before, result = result, []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    result += map(int, (task / "children").read_text().split())
        if result == before:
            return result


def parent_of(pid: int) -> int:
    """The pid of the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def tree(pid: int) -> list[int]:
    """A process and its descendants, each after its parent."""
    result = [pid]
    for each in result:
        result += children_of(each)
    return result


def reap_all() -> None:
    """Wait for the end of the children started in this test, and reap them."""
    while remaining := children() - _not_ours_to_reap:
        for pid in remaining:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


OWN_STDIO = """
    import os
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3): os.dup2(null, number)
    os.close(null)
    serve()
"""
"""A process whose standard files are on the mounts of its own namespace."""


@dataclass
class Target:
    """A process of ``target.py``."""

    pid: int
    directory: Path
    process: subprocess.Popen[bytes]
    tree: list[int] = field(default_factory=list)

    def put(self, request: str, *arguments: object) -> Path:
        """Send a request without waiting; returns the file for the response."""
        number = next(_numbers)
        partial = self.directory / "request.partial"
        partial.write_text(json.dumps([number, request, *arguments]))
        partial.rename(self.directory / "request")
        return self.directory / f"response-{number}"

    def ask(self, request: str, *arguments: object) -> Any:
        """Send a request and return the response; the process must run."""
        response = self.put(request, *arguments)
        eventually(response.exists, f"a response of {self.pid} to {request!r}")
        good, value = json.loads(response.read_text())
        response.unlink()
        assert good, f"{request} failed in the process: {value}"
        return value

    def reap(self) -> int:
        """Reap it after its end, for example after a dump; returns its status."""
        return self.process.wait(PATIENCE)

    def dump(self, opts: CriuOpts, **options: Any) -> DumpResult:
        """Dump it, and reap it."""
        result = dump(self.pid, opts, **options)
        self.reap()
        return result

    def until_free(self) -> None:
        """Wait until its pid is free: a failed restore leaves a zombie until it is reaped."""
        eventually(lambda: not state(self.pid), f"the end of what was to be {self.pid}")

    def runs_on(self) -> bool:
        """Whether it runs and makes progress."""
        before = self.ask("ticks")
        return bool(eventually(lambda: self.ask("ticks") > before, f"progress of {self.pid}"))

    def end(self) -> None:
        """Kill the whole tree."""
        pids = tree(self.pid) if is_alive(self.pid) else [self.pid]
        for pid in reversed(pids):
            kill(pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.1)


Spawn = Callable[..., Target]
"""The fixture ``spawn``: starts a target, as :func:`start` does, and ends it after the test."""


def user_namespace(*options: str) -> list[str]:
    """The command that runs a target in a user namespace; skips the test where it cannot start.

    Root of another user namespace has no rights in the home directory of an ordinary user.
    """
    prefix = ["unshare", "--user", *options]
    reading = [*prefix, sys.executable, "-c", f"open({str(TARGET)!r})"]
    done = subprocess.run(reading, capture_output=True, text=True)
    if "Permission denied" in done.stderr:
        pytest.skip(f"another user namespace: {done.stderr.splitlines()[-1]}")
    return prefix


def start(
    directory: Path,
    scenario: str,
    *,
    prefix: Sequence[str] = (),
    stdin: int | None = subprocess.DEVNULL,
    **popen: Any,
) -> Target:
    """Start a target; ``scenario`` is Python that ends in a call of ``serve``.

    ``prefix`` is a command that runs the target, such as ``["ip", "netns", "exec", "blue"]``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scenario.py").write_text(textwrap.dedent(scenario))
    with open(directory / "stderr", "wb") as errors:
        options: dict[str, Any] = {"stdin": stdin, "stdout": subprocess.DEVNULL, "stderr": errors}
        options.setdefault("start_new_session", True)
        process = subprocess.Popen(
            [*prefix, sys.executable, str(TARGET), str(directory)], **{**options, **popen}
        )
    ready = directory / "ready"
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, "the target's start")
        assert process.poll() is None, (directory / "stderr").read_text()
    except BaseException:
        kill(process.pid)
        raise
    return Target(process.pid, directory, process)
