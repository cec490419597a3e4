"""The installed releases of libcriu with which the tests run the one built extension.

A process loads one library only, so each has a process of its own (``peer.py``), selected by
``LD_LIBRARY_PATH``. The places, in this order:

* the prefixes that ``PYCRIU_NATIVE_LIBCRIUS`` names, separated by colons,
* the default prefix of ``tools/install-criu`` and the prefixes beside it
  (``/opt/pycriu-native``, ``/opt/pycriu-native-*``),
* the library that the extension finds by itself.

A prefix holds ``lib/libcriu.so.2`` and ``include/criu/rpc.proto``. The first prefix of a release
is used; tests of a release that is not installed are skipped with a reason.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

WANTED = {"3.17": "bookworm", "4.1": "trixie", "4.2": "forky", "4.3": "experimental"}
"""The supported releases, each with the Debian suite that has it."""

_ASK = """
from pycriu_native._native.ffi import LIBCRIU_VERSION
maps = [line.split()[-1] for line in open("/proc/self/maps") if "/libcriu" in line]
print(LIBCRIU_VERSION, maps[0])
"""


@dataclass(frozen=True)
class Library:
    """A libcriu and the ``rpc.proto`` of its release."""

    version: str
    path: Path
    """The ``libcriu.so.2`` that a process with ``environment`` loads."""
    include: Path
    """The include directory with ``criu/criu.h`` and ``criu/rpc.proto`` of this release."""
    environment: dict[str, str]

    @property
    def release(self) -> str:
        """Its first two numbers."""
        return ".".join(self.version.split(".")[:2])


def environment(library_dir: Path | None = None) -> dict[str, str]:
    """The environment in which Python loads the libcriu of a directory."""
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    if library_dir is not None:
        found["LD_LIBRARY_PATH"] = str(library_dir)
    return found


def _look(library_dir: Path | None) -> Library | None:
    chosen = environment(library_dir)
    command = [sys.executable, "-c", _ASK]
    run = subprocess.run(command, env=chosen, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the extension does not load with {library_dir}:\n{run.stderr}")
    version, path = run.stdout.split()
    prefix = Path(path).parents[1]
    for include in (prefix / "include", prefix / "root/usr/include", Path("/usr/include")):
        if (include / "criu/rpc.proto").exists():
            return Library(version, Path(path).resolve(), include, chosen)
    return None  # a library without its rpc.proto has no reference


@functools.cache
def found() -> dict[str, Library]:
    """The libraries of this machine, by release; none without the compiler of ``rpc.proto``."""
    if find_spec("grpc_tools") is None:
        return {}
    named = [Path(p) for p in os.environ.get("PYCRIU_NATIVE_LIBCRIUS", "").split(":") if p]
    beside = sorted(Path("/opt").glob("pycriu-native*"))
    directories = [p / "lib" for p in (*named, *beside) if (p / "lib/libcriu.so.2").exists()]
    libraries: dict[str, Library] = {}
    for directory in (*directories, None):
        library = _look(directory)
        if library is not None:
            libraries.setdefault(library.release, library)
    return libraries


def _lack(release: str) -> str:
    if find_spec("grpc_tools") is None:
        return "grpcio-tools is not installed"
    return (
        f"no libcriu {release} with its rpc.proto: tools/install-criu --suite {WANTED[release]} "
        f"--prefix /opt/pycriu-native-{release}"
    )


def parameters() -> list[object]:
    """Each supported and each installed release as a parameter; a missing one is skipped."""
    here = found()
    absent = [
        pytest.param(None, id=release, marks=pytest.mark.skip(reason=_lack(release)))
        for release in WANTED
        if release not in here
    ]
    return [*(pytest.param(library, id=release) for release, library in here.items()), *absent]


NEWEST = "4.3"
"""The release whose options the table lists completely."""


def newest() -> Library:
    """That release; the test is skipped where it is not installed."""
    if NEWEST not in found():
        pytest.skip(_lack(NEWEST))
    return found()[NEWEST]
