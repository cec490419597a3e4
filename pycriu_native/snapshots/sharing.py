"""The decision which starts of a snapshot use forked workers, and share its memory."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from .._support.closing import Closing
from .._support.forked_child import forgets
from .._support.unpatched import UNTIL_SIGNALS, Lock, close
from .._system import trusted_path
from .._system.memory_room import memory_room
from .._transport.base import Via
from .._transport.forkserver import ForkServer
from .._transport.worker import Worker
from ..errors import ImagesError, Problem, ProgramError, images_error
from .forked_workers import ForkedWorkers
from .shared_template import SharedTemplate, check_files
from .template import Template, prepare
from .uninterrupted import check_interrupted

SHARED = "shared"
"""The subdirectory of a snapshot with the images whose memory is a template."""

WORTHWHILE = 2
"""The number of the start that loads a fork server. Reading the template takes as long as one to
five plain restores, and as much memory as one: no gain for a program that starts one copy."""

RARELY = 64
"""Largest number of starts until the next attempt; attempts come after 2, 4, 8, … starts."""

PATIENCE = 5.0
"""Time limit for the loading of CRIU if sharing is not required, in seconds."""

FIRST = "the first start with this Snapshot is not shared; share_memory=True shares it"
NO_WORKER = "via is not a Worker without stdin"
CHANGED = "the process with the template was killed, or its files or CRIU's environment changed"


class UnavailableError(Exception):
    """No worker can be forked, or memory is not shared; the text is the reason."""


def prepared(directory: Path, *, allow_untrusted: bool) -> Path:
    """The images of a snapshot for sharing; the first call creates them. Raises ``ImagesError``."""
    try:
        fd = trusted_path.open_directory(
            str(directory), make=False, allow_untrusted=allow_untrusted
        )
    except OSError as error:
        raise images_error(f"{directory} cannot be used", error) from None
    close(fd)
    target = directory / SHARED
    if not target.exists():
        own = directory / f"{SHARED}.{os.getpid()}-{threading.get_ident()}.partial"
        try:
            prepare(directory, own)
        except ImagesError as error:
            if error.errno in (errno.EACCES, errno.EROFS):
                hint = "its owner can create it with Snapshot.share()"
                raise ImagesError(f"{error}; {hint}", errno=error.errno) from None
            raise
        try:
            own.rename(target)
        except OSError:  # another process or thread was first
            shutil.rmtree(own)
    return target


class Chosen(NamedTuple):
    """The workers for one start."""

    via: Via
    unshared_reason: str | None = None
    """The reason why memory is not shared; None: it is."""
    fork_server: ForkServer | None = None
    """The fork server of ``via``, if its workers have the present inherited state."""


class Sharing(Closing):
    """The fork servers of one snapshot, for each worker of its starts. Owned by this object.

    Starts that share memory use a fork server with the template, others one without.

    Synchronization: any number of threads may use it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.forget()
        forgets(self)

    def forget(self) -> None:
        """In a forked child: the fork servers are those of the parent; starts are counted anew."""
        self._lock = Lock()
        self._templates: list[_Template] = []
        self._plain: list[_Forking] = []

    def problems(self, share_memory: object, via: Via) -> Iterator[Problem]:
        """Problems of the arguments of ``Snapshot.start``."""
        if share_memory is not None and not isinstance(share_memory, bool):
            yield Problem("share_memory", share_memory, "None, True or False is accepted")
        elif isinstance(via, SharedTemplate):
            if via.directory != self._directory / SHARED:
                yield Problem("via", str(via.directory), "it belongs to another snapshot")
            if share_memory is False:
                yield Problem("share_memory", share_memory, "via is a SharedTemplate")
        elif share_memory and _of(via) is None:
            yield Problem("via", via, "to share memory, a Worker without stdin is accepted")

    def chosen(self, share_memory: bool | None, via: Via, until: float | None) -> Chosen:
        """The workers for one start.

        Raises ``ProgramError`` and ``ImagesError`` if sharing is required but impossible, and
        ``ImagesError`` if the template has changed.
        """
        if isinstance(via, SharedTemplate):
            if not via.directory.exists():  # it was removed while the caller held the template
                prepared(self._directory, allow_untrusted=via.allow_untrusted)
            return Chosen(via)
        if (worker := _of(via)) is None:
            return Chosen(via, "share_memory=False" if share_memory is False else NO_WORKER)
        if share_memory is False:
            return self._unshared(worker, "share_memory=False", until)
        template = self._of_worker(self._templates, _Template(worker, self._directory))
        try:
            forked, server = template.use(required=bool(share_memory), until=until)
        except UnavailableError as reason:
            return self._unshared(worker, str(reason), until)
        return Chosen(forked, None, server)

    def _unshared(self, worker: Worker, reason: str, until: float | None) -> Chosen:
        forking = self._of_worker(self._plain, _Forking(worker))
        try:
            forked, server = forking.use(required=False, until=until)
        except UnavailableError:
            return Chosen(worker, reason)
        return Chosen(forked, reason, server)

    def _of_worker(self, those: list[_Kind], new: _Kind) -> _Kind:
        """The one of the same worker as ``new``, which is added if there is none."""
        with self._lock:
            found = next((each for each in those if each.worker == new.worker), new)
            if found is new:
                those.append(new)
        return found

    def close(self) -> None:
        """End the fork servers, and count starts from the beginning."""
        with self._lock:
            closed: list[_Forking] = [*self._templates, *self._plain]
            self._templates, self._plain = [], []
        for each in closed:
            each.close()


