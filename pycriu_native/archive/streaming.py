"""Dump into a stream and restore from one, without images on a disk.

CRIU can pass each image file to another process through a pipe (``stream``). That process is
usually ``criu-image-streamer``; here it is a thread. It writes one stream, to a file, a socket or
a program that compresses or encrypts::

    with open("ckpt.stream", "wb") as stream:
        dump_stream(4242, CriuOpts(), stream)

    with open("ckpt.stream", "rb") as stream:
        restore_stream(CriuOpts(), stream)

A restore requests the files in its own order, so all of them are in memory by then. The
socket's protocol is that of CRIU's ``criu/img-streamer.c``; over RPC it works since 4.3.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Self

from .._calls import verbs
from .._calls.call import Call
from .._calls.notification import Hook, Notification
from .._support.closing import Closing
from .._support.lazy import socket
from .._support.scratch import scratch_directory
from .._support.sockets import blocking
from .._support.unpatched import Condition, Thread, close, poll
from .._system.process_identity import Target, identified, number_of
from .._system.process_tree import is_above
from .._transport.base import Via
from ..enums import Notify
from ..errors import ImagesError, OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..results import DumpResult, RestoreResult

MAGIC = b"pycriu_native images 1\n"
"""The first bytes of a stream."""

NO_STREAM = "this is not a stream of images"

CAPTURE, SERVE = "streamer-capture.sock", "streamer-serve.sock"
"""The names of the socket that CRIU connects to."""

FRAME = struct.Struct("<II")
"""A frame of a stream: the number of a file, and the number of its bytes that follow. A frame of
file 0 is a name, which opens the file with the next number; an empty one ends the stream."""

BY_SIZE = "nftables-"
"""Prefix of the images for which CRIU uses the file size, which is 0 for a pipe: it would restore
no rules, without an error (``criu/net.c``, ``do_restore_nftables``, 4.3). Other images are read to
the end, or have their sizes in them."""

LOCK = re.compile(
    rb"^table \S+ CRIU-[^\n]*\n.*?^\}|^\tchain CRIU \{.*?^\t\}|^[^\n]* jump CRIU$", re.M | re.S
)
"""CRIU's network lock, of nftables and of iptables-nft, which only connections need."""

NO_RULE = re.compile(
    rb"(table ip6? filter \{|chain (INPUT|OUTPUT|FORWARD) \{|\}"
    rb"|type filter hook \w+ priority \w+; policy accept;)?"
)
"""Lines of iptables-nft for its own tables and chains."""

CHUNK = 1 << 20
LARGEST_NAME = 255


