"""Convert one message to a dict and back, with the field names of CRIU.

Fields that are unknown to this release of the package are kept unchanged, in base64, under
``"_unknown"``, so that the conversion is lossless.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import quopri
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from ..errors import ImagesError
from . import pretty
from .schema import Row, message, table

UNKNOWN = "_unknown"


def to_text(data: bytes) -> str:
    """Bytes as base64 in lines, as in ``crit``."""
    return base64.encodebytes(data).decode()


def from_text(text: Any, what: str) -> bytes:
    """The inverse. Raises ``ImagesError`` for invalid base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (AttributeError, binascii.Error, ValueError) as error:
        raise ImagesError(f"{what}: no base64: {error}") from None


_Show = Callable[[Any], Any]


class Style(Enum):
    """How numbers are shown."""

    PLAIN = auto()
    PRETTY = auto()
    """As ``crit decode --pretty`` prints them."""
    HEX = auto()
    """As PRETTY, in a message whose numbers are all hexadecimal."""


def to_dict(entry: Any, name: str | None = None, style: Style = Style.PLAIN) -> dict[str, Any]:
    """The fields that are set in a message."""
    names = _shown(name or entry.DESCRIPTOR.name, style)
    out: dict[str, Any] = {}
    for field, value in entry.ListFields():
        key, show = names[field.number]
        out[key] = value if show is None else show(value)
    if len(UnknownFieldSet(entry)):
        out[UNKNOWN] = to_text(_unknown(entry))
    return out


@functools.cache
def _shown(name: str, style: Style) -> dict[int, tuple[str, _Show | None]]:
    """Name and conversion of each field, by field number."""
    return {row.number: (row.name, _show(row, style)) for row in table()[0][name]}


def _show(row: Row, style: Style) -> _Show | None:
    if row.pretty == "ip" and style is not Style.PLAIN:
        return pretty.show_address
    one = _show_one(row, style)
    if row.label != "*":
        return one
    if one is None:
        return list
    return lambda values: [one(value) for value in values]


def _show_one(row: Row, style: Style) -> _Show | None:
    messages, enums = table()
    if style is Style.PRETTY and row.pretty == "hex":
        style = Style.HEX
    if row.type in messages:
        return functools.partial(to_dict, name=row.type, style=style)
    if row.type in enums:
        return {number: value for value, number in enums[row.type].items()}.__getitem__
    if row.type == "string":
        return os.fsdecode
    if row.quoted:
        return lambda value: quopri.encodestring(value).decode()
    if row.type == "bytes":
        return to_text
    if style is Style.HEX and row.type != "bool":
        return hex
    if style is Style.PRETTY and row.pretty is not None:
        return functools.partial(pretty.show, field=row.name, mark=row.pretty)
    return None


def from_dict(name: str, described: Any, where: str) -> Any:
    """Convert a result of ``to_dict`` to a message."""
    if not isinstance(described, Mapping):
        raise ImagesError(f"{where}={described!r:.60}: a dict is needed")
    made = message(name)()
    known = {row.name: row for row in table()[0][name]}
    for key, value in described.items():
        if key == UNKNOWN:
            try:
                made.MergeFromString(from_text(value, f"{where}.{key}"))
            except DecodeError as error:
                raise ImagesError(f"{where}.{key}: no fields of a message: {error}") from None
            continue
        row = known.get(key)
        if row is None:
            raise ImagesError(f"{where}.{key}: {name} has no such field; it has {', '.join(known)}")
        try:
            _set(made, row, value, f"{where}.{key}")
        except (TypeError, ValueError, KeyError) as error:
            if isinstance(error, ImagesError):
                raise
            raise ImagesError(
                f"{where}.{key}={value!r:.60}: {row.type} is needed: {error}"
            ) from None
    if not made.IsInitialized():
        lacks = ", ".join(made.FindInitializationErrors())
        raise ImagesError(f"{where}: {name} lacks {lacks}")
    return made


def _set(made: Any, row: Row, value: Any, where: str) -> None:
    messages = table()[0]
    if row.label == "*":
        if not isinstance(value, list):
            raise TypeError("a list of them")
        items = getattr(made, row.name)
        if row.pretty == "ip" and len(value) == 1 and isinstance(value[0], str):
            items.extend(pretty.read_address(value[0]))
        elif row.type in messages:
            items.extend(from_dict(row.type, each, where) for each in value)
        else:
            items.extend(_value(row, each, where) for each in value)
    elif row.type in messages:
        # An empty message is present, too.
        field = getattr(made, row.name)
        field.SetInParent()
        field.MergeFrom(from_dict(row.type, value, where))
    else:
        setattr(made, row.name, _value(row, value, where))


def _value(row: Row, value: Any, where: str) -> Any:
    enums = table()[1]
    if row.type in enums:
        return enums[row.type][value]
    if row.type == "string":
        return os.fsencode(value)
    if row.quoted:
        return quopri.decodestring(value)
    if row.type == "bytes":
        return from_text(value, where)
    return pretty.read(value, row.name, row.pretty) if isinstance(value, str) else value


def _unknown(entry: Any) -> bytes:
    """Unknown fields, unchanged: a copy without the known ones."""
    rest = type(entry)()
    rest.CopyFrom(entry)
    for field, _ in entry.ListFields():
        rest.ClearField(field.name)
    result: bytes = rest.SerializePartialToString()
    return result
