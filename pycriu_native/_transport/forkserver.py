"""ForkServer: a loaded ``criu`` that forks workers; the Python side of ``native/forkserver.c``.

Most of the time of starting a worker is spent in the loader, which maps and binds CRIU and some
twenty libraries: three to four times as long as the rest of the start. The fork server does this
once. It forks each worker before CRIU's ``main()``, as a child of the caller, so that workers
share no state of CRIU: no configuration, no run id, no descriptor.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import weakref
from collections.abc import Mapping, Sequence

from .._native.ffi import native
from .._support.forked_child import forgets, hold_at_fork
from .._support.lazy import signal, socket
from .._support.light_typing import Any
from .._support.pidfd import sigkill
from .._support.unpatched import Lock, original
from .._system.elf import is_static
from ..errors import ProgramError
from .program import on_disk
from .spawn import SpawnOptions
from .worker import PATIENCE, start_worker

IMAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native", "forkserver.abi3.so")

UNTIL_LOADED = 2.0
"""Default timeout of a fork server's first message, in seconds."""

UNTIL_FORKED = 5000
"""Timeout of forking a worker, in milliseconds."""

UNTIL_READ = 600_000
"""Timeout of reading a template, in milliseconds."""

MAX_INHERITED: int = native.PN_MAX_INHERITED
"""Descriptors that a worker can inherit."""

# Loaded with this module, not first on the thread of a pool. Not by ``lazy``, which locks
# ``no_fork``: a thread that has locked it can wait for the import of this module.
_ = original("socket", "socket"), original("signal", "SIGKILL")

NO_INPUT = -1
"""The workers read /dev/null: they would keep the caller's standard input open."""

PRELOAD = "LD_PRELOAD"

_SPECIAL_TO_LOADER = frozenset(" :$")
"""Characters that separate or expand paths in LD_PRELOAD."""


class ForkServerUnavailableError(Exception):
    """This program cannot be a fork server here, or has ended: start each worker on its own.

    The message is the reason.
    """


class ForkServer:
    """A ``criu`` process that forks workers; owned.

    The workers inherit the state that the fork server had at its start: use them only while that
    state has not changed for the caller (``inherited_state.py``).
    """

    def __init__(
        self,
        program: str,
        env: Mapping[str, str],
        spawn_options: SpawnOptions,
        *,
        patience: float | None = None,
    ) -> None:
        """``spawn_options`` are those of the workers; ``patience`` in seconds is the time until
        the first message, None: ``UNTIL_LOADED``.

        Raises ``ForkServerUnavailableError``, ``ProgramError``, ``OSError``.
        """
        if reason := _why_not(program, env):
            raise ForkServerUnavailableError(reason)
        preloading = {**env, PRELOAD: IMAGE}
        self._fork_lock = Lock()
        with _starting:
            self._connection = start_worker(
                program, preloading, NO_INPUT, spawn_options=spawn_options
            )
            self.pid, self.program = self._connection.pid, program
            _servers.add(self)
            forgets(self)
        self._connection.sock().settimeout(UNTIL_LOADED if patience is None else patience)
        try:
            ready = bool(self._connection.sock().recv(16))  # another program waits for a request
        except OSError:
            ready = False
        if not ready:
            self._connection.kill()
            self.close()
            _unable.add(on_disk(program))
            raise ForkServerUnavailableError(_NOT_LOADED.format(program))

    @property
    def is_open(self) -> bool:
        """Whether workers can be forked: not after :meth:`close`, nor once one has failed."""
        return self._connection.fd >= 0

    def load_template(self, table: int, pages: Sequence[int], size: int) -> None:
        """Read a template into memory, which the workers then inherit.

        ``table`` is the descriptor of its table (``native/forkserver.h``), of ``size`` bytes;
        ``pages`` those of the files that it names. Once for each fork server. Raises ``OSError``:
        ENODATA for a file that is too short, ENOMEM; the fork server is closed then.
        """
        with self._fork_lock:
            fd, fds = self._connection.fd, [table, *pages]
            status = native.pn_load_template(fd, fds, len(fds), size, UNTIL_READ)
            if status:
                self._end()
                raise OSError(-status, os.strerror(-status))

    def fork_worker(self, channel: Any, keep: Sequence[int] = ()) -> tuple[int, int]:
        """Fork a worker with this channel (``struct pn_channel``). Returns its pid and a pidfd.

        ``keep`` are descriptors that it inherits under the same numbers, at most
        ``MAX_INHERITED``. ``ForkServerUnavailableError`` if the fork server has ended; it is
        closed then. May be called from any thread.
        """
        with self._fork_lock:
            fd = self._connection.fd
            if fd < 0:
                raise ForkServerUnavailableError("the fork server has ended")
            pid = native.pn_fork_worker(fd, channel, list(keep), len(keep), UNTIL_FORKED)
            if pid < 0:
                self._end()
                raise ForkServerUnavailableError(f"it forks no worker: {os.strerror(-pid)}")
        try:
            return pid, os.pidfd_open(pid)
        except OSError as error:
            _kill_child(pid)
            raise ProgramError(
                f"pid {pid}, a worker, cannot be watched: {error.strerror}", errno=error.errno or 0
            ) from None

    def _end(self) -> None:
        """Kill a fork server that did not respond, and the worker that it may have forked.

        A worker sends its pid, and then closes its copy of the socket.
        """
        # Not its process group: a new worker would be killed before it sends its pid.
        sigkill(self._connection.pidfd)
        self._connection.sock().settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            while answer := self._connection.sock().recv(16):
                pid = int.from_bytes(answer, sys.byteorder, signed=True)
                if pid > 0:
                    _kill_child(pid)
        self._close()

    def close(self) -> None:
        """End it; its workers stay. May be called again."""
        with self._fork_lock:  # a worker that is being forked has to send its pid
            self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.sock().shutdown(socket.SHUT_RDWR)  # a forked child may hold a copy
        self._connection.wake()
        self._connection.wait()  # not killed: a new worker may be in its process group still

    def forget(self) -> None:
        """In a forked child: close the copy of the parent's socket."""
        self._connection.detach()


