"""Removes the temporary directories and mounts of a killed CRIU.

CRIU makes directories with mkdtemp(3) (``criu/mount.c``, ``cgroup.c``, ``net.c``, ``kerndat.c``,
``cr-restore.c`` of 4.2) and mounts what it needs on them. Their names do not identify a run:
those that are newer than the call, empty, and remain, are removed if no other CRIU runs.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator

from .._support.no_fork import no_fork
from .._support.unpatched import sleep
from .._system.mountinfo import mounts_of
from .._system.process import all_pids, comm_of

TEMPORARY = frozenset(
    (
        *(".criu.mntns", ".criu.cgyard", ".criu.cgmounts", ".criu.mnt"),
        *(".criu.move_mount_set_group", ".criu.temp-aa-policy"),
        *("cr-tmpfs", "crtools-proc", "crtools-sys", "crtools-put-root"),
    )
)
"""Their names, before a dot and six letters or digits."""

CLOCK_LAG = 0.1
"""Seconds by which the timestamps of files can be late."""

IN_USE = 2.0
"""Seconds to wait until they are gone, before a removal: a CRIU in another pid namespace is not
visible, and uses most of the directories for milliseconds, on a loaded machine longer."""

STEP = 0.02
"""Seconds between two looks."""

KERNEL_FEATURES = "/run/criu.kdat.tmp"
"""CRIU's cache of kernel features while it is written. While it stays, no CRIU writes a cache."""


def remove_temporary(since: float, places: Iterable[str], *, killed: bool) -> Iterator[str]:
    """Remove what a CRIU has made since a time in /tmp, / and these directories.

    Yields a message for each that remains. ``killed``: CRIU was killed.
    """
    since -= CLOCK_LAG
    result = list(_made_since(since, ("/tmp", "/", *places)))
    if killed and _is_since(KERNEL_FEATURES, since, stat.S_IFREG):
        result.append(KERNEL_FEATURES)
    until = time.monotonic() + IN_USE
    while result and time.monotonic() < until:
        sleep(STEP)
        result = list(filter(os.path.lexists, result))
    if result and (others := _other_criu()):
        yield from (f"{path}, unless CRIU with pid {others[0]} uses it" for path in result)
        return
    for path in result:
        try:
            if path == KERNEL_FEATURES:
                os.unlink(path)
            else:
                _unmount(path)
                os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"{path} ({error.strerror})"


def _made_since(since: float, places: Iterable[str]) -> Iterator[str]:
    seen = set()
    for place in places:
        for directory in (place, f"{place.rstrip('/')}/tmp"):
            with contextlib.suppress(OSError):
                real = os.path.realpath(directory)
                if real in seen:
                    continue
                seen.add(real)
                for name in filter(_is_temporary, os.listdir(real)):
                    if _is_since(path := os.path.join(real, name), since, stat.S_IFDIR):
                        yield path


def _is_temporary(name: str) -> bool:
    stem, _, end = name.rpartition(".")
    return stem in TEMPORARY and len(end) == 6 and end.isascii() and end.isalnum()


def _is_since(path: str, since: float, kind: int) -> bool:
    try:
        result = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_IFMT(result.st_mode) == kind
        and result.st_uid == os.geteuid()
        and result.st_ctime >= since
    )


def _other_criu() -> list[int]:
    """The pids of running CRIU; that of this call has ended, and fork servers make no files."""
    with no_fork:
        from .._transport.forkserver import fork_server_pids  # failed calls alone need it

    ours = fork_server_pids()
    return [pid for pid in all_pids() if pid not in ours and comm_of(pid) == "criu"]


def _unmount(path: str) -> None:
    """Unmount everything at or below CRIU's own directory."""
    with no_fork:
        from .._system.mounts import detach  # failed calls alone need it

    for mount in reversed(list(mounts_of("self"))):
        if mount.place == path or mount.place.startswith(path + "/"):
            detach(mount.place)
