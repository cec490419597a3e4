"""One copy: namespaces, the restore into them, and the process that comes out of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .. import guest
from .._calls.verbs import restore_child
from .._native.ffi import native
from .._support.frozen_dataclass import replace
from .._support.unpatched import readable
from .._transport.base import Via
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts
from .namespaces import Namespaces
from .process import Process
from .record import Record
from .start_worker import StartWorker
from .streams import Stream, Streams, TextMode

PID_NAMESPACE = "pycriu-native-pid"
"""The key of the pid namespace, which a dump names and a restore replaces."""

LARGEST_START = 16 * 1024 * 1024
"""Bytes of arguments and environment that the socket to a copy is made to hold."""


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """The arguments of ``Snapshot.start``, checked."""

    args: Sequence[str] | None
    streams: tuple[Stream, Stream, Stream]
    mode: TextMode
    env: Mapping[str, str] | None
    extra_env: Mapping[str, str] | None
    cwd: str | None
    hostname: str | None
    network: bool | str | None
    cgroup: str | None
    opts: CriuOpts
    via: Via
    deadline: float | None
    unshared_reason: str | None
    """Why ``via`` shares no memory; None: it does."""


class RestoredChild:
    """The root process of a copy, a child of this process, and the copy's namespaces."""

    def __init__(self, pid: int, namespaces: Namespaces) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._namespaces = namespaces
        self._status: int | None = None

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        if self._status is None:
            try:
                ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                # Another part of this program has reaped it. subprocess calls that status 0, too.
                self._status = 0 if readable(self.pidfd) else None
                return self._status
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                self._status = ended.si_status if exited else -ended.si_status
        return self._status

    def close(self, *, wait: bool) -> bool:
        """End all processes of the copy; reap them if ``wait``. Whether all are reaped."""
        if self.pidfd < 0:
            return True
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._namespaces.end()
        if wait or self._namespaces.has_ended():
            self._namespaces.close()
            os.close(self.pidfd)
            self.pidfd = -1
        return self.pidfd < 0


def start_copy(images: str, record: Record, number: int, request: StartRequest) -> Process[Any]:
    """Restore one copy as a child of this process. Raises as ``restore_child``."""
    with ExitStack() as kept, ExitStack() as passed:
        streams = Streams.made(request.streams, kept, passed)
        inherited: list[tuple[int, str]] = []
        if record.guest_key is not None:
            ours, theirs = socket.socketpair()
            passed.enter_context(ours)  # what it has sent can be read when it is closed
            passed.enter_context(theirs)
            _send(ours, start_line(number, request))
            inherited.append((theirs.fileno(), record.guest_key))
        for fd, key in zip(streams.child, record.stream_keys, strict=True):
            if key is not None and key not in dict(map(reversed, inherited)):  # type: ignore[arg-type]
                inherited.append((fd, key))
        namespaces = kept.enter_context(
            Namespaces(network=request.network is True, hostname=request.hostname)
        )
        pid_namespace = namespaces.open("pid")
        passed.callback(os.close, pid_namespace)
        inherited.append((pid_namespace, PID_NAMESPACE))
        opts = replace(
            request.opts,
            images_directory=images,
            work_directory=passed.enter_context(work_directory()),
            inherit_fds=[*(request.opts.inherit_fds or ()), *inherited],
            join_ns=[*(request.opts.join_ns or ()), *_joined(namespaces, request)],
        )
        namespaces.expect(record.pid)
        with StartWorker(request.via, request.cgroup, namespaces) as via:
            result = restore_child(opts, via=via, deadline=request.deadline)
        namespaces.is_made()
        child = RestoredChild(result.pid, namespaces)
        kept.pop_all()
    return Process(
        [*record.command[:1], *(request.args or record.command[1:])],
        child,
        streams.parent,
        request.mode,
        number,
        unshared_reason=request.unshared_reason,
    )


def _joined(namespaces: Namespaces, request: StartRequest) -> Iterator[tuple[str, str]]:
    yield "mnt", namespaces.file("mnt")
    if request.hostname is not None:
        yield "uts", namespaces.file("uts")
    if request.network is True:
        yield "net", namespaces.file("net")
    elif isinstance(request.network, str):
        yield "net", request.network


@contextlib.contextmanager
def work_directory() -> Iterator[int]:
    """A directory for CRIU's log and statistics, which goes with its descriptor."""
    fd = native.pn_unnamed_directory()
    if fd >= 0:
        try:
            yield fd
        finally:
            os.close(fd)
        return
    # Before Linux 5.2, or without the right to mount.
    with tempfile.TemporaryDirectory(prefix="pycriu-native-start-") as scratch:
        fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def start_line(number: int, request: StartRequest) -> bytes:
    """The line that a copy reads: see :class:`pycriu_native.guest.Start`."""
    start = guest.Start(
        number=number,
        arguments=None if request.args is None else list(request.args),
        environment=None if request.env is None else dict(request.env),
        variables=None if request.extra_env is None else dict(request.extra_env),
        directory=request.cwd,
        seed=os.urandom(32).hex(),
    )
    return json.dumps(start._asdict()).encode() + b"\n"


def _send(guest_socket: socket.socket, line: bytes) -> None:
    """Write a line that is read later. ``OptionError`` where the socket cannot hold it."""
    if len(line) > 65536:
        for option in (socket.SO_SNDBUF, 32):  # SO_SNDBUFFORCE, beyond net.core.wmem_max
            with contextlib.suppress(OSError):
                size = min(2 * len(line), LARGEST_START)
                guest_socket.setsockopt(socket.SOL_SOCKET, option, size)
    try:
        sent = guest_socket.send(line, socket.MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    if sent != len(line):
        rule = "arguments and environment are too large to be sent to a copy at once"
        raise OptionError([Problem("args", f"{len(line)} bytes", rule)], verb="start")


def reached_by_worker(via: Via) -> Problem | None:
    """What is wrong with the argument ``via``."""
    for problem in via.refuses(inherits=True, sibling=True):
        return problem
    return None
