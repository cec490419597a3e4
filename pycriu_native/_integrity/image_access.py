"""Access to images for root of the user namespace that is restored.

CRIU opens most images when it is already root of that namespace. That is another user here, without
privileges, and images have mode 0600. So they get the group of that root, which can read them; and
so do their directories, if others cannot search them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from .._support.unpatched import closing
from .._wire.image_kinds import is_raw
from .image_files import DamagedError, ImageFiles, kind_of

_OPENED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class ImageAccess:
    """The images, and directories of images, whose group was changed for a restore."""

    def __init__(self, images: int, parents: Iterable[str]) -> None:
        """Let that root read the images in a directory, and in those of its parents.

        Files that already have rights for a group, or cannot be changed, stay as they are.
        """
        self._before: list[tuple[str, int, int]] = []
        """Path, mode and group."""
        root = root_of_namespace(images)
        if root is None or root == (os.geteuid(), os.getegid()):
            return
        for directory in (f"/proc/self/fd/{images}", *parents):
            names = [name for name in os.listdir(directory) if kind_of(name) or is_raw(name)]
            for name in (".", *names):
                with contextlib.suppress(OSError):
                    self._grant(f"{directory}/{name}", *root)

    def _grant(self, path: str, uid: int, gid: int) -> None:
        with closing(os.open(path, _OPENED)) as fd:
            found = os.fstat(fd)
            mode = stat.S_IMODE(found.st_mode)
            needed = stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else stat.S_IROTH
            if found.st_uid == uid or mode & (stat.S_IRWXG | needed):
                return
            os.fchown(fd, -1, gid)
            self._before.append((path, mode, found.st_gid))
            os.fchmod(fd, mode | needed << 3)

    def succeeded(self) -> None:
        """Leave the groups: other restores of the images may be under way."""
        self._before.clear()

    def close(self) -> None:
        """Give the files their former mode and group, unless the restore succeeded."""
        for path, mode, gid in self._before:
            with contextlib.suppress(OSError), closing(os.open(path, _OPENED)) as fd:
                os.fchown(fd, -1, gid)
                os.fchmod(fd, mode)


def root_of_namespace(directory: int) -> tuple[int, int] | None:
    """The uid and gid of root of the user namespace in the images; None without one."""
    files = ImageFiles(directory)
    for name in files.names:
        if kind_of(name) == "USERNS":
            with contextlib.suppress(DamagedError, KeyError):
                extents = (files.rows(name, f"USERNS {each}") for each in ("uids", "gids"))
                uids, gids = (
                    {inner: outer for _, inner, outer, count in rows if count} for rows in extents
                )
                return uids[0], gids[0]
    return None
