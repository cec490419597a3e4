"""The argument ``files`` of dumps and restores."""

from __future__ import annotations

import os
from collections.abc import Iterable

from .._support.frozen_dataclass import dataclass
from ..errors import OptionError, Problem

ROLLBACK = "rollback"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Save the files that the processes write with the dump, and put them back with the restore.

    ``files="rollback"`` is ``files=Rollback()``. Saved are the regular files that the tree has open
    for writing or mapped so, with the journals of SQLite that belong to them, at the moment of
    the dump. Deleted files are saved by CRIU itself.
    """

    also: Iterable[str | os.PathLike[str]] = ()
    """Absolute paths or glob patterns (``**`` is not special) of more files: those that the
    processes open, write and close again. Files that match at the restore and did not exist at
    the dump are removed. Read by dumps."""
    complete: bool = False
    """Save large files that are only appended to as a whole, and not only their length: for a
    restore on another machine, or after the file was truncated, renamed or removed. Read by
    dumps."""
    ignore: Iterable[str | os.PathLike[str]] = ()
    """Directories in which ``also`` matches only paths without special characters. The files of
    image sets do not match in any directory. Read by dumps."""
    link_from: str | os.PathLike[str] | None = None
    """Images directory of an earlier dump with ``complete`` on the same file system. Of large files
    that are only appended to, the parts that it has become hard links to its copies, and only the
    rest is copied. That the earlier part has not changed is checked at its first and last 64 KiB;
    of a file that is open for reading only, by its time of modification as well. If a link is not
    possible, the file is copied as a whole. Read by dumps."""
    changed_since: float | None = None
    """Time in seconds since the epoch. Files of at most 256 MiB that the processes have open for
    reading only are saved, too, if they were changed after it: temporary files that the processes
    have written and will remove. A restore creates those that no longer exist, and leaves existing
    ones as they are. Default: none of them. Read by dumps."""

    def __post_init__(self) -> None:
        for name, rule in (("also", "path or pattern"), ("ignore", "path")):
            value: object = getattr(self, name)
            given = (
                value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
            )
            paths = tuple(
                os.fspath(each) if isinstance(each, os.PathLike) else each for each in given
            )
            for each in paths:
                if not isinstance(each, str) or not each.startswith("/") or "\0" in each:
                    raise OptionError([Problem(name, each, f"an absolute {rule} is accepted")])
            object.__setattr__(self, name, paths)
        place, since = self.link_from, self.changed_since
        if not (place is None or isinstance(place, str | os.PathLike)):
            raise OptionError([Problem("link_from", place, "a path is accepted")])
        if since is not None and (
            isinstance(since, bool) or not isinstance(since, int | float) or since != since
        ):
            rule = "a number of seconds since the epoch is accepted"
            raise OptionError([Problem("changed_since", since, rule)])


Files = str | Rollback | None
"""What ``files`` may be: None leaves all files as they are."""


def rollback_of(files: Files, verb: str) -> Rollback | None:
    """The argument, checked. ``OptionError``."""
    if files is None or isinstance(files, Rollback):
        return files
    if files != ROLLBACK:
        rule = f'None, "{ROLLBACK}" or a Rollback is accepted'
        raise OptionError([Problem("files", files, rule)], verb=verb)
    return Rollback()
