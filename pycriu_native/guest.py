"""Parks a program at a point of its choice, so that a snapshot of it can be started many times.

The program loads what is slow to load, then calls :func:`wait`::

    from pycriu_native import guest

    model = load_model()
    start = guest.wait()        # a snapshot is taken here; returns once in each copy
    print(model.answer(sys.argv[1:]))

``pycriu_native.snapshots`` takes and starts snapshots. Without it, ``wait()`` returns None at once
and the program continues.

This file uses only the standard library. A copy of it next to the program is enough: the
package need not be installed where the program runs.

A program in another language does the same with one descriptor, a stream socket whose number is
in the variable ``PYCRIU_NATIVE_GUEST_FD``: it writes the line ``ready``, then reads one line. That
is a JSON object with the members of :class:`Start`; null members are not to be changed. End of
file in place of the line means that no snapshot was taken: the program ends.

Some state is the same in all copies and cannot be renewed: the seed of ``hash()``, stack canaries,
the layout of the address space, the pid inside the copy's pid namespace, and generators of random
numbers that the program has made itself: renew those in a function for :func:`after_start`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

__all__ = ["VARIABLE", "Start", "after_start", "before_snapshot", "wait"]

VARIABLE = "PYCRIU_NATIVE_GUEST_FD"
"""The environment variable with the number of the descriptor."""

READY = b"ready\n"
READY_TO_FORK = b"ready fork\n"
"""The same of a program that can be a zygote: :meth:`pycriu_native.snapshots.Snapshot.zygote`."""
CHUNK = 65536


class Start(NamedTuple):
    """What one copy is started with."""

    number: int
    """The number of the start, from 1; no two copies of a snapshot have the same. A random one from
    2**52 on where the snapshot's directory cannot be written. 0 in the original, if that goes on
    after the snapshot (``leave_running``)."""
    arguments: list[str] | None
    """The arguments, without the program's name; ``sys.argv`` has them too. None: unchanged."""
    environment: dict[str, str] | None
    """All variables; ``os.environ`` has them too. None: unchanged."""
    variables: dict[str, str] | None
    """Variables that are added to the environment, or None."""
    directory: str | None
    """The new working directory. None: unchanged."""
    seed: str
    """64 random hexadecimal digits, for generators of random numbers."""


Hook = TypeVar("Hook", bound=Callable[..., object])

_before: list[Callable[[], object]] = []
_after: list[Callable[[Start], object]] = []
_descriptor: int | None = None


def before_snapshot(function: Hook) -> Hook:
    """Call ``function()`` before each snapshot: close connections, drop secrets. A decorator.

    The functions are called in the order in which they were given.
    """
    _before.append(function)
    return function


def after_start(function: Hook) -> Hook:
    """Call ``function(start)`` in each copy before :func:`wait` returns. A decorator.

    The functions are called in the order in which they were given; environment, arguments, working
    directory and the generators of random numbers are set by then.
    """
    _after.append(function)
    return function


def wait(*, collect: bool = True) -> Start | None:
    """Park the program for a snapshot; return once in each copy.

    ``sys.argv``, ``os.environ`` and the working directory are those of the start then, and the
    generators of random numbers of ``random``, numpy, PyTorch and OpenSSL (``ssl``), if they are
    loaded, are reseeded. A later call waits for a snapshot of the copy, if the copy was started
    with ``savable``; else it raises ``SystemExit``. In a zygote
    (:meth:`pycriu_native.snapshots.Snapshot.zygote`) this returns in each process that is forked.

    Args:
        collect: collect garbage and move all objects to the collector's permanent generation
            (``gc.freeze()``) before the snapshot: later collections then leave memory unwritten,
            which copies share.

    Returns:
        What the copy is started with; None where no snapshot is taken, and the program just runs.

    Raises:
        SystemExit: the process that takes the snapshot has ended, or has given up; or this is a
            copy that was not started to be saved.
        OSError: the working directory cannot be entered.
    """
    global _descriptor
    if _descriptor is None:
        if VARIABLE not in os.environ:
            return None
        _descriptor = int(os.environ[VARIABLE])
    os.environ.pop(VARIABLE, None)  # the programs that this one runs are not parked
    os.set_inheritable(_descriptor, False)
    for prepare in _before:
        prepare()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or each copy writes what is buffered
    if (ssl := sys.modules.get("ssl")) is not None:
        ssl.RAND_bytes(1)  # its first use takes 2 ms: here, and not in each copy
    if collect:
        gc.collect()
        gc.freeze()
    _write(_descriptor, READY_TO_FORK)
    line = json.loads(_read_line(_descriptor))
    if "zygote" in line:
        _fork_on_request(_descriptor, line["zygote"])
        line = json.loads(_read_line(_descriptor))
    start = Start(**line)
    _apply(start)
    for resume in _after:
        resume(start)
    return start


