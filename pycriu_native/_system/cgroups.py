"""The cgroups of a process (``/proc/PID/cgroup``, cgroups(7))."""

from __future__ import annotations

import contextlib
import os

from .process import read_small


def _lines(path: str) -> list[str]:
    return os.fsdecode(read_small(path)).split("\n")[:-1]


def cgroups_of(pid: int | str) -> dict[str, str]:
    """The path of a process's cgroup for each controller; the key is empty for v2. ``OSError``."""
    result: dict[str, str] = {}
    for line in _lines(f"/proc/{pid}/cgroup"):
        _, controllers, path = line.split(":", 2)
        result.update(dict.fromkeys(controllers.split(","), path))
    return result


def frozen_cgroup(pid: int, *, of_v1: bool = False) -> str | None:
    """The directory of the frozen cgroup that a process is in; None if it is in none.

    ``of_v1``: look for a frozen cgroup of v1 too.
    """
    forms = [("", "cgroup2", "cgroup.events", {"frozen 1"})]
    if of_v1:
        forms.append(("freezer", "cgroup", "freezer.state", {"FROZEN", "FREEZING"}))
    with contextlib.suppress(OSError):  # the process has ended
        cgroups = cgroups_of(pid)
        for controller, kind, file, states in forms:
            path = cgroups.get(controller, "/")
            if path == "/":
                continue  # the root cgroup cannot be frozen
            from .mountinfo import mounts_of  # not in a container of cgroup v2

            for mount in mounts_of("self"):
                if mount.kind == kind and (not controller or controller in mount.options):
                    directory = mount.place + path
                    with contextlib.suppress(OSError):  # not in this mount
                        if not states.isdisjoint(_lines(f"{directory}/{file}")):
                            return directory
    return None


def is_in_cgroup(pid: int, directory: str) -> bool:
    """Whether a process is in the cgroup of this directory, or in one below it."""
    try:
        if str(pid) in _lines(f"{directory}/cgroup.procs"):
            return True
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return False  # it is no cgroup
    return any(is_in_cgroup(pid, path) for path in below)
