"""The standard streams of a copy, from the same arguments as in ``subprocess``."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, cast

from .._support.unpatched import close
from .._system.descriptors import is_inherited
from ..errors import OptionError, Problem
from ..options.values import Descriptor

NAMES = ("stdin", "stdout", "stderr")

Stream = Descriptor | None
"""``subprocess.PIPE``, ``DEVNULL``, ``STDOUT`` (for stderr), a descriptor, a file object; None: the
stream of this process."""


@dataclass(frozen=True, kw_only=True)
class TextMode:
    """The mode of a process's pipes, by the arguments of ``subprocess.Popen``."""

    text: bool
    encoding: str | None = None
    errors: str | None = None
    bufsize: int = -1

    def opened(self, fd: int | None, mode: str) -> IO[Any] | None:
        """A file object that owns the descriptor."""
        if fd is None:
            return None
        bufsize = -1 if self.text and self.bufsize == 1 else self.bufsize
        binary: Any = open(fd, "wb", bufsize) if mode == "w" else _opened_output(fd, bufsize)
        if not self.text:
            return cast("IO[bytes]", binary)
        return io.TextIOWrapper(
            binary,
            encoding=self.encoding,
            errors=self.errors,
            write_through=mode == "w",
            line_buffering=self.bufsize == 1 and mode == "w",
        )


class OutputPipe(io.FileIO):
    """The end of a pipe from which this process reads a copy's output."""

    _returned = b""

    def put_back(self, data: bytes) -> None:
        """Let the next :meth:`read` to the end return this data first."""
        self._returned = data

    def readall(self) -> bytes:
        data, self._returned = self._returned, b""
        return data + super().readall()

    def read(self, size: int | None = -1, /) -> Any:
        """Read once, or to the end."""
        return self.readall() if size is None or size < 0 else super().read(size)


def _opened_output(fd: int, bufsize: int) -> io.BufferedReader | OutputPipe:
    pipe = OutputPipe(fd)
    if bufsize == 0:
        return pipe
    return io.BufferedReader(pipe, bufsize if bufsize > 1 else io.DEFAULT_BUFFER_SIZE)


def rest_of(stream: Any, data: bytes) -> Any:
    """What a stream has buffered or decoded, and ``data``, which was read from its descriptor."""
    binary = getattr(stream, "buffer", stream)
    getattr(binary, "raw", binary).put_back(data)
    return stream.read()


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The descriptors for a copy, and this process's ends."""

    child: tuple[int, int, int]
    """Three different descriptors, since CRIU accepts each for one key only."""
    parent: dict[str, int]
    """This process's ends of the pipes, by the names of the streams."""

    @classmethod
    def made(cls, given: Sequence[Stream], ours: ExitStack, theirs: ExitStack) -> Streams:
        """Create the streams from the arguments stdin, stdout and stderr.

        ``theirs`` closes the copy's descriptors, ``ours`` this process's ends.
        """
        parent: dict[str, int] = {}
        child: list[int] = []
        for index, (name, value) in enumerate(zip(NAMES, given, strict=True)):
            if value == subprocess.PIPE:
                reader, writer = os.pipe()
                kept, passed = (writer, reader) if index == 0 else (reader, writer)
                ours.callback(close, kept)
                theirs.callback(close, passed)
                parent[name] = kept
                child.append(passed)
            else:
                fd = child[1] if value == subprocess.STDOUT else _descriptor(index, value, theirs)
                if fd in child:
                    fd = os.dup(fd)
                    theirs.callback(close, fd)
                child.append(fd)
        return cls(child=(child[0], child[1], child[2]), parent=parent)


def check(
    given: Sequence[Stream], keys: Sequence[str | None], *, by_criu: bool = True
) -> list[Problem]:
    """The problems of the arguments stdin, stdout and stderr; ``keys`` as in ``Record``.

    ``by_criu``: CRIU installs the streams, and reopens the replacement of a pipe or file.
    """
    result = []
    for index, (name, value) in enumerate(zip(NAMES, given, strict=True)):
        rule = ""
        if isinstance(value, bool):
            rule = "PIPE, DEVNULL, a descriptor or a file object is accepted"
        elif isinstance(value, int) and value < 0:
            accepted = [subprocess.PIPE, subprocess.DEVNULL]
            accepted += [subprocess.STDOUT] if name == "stderr" else []
            if value not in accepted:
                rule = "PIPE, DEVNULL, a descriptor or a file object is accepted"
        elif value is not None:
            try:
                os.fstat(value if isinstance(value, int) else value.fileno())
            except (AttributeError, OSError, OverflowError, TypeError, ValueError):
                rule = "PIPE, DEVNULL, a descriptor or a file object that is open is accepted"
        key = keys[index]
        if not rule and value is not None and key is None:
            rule = "this stream was not a pipe when the program was saved, and cannot be replaced"
        elif not rule and by_criu and key is not None and key.startswith(("pipe:", "file[")):
            if value is not None:
                rule = _not_for_pipe(value)
            elif is_inherited(index):
                rule = _not_for_pipe(index)
        if rule:
            result.append(Problem(name, value, rule))
    if keys[1] is not None and keys[1] == keys[2] and given[2] not in (None, subprocess.STDOUT):
        rule = "standard output and error were one stream when the program was saved; give stdout"
        result.append(Problem("stderr", given[2], rule))
    for index in (1, 2):
        one = given[0] == given[index] != subprocess.PIPE and given[0] is not None
        if keys[0] is not None and keys[0] == keys[index] and not one:
            rule = (
                f"standard input and {NAMES[index]} were one stream when the program was saved: "
                "the same descriptor is accepted for both"
            )
            result.append(Problem(NAMES[index], given[index], rule))
    return result


def _not_for_pipe(value: Stream) -> str:
    """Why CRIU cannot replace a pipe by this stream; empty if it can."""
    assert value is not None
    number = value if isinstance(value, int) else value.fileno()
    kind = os.fstat(number).st_mode if number >= 0 else 0
    if stat.S_ISREG(kind) or stat.S_ISSOCK(kind):
        what = "pipe or file, and CRIU reopens its replacement"
        return f"the program was saved with a {what}: no file or socket is accepted"
    return ""


def refuse(problems: Sequence[Problem], verb: str) -> None:
    """Raise ``OptionError`` if there are problems."""
    if problems:
        raise OptionError(problems, verb=verb)


def _descriptor(index: int, value: Stream, theirs: ExitStack) -> int:
    if value is None:
        if is_inherited(index):
            return index
        value = subprocess.DEVNULL
    if value == subprocess.DEVNULL:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        theirs.callback(close, null)
        return null
    return value if isinstance(value, int) else value.fileno()
