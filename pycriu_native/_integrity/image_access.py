"""Access to images for root of the user namespace that is restored.

CRIU opens most images when it is already root of that namespace. That is another user here, without
privileges, and images have mode 0600. So they get the group of that root, which can read them; and
so do their directories, if others cannot search them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from .._support.unpatched import closing
from .._system.descriptors import opened_directory
from .._system.regular_file import open_regular, read_regular
from .._wire.fields import message_fields, messages_of
from .._wire.image_kinds import RAW
from .image_files import kind_of

_UID_MAP, _GID_MAP = 1, 2
"""Of ``userns.proto``."""
_INNER, _LOWER = 1, 2
"""Of ``uid_gid_extent``: the first number of a range in the namespace, and outside of it."""
_LONGEST = 2**20
"""Bytes of an image of a user namespace; 340 ranges are possible."""


class ImageAccess:
    """The images, and directories of images, whose group was changed for a restore."""

    def __init__(self, directory: int) -> None:
        """Let that root read the images in a directory, and in those of its parents.

        Files that already have rights for a group, or cannot be changed, stay as they are.
        """
        self._directory = directory
        self._before: list[tuple[tuple[int, int], str, int, int]] = []
        """Device and inode of a directory, name of a file in it, its mode and group."""
        root = root_of_namespace(directory)
        if root is None or root == (os.geteuid(), os.getegid()):
            return
        for at in _with_parents(directory):
            for name in (".", *_images_in(at)):
                with contextlib.suppress(OSError):
                    self._grant(at, name, *root)

    def _grant(self, at: int, name: str, uid: int, gid: int) -> None:
        with closing(_opened(at, name)) as fd:
            found = os.fstat(fd)
            mode = stat.S_IMODE(found.st_mode)
            needed = stat.S_IXOTH if name == "." else stat.S_IROTH
            if found.st_uid == uid or mode & (stat.S_IRWXG | needed):
                return
            os.fchown(fd, -1, gid)
            self._before.append((_identity(at), name, mode, found.st_gid))
            os.fchmod(fd, mode | needed << 3)

    def succeeded(self) -> None:
        """Leave the groups: other restores of the images may be under way."""
        self._before.clear()

    def close(self) -> None:
        """Give the files their former mode and group, unless the restore succeeded."""
        for at in _with_parents(self._directory) if self._before else ():
            for place, name, mode, gid in self._before:
                if place == _identity(at):
                    with contextlib.suppress(OSError), closing(_opened(at, name)) as fd:
                        os.fchown(fd, -1, gid)
                        os.fchmod(fd, mode)


def root_of_namespace(directory: int) -> tuple[int, int] | None:
    """The uid and gid of root of the user namespace in the images; None without one."""
    for name in _images_in(directory):
        if kind_of(name) == "USERNS":
            with contextlib.suppress(OSError, ValueError, KeyError):
                (entry,) = messages_of(read_regular(name, _LONGEST, dir_fd=directory))
                maps: dict[int, int] = {}
                for field, value in message_fields(entry):
                    extent = dict(message_fields(value)) if isinstance(value, bytes) else {}
                    if extent.get(_INNER) == 0:
                        maps[field] = int(extent[_LOWER])
                return maps[_UID_MAP], maps[_GID_MAP]
    return None


def _images_in(directory: int) -> list[str]:
    return [name for name in os.listdir(directory) if kind_of(name) or RAW.fullmatch(name)]


def _with_parents(directory: int) -> Iterator[int]:
    """Descriptors of a directory of images and of those of its parents, one after the other."""
    known = {_identity(directory)}
    yield directory
    with contextlib.ExitStack() as opened:
        while True:
            try:
                directory = opened.enter_context(
                    opened_directory(f"/proc/self/fd/{directory}/parent")
                )
            except OSError:
                return
            if _identity(directory) in known:
                return
            known.add(_identity(directory))
            yield directory


def _opened(at: int, name: str) -> int:
    if name == ".":
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    return open_regular(name, dir_fd=at)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