def _kill_child(pid: int) -> None:
    """Kill and reap an unreaped child of this process, whose number is therefore not reused."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


_servers: weakref.WeakSet[ForkServer] = weakref.WeakSet()
_starting = Lock()
"""Held until a new fork server is known: a child forked meanwhile would not forget it."""
hold_at_fork(_starting)


def fork_server_pids() -> frozenset[int]:
    """The pids of the running fork servers of this process."""
    return frozenset(server.pid for server in list(_servers) if server.is_open)


_unable: set[tuple[object, ...]] = set()
"""Programs that sent no first message: they are not tried again, which would take UNTIL_LOADED."""


_NOT_LOADED = (
    "{} does not load a preloaded library: it is static, or a script that clears LD_PRELOAD"
)


def _why_not(program: str, env: Mapping[str, str]) -> str:
    """The reason why the loader would not preload IMAGE, as far as that can be checked; or ""."""
    if PRELOAD in env:
        return f"{PRELOAD} is set for the worker"
    if not os.path.exists(IMAGE):
        return f"{IMAGE} is missing"
    if not _SPECIAL_TO_LOADER.isdisjoint(IMAGE):
        return f"the path {IMAGE!r} has a space, a colon or a $, which {PRELOAD} cannot name"
    ignored = f"and the loader ignores {PRELOAD} for programs with more rights than their user"
    if os.stat(program).st_mode & (stat.S_ISUID | stat.S_ISGID):
        return f"{program} is setuid or setgid, {ignored}"
    if is_static(program) or on_disk(program) in _unable:
        return _NOT_LOADED.format(program)
    with contextlib.suppress(OSError):
        os.getxattr(program, "security.capability")
        return f"{program} has file capabilities, {ignored}"
    if not _same_pids():
        return "processes that are started here have pids of another namespace"
    return ""


def _same_pids() -> bool:
    """Whether children get pids of this namespace: the fork server sends them as it sees them."""
    with contextlib.suppress(OSError):
        ours = os.stat("/proc/self/ns/pid")
        return os.path.samestat(ours, os.stat("/proc/thread-self/ns/pid_for_children"))
    return False
