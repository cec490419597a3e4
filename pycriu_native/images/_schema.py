"""The message classes of CRIU's images, made at first use from ``messages.txt``.

Nothing is generated and nothing of CRIU's is needed: the table is turned into protobuf
descriptors in a pool of our own, so that it cannot collide with another program's copy of CRIU's
definitions (pycriu's, for one) in the same process.

Text is declared as bytes. CRIU puts paths and names into the images as the kernel gave them, and
those need not be UTF-8; protobuf refuses such text. On the wire the two are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_FILE = "pycriu_native/images"
_LABELS = {"": _Field.LABEL_REQUIRED, "?": _Field.LABEL_OPTIONAL, "*": _Field.LABEL_REPEATED}
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "fixed64": _Field.TYPE_FIXED64,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "sint32": _Field.TYPE_SINT32,
    "sint64": _Field.TYPE_SINT64,
    "string": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One field of a message, as the table has it."""

    name: str
    label: str
    """Empty for required, ``?`` for optional, ``*`` for repeated."""
    number: int
    type: str
    default: str | None = None
    quoted: bool = False
    packed: bool = False


@functools.cache
def table() -> tuple[dict[str, tuple[Row, ...]], dict[str, dict[str, int]]]:
    """The fields of each message, and the values of each enum."""
    messages: dict[str, list[Row]] = {}
    enums: dict[str, dict[str, int]] = {}
    fields: list[Row] = []
    values: dict[str, int] | None = None
    for words in _lines():
        match words:
            case ["message", name]:
                fields, values = messages.setdefault(name, []), None
            case ["enum", name]:
                values = enums.setdefault(name, {})
            case [name, number] if values is not None:
                values[name] = int(number)
            case [name, number, kind, *more]:
                label = name[-1] if name[-1] in "?*" else ""
                default = next((word[1:] for word in more if word[0] == "="), None)
                marks = "quoted" in more, "packed" in more
                fields.append(Row(name.rstrip("?*"), label, int(number), kind, default, *marks))
    return {name: tuple(rows) for name, rows in messages.items()}, enums


def _lines() -> Iterator[list[str]]:
    text = resources.files(__package__).joinpath("messages.txt").read_text()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield line.split()


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    messages, enums = table()
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, syntax="proto2")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, rows in messages.items():
        made[name] = file.message_type.add(name=name)
        for row in rows:
            field = made[name].field.add(name=row.name, number=row.number, label=_LABELS[row.label])
            if row.type in _SCALARS:
                field.type = _SCALARS[row.type]
            else:
                field.type = _Field.TYPE_ENUM if row.type in enums else _Field.TYPE_MESSAGE
                field.type_name = f".{row.type}"
            if row.packed:
                field.options.packed = True
            if row.default is not None:
                field.default_value = row.default
    for name, values in enums.items():
        scope, _, short = name.rpartition(".")
        enum = (made[scope].enum_type if scope else file.enum_type).add(name=short)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def message(name: str) -> type[Any]:
    """The class of a message, by the name that CRIU gives it.

    Its fields are known only when the table has been read, so its type says nothing of them.
    """
    made: type[Message] = message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))
    return made
