"""The ``criu lazy-pages`` daemon, which provides memory to processes that already run.

A restore with ``lazy_pages`` loads no memory: the daemon provides each page on its first access,
and the other pages in the background. It reads them from the images, or from a lazy dump on another
host (``page_server``). It must listen before the restore starts, in the same work directory, and
ends when all memory is loaded. It is not a request over CRIU's socket but a separate process, which
this module starts, watches and stops::

    with LazyPages(CriuOpts(images_directory="ckpt")) as daemon:
        restore(CriuOpts(images_directory="ckpt", lazy_pages=True))
        daemon.wait()
"""

from __future__ import annotations

import contextlib
import os

from .._calls.progress_state import OnProgress
from .._checks.work_directory import from_work_directory
from .._support.closing import Closing
from .._support.lazy import signal
from .._support.unpatched import close, readable
from .._system.descriptors import above_stdio
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import DeadlineError
from ..options.criu_opts import CriuOpts
from ..options.values import descriptor_number

UNTIL_READY = 30.0
"""Default timeout in seconds until the daemon listens."""

UNTIL_STOPPED = 5.0
"""Seconds to wait for its end after SIGTERM."""


class LazyPages(Closing):
    """A running daemon. The constructor returns when it listens; owned until it is closed.

    ``opts`` takes ``images_directory``, ``work_directory``, ``page_server`` (the source's
    address and port), ``tls`` and its files, ``status_fd``, ``pidfile``, and the options of the
    log. ``deadline`` is in seconds. Raises ``OptionError``, ``UnsupportedError`` where there is no
    userfaultfd, ``ProgramNotFoundError``, ``DeadlineError``, and ``CriuError`` if the daemon ends
    before it listens. Needs CRIU 3.17.

    If it is closed before all memory is loaded, the processes cannot access the rest: wait first.
    Synchronization: not to be shared between threads.
    """

    def __init__(
        self, opts: CriuOpts, *, via: Worker | None = None, deadline: float = UNTIL_READY
    ) -> None:
        from .subcommand import Subcommand  # not loaded by a star import

        self._opts = opts
        with contextlib.ExitStack() as owned:
            command = Subcommand(Verb.LAZY_PAGES, opts, via, deadline, owned)
            ready, message = os.pipe2(os.O_CLOEXEC)
            owned.callback(close, ready)
            message = above_stdio(message)
            with open(message, "wb"):
                self._process = command.start(status_fd=message)
            self.pid = self._process.pid
            """The daemon."""
            try:
                if not readable(ready, seconds=deadline):
                    why = "lazy-pages: the daemon did not listen in time"
                    raise DeadlineError(why, verb="lazy-pages")
                if os.read(ready, 1) != b"\0":  # it has ended
                    self._process.wait(UNTIL_STOPPED)
                    raise command.failure(self._process, "before it listened")
                self._report_ready()
            except BaseException:
                self.close()
                raise

    def _report_ready(self) -> None:
        """As ``criu lazy-pages``: write the pid to ``pidfile``, a zero byte to ``status_fd``."""
        opts = self._opts
        if opts.pidfile is not None:
            path = from_work_directory(opts, opts.pidfile)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(str(self.pid))
        if opts.status_fd is not None:
            os.write(descriptor_number(opts.status_fd), b"\0")

    @property
    def pidfd(self) -> int:
        """A descriptor that becomes readable when the daemon ends; the daemon object closes it."""
        return self._process.pidfd

    def wait(
        self, timeout: float | None = None, *, on_progress: OnProgress | None = None
    ) -> int | None:
        """Wait until all memory is loaded; returns the daemon's exit code (negative: a signal).

        ``timeout`` is in seconds; ``TimeoutError`` after it. ``on_progress`` is called with a
        :class:`Progress` during the wait, on a separate thread. None if another part of the program
        reaped the daemon. May be called again after the end.
        """
        if on_progress is None or self._process.closed:
            return self._wait(timeout)
        from .._calls.progress import Feeding, directory_of, reporting  # few are watched

        elsewhere = self._opts.page_server is not None
        fed = Feeding(self.pid, directory_of(self._opts), from_elsewhere=elsewhere)
        with reporting(on_progress, fed) as operation:
            status = self._wait(timeout)
            operation.ends_well = status == 0
        return status

    def _wait(self, timeout: float | None) -> int | None:
        if not self._process.closed:
            if not self._process.has_ended(timeout):
                raise TimeoutError(f"the lazy-pages daemon, pid {self.pid}, serves on")
            self._process.wait(UNTIL_STOPPED)
        return self._process.status

    def close(self) -> None:
        """End the daemon if it still serves, and release all resources. May be called again."""
        if not self._process.closed:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(UNTIL_STOPPED)
