"""The copies of files in the images directory of a dump, some shared with an earlier dump."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from .._integrity.dump_marker import SAVED_FILES
from .._support.unpatched import close, closing
from .._system.regular_file import create_regular
from ..errors import ImagesError
from .copying import copy, reflink
from .index import SavedFile, checksum, read


class Copies:
    """Saves files under consecutive numbers: ``pycriu-native.file-N``.

    If an earlier dump has a copy of the same file, and only appended data is missing in it, the
    parts of that copy become hard links, and only the rest is copied. The last parts are copied
    again if they are together not larger than the rest, so the number of parts grows with the
    logarithm of the size.
    """

    def __init__(
        self,
        images: int,
        check: Callable[[], object],
        *,
        link_from: str | os.PathLike[str] | None = None,
    ) -> None:
        """``link_from`` is the images directory of the earlier dump."""
        self._images = images
        self._check = check
        self._number = 0
        self._earlier: dict[tuple[int, int], SavedFile] = {}
        self._from: int | None = None
        if link_from is not None:
            with contextlib.suppress(OSError, ImagesError):  # then all files are copied
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                self._from = os.open(link_from, flags)
                known = read(self._from).files
                self._earlier = {(each.device, each.inode): each for each in known}

    def close(self) -> None:
        """Close the directory of the earlier dump."""
        if self._from is not None:
            close(self._from)
            self._from = None

    def copy(self, source: int, start: int = 0) -> tuple[str, ...]:
        """Copy a file from an offset on; returns the names. Raises ``OSError``."""
        name = self._next()
        with closing(create_regular(name, dir_fd=self._images)) as target:
            copy(source, target, self._check, start=start)
        return (name,)

    def reflink(self, source: int) -> tuple[str, ...]:
        """Copy a file by a reflink; without names if that is not supported. ``OSError``."""
        name = self._next()
        with closing(create_regular(name, dir_fd=self._images)) as target:
            if reflink(source, target):
                return (name,)
        os.unlink(name, dir_fd=self._images)
        return ()

    def appended(self, source: int, *, read_only: bool) -> tuple[str, ...]:
        """Copy what an earlier copy of a file lacks; returns the names of all parts. ``OSError``.

        That a file that is only appended to is otherwise unchanged is checked at both ends of the
        earlier copy only. One that is now, or was then, open for reading only can have been opened
        for writing meanwhile, so its time of modification is compared.
        """
        seen = os.fstat(source)
        entry = self._earlier.get((seen.st_dev, seen.st_ino))
        if (
            entry is None
            or entry.checksum is None
            or entry.size > seen.st_size
            or ((read_only or entry.read_only) and entry.mtime_ns != seen.st_mtime_ns)
            or checksum(source, entry.size) != entry.checksum
        ):
            return self.copy(source)
        names: list[str] = []
        try:
            parts = self._parts(entry)
            start = entry.size
            while parts and start < seen.st_size and parts[-1][1] <= seen.st_size - start:
                start -= parts.pop()[1]
            names.extend(self._link(name) for name, _ in parts)
        except OSError:  # there is no earlier copy, or no hard links
            for name in names:
                os.unlink(name, dir_fd=self._images)
            return self.copy(source)
        if start < seen.st_size:
            names += self.copy(source, start)
        return tuple(names)

    def _parts(self, entry: SavedFile) -> list[tuple[str, int]]:
        """Names and sizes of an earlier copy. Raises ``OSError`` if it is incomplete."""
        result = []
        for name in entry.copies:
            seen = os.stat(name, dir_fd=self._from, follow_symlinks=False)
            if not stat.S_ISREG(seen.st_mode):
                raise FileNotFoundError(name)
            result.append((name, seen.st_size))
        if sum(size for _, size in result) != entry.size:
            raise FileNotFoundError(entry.path)
        return result

    def _link(self, name: str) -> str:
        new = self._next()
        os.link(name, new, src_dir_fd=self._from, dst_dir_fd=self._images, follow_symlinks=False)
        return new

    def _next(self) -> str:
        self._number += 1
        return f"{SAVED_FILES}-{self._number - 1}"
