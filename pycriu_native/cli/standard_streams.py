"""Standard streams that never fail, so that a command continues if its output cannot be written.

A full disk, a closed pipe or a closed descriptor must not end a dump. Writes to standard output
and error therefore always succeed; the first error of each is stored, and determines the exit code.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

STDIN, STDOUT, STDERR = 0, 1, 2


class _Sink(io.FileIO):
    """A descriptor that stores its first error and discards what is written after it.

    ``closed``: it was closed, which is an error of the first write.
    """

    def __init__(self, fd: int, closed: OSError | None) -> None:
        super().__init__(fd, "w", closefd=False)
        self.error: OSError | None = None
        self._was_closed = closed

    def write(self, data: Any, /) -> int:
        self.error = self.error or self._was_closed
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def guarded() -> Iterator[Callable[[], OSError | None]]:
    """Replace the standard streams in this context.

    Yields a function that flushes standard output and returns its first error. A closed descriptor
    is opened as /dev/null, so that no other file gets its number.
    """
    closed = [fd for fd in (STDIN, STDOUT, STDERR) if not _is_open(fd)]
    errors = {fd: OSError(errno.EBADF, os.strerror(errno.EBADF), fd) for fd in closed}
    for fd in closed:
        # open() returns the lowest free number, which in ascending order is this one.
        os.set_inheritable(os.open(os.devnull, os.O_WRONLY if fd == STDIN else os.O_RDONLY), True)
    before = sys.stdin, sys.stdout, sys.stderr
    out, err = (_Sink(fd, errors.get(fd)) for fd in (STDOUT, STDERR))
    if STDIN in closed:
        sys.stdin = open(STDIN, closefd=False)
    sys.stdout = _text(out, before[1], line_buffering=out.isatty())
    sys.stderr = _text(err, before[2], line_buffering=True)

    def error() -> OSError | None:
        sys.stdout.flush()
        return out.error

    try:
        yield error
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def is_lost() -> bool:
    """Whether standard output cannot be written: a command that only prints ends then."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Sink) and raw.error is not None


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _text(sink: _Sink, like: TextIO | None, *, line_buffering: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(sink),
        encoding=like.encoding if like is not None else "utf-8",
        # The encoding of the terminal may lack characters of names of processes and files.
        errors="backslashreplace",
        line_buffering=line_buffering,
    )
