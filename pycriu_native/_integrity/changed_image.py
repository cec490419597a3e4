"""Reads and rewrites images that are changed after a dump."""

from __future__ import annotations

import os
from collections.abc import Callable

from .._system.regular_file import open_regular
from .._wire.fields import message_fields, messages_of
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


def change_message(directory: int, name: str, change: Callable[[Fields], Fields]) -> None:
    """Change the fields of the only message of an image. ``ValueError`` as of ``fields_of``."""
    with open(open_regular(name, dir_fd=directory), "rb") as file:
        data = file.read()
    (entry,) = messages_of(data)
    replace_image(directory, name, data[:8], [message(*change(fields_of(entry)))])
