"""A restored copy that forks copies of itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from .. import guest
from .._support import sockets
from .._support.closing import Closing
from .._support.lazy import socket
from .._support.unpatched import Lock, close, readable
from .._system.descriptors import descriptor_info
from ..errors import CriuError, DeadlineError, Problem
from .arguments import Environment, Text, check_call, descriptor_numbers, text_mode
from .child import PidfdChild
from .copy_request import CopyRequest, send_line
from .process import Process, reap_unowned
from .record import Record
from .restore import RestoredChild, RestoreRequest, restore_root
from .streams import Stream, Streams, refuse
from .timings import Stopwatch

if TYPE_CHECKING:
    from .aio_process import Starting

LINE = 4096
"""Limit of the bytes that are read from an error."""

PATIENCE = 5.0
"""Seconds to wait for its end after it has closed its socket."""


class ForkedChild(PidfdChild):
    """A copy that a zygote has forked; a child of this process."""

    def __init__(self, pidfd: int, zygote: Zygote) -> None:
        super().__init__(int(descriptor_info("self", pidfd)["Pid"][0]), pidfd)
        self._zygote = zygote
        """A reference that keeps the zygote alive: its end would end the copy."""

    def end(self) -> None:
        """Kill the process, and store its exit status."""
        if self.pidfd >= 0 and self.status() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            readable(self.pidfd, seconds=None)
            self.status()

    def close(self, *, wait: bool) -> bool:
        """End the process, and close its pidfd."""
        if self.pidfd >= 0:
            self.end()
            close(self.pidfd)
            self.pidfd = -1
        return True


class Zygote(Closing):
    """A restored copy that forks a copy of itself for each :meth:`start`.

    Its copies are children of this process, and differ from those of :meth:`Snapshot.start`:

    - They share the pid and mount namespaces, the host name, the network and the cgroup of the
      zygote, can see each other, and have different pids.
    - They end when the zygote ends: when it is closed, deleted or killed, or this process ends.
      Processes that a copy leaves behind also end then.
    - They share the memory of the zygote, copy-on-write.

    Synchronization: any number of threads may use it.
    """

    def __init__(
        self,
        record: Record,
        where: RestoreRequest,
        next_number: Callable[[], int],
        until: float | None,
    ) -> None:
        """Called by :meth:`.Snapshot.zygote`, which describes the exceptions."""
        self._record = record
        self._snapshot = where.snapshot
        self._next_number = next_number
        self._lock = Lock()
        self._copies: weakref.WeakSet[ForkedChild] = weakref.WeakSet()
        with ExitStack() as kept, ExitStack() as passed:
            self._control, theirs = sockets.pair()
            kept.enter_context(self._control)
            passed.enter_context(theirs)
            # CRIU accepts pipes as replacements of sockets, pipes and files.
            streams = Streams.made((PIPE, PIPE, PIPE), kept, passed)
            self._errors = streams.parent.stderr
            inodes = [os.fstat(each).st_ino for each in streams.child]
            send_line(self._control, json.dumps({"zygote": inodes}).encode() + b"\n")
            self._child = restore_root(record, streams.child, theirs.fileno(), where, Stopwatch())
            kept.callback(self._child.close, wait=True)
            passed.close()
            self._wait_until_ready(until)
            self._end = weakref.finalize(self, _end, kept.pop_all(), self._copies)

    @property
    def pid(self) -> int:
        """The pid in the namespace of this process."""
        return self._child.pid

    def _wait_until_ready(self, until: float | None) -> None:
        if not _wait(self._control, self._child, until):
            raise DeadlineError("the zygote was not ready in time")
        if self._control.recv(len(guest.READY)) != guest.READY:
            raise self._ended()

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
    ) -> Process[Any]:
        """Fork one copy. Arguments and result are those of :meth:`.Snapshot.start`.

        Raises:
            OptionError: an argument is not accepted.
            CriuError: the zygote has ended, or cannot fork.
            DeadlineError: the deadline passed.
        """
        watch = Stopwatch()
        reap_unowned()
        check_call("start", opts=None, via=None, deadline=deadline)
        given = CopyRequest(
            args=args,
            streams=(stdin, stdout, stderr),
            mode=text_mode(text, encoding, errors, bufsize),
            env=env,
            extra_env=extra_env,
            cwd=cwd,
            pass_fds=descriptor_numbers(pass_fds),
        )
        refuse(list(given.problems(self._record, by_criu=False)), "start")
        until = None if deadline is None else time.monotonic() + deadline
        number = self._next_number()
        watch.ends("check")
        with ExitStack() as kept, ExitStack() as passed:
            streams = Streams.made(given.streams, kept, passed)
            ours, theirs = sockets.pair()
            passed.enter_context(ours)
            with theirs:
                fds = [theirs.fileno(), *streams.child]
                with self._lock, contextlib.suppress(BrokenPipeError):
                    if not self._end.alive:
                        raise CriuError("the zygote is closed")
                    socket.send_fds(self._control, [b"\n"], fds)
            child = ForkedChild(self._forked(ours, until), self)
            kept.callback(child.close, wait=True)
            watch.ends("fork")
            send_line(ours, given.line(number), given.descriptors)
            self._copies.add(child)
            kept.pop_all()
        return Process(
            given.command(self._record),
            child,
            streams.parent,
            given.mode,
            number,
            snapshot=self._snapshot,
            record=self._record,
            timings=watch.timings(number, "zygote"),
        )

    def start_async(self, args: Sequence[Text] | None = None, **options: Any) -> Starting:
        """:meth:`start` for asyncio: see :meth:`.Snapshot.start_async`."""
        from .aio_process import starting  # asyncio takes long to load

        return starting(self.start, args, options)

    def _forked(self, answers: socket.socket, until: float | None) -> int:
        """Receive the pidfd of a copy over its socket."""
        if not _wait(answers, self._child, until):
            raise DeadlineError("the zygote has not forked a copy in time")
        line, fds, _, _ = socket.recv_fds(answers, LINE, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            return fds[0]
        raise CriuError(line.decode().strip()) if line else self._ended()

    def _ended(self) -> CriuError:
        """The exception for a zygote that has ended, with its exit status."""
        readable(self._child.pidfd, seconds=PATIENCE)
        assert self._errors is not None
        output = os.read(self._errors, LINE) if readable(self._errors) else b""
        shown = output.decode(errors="replace").strip()
        message = f"the zygote ended with status {self._child.status()}"
        return CriuError(message + (f": {shown}" if shown else ""))

    def close(self) -> None:
        """End the zygote and all of its copies. A second call does nothing."""
        with self._lock:
            self._end()


def zygote_problems(record: Record) -> Iterator[Problem]:
    """Why the program of a snapshot cannot fork copies of itself."""
    command = " ".join(record.command)
    if not record.forks:
        rule = "a Python program that calls pycriu_native.guest.wait() is accepted"
        yield Problem("program", command, rule)
    elif record.processes != 1:
        rule = f"it had {record.processes} processes when it was saved; one is accepted"
        yield Problem("program", command, rule)
    elif record.threads != 1:
        rule = (
            f"it had {record.threads} threads when it was saved, of which a fork has one; start "
            "them after guest.wait() (OPENBLAS_NUM_THREADS=1 disables those of numpy)"
        )
        yield Problem("program", command, rule)


def _wait(sock: socket.socket, child: RestoredChild, until: float | None) -> bool:
    """Wait until the socket is readable or the child has ended. False at ``until``."""
    seconds = None if until is None else max(0.0, until - time.monotonic())
    return readable(sock.fileno(), child.pidfd, seconds=seconds)


def _end(owned: ExitStack, copies: Iterable[ForkedChild]) -> None:
    for copy in list(copies):
        copy.end()  # otherwise its exit status would be lost
    owned.close()
