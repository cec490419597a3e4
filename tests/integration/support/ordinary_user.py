"""Runs scripts as an ordinary user, with or without a user namespace of that user."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .processes import PATIENCE

ROOT = Path(__file__).parents[3]
USER = 65534
NAMESPACE = (
    "unshare",
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
)
BEGIN = f"import sys; sys.path[:0] = {[str(ROOT), sysconfig.get_path('platlib')]!r}\n"
"""The first line of each script: another Python of this version uses the packages of this one."""


def as_user(user: int = USER) -> tuple[str, ...]:
    """The words that run a command as this user."""
    return "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"


@functools.cache
def python(module: str = "pycriu_native.jobs") -> str:
    """A Python that an ordinary user can run with this module; skips the test without one."""
    why = ""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        words = [*as_user(), *NAMESPACE, path, "-c", f"{BEGIN}import {module}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode == 0:
            return path
        why = done.stderr.strip().rpartition("\n")[2]
    pytest.skip(f"an ordinary user cannot run this package in a user namespace here: {why}")


@contextmanager
def directory_of() -> Iterator[Path]:
    """A temporary directory of the user's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chown(name, USER, USER)
        yield Path(name)


def run(
    script: str,
    *words: object,
    inside: bool = True,
    user: int = USER,
    module: str = "pycriu_native.jobs",
) -> subprocess.CompletedProcess[str]:
    """Run a script as the user; ``inside``: in a user namespace."""
    prefix = (*as_user(user), *(NAMESPACE if inside else ()))
    return subprocess.run(
        [*prefix, python(module), "-c", BEGIN + textwrap.dedent(script), *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=4 * PATIENCE,
    )
