"""Conversion of the library's values to JSON, for ``--json``.

A dataclass becomes an object of its fields; enumerations and paths become text, bytes base64.
Every printed object has the key ``schema``, a number that grows when a key is removed or its
meaning changes.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import Any

from ..options.value_types import FileDescriptor
from ..options.values import HasFileno

SCHEMA = 1


def plain(value: Any) -> Any:
    """Convert a value to types that JSON has."""
    if value is None or isinstance(value, bool | float):
        return value
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, enum.IntEnum):
        return value.name.lower()
    if isinstance(value, enum.Enum | os.PathLike):
        return str(value)
    if isinstance(value, int | str):
        return value
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if hasattr(type(value), "__dataclass_fields__"):
        import dataclasses

        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, HasFileno):
        return FileDescriptor().plain(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return str(value)
