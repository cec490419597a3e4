"""Workers whose restores share the memory of a template."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._checks.arguments import is_seconds
from .._support.unpatched import LONGEST_POLL, Thread, close
from .._system.regular_file import identity_of, open_regular
from .._transport.connection import Connection
from .._transport.forkserver import ForkServer
from .._transport.spawn import SpawnOptions
from .._transport.worker import Worker
from ..errors import Problem, ProgramError
from .forked_workers import ForkedWorkers
from .streams import refuse
from .template import NAME, PagesFile, Template, checksum, damaged, prepare_again


class SharedTemplate(ForkedWorkers):
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
      again.
    - Adjacent mappings of a copy that the kernel would merge remain separate, as in CRIU's restores
      of images with a parent.

    Raises ``ProgramError`` if CRIU cannot be preloaded: a static program, one that is setuid or has
    file capabilities, or a pid namespace other than the caller's.

    Synchronization: any number of threads may use it. A forked child starts its own fork server.
    """

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
            OptionError: an argument is not accepted; nothing was started.
            ImagesError: the template is missing, truncated or changed; nothing was started.
            ProgramError: CRIU cannot be started or preloaded.
        """
        problems = [*worker_problems(worker)]
        if patience is not None and not (is_seconds(patience) and 0 < patience <= LONGEST_POLL):
            rule = f"a number of seconds above 0, up to {LONGEST_POLL}, is accepted"
            problems.append(Problem("patience", patience, rule))
        refuse(problems, "share")
        self.directory = Path(directory).absolute()
        self._loaded: object = None
        """The identity of the template in the fork server."""
        super().__init__(Worker() if worker is None else worker, patience=patience)

    def _connect_unforked(
        self, keep: Sequence[int], spawn_options: SpawnOptions, why: str
    ) -> Connection:
        raise self._failure(why)

    def _failure(self, why: str) -> Exception:
        if self._closed:
            return ValueError("the SharedTemplate is closed")
        return ProgramError(f"memory cannot be shared: {why}")

    def _ready(self, like: object) -> ForkServer | None:
        """The images of another template, made after these were removed, do not fit its memory."""
        return super()._ready(like) if self._loaded == identity_of(self.directory / NAME) else None

    def _prepare(self, server: ForkServer) -> None:
        self._loaded = identity_of(self.directory / NAME)
        load(self.directory, server)


def worker_problems(worker: object) -> Iterator[Problem]:
    """Why a template cannot be loaded for a worker; None is the default."""
    if worker is not None and not (isinstance(worker, Worker) and worker.stdin is None):
        yield Problem("worker", worker, "a Worker without stdin is accepted")


AGAIN = (
    "the images that it was prepared from have the same file: take the snapshot again, or copy it "
    "again from its origin"
)


def load(directory: Path, server: ForkServer) -> None:
    """Load the template of a set into a fork server, and compare the checksums at the same time.

    Raises ``ImagesError`` if a file is missing, truncated or changed.
    """
    template = Template.read(directory)
    opened: list[int] = []
    try:
        for file in template.files:
            opened.append(_open(directory, file))
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
                raise damaged(why, prepare_again(directory), error.errno) from None
            why = f"the fork server cannot hold {template.size} bytes: {error.strerror}"
            raise ProgramError(f"memory cannot be shared: {why}", errno=error.errno) from None
        finally:
            reader.join()
        for fd, file, found in zip(opened, template.files, sums, strict=False):
            if found != file.crc32:
                raise damaged(f"{directory / file.name} has changed", _cure(directory, fd))
    finally:
        for fd in opened:
            close(fd)


def check_files(directory: Path, template: Template) -> None:
    """Raise ``ImagesError`` if a file of a template is missing or has another size."""
    for file in template.files:
        close(_open(directory, file))


def _open(directory: Path, file: PagesFile) -> int:
    path = directory / file.name
    try:
        fd = open_regular(path)
    except OSError as error:
        why = f"{path} cannot be opened: {error.strerror}"
        raise damaged(why, prepare_again(directory), error.errno) from None
    if (size := os.fstat(fd).st_size) != file.size:
        cure = _cure(directory, fd)
        close(fd)
        raise damaged(f"{path} has {size} bytes, and {file.size} when it was prepared", cure)
    return fd


def _cure(directory: Path, fd: int) -> str:
    """The cure for a file that was changed, as a rule with the images that have the same file."""
    return AGAIN if os.fstat(fd).st_nlink > 1 else prepare_again(directory)