def _fork_on_request(descriptor: int, streams: list[int]) -> None:
    """Fork a copy of this program for each request. Returns in each copy, which reads its start.

    A request is one byte with descriptors: a socket, which the copy has in place of ``descriptor``,
    and three streams for the pipes with the inodes ``streams``. The answer, on the
    socket, is a pidfd of the copy, or a line that says what failed.
    """
    import fcntl
    import socket

    control = socket.socket(fileno=os.dup(descriptor))
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"a program with {threads} threads cannot fork copies")
    fork = _Sibling()
    numbers = {number: os.fstat(number).st_ino for number in _channels()}
    places = [[number for number, inode in numbers.items() if inode == each] for each in streams]
    _write(descriptor, READY)
    while True:
        data, given, _, _ = socket.recv_fds(control, 1, 1 + len(streams), socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)  # what takes requests has ended
        # Out of the way of the standard streams, which may have been closed.
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in given]
        for fd in given:
            os.close(fd)
        try:
            pidfd = fork()
        except OSError as error:
            _answer(fds[0], f"a copy cannot be forked: {error.strerror}\n".encode(), [])
        else:
            if pidfd is None:
                break
            _answer(fds[0], READY, [pidfd])
            os.close(pidfd)
        for fd in fds:
            os.close(fd)
    control.close()
    os.setsid()  # signals to its process group are for this copy only
    for fd, targets in zip(fds, [[descriptor], *places], strict=True):
        for number in targets:
            os.dup2(fd, number, inheritable=os.get_inheritable(number))
        os.close(fd)


def _channels() -> list[int]:
    """The numbers of the pipes and sockets that are open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory itself
            mode = os.fstat(int(name)).st_mode
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                found.append(int(name))
    return found


def _answer(descriptor: int, line: bytes, fds: list[int]) -> None:
    import socket

    with (
        socket.socket(fileno=os.dup(descriptor)) as answer,
        contextlib.suppress(OSError),  # nobody waits for it any more
    ):
        socket.send_fds(answer, [line], fds)


class _Sibling:
    """Forks processes that are children of this process's parent, which gets their exit status.

    Python's own state is treated as by ``os.fork()``, with the functions of
    ``os.register_at_fork``. Those that C libraries give to ``pthread_atfork()`` are not called.
    """

    CLONE3 = 435
    PARENT, PIDFD, CHILD_CLEARTID = 0x8000, 0x1000, 0x200000
    PR_GET_TID_ADDRESS = 40

    def __init__(self) -> None:
        import ctypes

        self._c = ctypes
        self._api = ctypes.PyDLL(None, use_errno=True)
        self._api.syscall.restype = ctypes.c_long
        self._pidfd = ctypes.c_int(-1)
        self._tid = self._thread_id()
        flags, cleared = self.PARENT | self.PIDFD, ctypes.c_uint64(0)
        if not self._api.prctl(self.PR_GET_TID_ADDRESS, ctypes.byref(cleared)) and cleared.value:
            flags |= self.CHILD_CLEARTID
        # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls (clone(2))
        address = ctypes.addressof(self._pidfd)
        self._arguments = (ctypes.c_uint64 * 8)(flags, address, cleared.value)

    def _thread_id(self) -> Any:
        """Where the C library stores the id of this thread, which a fork sets; None if not found.

        It is in the structure of the thread, at the same place for all threads: 720 bytes from its
        beginning in glibc for x86_64, 208 for aarch64. PR_GET_TID_ADDRESS had this address before
        glibc 2.43 only.
        """
        import threading

        found: set[int] = set()

        def search() -> None:
            thread, tid = threading.get_ident(), threading.get_native_id()
            ids = (self._c.c_int * 256).from_address(thread)
            places = {index * 4 for index in range(256) if ids[index] == tid}
            found.intersection_update(places) if found else found.update(places)

        search()
        if len(found) > 1:  # other fields have the same number
            thread = threading.Thread(target=search)
            thread.start()
            thread.join()
        if len(found) != 1:
            return None
        return self._c.c_int.from_address(threading.get_ident() + found.pop())

    def __call__(self) -> int | None:
        """A pidfd of the new process; None in it. Raises ``OSError``."""
        c, api = self._c, self._api
        number, size = c.c_long(self.CLONE3), c.c_long(c.sizeof(self._arguments))
        arguments = c.byref(self._arguments)
        api.PyOS_BeforeFork()
        pid = api.syscall(number, arguments, size)
        if pid == 0:
            if self._tid is not None:
                self._tid.value = os.getpid()
            api.PyOS_AfterFork_Child()
            return None
        error = c.get_errno()
        api.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(error, os.strerror(error))
        return self._pidfd.value


def _write(descriptor: int, data: bytes) -> None:
    try:
        os.write(descriptor, data)
    except BrokenPipeError:
        raise SystemExit(_GIVEN_UP) from None


def _read_line(descriptor: int) -> bytes:
    """One line. Nothing follows it before the next :func:`wait`."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, CHUNK)
        if not part:
            raise SystemExit(_GIVEN_UP)
        line += part
    return line


_GIVEN_UP = "the process that takes the snapshot has ended or given up"


def _apply(start: Start) -> None:
    if start.environment is not None:
        os.environ.clear()
        os.environ.update(start.environment)
    os.environ.update(start.variables or {})
    if start.arguments is not None:
        sys.argv[1:] = start.arguments
    if start.directory is not None:
        os.chdir(start.directory)
    if start.number:
        _reseed()


def _reseed() -> None:
    """Reseed the generators of the loaded modules, each with different bytes."""
    modules = sys.modules
    if (random := modules.get("random")) is not None:
        random.seed(os.urandom(64))
    if (numpy_random := modules.get("numpy.random")) is not None:
        numpy_random.seed(list(os.urandom(256)))
    if (torch := modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    if (ssl := modules.get("ssl")) is not None:
        # OpenSSL notices a fork by its pid, which is the same in all copies.
        ssl.RAND_add(os.urandom(64), 64.0)
