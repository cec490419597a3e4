"""The message classes of CRIU's images, made at first use from ``messages.txt``.

The table is converted to protobuf descriptors in a separate pool, so that it cannot conflict with
other definitions of CRIU's messages in the same process, such as pycriu's. The descriptors are
encoded by hand: importing protobuf's messages for them takes longer than reading an image set.

Strings are declared as bytes: paths and names need not be UTF-8, and protobuf refuses such strings.
On the wire the two types are the same.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from .._wire.protobuf import message as wire

_FILE = b"pycriu_native/images"
# The numbers are those of google/protobuf/descriptor.proto.
_LABELS = {"?": 1, "": 2, "*": 3}
_ENUM, _MESSAGE = 14, 11
_SCALARS = {
    "bool": 8,
    "bytes": 12,
    "fixed64": 6,
    "int32": 5,
    "int64": 3,
    "sint32": 17,
    "sint64": 18,
    "string": 12,
    "uint32": 13,
    "uint64": 4,
}
_PRETTY = ("hex", "ip", "dev", "odev", "flags", "dict")
"""The marks of the pretty form: see ``pretty.py``."""
_PACKED = wire((8, wire((2, True))))


class Row(NamedTuple):
    """One field of a message of the table."""

    name: str
    label: str
    """Empty for required, ``?`` for optional, ``*`` for repeated."""
    number: int
    type: str
    default: str | None = None
    quoted: bool = False
    packed: bool = False
    pretty: str | None = None
    """How the pretty form shows it: see ``pretty.py``."""


@functools.cache
def table() -> tuple[dict[str, tuple[Row, ...]], dict[str, dict[str, int]]]:
    """The fields of each message, and the values of each enum."""
    messages: dict[str, list[Row]] = {}
    enums: dict[str, dict[str, int]] = {}
    fields: list[Row] = []
    values: dict[str, int] | None = None
    path = os.path.join(os.path.dirname(__file__), "messages.txt")
    with open(path, encoding="utf-8") as text:
        lines = [line.split() for line in text]
    for words in lines:
        match words:
            case [] | ["#", *_]:
                pass
            case ["message", name]:
                fields, values = messages.setdefault(name, []), None
            case ["enum", name]:
                values = enums.setdefault(name, {})
            case [name, number] if values is not None:
                values[name] = int(number)
            case [name, number, kind, *more]:
                label = name[-1] if name[-1] in "?*" else ""
                default = next((word[1:] for word in more if word[0] == "="), None)
                pretty = next((word for word in more if word.partition(":")[0] in _PRETTY), None)
                marks = "quoted" in more, "packed" in more, pretty
                fields.append(Row(name.rstrip("?*"), label, int(number), kind, default, *marks))
    return {name: tuple(rows) for name, rows in messages.items()}, enums


@functools.lru_cache(256)
def enum_name(enum: str, number: int) -> str:
    """The name of a value of an enum; a number without a name as text."""
    values = table()[1][enum].items()
    return next((name for name, value in values if value == number), str(number))


@functools.cache
def _pool() -> Any:
    messages, enums = table()
    kinds = {**_SCALARS, **dict.fromkeys(messages, _MESSAGE), **dict.fromkeys(enums, _ENUM)}
    inner: dict[str, list[bytes]] = {}
    outer = [_part(1, _FILE)]
    for name, values in enums.items():
        scope, _, short = name.rpartition(".")
        members = [
            _part(2, wire((1, value.encode()), (2, number))) for value, number in values.items()
        ]
        enum = b"".join([_part(1, short.encode()), *members])
        inner.setdefault(scope, []).append(_part(4, enum)) if scope else outer.append(
            _part(5, enum)
        )
    for name, rows in messages.items():
        fields = [_part(2, _field(row, kinds[row.type])) for row in rows]
        outer.append(_part(4, b"".join([_part(1, name.encode()), *fields, *inner.get(name, ())])))
    pool = DescriptorPool()
    pool.AddSerializedFile(b"".join([*outer, _part(12, b"proto2")]))
    return pool


def _field(row: Row, kind: int) -> bytes:
    data = _part(1, row.name.encode()) + _numbers(row.number, _LABELS[row.label], kind)
    if kind in (_ENUM, _MESSAGE):
        data += _part(6, f".{row.type}".encode())
    if row.default is not None:
        data += _part(7, row.default.encode())
    return data + _PACKED if row.packed else data


@functools.cache
def _numbers(number: int, label: int, kind: int) -> bytes:
    return wire((3, number), (4, label), (5, kind))


def _part(number: int, data: bytes) -> bytes:
    """A length-delimited field; the branch for short ones is faster."""
    if len(data) < 128:
        return bytes((number << 3 | 2, len(data))) + data
    return wire((number, data))


@functools.cache
def message(name: str) -> type[Any]:
    """The class of a message, by its name in CRIU.

    The fields are read from a table at run time, so its type does not contain them.
    """
    made: type[Any] = GetMessageClass(_pool().FindMessageTypeByName(name))
    return made
