"""Saves the files of a process tree beside the images of its dump, and an index of them.

They are in the images directory: ``pycriu-native.files``, the index, and one or several
``pycriu-native.file-N`` for each file: a reflink if both are on one file system with reflinks, else
a sparse copy. ``seal``, ``verify`` and archives include them. Of a large file that is only appended
to, either the length is saved, with a checksum, or a copy that shares its parts with the copy of an
earlier dump.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable

from .._support.unpatched import closing
from .._system.descriptors import where
from ..errors import ImagesError
from .copies import Copies
from .directories import directories_of
from .index import Index, SavedFile, checksum, write
from .option import Rollback
from .written_files import WrittenFile, patterns_for, written_files

COPIED_APPENDS = 4 * 2**20
"""Largest file in bytes that is copied as a whole although it is only appended to."""


def save(images: int, pids: Iterable[int], rollback: Rollback, check: Callable[[], object]) -> None:
    """Save the files of a frozen tree.

    Raises ``OptionError``, ``ImagesError``, and what ``check`` raises; it is called between parts
    of a copy.
    """
    files, others = written_files(pids, rollback)
    with contextlib.closing(Copies(images, check, link_from=rollback.link_from)) as copies:
        entries = [
            entry for each in files if (entry := _save(images, each, copies, rollback)) is not None
        ]
    changed = (each.path for each in files if each.pid and not each.read_only)
    named = (pattern for path in changed for pattern in patterns_for(path))
    index = Index(
        files=tuple(entries),
        patterns=(*named, *map(str, rollback.also)),
        ignore=tuple(map(str, rollback.ignore)),
        directories=directories_of(
            [*(each.path for each in files), *(each.path for each in others)],
            (each.path for each in others if stat.S_ISDIR(each.mode)),
        ),
        names=tuple(each for each in others if not stat.S_ISDIR(each.mode)),
    )
    write(images, index)


def is_by_length(file: WrittenFile, complete: bool) -> bool:
    """Whether the length of a file is enough, where it cannot be saved by a reflink."""
    return file.appended and file.stat.st_size > COPIED_APPENDS and not complete


def _save(images: int, file: WrittenFile, copies: Copies, rollback: Rollback) -> SavedFile | None:
    if not file.pid and not os.path.lexists(file.path):
        return None  # another process has removed it
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        with closing(os.open(file.opened, flags)) as source:
            seen = os.fstat(source)
            large = (file.appended or file.read_only) and seen.st_size > COPIED_APPENDS
            if is_by_length(file, rollback.complete):
                names = copies.reflink(source)
            elif large:
                names = copies.appended(source, read_only=file.read_only)
            else:
                names = copies.copy(source)
            # Another process can have appended to it since.
            size = seen.st_size
            if names:
                size = sum(os.stat(name, dir_fd=images).st_size for name in names)
            known = checksum(source, size) if large else None
    except OSError as error:
        raise ImagesError(
            f"{file.path} cannot be saved in {where(images)}: {error.strerror}",
            verb="dump",
            errno=error.errno,
            options=["images_directory"],
        ) from None
    return SavedFile(
        path=file.path,
        copies=names,
        size=size,
        mode=seen.st_mode & 0o7777,
        uid=seen.st_uid,
        gid=seen.st_gid,
        mtime_ns=seen.st_mtime_ns,
        links=seen.st_nlink,
        device=seen.st_dev,
        inode=seen.st_ino,
        read_only=file.read_only,
        checksum=known,
    )
