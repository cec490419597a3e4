"""Reads and rewrites images that are changed after a dump."""

from __future__ import annotations

from collections.abc import Callable

from .._system.regular_file import read_regular, replace_file
from .._wire.fields import message_fields, messages_of
from .._wire.protobuf import image, message

Value = int | bytes
"""The value of a field of a message."""

LARGEST = 2**31
"""Bytes of an image that are read; a longer one is refused as invalid."""


def change_image(
    directory: int, name: str, change: Callable[[bytes], bytes], *, beginning: bytes = b""
) -> bool:
    """Change each message of an image with this beginning; returns whether one differs now.

    Raises ``OSError``, and what ``change`` raises: then the image is as before. ``ValueError`` if
    it is truncated.
    """
    data = read_regular(name, LARGEST, dir_fd=directory)
    if beginning not in data:
        return False  # processes can be frozen meanwhile: messages are read only if needed
    messages = (change(each) if each.startswith(beginning) else each for each in messages_of(data))
    changed = image(*messages, magic=data[:8])
    if changed != data:
        replace_file(directory, name, changed)
    return changed != data


def fields_of(data: Value) -> list[tuple[int, Value]]:
    """The fields of a message, in order. ``ValueError`` if a rewritten message would differ."""
    result = list(message_fields(data)) if isinstance(data, bytes) else []
    if message(*result) != data:
        raise ValueError("fields of other types")
    return result


def replaced(data: Value, number: int, change: Callable[[Value], Value]) -> bytes:
    """A message with its fields of this number changed. ``ValueError`` as of ``fields_of``."""
    return message(
        *((field, change(value) if field == number else value) for field, value in fields_of(data))
    )
