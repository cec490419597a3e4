"""The machine's cgroup hierarchies, and cgroups made in them.

A hierarchy of version 1 has a mount and controllers of its own; version 2 has one mount for
all, and CRIU calls it by the empty name. A machine may have either, or both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import releases
from .leftovers import RUN
from .processes import eventually

_numbers = itertools.count()

Make = Callable[["Hierarchy"], Path]

FREEZERS = {"freezer": ("freezer.state", "FROZEN", "THAWED"), "": ("cgroup.freeze", "1", "0")}
"""How a cgroup of each version is frozen and thawed: the file and its values."""


@dataclass(frozen=True)
class Hierarchy:
    """One tree of cgroups."""

    controller: str
    """The second field of /proc/PID/cgroup: empty for version 2."""
    mount: Path

    def path_of(self, pid: int) -> str:
        """The cgroup that a process is in, as a path from the root of the hierarchy."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == self.controller:
                return path
        raise AssertionError(f"{pid} is in no cgroup of {self}")

    def name_of(self, cgroup: Path) -> str:
        """A directory's name as a path from the root of the hierarchy."""
        return "/" + str(cgroup.relative_to(self.mount))


def find(controller: str) -> Hierarchy | None:
    """The hierarchy that has this controller alone; the empty name is version 2."""
    kind = "cgroup" if controller else "cgroup2"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        whole = before.split()[3] == "/"
        has = not controller or controller in options.split(",")
        if fstype == kind and whole and has and os.access(before.split()[4], os.W_OK):
            return Hierarchy(controller, Path(before.split()[4]))
    return None


def required(controller: str, *, properties: bool = False) -> Hierarchy:
    """The hierarchy, or the test is skipped with the reason.

    ``properties``: whether CRIU restores properties in the test.
    """
    result = find(controller)
    if result is None:
        what = f"cgroup v1 with the controller {controller}" if controller else "cgroup v2"
        pytest.skip(f"no {what} is mounted and writable here")
    if properties and not controller:
        releases.required("3.18", "properties of cgroups of version 2 are saved")
    return result


def enter(cgroup: Path, pid: int) -> None:
    """Move a process into a cgroup."""
    (cgroup / "cgroup.procs").write_text(str(pid))


def read(cgroup: Path, name: str) -> str:
    """Read a property."""
    return (cgroup / name).read_text().strip()


def remove(cgroup: Path) -> None:
    """Remove a cgroup and all below it, once its processes have ended."""

    def is_removed() -> bool:
        with contextlib.suppress(FileNotFoundError, OSError):
            for directory, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(directory)
        return not cgroup.exists()

    eventually(is_removed, f"the removal of {cgroup}")


def maker() -> Iterator[Make]:
    """Make cgroups; at the end all are removed, including those that others made below them."""
    made: list[Path] = []

    def make(hierarchy: Hierarchy) -> Path:
        cgroup = hierarchy.mount / f"pycriu-native-{RUN}-{next(_numbers)}"
        made.append(cgroup)
        cgroup.mkdir()
        return cgroup

    yield make
    for cgroup in made:
        remove(cgroup)
