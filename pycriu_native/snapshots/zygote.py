"""A restored copy that forks copies of itself."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from .. import guest
from .._support.closing import Closing
from .._support.forked_child import forgets
from .._support.lazy import socket
from .._support.unpatched import Lock, readable
from .._system.descriptors import descriptor_info
from .._system.socket_pair import pair
from ..errors import CriuError, DeadlineError, Problem
from .arguments import Environment, Text, check_call, descriptor_numbers, text_mode
from .child import Child
from .copy_request import CopyRequest, send_line
from .process import SnapshotProcess, end, reap_unowned
from .record import Record
from .restore import RestoreRequest, restore_root
from .streams import Stream, Streams, refuse
from .timings import Stopwatch
from .uninterrupted import readable_or_interrupted, uninterrupted

if TYPE_CHECKING:
    from .aio_process import Starting

LINE = 4096
"""Limit of the bytes that are read from an error."""

LATE = "the zygote has not forked a copy in time"

GRACE = 1.0
"""Seconds after the deadline to wait for a copy, which is then ended."""

PATIENCE = 5.0
"""Seconds to wait for its end after it has closed its socket."""


class ForkedChild(Child):
    """A copy that a zygote has forked; a child of this process."""

    def __init__(self, pidfd: int, zygote: Zygote) -> None:
        super().__init__(int(descriptor_info("self", pidfd)["Pid"][0]), pidfd)
        self._zygote = zygote
        """A reference that keeps the zygote alive: its end would end the copy."""


class ForkRequest:
    """A request for a copy, which is a child of this process as soon as the zygote forks it."""

    def __init__(self, answers: socket.socket) -> None:
        """Takes over the socket. The copy ends with a message if it is closed before a line."""
        self.answers = answers
        self.sent = False
        self._pidfd: int | None = None

    def receive(self) -> tuple[bytes, int | None]:
        """The zygote's response, and the pidfd of the copy; neither if the zygote has ended."""
        line, fds, _, _ = socket.recv_fds(self.answers, LINE, 1, socket.MSG_CMSG_CLOEXEC)
        self._pidfd = fds[0] if fds else None
        return line, self._pidfd

    def end(self, seconds: float) -> bool:
        """Kill and reap the copy. False if the zygote does not respond in this time."""
        if self.sent and self._pidfd is None:
            if not readable(self.answers.fileno(), seconds=seconds):
                return False
            self.receive()
        if self._pidfd is not None:
            Child(0, self._pidfd).close(wait=True)
        self.answers.close()
        return True


