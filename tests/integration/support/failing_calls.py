"""Calls that are made to fail, the way users meet it, and what the errors must tell of them.

A case is a function that builds a :class:`Site`: a process in a certain state, options, a change
of the machine. Its decorator holds what is learnt from the failure. The call must then succeed
once the cure that the error names has been applied: so the advice is not only there, it is right.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuError, CriuOpts, Worker, dump
from pycriu_native._checks.criu_files import KERNEL_CACHE
from pycriu_native._transport.program import find_program

from ..conftest import Spawn
from .processes import PATIENCE, TARGET, Target, eventually, kill

OLDER = {release: f"/opt/pycriu-native-{release}/bin/criu" for release in ("3.17", "4.1")}
"""Programs that are too old for newer kernels."""

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


@dataclass
class Site:
    """Where a case is built: what it starts, what it opens, and the call that will fail."""

    spawn: Spawn
    directory: Path
    images: Path
    held: ExitStack
    """Closed after the case."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the call."""
    via: Worker = field(default_factory=Worker)
    cure: Mapping[str, Any] | Callable[[], object] | None = None
    """Options to change, or something to do, after which the call succeeds."""
    survives: bool = True
    """Whether there is a process that must run on after a failed dump."""

    def __post_init__(self) -> None:
        self.options["images_directory"] = self.images

    @property
    def opts(self) -> CriuOpts:
        return CriuOpts(**self.options)

    def dumped(self, scenario: str = "serve()", **options: Any) -> Target:
        """A process that has been dumped with these options, and is gone."""
        target = self.spawn(scenario)
        dump(target.pid, CriuOpts(images_directory=self.images, **options))
        target.reap()
        return target

    def apply_cure(self) -> None:
        """Do what the error recommends."""
        if callable(self.cure):
            self.cure()
        elif self.cure is not None:
            self.options |= self.cure


Build = Callable[[Site], Target | int]


@dataclass(frozen=True)
class Case:
    """A failure, and what is learnt from it."""

    build: Build
    error: type[CriuError]
    cause: str
    cure: str
    options: tuple[str, ...]
    since: str = "3.17"
    """The release from which CRIU fails so: before, it does not, or for another reason."""


class Collection(list[Case]):
    """Cases, each added by a decorator: words of the cause and the cure, and the first options."""

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
    """A job of a shell, which outlives it, and whose session is one that the tests' is not.

    Ours may have a leader whom no pid names, in a container that the tests were put into.
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
    """A CRIU that is run by another program, such as one that takes capabilities away.

    As another user it can leave a cache of kernel features that root would not believe.
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
    """A worker of another release, which is put back by the cure."""
    if not os.path.exists(OLDER[release]):
        pytest.skip(f"there is no CRIU {release} here")
    at.cure = lambda: setattr(at, "via", Worker())
    return Worker(program=OLDER[release])


def ids(case: Case) -> str:
    """A case's name."""
    return case.build.__name__


def told(case: Case, error: CriuError) -> None:
    """The error says what this case should teach."""
    shown = f"{type(error).__name__}: {error}"
    assert type(error) is case.error, shown
    assert error.cause is not None, shown
    assert error.cure is not None, shown
    assert case.cause in str(error), shown
    assert case.cure in str(error), shown
    assert error.options[: len(case.options)] == case.options
    if not case.options:
        assert not set(error.options) - {"external_unix_connections", "images_dir"}
    assert error.lines or error.code is None  # then CRIU was not asked
    assert str(error).startswith(f"{error.verb} ")
    assert "CRIU says" not in str(error)
    if error.log:
        assert os.path.isfile(error.log)
