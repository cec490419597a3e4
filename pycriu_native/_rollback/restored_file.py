"""One file of a restore: its content before is saved, changed to that of the dump, and back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .._integrity.dump_marker import BEFORE_RESTORE
from .._support.unpatched import closing
from .._system.descriptors import where
from .._system.regular_file import create_regular, open_regular
from ..errors import ImagesError
from .copying import common_length, copy, reflink
from .directories import set_owner
from .index import SavedFile, checksum, restore_failed

BEFORE = ".pycriu-native-before-"
"""Prefix of the names under which the content before is saved, beside each file."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a file system without free space."""

_OPENED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def before_of(path: str) -> str:
    """The path under which the previous content of a file is saved."""
    return os.path.join(os.path.dirname(path), BEFORE + _digest(path))


def _digest(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


@dataclass(eq=False)
class RestoredFile:
    """One file: its content is saved, changed, and then kept or changed back."""

    path: str
    entry: SavedFile | None
    """None for a file or a directory that did not exist at the dump."""
    images: int
    spare: int
    """The directory for its previous content if there is no space beside it."""
    others: int
    """The number of its other names that are restored, too."""

    def __post_init__(self) -> None:
        self._before = before_of(self.path)
        self._directory: int | None = None
        """The directory of ``_before``; None: that is an absolute path."""
        self._seen: os.stat_result | None = None
        self._moved = False
        self._kept = False
        self._changed = False
        self._start = 0
        """The number of bytes at the start that remain; what is after them is saved."""

    def keep(self, check: Callable[[], object]) -> None:
        """Check that it can be put back, and save its content. ``OSError``, ``CriuError``."""
        with contextlib.suppress(FileNotFoundError):
            self._seen = os.stat(self.path, follow_symlinks=False)
        remove(self._before)  # of a restore that was killed, as the next one
        remove(BEFORE_RESTORE + _digest(self.path), self.spare)
        entry, seen = self.entry, self._seen
        if entry is None:
            self._moved = True
            return
        self._check_copies(entry)
        if entry.read_only and seen is not None:
            self.entry = None  # it may be the file of another program
            return
        if seen is None:
            self._check_new(entry)
            return
        if stat.S_ISDIR(seen.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A disk that is attached again, as another device, has the same inodes.
        same = seen.st_ino == entry.inode and (
            seen.st_dev == entry.device or seen.st_nlink == entry.links
        )
        if not stat.S_ISREG(seen.st_mode) or (seen.st_nlink > 1 and not same):
            self._check_new(entry)
            self._moved = True
            return
        with closing(os.open(self.path, _OPENED)) as fd:
            self._keep_content(fd, entry, check)

    def _keep_content(self, fd: int, entry: SavedFile, check: Callable[[], object]) -> None:
        """Save the content: beside the file, or in ``spare`` if there is no space."""
        if not entry.copies:
            if os.fstat(fd).st_size < entry.size or checksum(fd, entry.size) != entry.checksum:
                raise _refused(
                    self.path,
                    f"it was only appended to, so its length of {entry.size} bytes was saved, and "
                    "what was before that has changed since",
                )
            self._start = entry.size
        try:
            self._save(fd, check)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._discard()
            self._before, self._directory = BEFORE_RESTORE + _digest(self.path), self.spare
            try:
                self._save(fd, check)
            except OSError:
                raise error from None

    def _save(self, fd: int, check: Callable[[], object]) -> None:
        """Save the content after the part that is equal to that of the dump."""
        with closing(create_regular(self._before, dir_fd=self._directory)) as kept:
            self._kept = True
            if not self._start and reflink(fd, kept):
                return
            if self.entry is not None and not self._start:
                self._start = self._equal(fd, self.entry, check)
            copy(fd, kept, check, start=self._start)

    def _equal(self, fd: int, entry: SavedFile, check: Callable[[], object]) -> int:
        """The number of bytes at the start that are those of the dump."""
        result = 0
        for source, size in self._copies(entry):
            equal = common_length(source, fd, check, at=result)
            result += equal
            if equal < size:
                break
        return result

    def _discard(self) -> None:
        """Remove the saved content, as ``remove``."""
        remove(self._before, self._directory)
        self._kept = False

    def _check_copies(self, entry: SavedFile) -> None:
        """Raise if the copy in the images is incomplete."""
        try:
            size = sum(size for _, size in self._copies(entry))
        except OSError as error:
            raise self._damaged(error.filename, f"cannot be read: {error.strerror}") from None
        if entry.copies and size != entry.size:
            why = f"is not whole: it has {size} bytes, not {entry.size}"
            raise self._damaged(", ".join(entry.copies), why)

    def _copies(self, entry: SavedFile) -> Iterator[tuple[int, int]]:
        """A descriptor of each part of the copy, and its size in bytes."""
        for name in entry.copies:
            with closing(open_regular(name, dir_fd=self.images)) as source:
                yield source, os.fstat(source).st_size

    def _damaged(self, names: str, why: str) -> ImagesError:
        cause = f"the saved copy of {self.path}, {names} in {where(self.images)}, {why}"
        cure = "copy the whole directory again from where it was made"
        return restore_failed(cause, cure)

    def _check_new(self, entry: SavedFile) -> None:
        """Raise if the file cannot be created again."""
        if not entry.copies:
            raise _refused(
                self.path,
                f"it was only appended to, so its length of {entry.size} bytes was saved, and it "
                "is no longer there",
            )
        if entry.links > 1 + self.others and not entry.read_only:
            raise _refused(
                self.path,
                f"it had {entry.links} names at the dump, and this one no longer leads to it",
            )

    def change(self, check: Callable[[], object]) -> None:
        """Put it back."""
        entry = self.entry
        if self._moved:
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                os.rename(self.path, self._before)
                self._kept = True
        if entry is None:
            return
        self._changed = True
        new = self._seen is None or self._moved
        with closing(create_regular(self.path) if new else os.open(self.path, _OPENED)) as fd:
            set_owner(fd, entry.uid, entry.gid, entry.mode)
            os.ftruncate(fd, self._start)
            at = 0
            for source, size in self._copies(entry):
                if at + size > self._start:
                    start = max(0, self._start - at)
                    copy(source, fd, check, start=start, at=at + start)
                at += size
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
                with closing(open_regular(self._before, dir_fd=self._directory)) as kept:
                    os.ftruncate(fd, self._start)
                    copy(kept, fd, lambda: None, at=self._start)
                set_owner(fd, seen.st_uid, seen.st_gid, seen.st_mode & 0o7777)
                os.utime(fd, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            self._discard()
        elif self._kept:
            self._discard()
        self._kept = self._changed = False

    def forget(self) -> None:
        """Remove the previous content."""
        if self._kept:
            self._discard()


def is_before(path: str) -> bool:
    """Whether a path is, or is in, the saved content before a restore."""
    return f"/{BEFORE}" in path


def remove(name: str, directory: int | None = None) -> None:
    """Remove a file or a directory, if it exists.

    What cannot be removed, such as an immutable file, remains: the processes may already run.
    """
    with contextlib.suppress(OSError):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            shutil.rmtree(name, ignore_errors=True, dir_fd=directory)


def _refused(path: str, why: str) -> ImagesError:
    cause = f"{path} cannot be put back: {why}"
    return restore_failed(cause, "restore the previous state of the file")


def failed(path: str, error: OSError) -> ImagesError:
    """The exception for an error of the file system."""
    if error.filename not in (None, path) and isinstance(error.filename, str):
        path = f"{path} ({error.filename})"
    cure = (
        "free disk space there: what has changed in the file since the dump is kept until the "
        "restore has ended"
    )
    cause = f"{path} cannot be put back: {error.strerror or error}"
    return restore_failed(cause, cure if error.errno in FULL else None, error)
