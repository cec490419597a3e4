"""Objects and dataclasses from JSON: their values must have the types of the fields."""

from __future__ import annotations

import contextlib
import functools
import json
import types
import typing
from dataclasses import is_dataclass
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object of a text; None for another text."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(text)
        return body if isinstance(body, dict) else None
    return None


def from_json(kind: type[Kind], body: Any, **more: Any) -> Kind:
    """The dataclass with the values of ``body``, and with those of ``more``, which have priority.

    Raises ``TypeError`` for an unknown or missing field and for a value of another type.
    """
    result = kind(**{**body, **more})
    check_fields(result)
    return result


def check_fields(instance: Any) -> None:
    """Raise ``TypeError`` if a field of a dataclass, or of one in it, has another type."""
    for name, hint in _hints(typing.cast(Any, type(instance))).items():
        value = getattr(instance, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {value!r}")


_hints = functools.cache(typing.get_type_hints)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has the type of an annotation, and a number at most 64 bits.

    A whole number is also a float.
    """
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, each) for each in kinds)
    if typing.get_origin(hint) is tuple:
        kind = kinds[0]  # all members have one type
        return isinstance(value, tuple) and all(_fits(each, kind) for each in value)
    if is_dataclass(hint):
        if type(value) is not hint:
            return False
        check_fields(value)
        return True
    kind = typing.get_origin(hint) or hint
    # JSON has integers of any size, and Python reads NaN and Infinity.
    if isinstance(value, int | float) and not -(2**63) <= value < 2**64:
        return False
    return type(value) is kind or (kind is float and type(value) is int)
