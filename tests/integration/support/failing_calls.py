"""Cases of calls that fail as users meet them, and what their errors must contain.

A case is a function that builds a :class:`Site`: a process in a certain state, options, a change
of the machine. Its decorator has the error's expected content. After the cure that the error names
is applied the call must succeed, which proves the advice.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, Worker
from pycriu_native._checks.criu_files import KERNEL_CACHE
from pycriu_native._transport.program import find_program

from .processes import PATIENCE, TARGET, Spawn, Target, eventually, kill

OLDER = {release: f"/opt/pycriu-native-{release}/bin/criu" for release in ("3.17", "4.1")}
"""Releases that are too old for newer kernels."""

CONNECTED = """
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    serve()
"""
LISTENS = """
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    serve(port=lambda: server.getsockname()[1])
"""
GUARD_PAGES = """
    import mmap
    memory = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(1 << 16))
    memory.madvise(102, mmap.PAGESIZE, mmap.PAGESIZE)  # MADV_GUARD_INSTALL
    serve()
"""


@dataclass
class Site:
    """The environment of a case: its processes, its open objects, and the call that will fail."""

    spawn: Spawn
    directory: Path
    images: Path
    held: ExitStack
    """Closed after the case."""
    options: dict[str, Any] = field(default_factory=dict)
    """The call's options."""
    via: Worker = field(default_factory=Worker)
    cure: Mapping[str, Any] | Callable[[], object] | None = None
    """Options to change, or a function to call, after which the call succeeds."""
    survives: bool = True
    """Whether a process must continue after a failed dump."""

    def __post_init__(self) -> None:
        self.options["images_directory"] = self.images

    @property
    def opts(self) -> CriuOpts:
        return CriuOpts(**self.options)

    def dumped(self, scenario: str = "serve()", **options: Any) -> Target:
        """A process that was dumped with these options and has ended."""
        target = self.spawn(scenario)
        target.dump(CriuOpts(images_directory=self.images, **options))
        return target

    def spawn_curable(self, scenario: str, **options: Any) -> Target:
        """A process; the cure is the only request that its scenario gives ``serve``."""
        (request,) = re.findall(r"\bserve\((\w+)=", scenario)
        target = self.spawn(scenario, **options)
        self.cure = lambda: target.ask(request)
        return target

    def apply_cure(self) -> Target | None:
        """Apply the cure. Returns the process to dump instead, if there is one."""
        if callable(self.cure):
            result = self.cure()
            return result if isinstance(result, Target) else None
        if self.cure is not None:
            self.options |= self.cure
        return None


Build = Callable[[Site], Target | int]


@dataclass(frozen=True)
class Case:
    """A failure and the expected content of its error."""

    build: Build
    error: type[CriuError]
    cause: str
    cure: str
    options: tuple[str, ...]
    since: str = "3.17"
    """The first release of CRIU that fails so; older ones succeed or fail for another reason."""


class Collection(list[Case]):
    """Cases, each added by a decorator with texts of cause and cure, and the first options."""

    def __call__(
        self,
        cause: str,
        cure: str,
        *options: str,
        error: type[CriuError] = CriuError,
        since: str = "3.17",
    ) -> Callable[[Build], Build]:
        def add(build: Build) -> Build:
            self.append(Case(build, error, cause, cure, options, since))
            return build

        return add


SHELL = """
import fcntl, os, signal, subprocess, sys, termios
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
subprocess.run(sys.argv[1:])
signal.pause()
"""


def job(at: Site, stdin: int = subprocess.DEVNULL) -> Target:
    """A job that outlives its shell, in a session other than the tests'.

    The tests' session may have a leader without a pid here, if they run in a container.
    """
    directory = at.directory / "job"
    directory.mkdir()
    (directory / "scenario.py").write_text("serve()")
    words = [sys.executable, "-c", SHELL, sys.executable, str(TARGET), str(directory)]
    nothing = subprocess.DEVNULL
    shell = subprocess.Popen(
        words, stdin=stdin, stdout=nothing, stderr=nothing, start_new_session=True
    )
    at.held.callback(shell.wait, PATIENCE)
    at.held.callback(kill, shell.pid)
    eventually((directory / "ready").exists, "the job's start")
    pid = int((directory / "ready").read_text())
    at.held.callback(kill, pid)
    at.cure = {"shell_job": True}
    return Target(pid, directory, shell)


def wrapped(at: Site, *words: str) -> Worker:
    """A CRIU run by another program, for example one that drops capabilities.

    As another user it can leave a cache of kernel features that root does not trust.
    """
    at.held.callback(_remove_cache_of_others)
    script = at.directory / "criu"
    script.write_text(f'#!/bin/sh\nexec {" ".join(words)} {find_program(None)} "$@"\n')
    script.chmod(0o755)
    return Worker(program=script)


def _remove_cache_of_others() -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.stat(KERNEL_CACHE).st_uid != os.geteuid():
            os.unlink(KERNEL_CACHE)


def older(at: Site, release: str) -> Worker:
    """A worker of another release; the cure is the default worker."""
    if not os.path.exists(OLDER[release]):
        pytest.skip(f"there is no CRIU {release} here")
    at.cure = lambda: setattr(at, "via", Worker())
    return Worker(program=OLDER[release])


def ids(case: Case) -> str:
    """A case's name."""
    return case.build.__name__


def check_explanation(case: Case, error: CriuError) -> None:
    """Check that the error has the case's expected content."""
    shown = f"{type(error).__name__}: {error}"
    assert type(error) is case.error, shown
    assert error.cause is not None, shown
    assert error.cure is not None, shown
    assert case.cause in str(error), shown
    assert case.cure in str(error), shown
    assert error.options[: len(case.options)] == case.options
    if not case.options:
        assert not set(error.options) - {"external_unix_connections", "images_dir"}
    assert error.lines or error.code is None  # then no request was sent
    assert str(error).startswith(f"{error.verb} ")
    assert "CRIU reports:" not in str(error)
    if error.log:
        assert os.path.isfile(error.log)
