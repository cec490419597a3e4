"""Lets a program wait at a point of its choice, where a snapshot of it is taken.

The program completes its slow start-up, then calls :func:`wait`::

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
is a JSON object with the members of :class:`Start`; a null member means no change. End of file
instead of the line means that no snapshot was taken, and the program has to end.
The program has to reseed its random number generators with ``seed``.

Some state is the same in all copies: the seed of ``hash()``, stack canaries, the layout of the
address space, the pid inside the copy's pid namespace, the names that ``tempfile.mktemp()`` returns
next, and the ``authkey`` of ``multiprocessing``. So are the random number generators that the
program created; reseed them in a function for :func:`after_start`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import socket

__all__ = ["VARIABLE", "Start", "after_start", "before_snapshot", "wait"]

VARIABLE = "PYCRIU_NATIVE_GUEST_FD"
"""The environment variable with the number of the descriptor."""

READY = b"ready\n"
READY_TO_FORK = b"ready fork\n"
"""The same of a program that can be a zygote (:meth:`pycriu_native.snapshots.Snapshot.zygote`), and
that receives descriptors with the line."""
CHUNK = 65536
MOST_DESCRIPTORS = 253
"""Limit of the descriptors that can be sent with a line (unix(7), SCM_MAX_FD)."""


class Start(NamedTuple):
    """The parameters of one copy."""

    number: int
    """The number of the start, from 1, different for all copies of a snapshot. A random number of
    2**52 or more if the snapshot's directory is not writable or full, or no longer has this
    snapshot. 0 in
    the original program, if it continues after the snapshot (``leave_running``)."""
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
    """Call ``function()`` before each snapshot: close connections, delete secrets. A decorator.

    The functions are called in the order of their registration.
    """
    _before.append(function)
    return function


def after_start(function: Hook) -> Hook:
    """Call ``function(start)`` in each copy before :func:`wait` returns. A decorator.

    The functions are called in the order of their registration; environment, arguments, working
    directory and the generators of random numbers are set by then.
    """
    _after.append(function)
    return function


def wait(*, collect: bool = True) -> Start | None:
    """Wait for a snapshot, and return once in each copy.

    Before it returns, ``sys.argv``, ``os.environ`` and the working directory are set for the copy,
    and the random number generators of ``random``, numpy, PyTorch, OpenSSL (``ssl`` and each
    ``libcrypto``) and cryptography are reseeded, if they are loaded. A later call waits for a
    snapshot of the copy, if the copy was started with ``savable``; else it raises ``SystemExit``.
    In a zygote (:meth:`pycriu_native.snapshots.Snapshot.zygote`) this returns in each forked
    process.

    Args:
        collect: collect garbage and move all objects to the collector's permanent generation
            (``gc.freeze()``) before the snapshot, so that later collections do not write to
            memory that copies share.

    Returns:
        The parameters of the copy; None if no snapshot is taken, and the program just runs.

    Raises:
        SystemExit: the process that takes the snapshot has ended or closed the connection; or
            this is a copy that was not started with ``savable``.
        OSError: the working directory cannot be entered, or the limit of open files (RLIMIT_NOFILE)
            is too low for the descriptors of ``pass_fds``, or a thread uses the number of one; or
            this program was started by one that did not pass the descriptor on.
    """
    global _descriptor
    if _descriptor is None:
        if VARIABLE not in os.environ:
            return None
        _descriptor = _inherited(int(os.environ[VARIABLE]))
    os.environ.pop(VARIABLE, None)  # child processes must not use the descriptor
    os.set_inheritable(_descriptor, False)
    for prepare in _before:
        prepare()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(ValueError):  # it is closed
                stream.flush()  # otherwise each copy would write the buffered data
    if (ssl := sys.modules.get("ssl")) is not None:
        ssl.RAND_bytes(1)  # the first use takes 2 ms, which is saved in each copy
    openssl = list(_more_of_openssl())
    for add in openssl:
        add(b"", 0, 0.0)  # for the same reason
    if collect:
        gc.collect()
        gc.freeze()
    with _socket(_descriptor) as peer:
        _write(_descriptor, READY_TO_FORK)
        line = _read_start(peer)
    if "zygote" in line:
        _fork_on_request(_descriptor, line["zygote"])
        with _socket(_descriptor) as peer:
            # No message: the standard error is already that of the caller of the start.
            line = _read_start(peer, given_up=1)
    start = Start(**line)
    _apply(start)
    if start.number:
        _reseed(openssl)
        with contextlib.suppress(ValueError):  # it is closed
            if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.isatty():
                sys.stdout.reconfigure(line_buffering=True)  # Python does that at its start
    for resume in _after:
        resume(start)
    return start


def _inherited(descriptor: int) -> int:
    """The descriptor. ``OSError`` if it is no socket: a program in between has closed it."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return descriptor
    why = f"the socket {descriptor} of {VARIABLE} is not open: the program that has started this "
    raise OSError(errno.EBADF, why + "one must pass it on, as subprocess does with pass_fds")


