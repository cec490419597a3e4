"""The files that a dump saves beside its images, and the index of them.

They are in the images directory: ``pycriu-native.files``, a JSON object, and one
``pycriu-native.file-N`` for each file. It is a reflink if both are on one file system with
reflinks, else a sparse copy. ``seal``, ``verify`` and archives include them. Of a large file that
is only appended to, the length is saved, with a checksum of the bytes before it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .._integrity.dump_marker import SAVED_FILES
from .._support.unpatched import closing
from .._system.descriptors import where
from .._system.regular_file import create_regular, read_regular
from ..errors import ImagesError
from .copying import copy, reflink
from .written_files import WrittenFile, patterns_for, written_files

INDEX = SAVED_FILES + "s"
FORMAT = 1
LARGEST_INDEX = 64 * 2**20

COPIED_APPENDS = 4 * 2**20
"""Largest file in bytes that is copied although it is only appended to: the copy remains if the
file is deleted, renamed or truncated afterwards."""

TAIL = 64 * 2**10
"""Bytes at the end of such a file that the checksum covers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFile:
    """The state of one file while the process tree was frozen."""

    path: str
    saved: str | None
    """Its copy in the images directory; None: only the length was saved."""
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    links: int
    device: int
    inode: int
    tail: str | None = None
    """SHA-256 of the last bytes, if only the length was saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """All files of a set."""

    files: tuple[SavedFile, ...]
    patterns: tuple[str, ...]
    """Patterns of files that belong to the set: a file that is not in ``files`` did not exist."""


def save(
    images: int,
    pids: Iterable[int],
    also: tuple[str, ...],
    check: Callable[[], object],
    *,
    complete: bool = False,
) -> None:
    """Save the files of a frozen tree; ``complete``: of none the length alone.

    Raises ``OptionError``, ``ImagesError``, and what ``check`` raises; it is called between parts
    of a copy.
    """
    files = written_files(pids, also)
    entries = [
        _save(images, number, each, check, is_by_length(each, complete))
        for number, each in enumerate(files)
    ]
    named = (pattern for each in files if each.pid for pattern in patterns_for(each.path))
    body = {
        "format": FORMAT,
        "files": [asdict(each) for each in entries],
        "patterns": [*named, *also],
    }
    with open(create_regular(INDEX, dir_fd=images), "w") as file:
        json.dump(body, file, indent=1)
        file.write("\n")


def is_by_length(file: WrittenFile, complete: bool) -> bool:
    """Whether the length of a file is enough, where it cannot be saved by a reflink."""
    return file.appended and file.stat.st_size > COPIED_APPENDS and not complete


def _save(
    images: int, number: int, file: WrittenFile, check: Callable[[], object], by_length: bool
) -> SavedFile:
    name = f"{SAVED_FILES}-{number}"
    try:
        with (
            closing(os.open(file.opened, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as source,
            closing(create_regular(name, dir_fd=images)) as target,
        ):
            tail = None
            seen = os.fstat(source)
            if not by_length:
                copy(source, target, check)
            elif not reflink(source, target):
                tail = checksum(source, seen.st_size)
                os.unlink(name, dir_fd=images)
    except OSError as error:
        raise ImagesError(
            f'files="rollback": {file.path} cannot be saved in {where(images)}: {error.strerror}',
            verb="dump",
            errno=error.errno,
            options=["images_directory"],
        ) from None
    return SavedFile(
        path=file.path,
        saved=None if tail else name,
        size=seen.st_size,
        mode=seen.st_mode & 0o7777,
        uid=seen.st_uid,
        gid=seen.st_gid,
        mtime_ns=seen.st_mtime_ns,
        links=seen.st_nlink,
        device=seen.st_dev,
        inode=seen.st_ino,
        tail=tail,
    )


def checksum(fd: int, end: int) -> str:
    """The SHA-256 of the bytes before an offset."""
    begin = max(0, end - TAIL)
    return hashlib.sha256(os.pread(fd, end - begin, begin)).hexdigest()


def read(images: int) -> Index:
    """The index of a set. ``ImagesError`` where there is none, or it cannot be read."""
    place = f"{where(images)}/{INDEX}"
    try:
        body: Any = json.loads(read_regular(INDEX, LARGEST_INDEX, dir_fd=images))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        files = tuple(SavedFile(**entry) for entry in body["files"])
        for each in files:
            if each.saved is not None and not _is_copy(each.saved):
                raise ValueError(f"{each.saved!r}")
        return Index(files=files, patterns=tuple(map(str, body["patterns"])))
    except FileNotFoundError:
        cause = f"the images hold no saved files: there is no {place}"
        cure = 'dump with files="rollback", or restore without it'
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        cause = f"{place} cannot be read: {error}"
        cure = "bring the whole directory again from where it was made"
    raise ImagesError(f"restore failed: {cause}; {cure}", verb="restore", cause=cause, cure=cure)


def _is_copy(name: str) -> bool:
    return name.removeprefix(SAVED_FILES + "-").isdecimal() and name.startswith(SAVED_FILES)
