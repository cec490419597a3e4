"""Reads and rewrites images that are changed after a dump."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .._system.regular_file import read_regular, replace_file
from .._wire.fields import message_fields, messages_of
from .._wire.protobuf import image, message

Field = tuple[int, int | bytes]
"""A field of a message: its number, and its value."""

Fields = list[Field]
"""The fields of a message, in order."""

LARGEST = 2**31
"""Bytes of an image that are read; a longer one is refused as invalid."""


def replace_image(directory: int, name: str, head: bytes, entries: list[bytes]) -> None:
    """Write an image of messages, behind the magic numbers ``head``, in place of another."""
    replace_file(directory, name, image(*entries, magic=head))


def fields_of(data: bytes) -> Fields:
    """The fields of a message. ``ValueError`` if a rewritten message would differ."""
    result = list(message_fields(data))
    if message(*result) != data:
        raise ValueError("fields of other types")
    return result


def change_message(directory: int, name: str, change: Callable[[Fields], Iterable[Field]]) -> None:
    """Change the fields of the only message of an image. ``ValueError`` as of ``fields_of``."""
    data = read_regular(name, LARGEST, dir_fd=directory)
    (entry,) = messages_of(data)
    replace_image(directory, name, data[:8], [message(*change(fields_of(entry)))])
