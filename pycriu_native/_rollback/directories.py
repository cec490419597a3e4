"""The directories of saved files: created again at a restore if they were removed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .._support.unpatched import closing


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedDirectory:
    """Owner and mode of a directory."""

    path: str
    mode: int
    uid: int
    gid: int


def directories_of(paths: Iterable[str], more: Iterable[str]) -> tuple[SavedDirectory, ...]:
    """The directories of these files and their parents, and ``more``, each after its parent."""
    names: set[str] = set(more)
    for path in paths:
        while (path := os.path.dirname(path)) not in names and path != "/":
            names.add(path)
    result = []
    for name in sorted(names):
        with contextlib.suppress(OSError):  # it was removed meanwhile by another process
            seen = os.stat(name)
            mode = seen.st_mode & 0o7777
            result.append(SavedDirectory(path=name, mode=mode, uid=seen.st_uid, gid=seen.st_gid))
    return tuple(result)


def set_owner(fd: int, uid: int, gid: int, mode: int) -> None:
    """Set owner and mode of an open file or directory, where they differ."""
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
        now = os.fstat(fd)  # the kernel has cleared the bits for setuid and setgid
    if stat.S_IMODE(now.st_mode) != mode:
        os.fchmod(fd, mode)


class MissingDirectories:
    """The directories that a restore creates. ``remove`` undoes that."""

    def __init__(self, saved: Sequence[SavedDirectory]) -> None:
        self._saved = saved
        self._created: list[str] = []

    def create(self) -> None:
        """Create those that do not exist. Raises ``OSError`` with the path."""
        for each in self._saved:
            try:
                os.mkdir(each.path, 0o700)
            except FileExistsError:
                continue
            self._created.append(each.path)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with closing(os.open(each.path, flags)) as fd:
                set_owner(fd, each.uid, each.gid, each.mode)

    def remove(self) -> None:
        """Remove those that were created, unless there are other files in them now."""
        while self._created:
            with contextlib.suppress(OSError):
                os.rmdir(self._created.pop())

    def keep(self) -> None:
        """Keep those that were created."""
        self._created = []
