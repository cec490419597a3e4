"""Reads and rewrites images that are changed after a dump."""

from __future__ import annotations

import os

from .._wire.fields import message_fields
from .._wire.protobuf import image, message

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


def fields_of(data: bytes) -> Fields:
    """The fields of a message. ``ValueError`` if a rewritten message would differ."""
    result = list(message_fields(data))
    if message(*result) != data:
        raise ValueError("fields of other types")
    return result
