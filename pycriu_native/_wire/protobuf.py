"""Protobuf messages and images by hand, for those who need no more than a few fields."""

from __future__ import annotations

from .image_kinds import COMMON, FORMATS, INVENTORY


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of numbers and byte strings, each with its field's number."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return out


def image(*messages: bytes, magic: bytes) -> bytes:
    """An image file: what it begins with, then each message after its length."""
    return magic + b"".join(len(each).to_bytes(4, "little") + each for each in messages)


def image_of(kind: str, *messages: bytes) -> bytes:
    """An image of CRIU's, by the name of its kind: ``CORE``, ``INVENTORY``."""
    words = (INVENTORY,) if kind == "INVENTORY" else (COMMON, _MAGIC[kind])
    return image(*messages, magic=b"".join(word.to_bytes(4, "little") for word in words))


_MAGIC = {name: magic for name, magic, *_ in FORMATS}


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
