"""Workers whose restores share the memory of a template."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from .._support.closing import Closing
from .._support.frozen_dataclass import replace
from .._support.unpatched import Lock, Thread, close
from .._transport.connection import Connection
from .._transport.forkserver import MAX_INHERITED, ForkServer, ForkServerUnavailableError
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SpawnOptions
from .._transport.worker import Worker, connect_worker
from .._transport.worker_factory import fingerprint, start_fork_server
from ..errors import ImagesError, OptionError, Problem, ProgramError
from .template import NAME, Template, checksum

PATIENCE = 30.0
"""Default time limit for the loading of CRIU, in seconds."""

F_SETSIG = 10
"""fcntl(2); Python's module has no name for it."""


class SharedTemplate(Closing):
    """Workers that share the memory of one set with a template (:func:`.template.prepare`).

    ::

        prepare("app.images", "app.shared")
        with SharedTemplate("app.shared") as via:
            for _ in range(16):
                restore_child(CriuOpts(images_directory="app.shared", …), via=via)

    It owns a fork server: a CRIU that has read the template into anonymous memory, in huge pages if
    the kernel supports that (Linux 6.1). This takes about half a second, once. The worker of each
    restore is forked from it. The memory of a copy is private anonymous memory, and a page is
    copied when the copy writes to it, as after fork().

    - The memory cgroup of the fork server is charged for the template, once. The cgroup of a copy
      is charged for its page tables, and for each page that it writes to. With
      vm.overcommit_memory=2 the memory of each copy and of the fork server counts in full,
      including mappings with MAP_NORESERVE.
    - If the fork server ends or is killed, or this object is closed, copies continue, since they
      also map the memory. The next restore starts another fork server, which reads the template
      again. So does a restore after a change of the state that a worker inherits from the caller
      (user, namespaces, cgroup, limits).
    - Calls other than restores use an ordinary worker.
    - Adjacent mappings of a copy that the kernel would merge remain separate, as in CRIU's restores
      of images with a parent.

    Raises ``ProgramError`` if CRIU cannot be preloaded: a static program, one that is setuid or has
    file capabilities, or a pid namespace other than the caller's.

    Synchronization: any number of threads may use it. A forked child starts its own fork server.
    """

    ours: ClassVar[bool] = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        worker: Worker | None = None,
        patience: float | None = None,
    ) -> None:
        """Open the template, and start the fork server.

        Args:
            directory: an image set of ``prepare``.
            worker: the CRIU to use; None: the default.
            patience: seconds to wait until CRIU is loaded; None: 30. A static program, which
                cannot be preloaded, is detected by this limit.

        Raises:
            ImagesError: the template is missing, truncated or changed; nothing was started.
            ProgramError: CRIU cannot be started or preloaded.
        """
        self.worker = Worker() if worker is None else worker
        if self.worker.stdin is not None:
            raise OptionError([Problem("worker", self.worker, "one without stdin is accepted")])
        self.directory = Path(directory).absolute()
        self._patience = PATIENCE if patience is None else patience
        self._lock = Lock()
        self._server: ForkServer | None = None
        self._like: object = None
        self._closed = False
        self._current()

    @property
    def allow_untrusted(self) -> bool:
        """As for the worker."""
        return self.worker.allow_untrusted

    @property
    def pid(self) -> int:
        """The pid of the fork server."""
        return 0 if self._server is None else self._server.pid

    def identity(self) -> tuple[object, ...] | None:
        """As for the worker."""
        return self.worker.identity()

    def name(self) -> str:
        """As for the worker."""
        return self.worker.name()

    def refuses(self, *, inherits: bool, sibling: bool) -> Iterator[Problem]:
        """No argument is refused."""
        return iter(())

    def connect(
        self, keep: Sequence[int] = (), spawn_options: SpawnOptions = DEFAULT_SPAWN_OPTIONS
    ) -> Connection:
        """Connect to a worker. Raises ``ImagesError``, ``ProgramError`` as the constructor."""
        lifetime_sockets = spawn_options.lifetime_sockets
        if replace(spawn_options, lifetime_sockets=()) != RESTORING:
            return self.worker.connect(keep, spawn_options)
        keep = [*keep, *lifetime_sockets]
        if len(keep) > MAX_INHERITED:
            rule = f"at most {MAX_INHERITED} descriptors can be inherited with a template"
            raise OptionError([Problem("inherit_fds", len(keep), rule)])
        with contextlib.suppress(ForkServerUnavailableError):  # the fork server was killed
            return self._fork(keep, lifetime_sockets)
        try:
            return self._fork(keep, lifetime_sockets)
        except ForkServerUnavailableError as error:
            raise ProgramError(f"memory cannot be shared: {error}") from None

    def _fork(self, keep: Sequence[int], lifetime_sockets: Sequence[int]) -> Connection:
        server = self._current()
        result = connect_worker(self.name(), lambda ends: server.fork_worker(ends, keep))
        _bind(lifetime_sockets, result.pid)
        return result

    def is_ready(self) -> bool:
        """Whether a worker for this thread can be forked without reading the template first."""
        like = fingerprint(self.worker)
        with self._lock:
            return self._ready(like) is not None

    def _ready(self, like: object) -> ForkServer | None:
        server = self._server
        return server if server is not None and server.is_open and self._like == like else None

    def renew(self) -> None:
        """Read the template again if necessary. Raises as the constructor."""
        self._current()

    def _current(self) -> ForkServer:
        """A running fork server whose workers have the present inherited state."""
        like = fingerprint(self.worker)
        if like is None:
            raise ProgramError("memory cannot be shared: /proc does not show what workers inherit")
        with self._lock:
            if self._closed:
                raise ValueError("the SharedTemplate is closed")
            if (ready := self._ready(like)) is not None:
                return ready
            self._end()
            try:
                self._server = start_fork_server(
                    self.worker, RESTORING, like, patience=self._patience
                )
            except ForkServerUnavailableError as error:
                raise ProgramError(f"memory cannot be shared: {error}") from None
            if self._server is None:
                raise ProgramError(
                    "memory cannot be shared: another thread has changed what workers inherit"
                )
            try:
                load(self.directory, self._server)
            except BaseException:
                self._end()
                raise
            self._like = like
            return self._server

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """End the fork server; copies continue. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._end()


def _bind(sockets: Sequence[int], pid: int) -> None:
    """Let the kernel kill a worker's process group when the other end of a socket is closed."""
    with contextlib.suppress(OSError):  # the worker has ended
        os.setpgid(pid, pid)  # the worker does the same, but perhaps later
    for each in sockets:
        with contextlib.suppress(ProcessLookupError):
            fcntl.fcntl(each, fcntl.F_SETOWN, -pid)
            fcntl.fcntl(each, F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(each, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)


def load(directory: Path, server: ForkServer) -> None:
    """Load the template of a set into a fork server, and compare the checksums at the same time.

    Raises ``ImagesError`` if a file is missing, truncated or changed.
    """
    template = Template.read(directory)
    opened: list[int] = []
    try:
        for file in template.files:
            opened.append(_open(directory / file.name))
            size = os.fstat(opened[-1]).st_size
            if size != file.size:
                raise ImagesError(
                    f"{directory / file.name} has {size} bytes; {NAME} names {file.size}"
                )
        table = template.table()
        memory = os.memfd_create("criu-template", os.MFD_CLOEXEC)
        opened.append(memory)
        os.write(memory, table)
        sums: list[int] = []

        def read_all() -> None:
            for fd, file in zip(opened, template.files, strict=False):
                sums.append(checksum(fd, file.size))

        reader = Thread(read_all, "checksums of a template")
        reader.start()
        try:
            server.load_template(memory, opened[:-1], len(table))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EIO):
                why = f"the template of {directory} cannot be read: {error.strerror}"
                raise ImagesError(why, errno=error.errno) from None
            why = f"the fork server cannot hold {template.size} bytes: {error.strerror}"
            raise ProgramError(f"memory cannot be shared: {why}", errno=error.errno) from None
        finally:
            reader.join()
        for file, found in zip(template.files, sums, strict=True):
            if found != file.crc32:
                raise ImagesError(f"{directory / file.name} has changed since it was prepared")
    finally:
        for fd in opened:
            close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ImagesError(f"{path} cannot be opened: {error.strerror}", errno=error.errno) from None
