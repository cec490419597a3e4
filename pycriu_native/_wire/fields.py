"""Reads the messages of an image and the fields of a message, without descriptors."""

from __future__ import annotations

from collections.abc import Iterator

from .._native.ffi import ffi, native

HEAD = 8
"""Bytes before the first message of an image: two magic numbers."""

AT_ONCE = 16
"""Fields that are read at once; most messages have fewer."""


def messages_of(data: bytes) -> Iterator[bytes]:
    """The messages of an image, each after its length. ``ValueError``: it is truncated."""
    at = HEAD
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            raise ValueError("truncated")
        yield data[at + 4 : end]
        at = end


def message_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of each varint and each length-delimited field.

    ``ValueError`` at invalid bytes.
    """
    values = ffi.new("struct pn_value[]", AT_ONCE)
    at = ffi.new("size_t *")
    given, size = ffi.from_buffer(data), len(data)
    while at[0] < size:
        count = native.pn_read_fields(given, size, at, values, AT_ONCE)
        if count < 0:
            raise ValueError("these bytes are no message")
        for value in values[0:count]:
            if value.is_bytes:
                yield value.field, data[value.start : value.start + value.number]
            else:
                yield value.field, value.number


def byte_fields(data: bytes, number: int) -> list[bytes]:
    """The values of a length-delimited field. ``ValueError`` as of ``message_fields``."""
    return [
        value for field, value in message_fields(data) if field == number and type(value) is bytes
    ]
