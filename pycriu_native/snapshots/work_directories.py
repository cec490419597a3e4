"""Directories for CRIU's log and statistics, which no path leads to."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator

from .._native.ffi import native
from .._support.closing import Closing
from .._support.forked_child import forgets
from .._support.scratch import scratch_directory
from .._support.unpatched import Lock, close, closing
from .._system.descriptors import opened_directory


class WorkDirectories(Closing):
    """A directory for each start, in one file system without a name. Owned.

    The file system ends with this object and with this process, however that ends. It is kept
    between starts, since its end takes the kernel longer than all of the work in it. May be used on
    any thread.
    """

    def __init__(self) -> None:
        self.forget()
        self._root = -1
        self._numbers = itertools.count(1)
        forgets(self)

    def forget(self) -> None:
        """In a forked child: the file system is used by both."""
        self._lock = Lock()

    @contextlib.contextmanager
    def new(self) -> Iterator[int]:
        """The descriptor of an empty directory, which is removed at the end."""
        with self._lock:
            if self._root < 0:
                self._root = native.pn_unnamed_directory()
            # A start may go on after close() and in a forked child.
            root = os.dup(self._root) if self._root >= 0 else -1
        if root < 0:  # before Linux 5.2, or without the right to mount
            scratch = scratch_directory("pycriu-native-start-")
            with scratch as path, opened_directory(path) as fd:
                yield fd
            return
        with closing(root):
            path = f"/proc/self/fd/{root}/{os.getpid()}-{next(self._numbers)}"
            os.mkdir(path, 0o700)
            try:
                with opened_directory(path) as fd:
                    yield fd
            finally:
                # Not with dir_fd: where eventlet has replaced os.open, shutil does not accept it.
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Give the file system up; the next start gets another one."""
        with self._lock:
            if self._root >= 0:
                close(self._root)
            self._root = -1
