"""Open one image file safely, and read its messages with every length checked.

Images are not trusted: no length in them makes a read exceed the size of the file. An
``ImagesError`` names the file and the offset of an invalid length.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from .._support.unpatched import close
from .._system.regular_file import open_regular
from .._wire.image_kinds import COMMON, SERVICE, is_raw
from ..errors import ImagesError
from .formats import BY_MAGIC, Format
from .schema import message

LARGEST_MESSAGE = 256 * 2**20
"""Maximum size of an entry in bytes. Those of processes with tens of thousands of mappings have a
few MiB."""

WINDOW = 2**18
"""Bytes that are read at once."""

_WORD = struct.Struct("<I")


def open_file(path: str) -> tuple[int, int]:
    """The descriptor and size of a regular file; other types and symbolic links are refused."""
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        raise ImagesError(f"{path} does not exist", errno=errno.ENOENT) from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ImagesError(f"{path} is no regular file", errno=errno.EINVAL) from None
        why = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ImagesError(f"{path} cannot be opened: {why}", errno=error.errno) from error
    return fd, os.fstat(fd).st_size


def damaged(path: str, at: int, why: str) -> ImagesError:
    """The error for invalid bytes."""
    return ImagesError(f"{path}, offset {at}: {why}", errno=errno.EINVAL)


class ImageFile:
    """One image file, read through a sliding window. A context manager.

    It is not mapped into memory: SIGBUS would end this process if another one truncated the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd, self.size = open_file(path)
        self._window = b""
        self._from = 0
        try:
            self.format, self.start = self._header()
        except BaseException:
            close(self.fd)
            raise

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        close(self.fd)

    def _header(self) -> tuple[Format, int]:
        at, magic = 0, self.word(0, "the magic number")
        if magic in (COMMON, SERVICE) and self.size >= 8:
            at, magic = 4, self.word(4, "the magic number")
        result = BY_MAGIC.get(magic)
        if result is None:
            name = os.path.basename(self.path)
            raw = " (memory, or another program's format)" if is_raw(name) else ""
            raise damaged(self.path, at, f"{magic:#x} is the magic number of no image{raw}")
        return result, at + 4

    def word(self, at: int, what: str) -> int:
        """Four bytes as a number."""
        return int.from_bytes(self.take(at, 4, what), "little")

    def take(self, at: int, size: int, what: str) -> bytes:
        """Bytes at an offset."""
        begin = at - self._from
        if begin < 0 or begin + size > len(self._window):
            if size > self.size - at:
                remaining = max(self.size - at, 0)
                raise damaged(
                    self.path, at, f"{what} has {size} bytes, but the file {remaining} more"
                )
            # Most images are small, and a larger buffer takes longer to allocate.
            self._window = os.pread(self.fd, min(max(size, WINDOW), self.size - at), at)
            self._from, begin = at, 0
            if len(self._window) < size:
                raise damaged(self.path, at, "the file was truncated while it was read")
        return self._window[begin : begin + size]

    def parse(self, at: int, kind: str) -> tuple[Any, int]:
        """The message at an offset, after its length, and the offset of its end."""
        size = self.word(at, "the length of an entry")
        at += 4
        if size > LARGEST_MESSAGE:
            raise damaged(self.path, at - 4, f"an entry of {size} bytes is too long to be one")
        data = self.take(at, size, f"the {kind}")
        return self.read(at, data, kind), at + size

    def frames(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of each message from an offset on, for kinds without trailers.

        Most of the time of a large set is spent here: it splits one window at a time.
        """
        unpack = _WORD.unpack_from
        while at < self.size:
            window = self.window(at, self.format.message)
            here, length = 0, len(window)
            while here + 4 <= length:
                end = here + 4 + unpack(window, here)[0]
                if end > length:
                    break
                yield at + here + 4, window[here + 4 : end]
                here = end
            at += here

    def window(self, at: int, kind: str) -> bytes:
        """Bytes from an offset on, with at least the whole first message."""
        size = self.word(at, "the length of an entry")
        if size > min(LARGEST_MESSAGE, self.size - at - 4):
            self.parse(at, kind)  # raises
        return self.take(at, min(max(size + 4, WINDOW), self.size - at), "an entry")

    def read(self, at: int, data: bytes, kind: str) -> Any:
        """Parse the bytes of a message. The offset is for errors."""
        if not data and at > self.start + 4:
            raise damaged(self.path, at - 4, f"zeros in place of a {kind}")
        try:
            result = message(kind).FromString(data)
        except DecodeError as error:
            raise damaged(self.path, at, f"this is no {kind}: {error}") from None
        if not result.IsInitialized():
            lacks = ", ".join(result.FindInitializationErrors()[:3])
            raise damaged(self.path, at, f"this {kind} lacks {lacks}")
        return result

    def only(self) -> Any:
        """The only entry of an image that has exactly one."""
        if self.start == self.size:
            raise damaged(self.path, self.start, f"there is no {self.format.message}")
        return self.parse(self.start, self.format.message)[0]


def expect(path: str, name: str) -> ImageFile:
    """Open an image; ``ImagesError`` if it is of another kind."""
    file = ImageFile(path)
    if file.format.name != name:
        with file:
            raise damaged(path, 0, f"this is an image of {file.format.name}, not of {name}")
    return file