class Zygote(Closing):
    """A restored copy that forks a copy of itself for each :meth:`start`.

    Its copies are children of this process, and differ from those of :meth:`Snapshot.start`:

    - They share the pid and mount namespaces, the host name, the network and the cgroup of the
      zygote, can see each other, and have different pids.
    - They end when the zygote ends: when it is closed, deleted or killed, or this process ends.
      Processes that a copy leaves behind also end then.
    - They share the memory of the zygote, copy-on-write.

    A forked child of this process cannot use it, and its end does not end the zygote.

    Synchronization: any number of threads may use it.
    """

    def __init__(
        self,
        record: Record,
        where: RestoreRequest,
        next_number: Callable[[float | None], int],
        until: float | None,
    ) -> None:
        """Called by :meth:`.Snapshot.zygote`, which describes the exceptions."""
        self._record = record
        self._snapshot = where.snapshot
        self._next_number = next_number
        self._lock = Lock()
        self._copies: weakref.WeakSet[ForkedChild] = weakref.WeakSet()
        self._late: list[ForkRequest] = []
        """Cancelled requests to which the zygote has not responded."""
        with ExitStack() as kept, ExitStack() as passed:
            self._control, theirs = pair()
            kept.enter_context(self._control)
            passed.enter_context(theirs)
            # CRIU accepts pipes as replacements of sockets, pipes and files.
            streams = Streams.made((PIPE, PIPE, PIPE), kept, passed)
            self._errors = streams.parent["stderr"]
            inodes = [os.fstat(each).st_ino for each in streams.child]
            send_line(self._control, json.dumps({"zygote": inodes}).encode() + b"\n")
            self._child = restore_root(record, streams.child, theirs.fileno(), where, Stopwatch())
            kept.callback(self._child.close, wait=True)
            passed.close()
            if not _wait(self._control, self._child, until):
                raise DeadlineError("the zygote was not ready in time")
            if self._control.recv(len(guest.READY)) != guest.READY:
                raise self._ended()
            self._end = weakref.finalize(self, _end, kept.pop_all(), self._copies, self._late)
            forgets(self)

    @property
    def pid(self) -> int:
        """The pid in the namespace of this process."""
        return self._child.pid

    def start(
        self,
        args: Sequence[Text] | None = None,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Environment | None = None,
        extra_env: Environment | None = None,
        cwd: Text | None = None,
        pass_fds: Iterable[int] = (),
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        deadline: float | None = None,
    ) -> SnapshotProcess[Any]:
        """Fork one copy. Arguments and result are those of :meth:`.Snapshot.start`.

        Raises:
            OptionError: an argument is not accepted.
            CriuError: the zygote has ended, or cannot fork.
            DeadlineError: the deadline passed.
        """
        watch = Stopwatch()
        reap_unowned()
        check_call("start", opts=None, via=None, deadline=deadline)
        streams, mode = (stdin, stdout, stderr), text_mode(text, encoding, errors, bufsize)
        descriptors = descriptor_numbers(pass_fds)
        given = CopyRequest(args, streams, mode, env, extra_env, cwd, descriptors)
        refuse(list(given.problems(self._record, by_criu=False)), "start")
        until = None if deadline is None else time.monotonic() + deadline
        number = self._next_number(until)
        watch.ends("check")
        start = functools.partial(self._start, given, number, until, watch)
        return uninterrupted("start", start, end)

    def _start(
        self, given: CopyRequest, number: int, until: float | None, watch: Stopwatch
    ) -> SnapshotProcess[Any]:
        with ExitStack() as passed, ExitStack() as kept:
            streams = Streams.made(given.streams, kept, passed)
            ours, theirs = pair()
            request = ForkRequest(ours)
            kept.callback(self._cancel, request)
            with theirs:
                fds = [theirs.fileno(), *streams.child]
                with self._lock, contextlib.suppress(BrokenPipeError):
                    if not self._end.alive:
                        raise CriuError("the zygote is closed, or belongs to the parent process")
                    if until is not None and time.monotonic() >= until:
                        raise DeadlineError(LATE)
                    request.sent = True
                    socket.send_fds(self._control, [b"\n"], fds)
            child = ForkedChild(self._forked(request, until), self)
            watch.ends("fork")
            self._end_late()
            send_line(ours, given.line(number), given.descriptors)
            self._copies.add(child)
            kept.pop_all()
            request.answers.close()
        timings = watch.timings(number, "zygote")
        return SnapshotProcess(given, child, streams.parent, timings, self._record, self._snapshot)

    def start_async(
        self, args: Sequence[Text] | None = None, *, limit: int = 2**16, **options: Any
    ) -> Starting:
        """:meth:`start` for asyncio: see :meth:`.Snapshot.start_async`."""
        from .aio_process import Starting  # asyncio takes long to load

        return Starting(self.start, args, limit, options)

    def _forked(self, request: ForkRequest, until: float | None) -> int:
        """Receive the pidfd of a copy over its socket."""
        if not _wait(request.answers, self._child, until):
            raise DeadlineError(LATE)
        line, pidfd = request.receive()
        if pidfd is not None:
            return pidfd
        raise CriuError(line.decode().strip()) if line else self._ended()

    def _cancel(self, request: ForkRequest) -> None:
        """End the copy of a request. If it is forked later, it ends by itself."""
        if not request.end(GRACE):
            request.answers.shutdown(socket.SHUT_WR)
            with self._lock:
                self._late.append(request)

    def _end_late(self) -> None:
        """Reap the copies of cancelled requests. The zygote responds in the order of requests."""
        with self._lock:
            self._late[:] = [each for each in self._late if not each.end(0.0)]

    def _ended(self) -> CriuError:
        """The exception for a zygote that has ended, with its exit status."""
        readable(self._child.pidfd, seconds=PATIENCE)
        output = os.read(self._errors, LINE) if readable(self._errors) else b""
        shown = output.decode(errors="replace").strip()
        message = f"the zygote ended with status {self._child.status()}"
        return CriuError(message + (f": {shown}" if shown else ""))

    def close(self) -> None:
        """End the zygote and all of its copies. A second call does nothing."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked child: the zygote and its copies belong to the parent."""
        self._end.detach()
        self._lock = Lock()
        self._control.close()


def zygote_problems(record: Record) -> Iterator[Problem]:
    """Why the program of a snapshot cannot fork copies of itself."""
    if not record.forks:
        rule = "a Python program that calls pycriu_native.guest.wait() is accepted"
    elif record.processes != 1:
        rule = f"it had {record.processes} processes when it was saved; one is accepted"
    elif record.threads != 1:
        rule = (
            f"it had {record.threads} threads when it was saved, of which a fork has one; start "
            "them after guest.wait() (OPENBLAS_NUM_THREADS=1 disables those of numpy)"
        )
    else:
        return
    yield Problem("program", " ".join(record.command), rule)


def _wait(sock: socket.socket, child: Child, until: float | None) -> bool:
    """Wait until the socket is readable or the child has ended. False at ``until``."""
    seconds = None if until is None else max(0.0, until - time.monotonic())
    return readable_or_interrupted(sock.fileno(), child.pidfd, seconds=seconds)


def _end(owned: ExitStack, copies: Iterable[ForkedChild], late: Iterable[ForkRequest]) -> None:
    for copy in list(copies):
        copy.end()  # otherwise its exit status would be lost
    owned.close()
    for request in late:
        request.answers.close()