def _fork_on_request(descriptor: int, streams: list[int]) -> None:
    """Fork a copy of this program for each request. Returns in each copy.

    A request is one byte with descriptors: a socket, which replaces ``descriptor`` in the copy, and
    three streams, which replace the pipes with the inodes ``streams``. The response, on the socket,
    is a pidfd of the copy, or a line with an error.
    """
    import fcntl
    import socket

    control = socket.socket(fileno=os.dup(descriptor))
    control.settimeout(None)
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
            os._exit(0)  # the process that sends requests has ended
        # Above the numbers of the standard streams, which may be closed.
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

    with _socket(descriptor) as answer, contextlib.suppress(OSError):  # the peer has closed it
        socket.send_fds(answer, [line], fds)


class _Sibling:
    """Forks processes that are children of this process's parent, which can read their exit status.

    Python's state is handled as by ``os.fork()``, with the functions of ``os.register_at_fork``.
    The functions that C libraries register with ``pthread_atfork()`` are not called.
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
        """The place where the C library stores the id of this thread; None if it is not found.

        The structure of each thread has it at the same offset: 720 in glibc for x86_64, 208 for
        aarch64. PR_GET_TID_ADDRESS returns this address with glibc before 2.43 only.
        """
        import threading

        found: set[int] = set()

        def search() -> None:
            thread, tid = threading.get_ident(), threading.get_native_id()
            ids = (self._c.c_int * 256).from_address(thread)
            places = {index * 4 for index in range(256) if ids[index] == tid}
            found.intersection_update(places) if found else found.update(places)

        search()
        if len(found) > 1:  # other fields have the same value
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


_GIVEN_UP = "the process that takes the snapshot has ended or given up"


def _write(descriptor: int, data: bytes) -> None:
    try:
        os.write(descriptor, data)
    except BrokenPipeError:
        raise SystemExit(_GIVEN_UP) from None


@contextlib.contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """A socket object of the descriptor, which remains open."""
    import socket

    result = socket.socket(fileno=descriptor)
    try:
        result.settimeout(None)  # the program can have changed the default
        yield result
    finally:
        result.detach()


def _read_start(peer: socket.socket, given_up: str | int = _GIVEN_UP) -> Any:
    """Read one line of JSON; the peer sends nothing more before the next :func:`wait`.

    ``given_up``: the message or code of the exit if there is no line. The member ``descriptors``
    of the object has the numbers for the descriptors that come with the line.
    """
    import socket

    line, fds = bytearray(), list[int]()
    while not line.endswith(b"\n"):
        part, given, _, _ = socket.recv_fds(peer, CHUNK, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not part:
            raise SystemExit(given_up)
        line += part
        fds += given
    result = json.loads(line)
    _renumber(fds, result.pop("descriptors", []))
    return result


def _renumber(fds: list[int], numbers: list[int]) -> None:
    """Give inheritable descriptors these numbers. ``OSError`` if one is open: a thread has it."""
    if len(fds) != len(numbers):  # the kernel has closed those beyond the limit
        raise OSError(errno.EMFILE, f"pass_fds: {os.strerror(errno.EMFILE)}")
    if not fds:
        return
    import fcntl

    above = max(numbers) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        if fcntl.fcntl(fd, fcntl.F_DUPFD, number) != number:
            raise OSError(errno.EEXIST, f"pass_fds: a thread has opened a file as {number}")
        os.close(fd)


def _apply(start: Start) -> None:
    if start.environment is not None:
        os.environ.clear()
        os.environ.update(start.environment)
    os.environ.update(start.variables or {})
    if start.arguments is not None:
        sys.argv[1:] = start.arguments
    if start.directory is not None:
        os.chdir(start.directory)


def _more_of_openssl() -> Iterator[Callable[[bytes, int, float], object]]:
    """``RAND_add`` of each OpenSSL that the program has loaded, beside that of ``ssl``."""
    modules = sys.modules
    if "cryptography.hazmat.bindings._rust" in modules:  # its wheels have a static one
        with contextlib.suppress(ImportError, AttributeError):
            __import__("cryptography.hazmat.bindings.openssl.binding")
            lib = modules["cryptography.hazmat.bindings.openssl.binding"].Binding.lib
            yield lib.RAND_add
    with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as maps:
        lines = [line.rstrip(b"\n") for line in maps if b"/libcrypto" in line]
        # The loader finds a library that it has loaded by its name, also if the file is deleted.
        for name in {line.split(maxsplit=5)[5].removesuffix(b" (deleted)") for line in lines}:
            with contextlib.suppress(ImportError, OSError, AttributeError):
                import ctypes

                mode = os.RTLD_NOW | os.RTLD_NOLOAD
                function = ctypes.CDLL(os.fsdecode(name), mode).RAND_add
                function.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double]
                function.restype = None
                yield function


def _reseed(openssl: Iterable[Callable[[bytes, int, float], object]]) -> None:
    """Reseed the generators of the loaded modules, each with different bytes."""
    modules = sys.modules
    if (random := modules.get("random")) is not None:
        random.seed(os.urandom(64))
    if (numpy_random := modules.get("numpy.random")) is not None:
        numpy_random.seed(list(os.urandom(256)))
    if (torch := modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    if (ssl := modules.get("ssl")) is not None:
        # OpenSSL detects forks by a change of the pid, which is the same in all copies.
        ssl.RAND_add(os.urandom(64), 64.0)
    for add in openssl:
        add(os.urandom(64), 64, 64.0)
