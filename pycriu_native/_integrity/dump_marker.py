"""The marker of an unfinished dump: a file among its images.

CRIU's own files do not show whether a set is complete: ``inventory.img`` is among the last files
that it writes, but images of files are flushed after it, and ``stats-dump``, the last one, is in
the work directory and is written after the dumped processes were killed (``criu/cr-dump.c``, 4.2).
So a marker is in the images directory during a dump. It is removed at the notification
``post-dump``, when all images are written and no process has been killed; else after CRIU's
response. If CRIU has undone the dump, its images and the marker are removed. A dump that ends in
another way, for example because CRIU and the caller were killed, leaves the marker. Sets of other
programs have no marker; their files are checked. A complete dump gets a record of its images
(``dump_record.py``).

CRIU does not sync to disk. Only a manifest can show what a set has lost in a power failure
(``manifest.py``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from .._support.unpatched import close, closing
from .._system.descriptors import above_stdio, where
from .._system.file_lock import lock, unlock_and_close
from ..enums import Verb
from ..errors import ImagesError

UNFINISHED = "pycriu-native.unfinished"
"""The name of the marker. A dump under way holds a lock on it."""

RECORD = "pycriu-native.images"
"""The name of the record of a dump: ``dump_record.py``."""

FRAMES = "pycriu-native.frames"
"""The name of the record of page frames: ``moved_memory.py``. Only this host can use it."""

CLAIM = "pycriu-native.restore-"
"""Prefix of the claim files of restore jobs (``restore_claim.py``)."""

SAVED_FILES = "pycriu-native.file"
"""Prefix of the files that a dump with ``files="rollback"`` has saved."""

BEFORE_RESTORE = "pycriu-native.before-"
"""Prefix of the previous contents of such files during a restore, if they are saved here."""

LINKS = "pycriu-native.links"
"""The directory among the images for the links of ``link_remap`` (``_recovery/link_remaps.py``)."""
EARLIER = "pycriu-native.earlier"
"""The directory for the images of an earlier dump to the same directory, during a new one."""

MOVING = "pycriu-native.moving"
"""Its name until all of them are in it."""

DEEPEST = 200
"""The longest chain of parent images that is followed."""


_MARKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class DumpMarker:
    """The marker in the images directory of a dump, open and locked during the dump.

    Images of an earlier dump are moved away first, since CRIU would overwrite only some of them.
    They are moved back if the dump fails, and removed if it succeeds.
    """

    def __init__(self, directory: int) -> None:
        """``ImagesError`` if another dump to the directory is running, or CRIU would open a link, a
        FIFO or a directory as an image; ``OSError``.
        """
        _check_regular(directory)
        self._directory = directory
        self._finished = False
        self._fd, anew = self._mark()
        try:
            if anew or _is_there(directory, MOVING):
                self._earlier = _set_aside(directory)
            else:
                self._earlier = True
                _clear(directory)  # images of an unfinished dump
            self._before = _made_by_dump(directory)
        except BaseException:
            close(self._fd)
            raise

    def _mark(self) -> tuple[int, bool]:
        """The marker, open and locked, and whether it is new."""
        # Other users cannot write to the directory: the name cannot lead to another file.
        while True:
            anew = True
            try:
                fd = os.open(UNFINISHED, _MARKING | os.O_EXCL, 0o600, dir_fd=self._directory)
            except FileExistsError:
                anew = False
                fd = os.open(UNFINISHED, _MARKING, 0o600, dir_fd=self._directory)
            fd = above_stdio(fd)
            if not lock(fd):
                close(fd)
                raise ImagesError(f"another dump to {where(self._directory)} is under way")
            if os.fstat(fd).st_nlink:
                return fd, anew
            close(fd)  # the other dump has just ended

    def finish(self) -> None:
        """Remove the marker: the images are complete. A second call does nothing."""
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(UNFINISHED, dir_fd=self._directory)

    def undo(self) -> None:
        """Remove the images of this dump, which CRIU has undone, finished or not.

        If some cannot be removed, the marker stays.
        """
        with contextlib.suppress(OSError):
            if self._finished:
                close(os.open(UNFINISHED, _MARKING, 0o600, dir_fd=self._directory))
                self._finished = False
            for name in _made_by_dump(self._directory) - self._before:
                os.unlink(name, dir_fd=self._directory)

    def close(self) -> None:
        """Unlock the marker. An unfinished dump is undone; if that fails, the marker stays."""
        try:
            # An error here, such as a full disk, is that of the call, which reports it.
            with contextlib.suppress(OSError):
                if not self._finished:
                    self._undo()
                elif self._earlier:
                    _remove(self._directory, EARLIER)
        finally:
            unlock_and_close(self._fd)

    def _undo(self) -> None:
        names = os.listdir(self._directory)
        if EARLIER in names:
            _clear(self._directory)
            _move(self._directory, EARLIER, ".")
            _remove(self._directory, EARLIER)
            self.finish()
        elif not any(map(_of_dump, names)):
            self.finish()


def holds_dump(directory: int | str) -> bool:
    """Whether a directory has the images of a finished dump, not only those of a page server."""
    names = set(os.listdir(directory))
    return "inventory.img" in names and UNFINISHED not in names


def is_of_set(name: str) -> bool:
    """Whether a file beside images is one itself, or one of this library."""
    return name.endswith(".img") or name.startswith("pycriu-native.")


def unfinished(path: str) -> str | None:
    """The first set of these images and their parents whose dump is unfinished, or None."""
    names = (each for each in with_parents(path) if os.path.lexists(f"{each}/{UNFINISHED}"))
    return next(names, None)


def with_parents(path: str) -> Iterator[str]:
    """The paths of these images and their parents, the nearest first.

    The link in a directory is followed after the caller has received the directory.
    """
    for _ in range(DEEPEST):
        if not os.path.lexists(path):
            return
        yield path
        path = _without_links(path) + "/parent"


def _without_links(path: str) -> str:
    """The same directory by a path without links; there is none in another mount namespace."""
    real = os.path.realpath(path)
    with contextlib.suppress(OSError):
        if os.path.samefile(real, path):
            return real
    return path


def _of_dump(name: str) -> bool:
    """Whether a file is an image of a dump; ``cpuinfo.img`` is not."""
    if name.startswith((RECORD, FRAMES, SAVED_FILES)):
        return True
    return name.endswith(".img") and name != "cpuinfo.img"


def _made_by_dump(directory: int) -> set[str]:
    """The files of a dump in a directory, with CRIU's link to the parent images."""
    return {name for name in os.listdir(directory) if _of_dump(name) or name == "parent"}


