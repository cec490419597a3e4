"""Returns the files of a set to their state at the dump, and undoes that if the restore fails.

A file is changed in place: its other names, and the processes that have it open, keep it. Its
content before is saved beside it, under another name, until the restore has ended. All files are
checked and saved before the first one is changed.

A restore that is killed leaves the files in the state of the dump, or partly changed; the next
restore of the set repairs that.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import stat
from collections.abc import Callable

from .._support.unpatched import close, closing
from .._system.descriptors import where
from .._system.file_lock import lock, unlock_and_close
from .._system.regular_file import create_regular, open_regular
from ..errors import CriuError, ImagesError
from .copying import copy
from .saved_files import INDEX, Index, SavedFile, checksum, read
from .written_files import COMPANIONS

BEFORE = ".pycriu-native-before-"
"""Prefix of the names under which the content before is saved, beside each file."""

_OPENED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def before_of(path: str) -> str:
    """The path under which the previous content of a file is saved."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return os.path.join(os.path.dirname(path), BEFORE + name)


class _File:
    """One file: its content is saved, changed, and then kept or changed back."""

    def __init__(self, path: str, entry: SavedFile | None) -> None:
        """``entry`` is None for a file that did not exist at the dump."""
        self.path = path
        self._entry = entry
        self._before = before_of(path)
        self._seen: os.stat_result | None = None
        self._moved = False
        self._kept = False
        self._changed = False
        self._start = 0
        """The offset of the saved content: of a file that is truncated, only the end is saved."""

    def keep(self, images: int, check: Callable[[], object]) -> None:
        """Check that it can be put back, and save its content. ``OSError``, ``CriuError``."""
        with contextlib.suppress(FileNotFoundError):
            self._seen = os.stat(self.path, follow_symlinks=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._before)  # of a restore that was killed
        entry, seen = self._entry, self._seen
        if entry is None:
            self._moved = True
            return
        if seen is None:
            self._check_new(entry)
            return
        if stat.S_ISDIR(seen.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        same = (seen.st_dev, seen.st_ino) == (entry.device, entry.inode)
        if not stat.S_ISREG(seen.st_mode) or (seen.st_nlink > 1 and not same):
            self._check_new(entry)
            self._moved = True
            return
        with closing(os.open(self.path, _OPENED)) as fd:
            if entry.saved is None:
                if os.fstat(fd).st_size < entry.size or checksum(fd, entry.size) != entry.tail:
                    raise _refused(
                        self.path,
                        f"it was only appended to, so its length of {entry.size} bytes was saved, "
                        "and what was before that has changed since",
                    )
                self._start = entry.size
            else:
                close(open_regular(entry.saved, dir_fd=images))
            with closing(create_regular(self._before)) as kept:
                self._kept = True
                copy(fd, kept, check, start=self._start)

    def _check_new(self, entry: SavedFile) -> None:
        """Raise if the file cannot be created again."""
        if entry.saved is None:
            raise _refused(
                self.path,
                f"it was only appended to, so its length of {entry.size} bytes was saved, and it "
                "is no longer there",
            )
        if entry.links > 1:
            raise _refused(
                self.path,
                f"it had {entry.links} names at the dump, and this one no longer leads to it",
            )

    def change(self, images: int, check: Callable[[], object]) -> None:
        """Put it back."""
        entry = self._entry
        if self._moved:
            os.rename(self.path, self._before)
            self._kept = True
        if entry is None:
            return
        self._changed = True
        new = self._seen is None or self._moved
        with closing(create_regular(self.path) if new else os.open(self.path, _OPENED)) as fd:
            _set_owner(fd, entry.uid, entry.gid, entry.mode)
            if entry.saved is None:
                os.ftruncate(fd, entry.size)
            else:
                with closing(open_regular(entry.saved, dir_fd=images)) as source:
                    if os.fstat(source).st_size != entry.size:
                        raise _refused(self.path, f"its copy {entry.saved} is not whole")
                    os.ftruncate(fd, 0)
                    copy(source, fd, check)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def give_back(self) -> None:
        """Return the file to its previous state. Raises ``OSError``."""
        seen = self._seen
        if self._changed and (seen is None or self._moved):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._moved and self._kept:
            os.rename(self._before, self.path)
        elif self._changed and self._kept and seen is not None:
            with closing(os.open(self.path, _OPENED)) as fd:
                with closing(open_regular(self._before)) as kept:
                    if not self._start:
                        os.ftruncate(fd, 0)
                    copy(kept, fd, lambda: None, at=self._start)
                _set_owner(fd, seen.st_uid, seen.st_gid, seen.st_mode & 0o7777)
                os.utime(fd, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            os.unlink(self._before)
        elif self._kept:
            os.unlink(self._before)
        self._kept = self._changed = False

    def forget(self) -> None:
        """Remove the previous content."""
        if self._kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._before)


def _set_owner(fd: int, uid: int, gid: int, mode: int) -> None:
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
    if now.st_mode & 0o7777 != mode:
        os.fchmod(fd, mode)


def _refused(path: str, why: str) -> ImagesError:
    cause = f"{path} cannot be put back: {why}"
    cure = 'restore the previous content of the file, or restore without files="rollback"'
    return ImagesError(f"restore failed: {cause}; {cure}", verb="restore", cause=cause, cure=cure)


class RollBack:
    """The files of one restore. ``succeeded`` or ``give_back`` ends it."""

    def __init__(self, images: int) -> None:
        """``images`` stays the caller's. Raises ``ImagesError``; nothing is touched."""
        self._images = images
        self._index = read(images)
        self._files: list[_File] = []
        self._lock = open_regular(INDEX, dir_fd=images)
        if not lock(self._lock):
            close(self._lock)
            raise ImagesError(
                f"restore from {where(images)} failed: another restore of these images is under "
                "way, which changes the same files",
                verb="restore",
            )

    def put_back(self, check: Callable[[], object]) -> None:
        """Put all files back; if that fails for one, all are changed back."""
        try:
            self._remove_leftovers()
            self._files = _files(self._index)
            for step in (_File.keep, _File.change):
                for file in self._files:
                    try:
                        step(file, self._images, check)
                    except CriuError:
                        raise
                    except OSError as error:
                        raise _refused(file.path, error.strerror or str(error)) from None
        except BaseException as error:
            for text in self.give_back():
                error.add_note(f"left behind: {text}")
            raise

    def _remove_leftovers(self) -> None:
        """Remove what a restore that was killed has saved of journals that no longer exist."""
        for each in self._index.files:
            for ending in COMPANIONS:
                with contextlib.suppress(OSError):
                    os.unlink(before_of(each.path + ending))

    def give_back(self) -> tuple[str, ...]:
        """Undo the changes of all files; returns a message for each where that failed."""
        remaining = []
        for file in self._files:
            try:
                file.give_back()
            except OSError as error:
                remaining.append(f"{file.path}, in the state of the dump ({error.strerror})")
        self._files = []
        return tuple(remaining)

    def succeeded(self) -> None:
        """Keep the changes: the restored processes run."""
        for file in self._files:
            file.forget()
        self._files = []

    def close(self) -> None:
        """Unlock and close; undo the changes unless :meth:`succeeded` was called."""
        self.give_back()
        unlock_and_close(self._lock)


def _files(index: Index) -> list[_File]:
    result = [_File(each.path, each) for each in index.files]
    known = {each.path for each in index.files}
    for pattern in index.patterns:
        for path in glob.iglob(pattern, include_hidden=True):
            if path in known or os.path.isdir(path) or os.path.basename(path).startswith(BEFORE):
                continue
            known.add(path)
            result.append(_File(path, None))
    return result