def dump_stream(
    pid: Target,
    opts: CriuOpts,
    to: BinaryIO,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> DumpResult:
    """:func:`pycriu_native.dump` that writes its images to ``to`` while they are made.

    ``to`` stays open. ``opts`` must not have an images directory; CRIU's log is kept if they have a
    ``work_directory``. An exception of ``to.write`` undoes the dump, and is raised. A truncated
    stream is always detected. A dump of a network namespace with rules of nftables is refused with
    ``ImagesError``: CRIU does not restore them from a stream.

    Raises as ``dump``. Needs CRIU 4.3 and its libcriu.
    """
    target = identified(pid)
    number = number_of(target)
    if is_above(number, os.getpid()):
        rule = "the caller is in this tree, and cannot receive a stream while it is frozen"
        raise OptionError([Problem("pid", number, rule)], verb="dump_stream", pid=number)

    with _place(opts, CAPTURE) as (_, own, listener):
        capture = _Capture(listener, to)

        def hook(notification: Notification) -> object:
            answer = None if on_notify is None else on_notify(notification)
            if notification.action is Notify.POST_DUMP:
                capture.complete()  # while the dump can still be undone
            return answer

        request = verbs.dump_request(target, own, via, hook, deadline)
        request = replace(request, abort=capture.abort)
        with capture:  # writes to the stream: not before the checks of the request
            result = verbs.dump_result(request, Call(request).wait())
    return replace(result, images="", log=None if opts.work_directory is None else result.log)


def restore_stream(
    opts: CriuOpts,
    source: BinaryIO,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
) -> RestoreResult:
    """:func:`pycriu_native.restore` of what :func:`dump_stream` wrote.

    All of ``source`` is read into memory, and checked for its end, before CRIU is started. A
    temporary directory has the images without the pages, from which a failed restore is undone.

    Raises as ``restore``, and ``ImagesError`` for an invalid or incomplete stream, and for one with
    rules of nftables, which CRIU would not restore. Needs CRIU 4.3 and its libcriu.
    """
    with (
        _place(opts, SERVE) as (directory, own, listener),
        Images(source) as images,
        _Serve(listener, images),
    ):
        images.write(directory)
        result = verbs.restore(own, via=via, on_notify=on_notify, deadline=deadline)
    return replace(result, images="", log=None if opts.work_directory is None else result.log)


@contextlib.contextmanager
def _place(opts: CriuOpts, name: str) -> Iterator[tuple[str, CriuOpts, socket.socket]]:
    """A directory for CRIU, the options that name it, and the socket in it for CRIU."""
    problems = [
        Problem(field, getattr(opts, field), "a stream has no directory of images")
        for field in ("images_directory", "images_dir", "parent_image", "lazy_pages")
        if getattr(opts, field) is not None
    ]
    if problems:
        raise OptionError(problems)
    with (
        scratch_directory("pycriu-native-stream-") as directory,
        blocking(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener,
    ):
        listener.bind(os.path.join(directory, name))
        listener.listen(1)
        yield directory, replace(opts, images_directory=directory, stream=True), listener


class _CriuEnded(Exception):
    """CRIU has closed the socket, or was killed: the call that started it reports this."""


@contextlib.contextmanager
def _with_criu() -> Iterator[None]:
    """Raise ``_CriuEnded`` if the connection to CRIU breaks; those of the caller are others."""
    try:
        yield
    except ConnectionError:
        raise _CriuEnded from None


class _Streamer:
    """A thread that exchanges images with CRIU: one message and one pipe for each file."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._changed = Condition()
        self._over = False
        self._cut = False
        """Whether CRIU ended in the middle of a request."""
        self.failure: BaseException | None = None
        self._thread = Thread(target=self._body, name="image streamer")
        self._poll = poll()  # selectors.DefaultSelector can be that of gevent or eventlet
        self._open_files: dict[int, Any] = {}
        """What the descriptors are for that are waited for; None for the connection to CRIU."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait for a CRIU
        self._thread.join()
        if self.failure is not None:
            raise self.failure from error

    def _body(self) -> None:
        try:
            criu, _ = self._listener.accept()
        except OSError:
            return
        try:
            with blocking(criu) as criu:
                self._wait_for(criu.fileno(), select.POLLIN, None)
                while self._open_files:
                    for fd, _ in self._poll.poll():
                        if fd != criu.fileno():
                            self._move(fd, self._open_files[fd])
                        elif (name := _request(criu)) is not None:
                            self._open(criu, name)
                        else:
                            self._remove(fd)
                    with self._changed:
                        self._changed.notify_all()
        except _CriuEnded:
            self._cut = True
        except BaseException as error:
            self.failure = error
        finally:
            for fd, data in self._open_files.items():
                if data is not None:
                    close(fd)  # CRIU gets EPIPE
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _wait_for(self, fd: int, events: int, data: object) -> None:
        self._poll.register(fd, events)
        self._open_files[fd] = data

    def _remove(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._open_files[fd]

    def _add(self, criu: socket.socket, events: int, data: object) -> None:
        """Receive the pipe that CRIU sends."""
        fd = _descriptor(criu)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)
        os.set_blocking(fd, False)
        self._wait_for(fd, events, data)

    def _drop(self, fd: int) -> None:
        self._remove(fd)
        close(fd)

    def _open(self, criu: socket.socket, name: str) -> None:
        raise NotImplementedError

    def _move(self, fd: int, data: Any) -> None:
        raise NotImplementedError


class _Capture(_Streamer):
    """Writes the images of a dump as a stream."""

    def __init__(self, listener: socket.socket, to: BinaryIO) -> None:
        super().__init__(listener)
        self._to = to
        self._names: list[str] = []
        self._by_size: dict[int, bytes] = {}
        self._aborted = False

    def __enter__(self) -> Self:
        self._to.write(MAGIC)
        return super().__enter__()

    def _open(self, criu: socket.socket, name: str) -> None:
        encoded = os.fsencode(name)
        self._to.write(FRAME.pack(0, len(encoded)) + encoded)
        self._names.append(name)
        number = len(self._names)
        if name.startswith(BY_SIZE):
            self._by_size[number] = b""
        self._add(criu, select.POLLIN, number)

    def abort(self) -> None:
        """Stop reading: CRIU's next write to a pipe fails. May be called from any thread."""
        self._aborted = True

    def _move(self, fd: int, data: Any) -> None:
        piece = b"" if self._aborted else os.read(fd, CHUNK)
        if data in self._by_size:
            self._by_size[data] += piece
        if piece:
            self._to.write(FRAME.pack(data, len(piece)))
            self._to.write(piece)
        else:
            self._drop(fd)

    def complete(self) -> None:
        """Wait until all files are written, and end the stream. Raises the cause of a failure."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._open_files) == 1)
        if self.failure is not None:
            raise self.failure
        if self._cut:
            raise ImagesError("CRIU ended in the middle of an image")
        _check_rules("dump_stream", self._names, self._by_size.values())
        self._to.write(FRAME.pack(0, 0))
        self._to.flush()


class Images(Closing):
    """A complete stream in memory, with the positions of the bytes of each file."""

    def __init__(self, source: BinaryIO) -> None:
        self.fd = os.memfd_create("images", os.MFD_CLOEXEC)
        self.files: dict[str, list[tuple[int, int]]] = {}
        """The pieces of each file by its name: offset and size."""
        try:
            self._read(source)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the memory."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    def write(self, directory: str) -> None:
        """Write the files without the pages, from which a failed restore is undone."""
        for name in self.files:
            if name.endswith(".img") and not name.startswith("pages-"):
                with open(os.path.join(directory, name), "xb") as file:
                    file.write(self._content(name))

    def _content(self, name: str) -> bytes:
        return b"".join(os.pread(self.fd, size, offset) for offset, size in self.files[name])

    def _read(self, source: BinaryIO) -> None:
        if _exactly(source, len(MAGIC), NO_STREAM) != MAGIC:
            raise ImagesError(NO_STREAM)
        numbers: list[list[tuple[int, int]]] = []
        end = 0
        while True:
            number, size = FRAME.unpack(_exactly(source, FRAME.size))
            if number == 0 and size == 0:
                break
            if number == 0:
                name = os.fsdecode(_exactly(source, min(size, LARGEST_NAME + 1)))
                if len(name) > LARGEST_NAME or "/" in name or name in self.files:
                    raise ImagesError(f"the stream has a file that CRIU does not make: {name!r}")
                self.files[name] = []
                numbers.append(self.files[name])
                continue
            if number > len(numbers):
                raise ImagesError(f"the stream has data of file {number} before its name")
            numbers[number - 1].append((end, size))
            while size:
                data = source.read(min(size, CHUNK))
                if not data:
                    raise ImagesError("the stream is cut short")
                os.write(self.fd, data)
                end += len(data)
                size -= len(data)
        rules = [self._content(name) for name in self.files if name.startswith(BY_SIZE)]
        _check_rules("restore_stream", self.files, rules)


class _Serve(_Streamer):
    """Sends CRIU the files that it requests."""

    def __init__(self, listener: socket.socket, images: Images) -> None:
        super().__init__(listener)
        self._images = images

    def _open(self, criu: socket.socket, name: str) -> None:
        pieces = self._images.files.get(name)
        with _with_criu():
            criu.sendall(struct.pack("<IBB", 2, 0x08, pieces is not None))
        if pieces is not None:
            self._add(criu, select.POLLOUT, list(reversed(pieces)))

    def _move(self, fd: int, data: Any) -> None:
        remaining: list[tuple[int, int]] = data
        if not remaining:
            self._drop(fd)
            return
        offset, size = remaining.pop()
        try:
            moved = os.splice(self._images.fd, fd, size, offset, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            moved = 0
        except BrokenPipeError:  # CRIU has read enough of it
            self._drop(fd)
            return
        if moved < size:
            remaining.append((offset + moved, size - moved))


def _check_rules(verb: str, names: Iterable[str], rules: Collection[bytes]) -> None:
    """Raise ``ImagesError`` for rules that CRIU does not restore from a stream."""
    others = (LOCK.sub(b"", text) for text in rules)
    if not all(NO_RULE.fullmatch(line.strip()) for text in others for line in text.splitlines()):
        what = "rules of nftables"
    elif any(rules) and any(name.startswith("tcp-stream-") for name in names):
        what = "TCP connections, locked by nftables"
    else:
        return
    cause = f"the network namespace has {what}, which CRIU does not restore from a stream"
    cure = "dump into a directory, which pack() makes one stream"
    raise ImagesError(f"{verb}: {cause}; {cure}", verb=verb, cause=cause, cure=cure)


# ---- CRIU's messages: a length of four bytes, and a protobuf message of one field ----


def _request(criu: socket.socket) -> str | None:
    """The name of the file that CRIU opens next; None after the last one."""
    with _with_criu():
        head = criu.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        (size,) = struct.unpack("<I", head)
        body = criu.recv(min(size, LARGEST_NAME + 8), socket.MSG_WAITALL)
    # Field 1, a text: the tag, its length in one byte or two, the text.
    text = body[2:] if len(body) < 130 else body[3:]
    if len(body) != size or body[:1] != b"\x0a" or not text:
        raise ImagesError(f"CRIU sent the image streamer an invalid request: {body!r}")
    return os.fsdecode(text)


def _descriptor(criu: socket.socket) -> int:
    """The pipe that arrives with one byte."""
    with _with_criu():
        byte, fds, _, _ = socket.recv_fds(criu, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not byte:
        raise _CriuEnded
    if not fds:
        raise OSError(errno.EPROTO, "CRIU sent no pipe")
    return fds[0]


def _exactly(source: BinaryIO, size: int, lack: str = "the stream is cut short") -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise ImagesError(lack)
        data += more
    return data