def _check_regular(directory: int) -> None:
    """CRIU would write through a link, or wait for a FIFO's reader while processes are frozen."""
    with os.scandir(directory) as entries:
        for each in entries:
            if _of_dump(each.name) and not each.is_file(follow_symlinks=False):
                path = f"{where(directory)}/{each.name}"
                raise ImagesError(f"{path} is not a regular file, as images are; remove it")


def _clear(directory: int) -> None:
    """Remove the images of a dump."""
    for name in filter(_of_dump, os.listdir(directory)):
        os.unlink(name, dir_fd=directory)


def _set_aside(directory: int) -> bool:
    """Move the images of an earlier dump away, also after such a move was interrupted.

    Returns whether there can be images that were moved away.
    """
    if not _is_there(directory, "inventory.img") and not _is_there(directory, MOVING):
        # Other images can be the pages of this dump, from a page server.
        return _is_there(directory, EARLIER)
    _remove(directory, EARLIER)  # of a finished dump whose caller was killed
    with contextlib.suppress(FileExistsError):
        os.mkdir(MOVING, 0o700, dir_fd=directory)
    _move(directory, ".", MOVING)
    os.rename(MOVING, EARLIER, src_dir_fd=directory, dst_dir_fd=directory)
    return True


def _is_there(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _move(directory: int, source: str, target: str) -> None:
    with closing(_open(directory, source)) as there:
        for name in filter(_of_dump, os.listdir(there)):
            before, after = f"{source}/{name}", f"{target}/{name}"
            os.rename(before, after, src_dir_fd=directory, dst_dir_fd=directory)


def _remove(directory: int, name: str) -> None:
    """Remove the directory EARLIER or MOVING, with the images in it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with closing(_open(directory, name)) as inner:
            _clear(inner)
        os.rmdir(name, dir_fd=directory)


def _open(directory: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


# ---- before the dumped processes are killed or continued ----


def check_written(directory: int, pid: int | None) -> None:
    """Raise ``ImagesError`` if the images of a dump are not in their directory."""
    if _is_there(directory, "inventory.img"):
        return  # and the directory exists: only an empty one can be removed
    path = where(directory)
    if os.fstat(directory).st_nlink == 0:
        what = f"the images directory {path.removesuffix(' (deleted)')} was removed during it"
    else:
        what = f"inventory.img, which every dump has, is not in {path}"
    cure = "keep the directory until the dump has ended"
    raise ImagesError(
        f"dump of pid {pid} was undone: {what}; {cure}",
        verb=str(Verb.DUMP),
        pid=pid,
        errno=errno.ENOENT,
        cause=what,
        cure=cure,
        options=["images_directory"],
    )
