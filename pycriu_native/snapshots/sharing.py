"""The decision which starts of a snapshot share memory if the caller passes no template."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .._support.closing import Closing
from .._support.unpatched import Lock, close
from .._system import trusted_path
from .._system.memory_room import memory_room
from .._transport.base import Via
from .._transport.worker import Worker
from ..errors import ImagesError, Problem, ProgramError
from .shared_template import SharedTemplate
from .template import Template, prepare

SHARED = "shared"
"""The subdirectory of a snapshot with the images whose memory is a template."""

WORTHWHILE = 2
"""The number of the start that reads the template. Reading takes as long as one to five plain
restores, and as much memory as one, which is no gain for a program that starts a single copy."""

RARELY = 64
"""Largest number of starts until the next attempt; attempts come after 2, 4, 8, … starts."""

PATIENCE = 5.0
"""Time limit for the loading of CRIU if sharing is not required, in seconds."""

FIRST = "the first start with this Snapshot is not shared; share_memory=True shares it"
CHANGED = "the process that holds the template was killed, or what CRIU inherits has changed"


class UnsharedError(Exception):
    """Memory is not shared; the text is the reason."""


def prepared(directory: Path, *, allow_untrusted: bool) -> Path:
    """The images of a snapshot for sharing; the first call creates them. Raises ``ImagesError``."""
    try:
        fd = trusted_path.open_directory(
            str(directory), make=False, allow_untrusted=allow_untrusted
        )
    except OSError as error:
        raise ImagesError(
            f"{directory} cannot be used: {error.strerror}", errno=error.errno or 0
        ) from None
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


class Sharing(Closing):
    """The templates of one snapshot, one for each worker of its starts. Owned by this object.

    Synchronization: any number of threads may use it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._templates: list[_Template] = []

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

    def chosen(
        self, share_memory: bool | None, via: Via, until: float | None
    ) -> tuple[Via, str | None]:
        """A template, or ``via`` itself and the reason why memory is not shared.

        Raises ``ProgramError`` and ``ImagesError`` if sharing is required but impossible, and
        ``ImagesError`` if the template has changed.
        """
        if isinstance(via, SharedTemplate):
            return via, None
        if share_memory is False:
            return via, "share_memory=False"
        if (worker := _of(via)) is None:
            return via, "via is not a Worker without stdin"
        try:
            return self._template_of(worker).use(required=bool(share_memory), until=until), None
        except UnsharedError as reason:
            return via, str(reason)

    def _template_of(self, worker: Worker) -> _Template:
        with self._lock:
            for each in self._templates:
                if each.worker == worker:
                    return each
            self._templates.append(_Template(self._directory, worker))
            return self._templates[-1]

    def close(self) -> None:
        """End the templates, and count starts from the beginning."""
        with self._lock:
            templates, self._templates = self._templates, []
        for each in templates:
            each.close()


def _of(via: Via) -> Worker | None:
    return via if type(via) is Worker and via.stdin is None else None


class _Template:
    """The template for one worker."""

    def __init__(self, directory: Path, worker: Worker) -> None:
        self.directory = directory
        self.worker = worker
        self._lock = Lock()
        self._template: SharedTemplate | None = None
        self._starts = 0
        self._attempts = 0
        self._next = WORTHWHILE
        self._reason = FIRST

    def use(self, *, required: bool, until: float | None) -> SharedTemplate:
        """The template for one start. It is read if necessary, after a wait for another thread.

        Raises ``UnsharedError`` if it is not ``required``, and as ``Sharing.chosen``.
        """
        if not self._lock.acquire(timeout=-1 if until is None else _remaining(until)):
            raise UnsharedError("another thread has not read the template in time")
        try:
            self._starts += 1
            if self._template is not None and self._template.is_ready():
                return self._template
            if not required and self._starts < self._next:
                raise UnsharedError(self._reason)
            self._attempts += 1
            self._next = self._starts + min(2**self._attempts, RARELY)
            try:
                result = self._read(required=required)
            except UnsharedError as error:
                self._reason = str(error)
                raise
            self._reason = CHANGED
            return result
        finally:
            self._lock.release()

    def _read(self, *, required: bool) -> SharedTemplate:
        try:
            target = prepared(self.directory, allow_untrusted=self.worker.allow_untrusted)
        except ImagesError as error:
            if required:
                raise
            raise UnsharedError(str(error)) from None
        size = Template.read(target).stored
        if not required and (room := memory_room()) < 2 * size:
            raise UnsharedError(f"the template needs {size} bytes, and {room} bytes are available")
        try:
            if self._template is None:
                patience = None if required else PATIENCE
                self._template = SharedTemplate(target, worker=self.worker, patience=patience)
            else:
                self._template.renew()
            return self._template
        except ProgramError as error:
            if required:
                raise
            raise UnsharedError(str(error)) from None

    def close(self) -> None:
        """End the fork server."""
        with self._lock:
            if self._template is not None:
                self._template.close()


def _remaining(until: float) -> float:
    return max(0.0, until - time.monotonic())
