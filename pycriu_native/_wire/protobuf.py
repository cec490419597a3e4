"""Encodes protobuf messages and images of a few fields, without the protobuf runtime."""

from __future__ import annotations

from .image_kinds import HEADS


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of numbers and byte strings, each with its field number."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def image(*messages: bytes, magic: bytes) -> bytes:
    """An image file: the magic numbers, then each message after its length."""
    return magic + b"".join(len(each).to_bytes(4, "little") + each for each in messages)


def image_of(kind: str, *messages: bytes) -> bytes:
    """An image by the name of its kind, such as ``CORE`` or ``INVENTORY``."""
    return image(*messages, magic=HEADS[kind])


def varint(value: int) -> bytes:
    """A protobuf varint of a number that is not negative."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
