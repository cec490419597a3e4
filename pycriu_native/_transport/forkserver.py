"""A CRIU that has been loaded and forks workers: the Python side of ``native/forkserver.c``.

Most of what starting a worker costs is the loader's work: CRIU and some twenty libraries are
mapped and bound, three to four times what the worker needs until it waits for its request. A
fork server has that behind it. Its workers are forked before CRIU's ``main()`` and are children of
this process, so nothing of CRIU's own is shared: no configuration, no run id, no descriptor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import weakref
from collections.abc import Mapping, Sequence

from .._native.ffi import native
from .._support.lazy import socket
from .._support.light_typing import Any
from .._support.unpatched import Lock
from ..errors import ProgramError
from .program import on_disk
from .spawn import SpawnOptions
from .worker import start_worker

IMAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native", "forkserver.abi3.so")

UNTIL_LOADED = 2.0
"""Seconds that a seed gets for its first word."""

UNTIL_GROWN = 5000
"""Milliseconds that it gets for a worker."""

UNTIL_READ = 600_000
"""Milliseconds that it gets to read a template."""

MOST_INHERITED: int = native.PN_MOST_INHERITED
"""Descriptors that a worker can inherit."""

NO_INPUT = -1
"""What grows reads /dev/null: ours would be kept open by it."""

PRELOAD = "LD_PRELOAD"

_OF_ONE_WORD = frozenset(" :$")
"""What the loader takes for the end of a path, or for more than it is."""


class ForkServerUnavailableError(Exception):
    """This program grows no workers here, or not any more: each is to be started on its own."""


class ForkServer:
    """A ``criu`` that grows workers; owned.

    Everything but CRIU's own state they take over from it as it was when the seed was started:
    who uses them must know that nothing has changed since (``inherited_state.py``).
    """

    def __init__(self, program: str, env: Mapping[str, str], spawn_options: SpawnOptions) -> None:
        """``spawn_options`` is that of the workers. ``ForkServerUnavailableError``,
        ``ProgramError``, ``OSError``.
        """
        if PRELOAD in env or not _can_be_preloaded(program) or not _same_pids():
            raise ForkServerUnavailableError
        preloading = {**env, PRELOAD: IMAGE}
        self._asking = Lock()
        with _starting:
            self._line = start_worker(program, preloading, NO_INPUT, spawn_options=spawn_options)
            _seeds.add(self)
        self._line.sock.settimeout(UNTIL_LOADED)
        try:
            is_there = bool(self._line.sock.recv(16))  # another program waits for a request
        except OSError:
            is_there = False
        if not is_there:
            self._end()
            _barren.add(on_disk(program))
            raise ForkServerUnavailableError

    @property
    def pid(self) -> int:
        """The process that waits to be asked."""
        return self._line.pid

    def load_template(self, table: int, pages: Sequence[int], size: int) -> None:
        """Read a template into memory, which the workers then inherit.

        ``table`` is the descriptor of its table (``native/forkserver.h``), of ``size`` bytes;
        ``pages`` those of the files that it names. Once for each fork server. Raises ``OSError``:
        ENODATA for a file that is too short, ENOMEM; the fork server is closed then.
        """
        with self._asking:
            line, fds = self._line.sock.fileno(), [table, *pages]
            status = native.pn_load_template(line, fds, len(fds), size, UNTIL_READ)
            if status:
                self._end()
                raise OSError(-status, os.strerror(-status))

    def fork_worker(self, ends: Any, keep: Sequence[int] = ()) -> tuple[int, int]:
        """A worker with these ends (``struct pn_ends``): its pid and a pidfd.

        ``keep`` are descriptors that it inherits under the same numbers, at most
        ``MOST_INHERITED``. ``ForkServerUnavailableError`` once there can be none; the fork server
        is closed then. Any thread may call this.
        """
        with self._asking:
            line = self._line.sock.fileno()
            if line < 0:
                raise ForkServerUnavailableError
            pid = native.pn_fork_worker(line, ends, list(keep), len(keep), UNTIL_GROWN)
            if pid < 0:
                self._end()
                raise ForkServerUnavailableError
        try:
            return pid, os.pidfd_open(pid)
        except OSError as error:
            # It is our child, so that the number is no other's.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise ProgramError(
                f"pid {pid}, a worker, cannot be watched: {error.strerror}", errno=error.errno or 0
            ) from None

    def _end(self) -> None:
        """End one that does not do as it is told: what it was asked for it must not do later."""
        self._line.kill()
        self.close()

    def close(self) -> None:
        """End it; what it has grown stays. A second time does nothing."""
        with contextlib.suppress(OSError):
            self._line.sock.shutdown(socket.SHUT_RDWR)  # a forked child may hold a copy
        self._line.wake()
        self._line.wait()  # not killed at once: what was grown just now is in its group still

    def forget(self) -> None:
        """In a forked child, whose parent has it."""
        self._line.detach()


_seeds: weakref.WeakSet[ForkServer] = weakref.WeakSet()
_starting = Lock()
"""Held until a new one is among them: what a child that is forked then inherits, it knows."""


def _after_fork_in_child() -> None:
    for seed in list(_seeds):
        seed.forget()
    _starting.release()


os.register_at_fork(
    before=_starting.acquire,
    after_in_parent=_starting.release,
    after_in_child=_after_fork_in_child,
)

_barren: set[tuple[object, ...]] = set()
"""Programs that had no word to say: each wait for one is long."""


def _can_be_preloaded(program: str) -> bool:
    """Whether the loader takes our image, as far as that can be told ahead."""
    if not os.path.exists(IMAGE) or not _OF_ONE_WORD.isdisjoint(IMAGE):
        return False
    if os.stat(program).st_mode & (stat.S_ISUID | stat.S_ISGID) or on_disk(program) in _barren:
        return False
    try:
        os.getxattr(program, "security.capability")
    except OSError:
        return True
    return False  # the loader preloads nothing into a program that has more rights than its user


def _same_pids() -> bool:
    """Whether what we start has pids of our namespace: a seed tells them as it sees them."""
    with contextlib.suppress(OSError):
        ours = os.stat("/proc/self/ns/pid")
        return os.path.samestat(ours, os.stat("/proc/thread-self/ns/pid_for_children"))
    return False
