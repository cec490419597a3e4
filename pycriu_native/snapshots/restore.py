"""The restore of one copy into new namespaces."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._calls.verbs import restore_child
from .._support.frozen_dataclass import replace
from .._support.pidfd import sigkill
from .._support.unpatched import close
from .._system.socket_pair import pair
from .._transport.base import Via
from .._transport.forkserver import ForkServer
from ..enums import CgroupMode
from ..errors import ResumedError
from ..options.criu_opts import CriuOpts
from .arguments import for_caller
from .child import Child
from .copy_request import CopyRequest, send_line
from .guest_socket import GuestSocket
from .namespaces import Namespaces
from .place import Place
from .process import SnapshotProcess
from .record import Record
from .start_worker import StartWorker
from .streams import Streams
from .timings import Stopwatch
from .work_directories import WorkDirectories

PID_NAMESPACE = "pycriu-native-pid"
"""The key of the pid namespace, which a restore replaces."""


@dataclass(frozen=True, kw_only=True)
class RestoreRequest:
    """The arguments of the restore of a copy."""

    snapshot: Path
    """The directory of the snapshot."""
    images: str
    place: Place
    namespaces: Namespaces
    """New ones of this place; the restore owns them."""
    opts: CriuOpts | None
    """Those of the caller."""
    via: Via
    fork_server: ForkServer | None = None
    """That of ``via``, if a worker of it is as it must be."""
    work_directories: WorkDirectories
    deadline: float | None


class RestoredChild(Child):
    """The root process of a copy, a child of this process, and the copy's namespaces."""

    def __init__(self, pid: int, namespaces: Namespaces, worker: StartWorker) -> None:
        super().__init__(pid, os.pidfd_open(pid))
        self._namespaces = namespaces
        self._worker = worker

    def close(self, *, wait: bool) -> bool:
        """End all processes of the copy, and with ``wait`` reap them. Returns whether all are."""
        if self.pidfd < 0:
            return True
        if self._status is None:
            sigkill(self.pidfd)
        self._namespaces.end()
        if wait or self._namespaces.has_ended():
            self._namespaces.close()
            self._worker.close()
            close(self.pidfd)
            self.pidfd = -1
        return self.pidfd < 0


def start_copy(
    record: Record,
    number: int,
    given: CopyRequest,
    where: RestoreRequest,
    *,
    unshared_reason: str | None,
    savable: bool,
    watch: Stopwatch,
) -> SnapshotProcess[Any]:
    """Restore one copy as a child of this process. Raises as ``restore_child``."""
    with ExitStack() as kept, ExitStack() as passed:
        streams = Streams.made(given.streams, kept, passed)
        guest_fd, socket_of_copy, line = None, None, None
        if record.guest_key is not None:
            ours, theirs = pair()
            # The copy can read the data after this end was closed.
            (kept if savable else passed).enter_context(ours)
            passed.enter_context(theirs)
            guest_fd = theirs.fileno()
            if savable:
                inode = os.fstat(guest_fd).st_ino
                socket_of_copy = GuestSocket(ours, inode=inode, number=record.guest_fd)
            line = _Line(ours, given.line(number), given.descriptors)
        child = restore_root(
            record, streams.child, guest_fd, where, watch, None if line is None else line.send
        )
        if line is not None:
            line.send()  # a process that has ended by itself: CRIU did not report success
            if line.error is not None:
                child.close(wait=True)  # before its socket: it would print that it has to end
                raise line.error
        kept.pop_all()
    return SnapshotProcess(
        given,
        child,
        streams.parent,
        watch.timings(number, "plain" if unshared_reason else "shared"),
        record,
        where.snapshot,
        unshared_reason=unshared_reason,
        guest=socket_of_copy,
    )


class _Line:
    """The line for the main thread of a copy, which waits for it; sent once.

    Not before CRIU's response: CRIU resumes one thread after the other, and a process that ends or
    executes a program in between makes the restore fail (finalize_restore_detach in
    criu/cr-restore.c).
    """

    def __init__(self, guest: socket.socket, line: bytes, descriptors: Sequence[int]) -> None:
        self._guest, self._line, self._descriptors = guest, line, descriptors
        self._is_sent = False
        self.error: Exception | None = None

    def send(self) -> None:
        """Send it, if that was not done before. An exception is kept in ``error``."""
        if not self._is_sent:
            self._is_sent = True
            try:
                send_line(self._guest, self._line, self._descriptors)
            except Exception as error:
                self.error = error


def restore_root(
    record: Record,
    streams: Sequence[int],
    guest_fd: int | None,
    where: RestoreRequest,
    watch: Stopwatch,
    on_success: Callable[[], object] | None = None,
) -> Child:
    """Restore the processes of a snapshot with these descriptors. Raises as ``restore_child``.

    ``on_success`` is called at CRIU's response (``Connection.on_success``).
    """
    with ExitStack() as kept, ExitStack() as passed:
        inherited: dict[str, int] = {}
        if record.guest_key is not None and guest_fd is not None:
            inherited[record.guest_key] = guest_fd
        for fd, key in zip(streams, record.stream_keys, strict=True):
            if key is not None:
                inherited.setdefault(key, fd)
        namespaces = kept.enter_context(where.namespaces)
        inherited[PID_NAMESPACE] = namespaces.open("pid")
        passed.callback(close, inherited[PID_NAMESPACE])
        given = for_caller(where.opts)
        opts = replace(
            given,
            images_directory=where.images,
            work_directory=passed.enter_context(where.work_directories.new()),
            inherit_fds=[
                *(given.inherit_fds or ()),
                *((fd, key) for key, fd in inherited.items()),
            ],
            join_ns=[*(given.join_ns or ()), *where.place.joined(namespaces)],
            auto_dedup=False,  # also if a configuration file of the host sets it
            # CRIU is in the cgroup that the copy gets, and leaves it there.
            manage_cgroups=None,  # the former name of manage_cgroups_mode
            manage_cgroups_mode=CgroupMode.IGNORE,
        )
        namespaces.expect(record.pid)
        watch.ends("namespaces")
        worker = kept.enter_context(
            StartWorker(
                where.via, where.fork_server, where.place.cgroup, namespaces, watch, on_success
            )
        )
        try:
            result = restore_child(opts, via=worker, deadline=where.deadline)
        except ResumedError as error:
            pid, status = error.pid, error.status
            # It has ended by itself, unless SIGKILL, which can be CRIU's, has ended it.
            if pid is None or status in (None, -signal.SIGKILL) or record.processes > 1:
                raise
            readable_at_once = os.eventfd(1, os.EFD_CLOEXEC)  # in place of a pidfd
            return Child(pid, readable_at_once, status)
        spent = 0 if result.statistics is None else result.statistics.restore_time
        watch.ends_after("restore", spent / 1e6, before="prepare")
        worker.end()
        namespaces.restored()
        child = RestoredChild(result.pid, namespaces, worker)
        kept.pop_all()
        return child
