"""What a file looked like before a call, to tell later whether the call has written it."""

from __future__ import annotations

import os

from .regular_file import open_regular

LARGEST_EXCERPT = 256 * 1024
"""Bytes read from the end of a log: a debug log of a large tree can be gigabytes."""


class LogMark:
    """What a log looked like before a call: only one that the call has written speaks of it."""

    def __init__(self, directory: int, name: str) -> None:
        """Remember the log ``name`` in an open directory, or that there is none."""
        self.directory = directory
        self.name = name
        self._before = _identity(directory, name)

    def written(self) -> bool:
        """Whether the log is new or changed since."""
        now = _identity(self.directory, self.name)
        return now is not None and now != self._before

    def text(self) -> str:
        """The end of the log if the call has written it, else nothing."""
        if not self.written():
            return ""
        try:
            fd = open_regular(self.name, dir_fd=self.directory)
        except OSError:
            return ""
        with open(fd, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LARGEST_EXCERPT))
            return log.read(LARGEST_EXCERPT).decode(errors="replace")


def _identity(directory: int, name: str) -> tuple[int, int, int] | None:
    try:
        result = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return result.st_ino, result.st_ctime_ns, result.st_size
