"""The index of the files that a dump has saved: ``pycriu-native.files``, a JSON object."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from typing import Any

from .._integrity.dump_marker import SAVED_FILES
from .._system.descriptors import where
from .._system.regular_file import create_regular, read_regular
from ..errors import ImagesError
from .directories import SavedDirectory

INDEX = SAVED_FILES + "s"
FORMAT = 3
LARGEST_INDEX = 64 * 2**20

END = 64 * 2**10
"""Bytes at the start and at the end of a file that ``checksum`` covers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFile:
    """The state of one file while the process tree was frozen."""

    path: str
    copies: tuple[str, ...]
    """Its copy in the images directory, as consecutive parts; empty: only the length was saved."""
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    links: int
    device: int
    inode: int
    read_only: bool
    """Whether no process could change it: it is created again if it no longer exists, but an
    existing file is not changed."""
    checksum: str | None = None
    """SHA-256 of both ends of a large file that is only appended to, or only read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedName:
    """A name at the dump that is no file of its own: a link, a named pipe, or another name."""

    path: str
    mode: int
    """Its type and mode."""
    uid: int
    gid: int
    target: str | None = None
    """Of a symbolic link."""
    same_as: str | None = None
    """The path of the saved file of which it is another name (hard link)."""


def saved_name(path: str, seen: os.stat_result, same_as: str | None = None) -> SavedName:
    """The record of a name. Raises ``OSError``."""
    target = os.readlink(path) if stat.S_ISLNK(seen.st_mode) else None
    mode, uid, gid = seen.st_mode, seen.st_uid, seen.st_gid
    return SavedName(path=path, mode=mode, uid=uid, gid=gid, target=target, same_as=same_as)


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """All files of a set."""

    files: tuple[SavedFile, ...]
    patterns: tuple[str, ...]
    """Patterns of files that belong to the set: a file that is not in ``files`` did not exist."""
    ignore: tuple[str, ...]
    """Directories in which patterns do not match."""
    directories: tuple[SavedDirectory, ...]
    """The directories of the files and their parents, and those that match a pattern, each after
    its parent."""
    names: tuple[SavedName, ...]
    """What else matched a pattern, and open named pipes."""


def checksum(fd: int, end: int) -> str:
    """The SHA-256 of the first and the last bytes before an offset."""
    begin = max(0, end - END)
    head = os.pread(fd, min(end, END), 0)
    return hashlib.sha256(head + os.pread(fd, end - begin, begin)).hexdigest()


def write(images: int, index: Index) -> None:
    """Write the index. Raises ``OSError``, and ``ImagesError`` if it could not be read."""
    text = json.dumps({"format": FORMAT, **asdict(index)}, indent=1) + "\n"
    if len(text) > LARGEST_INDEX:
        raise ImagesError(
            f"the index of {len(index.files)} files is larger than {LARGEST_INDEX} bytes, so a "
            "restore could not read it; name fewer files in also",
            verb="dump",
            options=["files"],
        )
    with open(create_regular(INDEX, dir_fd=images), "w") as file:
        file.write(text)


def read(images: int) -> Index:
    """The index of a set. ``ImagesError`` where there is none, or it cannot be read."""
    place = f"{where(images)}/{INDEX}"
    try:
        body: Any = json.loads(read_regular(INDEX, LARGEST_INDEX, dir_fd=images))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        return Index(
            files=tuple(_file(entry) for entry in body["files"]),
            patterns=tuple(map(str, body["patterns"])),
            ignore=tuple(map(str, body["ignore"])),
            directories=tuple(SavedDirectory(**entry) for entry in body["directories"]),
            names=tuple(SavedName(**entry) for entry in body["names"]),
        )
    except FileNotFoundError:
        cause = f"the images hold no saved files: there is no {place}"
        cure = 'dump with files="rollback", or restore without it'
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        cause = f"{place} cannot be read: {error}"
        cure = "copy the whole directory again from where it was made"
    raise restore_failed(cause, cure)


def restore_failed(cause: str, cure: str | None, error: OSError | None = None) -> ImagesError:
    """The exception for files that cannot be put back."""
    message = f"restore failed: {cause}" + (f"; {cure}" if cure else "")
    errno = None if error is None else error.errno
    return ImagesError(message, verb="restore", errno=errno, cause=cause, cure=cure)


def _file(entry: dict[str, Any]) -> SavedFile:
    copies = tuple(map(str, entry["copies"]))
    for name in copies:
        stem, _, number = name.rpartition("-")
        if stem != SAVED_FILES or not number.isdecimal():
            raise ValueError(f"{name!r}")
    return SavedFile(**{**entry, "copies": copies})
