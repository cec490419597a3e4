"""Entries of ``files.img`` and ``remap-fpath.img``, and the fields of other small images."""

from __future__ import annotations

import contextlib

from .._support.cached_property import cached_property
from .._system.regular_file import read_regular
from .._wire.fields import HEAD, message_fields, messages_of

LARGEST = 16 * 2**20
"""Bytes of an image that are read."""

_ID, _REG, _UNIX = 2, 3, 16
"""Fields of ``fdinfo.proto``, ``file_entry``."""

Fields = dict[int, "int | bytes"]
"""The fields of a message by their numbers."""


class FileEntries:
    """The files and sockets of a set, read on first use. Unreadable images count as empty."""

    def __init__(self, images: int) -> None:
        """``images`` is the caller's, and is open while this object is used."""
        self.images = images

    @cached_property
    def remaps(self) -> list[Fields]:
        """The entries of ``remap-file-path.proto``: files that were deleted."""
        return [fields_of(entry) for entry in messages(self.images, "remap-fpath.img")]

    @property
    def regular(self) -> dict[int, Fields]:
        """The entries of ``regfile.proto``, by the id of the file."""
        return self._files[0]

    @property
    def sockets(self) -> list[Fields]:
        """The entries of ``sk-unix.proto``."""
        return self._files[1]

    @cached_property
    def _files(self) -> tuple[dict[int, Fields], list[Fields]]:
        regular: dict[int, Fields] = {}
        sockets: list[Fields] = []
        for entry in map(fields_of, messages(self.images, "files.img")):
            file, unix = entry.get(_REG), entry.get(_UNIX)
            if isinstance(file, bytes):
                regular[number_in(entry, _ID)] = fields_of(file)
            elif isinstance(unix, bytes):
                sockets.append(fields_of(unix))
        return regular, sockets


def messages(images: int, name: str) -> list[bytes]:
    """The messages of an image."""
    result: list[bytes] = []
    with contextlib.suppress(ValueError):  # it is truncated, or has the contents of a ghost file
        result.extend(messages_of(read_image(images, name)))
    return result


def read_image(images: int, name: str) -> bytes:
    """The bytes of an image; none if it cannot be read."""
    with contextlib.suppress(OSError):
        data = read_regular(name, LARGEST, dir_fd=images)
        return data if len(data) > HEAD else b""
    return b""


def fields_of(message: bytes) -> Fields:
    """The fields of a message before the first byte that is invalid."""
    result: Fields = {}
    with contextlib.suppress(ValueError):
        result.update(message_fields(message))
    return result


def number_in(fields: Fields, field: int, default: int = 0) -> int:
    """The value of a numeric field."""
    value = fields.get(field, default)
    return value if isinstance(value, int) else default
