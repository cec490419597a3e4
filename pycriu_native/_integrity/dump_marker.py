"""Whether a directory holds a whole set of images, or half of one.

CRIU does not say so itself: ``inventory.img`` is among the last files that it writes, but the
images of files are flushed after it, and ``stats-dump``, the last of all, is in the work
directory and comes only once the dumped are gone (``criu/cr-dump.c``, 4.2). So while a dump is
under way, a mark of ours lies among its images. It goes when CRIU says ``post-dump``, which is
when all is written and nothing killed yet; else with CRIU's answer. Of a dump that CRIU has
undone the images go, and the mark with them. A dump that ends in any other way, be it that both
CRIU and we are killed, leaves the mark. Sets that others have made carry none, and are judged by
what they hold. A dump that is whole gets a record of its images (``dump_record.py``).

CRIU syncs nothing to disk. What a power failure takes from a set only a manifest can tell
(``manifest.py``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from .._support.unpatched import close
from .._system.descriptors import above_stdio
from ..enums import Verb
from ..errors import ImagesError

UNFINISHED = "pycriu-native.unfinished"
"""The name of the mark. A dump under way holds a lock on it."""

RECORD = "pycriu-native.images"
"""The name of the record of a dump: ``dump_record.py``."""

CLAIM = "pycriu-native.restore-"
"""How the claim files of restore jobs begin: ``restore_claim.py``."""

SAVED_FILES = "pycriu-native.file"
"""How the names of the files begin that a dump with ``files="rollback"`` has saved."""

LINKS = "pycriu-native.links"
"""The directory among the images for the links of ``link_remap`` (``_recovery/link_remaps.py``)."""
EARLIER = "pycriu-native.earlier"
"""Where the images of an earlier dump to the same directory are while a new one is under way."""

MOVING = "pycriu-native.moving"
"""Its name until they are all there."""

DEEPEST = 200
"""Parents of parents: more are a loop."""


_MARKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class DumpMarker:
    """The mark in a directory that a dump is being written to; owned while that goes on.

    Images of an earlier dump are set aside first, for CRIU would overwrite some and leave
    others. They come back if this dump fails, and go when it is done.
    """

    def __init__(self, directory: int) -> None:
        """``ImagesError`` where another dump to the directory is under way; ``OSError``."""
        self._directory = directory
        self._finished = False
        self._fd, anew = self._mark()
        try:
            if anew or _is_there(directory, MOVING):
                self._earlier = _set_aside(directory)
            else:
                self._earlier = True
                _clear(directory)  # what is there, a dump that did not end has left
            self._before = _made_by_dump(directory)
        except BaseException:
            close(self._fd)
            raise

    def _mark(self) -> tuple[int, bool]:
        """The mark, open and locked, and whether it was not there before."""
        # The directory is nobody else's: no other user's file can be behind the name.
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
        """The images are whole. A second time does nothing."""
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(UNFINISHED, dir_fd=self._directory)

    def undo(self) -> None:
        """Have the directory as it was before: CRIU has undone the dump, finished or not.

        Images that cannot be removed stay marked.
        """
        with contextlib.suppress(OSError):
            if self._finished:
                close(os.open(UNFINISHED, _MARKING, 0o600, dir_fd=self._directory))
                self._finished = False
            for name in _made_by_dump(self._directory) - self._before:
                os.unlink(name, dir_fd=self._directory)

    def close(self) -> None:
        """Let go of it. Unless it was finished, all is as before, or the mark stays."""
        try:
            # What nothing can be changed in any more stays marked: why, the call says.
            with contextlib.suppress(OSError):
                if not self._finished:
                    self._undo()
                elif self._earlier:
                    _remove(self._directory, EARLIER)
        finally:
            # Not by closing alone: a child that somebody has forked holds a copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            close(self._fd)

    def _undo(self) -> None:
        names = os.listdir(self._directory)
        if EARLIER in names:
            _clear(self._directory)
            _put_back(self._directory)
            _remove(self._directory, EARLIER)
            self.finish()
        elif not any(map(_of_dump, names)):
            self.finish()


def holds_dump(directory: int | str) -> bool:
    """Whether there are images of a dump that ended, more than those of a page server."""
    names = set(os.listdir(directory))
    return "inventory.img" in names and UNFINISHED not in names


def unfinished(path: str) -> str | None:
    """The first directory, of these images and their parents, whose dump did not finish."""
    for _ in range(DEEPEST):
        if os.path.lexists(f"{path}/{UNFINISHED}"):
            return path
        path += "/parent"
        if not os.path.lexists(path):
            break
    return None


def lock(fd: int) -> bool:
    """Lock a mark; False if the dump that made it holds a lock on it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # this file system has no locks
    return True


def _of_dump(name: str) -> bool:
    """Whether a file is an image of a dump; ``cpuinfo.img`` is that of another verb."""
    if name.startswith((RECORD, SAVED_FILES)):
        return True
    if name.startswith("tmpfs-") and name.endswith(".tar.gz"):
        return True
    return name.endswith(".img") and name != "cpuinfo.img"


def _made_by_dump(directory: int) -> set[str]:
    """The files of a dump that are there, with CRIU's link to the images that it builds on."""
    return {name for name in os.listdir(directory) if _of_dump(name) or name == "parent"}


def _clear(directory: int) -> None:
    """Remove the images of a dump that did not end."""
    for name in filter(_of_dump, os.listdir(directory)):
        os.unlink(name, dir_fd=directory)


def _set_aside(directory: int) -> bool:
    """Move the images of an earlier dump away; goes on with what was cut off half way.

    Whether there may be such images now.
    """
    if not _is_there(directory, "inventory.img") and not _is_there(directory, MOVING):
        # Perhaps the pages that a page server has put there for this very dump.
        return _is_there(directory, EARLIER)
    _remove(directory, EARLIER)  # a dump that was done had no time to
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


def _put_back(directory: int) -> None:
    _move(directory, EARLIER, ".")


def _move(directory: int, source: str, target: str) -> None:
    there = _open(directory, source)
    try:
        for name in filter(_of_dump, os.listdir(there)):
            before, after = f"{source}/{name}", f"{target}/{name}"
            os.rename(before, after, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        close(there)


def _remove(directory: int, name: str) -> None:
    """Remove a directory of ours with the images in it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        inner = _open(directory, name)
        try:
            _clear(inner)
        finally:
            close(inner)
        os.rmdir(name, dir_fd=directory)


def _open(directory: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


# ---- before the dumped are let go ----


def check_written(directory: int, pid: int | None) -> None:
    """Raise ``ImagesError`` if a dump's images are not where they can be found again."""
    if _is_there(directory, "inventory.img"):
        return  # nor was the directory removed, which would have been empty
    path = where(directory)
    if os.fstat(directory).st_nlink == 0:
        what = f"the images directory {path.removesuffix(' (deleted)')} was removed meanwhile"
    else:
        what = f"inventory.img, which every dump has, is not in {path}"
    cure = "keep the directory until the dump has ended"
    raise ImagesError(
        f"dump of pid {pid} was called off: {what}; {cure}",
        verb=str(Verb.DUMP),
        pid=pid,
        errno=errno.ENOENT,
        cause=what,
        cure=cure,
        options=["images_directory"],
    )


def where(directory: int) -> str:
    """Where an open directory is, for people to read."""
    return os.readlink(f"/proc/self/fd/{directory}")
