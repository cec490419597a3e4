"""The index of the files that a dump has saved: ``pycriu-native.files``, a JSON object."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from .._integrity.dump_marker import SAVED_FILES
from .._support.json_values import from_json
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


Entry = TypeVar("Entry", SavedFile, SavedName, SavedDirectory)

_RANGES = {
    "size": range(2**63),
    "mode": range(2**17),
    "uid": range(2**32 - 1),  # the last number would mean: do not change it
    "gid": range(2**32 - 1),
    "mtime_ns": range(-(2**63), 2**63),
    "links": range(2**63),
    "device": range(2**64),
    "inode": range(2**64),
}
"""The numbers that the kernel can report."""


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


_CURE = "copy the whole directory again from where it was made"


def read(images: int) -> Index:
    """The index of a set. ``ImagesError`` where there is none, or it cannot be read."""
    place = f"{where(images)}/{INDEX}"
    try:
        body: Any = json.loads(read_regular(INDEX, LARGEST_INDEX, dir_fd=images))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        return Index(
            files=tuple(_file(entry) for entry in _list(body, "files")),
            patterns=tuple(map(_path, _list(body, "patterns"))),
            ignore=tuple(map(_path, _list(body, "ignore"))),
            directories=tuple(
                _checked(SavedDirectory, entry) for entry in _list(body, "directories")
            ),
            names=tuple(map(_name, _list(body, "names"))),
        )
    except FileNotFoundError:
        cause = f"the images hold no saved files: there is no {place}"
        cure = 'dump with files="rollback", or restore without it'
    except KeyError as error:
        cause = f"{place} cannot be read: it has no {error}"
        cure = _CURE
    except (OSError, ValueError, TypeError, RecursionError) as error:
        cause = f"{place} cannot be read: {error}"
        cure = _CURE
    raise restore_failed(cause, cure)


def restore_failed(cause: str, cure: str | None, error: OSError | None = None) -> ImagesError:
    """The exception for files that cannot be put back."""
    message = f"restore failed: {cause}" + (f"; {cure}" if cure else "")
    errno = None if error is None else error.errno
    return ImagesError(message, verb="restore", errno=errno, cause=cause, cure=cure)


def _file(entry: dict[str, Any]) -> SavedFile:
    result = _checked(SavedFile, {**entry, "copies": tuple(_list(entry, "copies"))})
    for name in result.copies:
        stem, _, number = name.rpartition("-")
        if stem != SAVED_FILES or not number.isdecimal():
            raise ValueError(f"{name!r}")
    return result


def _name(entry: Any) -> SavedName:
    result = _checked(SavedName, entry)
    if stat.S_ISLNK(result.mode) is (result.target is None):
        raise ValueError(f"target is {result.target!r}, and mode {result.mode:#o}")
    return result


def _list(body: dict[str, Any], name: str) -> list[Any]:
    value = body[name]
    if not isinstance(value, list):
        raise TypeError(f"{name} is {value!r}")
    return value


def _checked(kind: type[Entry], body: Any) -> Entry:
    """The entry, whose values could be passed to the system. ``TypeError``, ``ValueError``."""
    result = from_json(kind, body)
    _path(result.path)
    for name in ("target", "same_as", "checksum"):
        if (other := getattr(result, name, None)) is not None:
            _text(name, other)
    for name, accepted in _RANGES.items():
        if (value := getattr(result, name, 0)) not in accepted:
            raise ValueError(f"{name} is {value}")
    return result


def _path(value: Any) -> str:
    """An absolute path; for others the working directory of the caller would decide."""
    if not _text("path", value).startswith("/"):
        raise ValueError(f"path is {value!r}")
    return str(value)


def _text(name: str, value: Any) -> str:
    """Text that a path can have: no NUL, and no character that cannot be encoded."""
    try:
        if "\0" not in value and os.fsencode(value):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} is {value!r}")