def _of(via: Via) -> Worker | None:
    return via if type(via) is Worker and via.stdin is None else None


class _Forking:
    """The fork server for one worker, which is started when it is worthwhile."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._lock = Lock()
        self._forked: ForkedWorkers | None = None
        self._starts = 0
        self._attempts = 0
        self._next = WORTHWHILE
        self._reason = FIRST
        self._damage: ImagesError | None = None
        """The error of the last attempt. Each start is an attempt until one succeeds."""
        self._closed = False

    def use(
        self, *, required: bool, until: float | None
    ) -> tuple[ForkedWorkers, ForkServer | None]:
        """The workers for one start. The fork server is loaded if necessary.

        The returned fork server is None if it was not compared with the present inherited state.
        Raises ``UnavailableError`` if they are not ``required``, and as ``Sharing.chosen``.
        """
        while not self._lock.acquire(timeout=_part_of_wait(until)):
            check_interrupted()
            if until is not None and time.monotonic() >= until:
                raise UnavailableError("another thread has not read the template in time")
        try:
            if self._closed:
                raise UnavailableError("the snapshot was closed at the same time")
            self._starts += 1
            if self._forked is not None and (server := self._forked.ready()) is not None:
                return self._forked, server
            if not required and self._starts < self._next and self._damage is None:
                raise UnavailableError(self._reason)
            self._attempts += 1
            self._next = self._starts + min(2**self._attempts, RARELY)
            try:
                self._check(required=required)
                if self._forked is None:
                    self._forked = self._made(None if required else PATIENCE)
                else:
                    self._forked.renew()
            except ImagesError as error:
                self._damage = error
                raise
            except (ProgramError, UnavailableError) as error:
                if required:
                    raise
                if self._damage is not None:  # a plain restore could have the changed memory
                    raise ImagesError(str(self._damage), cure=self._damage.cure) from None
                self._reason = str(error)
                raise UnavailableError(self._reason) from None
            self._reason, self._damage = CHANGED, None
            return self._forked, None
        finally:
            self._lock.release()

    def _check(self, *, required: bool) -> None:
        """Check what a fork server is prepared with."""

    def _made(self, patience: float | None) -> ForkedWorkers:
        return ForkedWorkers(self.worker, patience=patience)

    def close(self) -> None:
        """End the fork server; none is started any more."""
        with self._lock:
            self._closed = True
            if self._forked is not None:
                self._forked.close()


class _Template(_Forking):
    """The fork server with the template."""

    def __init__(self, worker: Worker, directory: Path) -> None:
        super().__init__(worker)
        self.directory = directory

    def _made(self, patience: float | None) -> ForkedWorkers:
        return SharedTemplate(self.directory / SHARED, worker=self.worker, patience=patience)

    def _check(self, *, required: bool) -> None:
        """Prepare the images. Raises ``UnavailableError`` if that is not ``required``."""
        try:
            target = prepared(self.directory, allow_untrusted=self.worker.allow_untrusted)
        except ImagesError as error:
            if required:
                raise
            raise UnavailableError(str(error)) from None
        template = Template.read(target)
        check_files(target, template)
        size = template.stored
        if not required and (room := memory_room()) < 2 * size:
            raise UnavailableError(
                f"the template needs {size} bytes, and {room} bytes are available"
            )


_Kind = TypeVar("_Kind", bound=_Forking)


def _part_of_wait(until: float | None) -> float:
    return (
        UNTIL_SIGNALS if until is None else min(UNTIL_SIGNALS, max(0.0, until - time.monotonic()))
    )
