"""Reads and rewrites images that are changed after a dump."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._wire.protobuf import image

Fields = list[tuple[int, int | bytes]]
"""The fields of a message, in order."""


def replace_image(directory: int, name: str, head: bytes, entries: list[bytes]) -> None:
    """Write an image of messages, behind the magic numbers ``head``, in place of another."""
    partial = name + ".partial"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(image(*entries, magic=head))
        os.replace(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(partial, dir_fd=directory)
        raise


def messages_of(data: bytes) -> Iterator[bytes]:
    """The messages of an image, behind its two magic numbers, each after its length.

    ``ValueError``: it is truncated.
    """
    at = 8
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            raise ValueError("cut short")
        yield data[at + 4 : end]
        at = end


def fields_of(data: bytes) -> Fields:
    """The fields of a message, in order. ``ValueError``: a field is no number and no bytes."""
    result: Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            number, at = _varint(data, at)
            result.append((key >> 3, number))
        elif key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            result.append((key >> 3, data[at : at + size]))
            at += size
        else:
            raise ValueError(f"a field of another kind: {key & 7}")
    return result


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
