"""Dataclasses from JSON, whose values must have the types of the fields."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def from_json(kind: type[Kind], body: Any, **more: Any) -> Kind:
    """The dataclass with the values of ``body``, and with those of ``more``, which are not checked.

    Raises ``TypeError`` for an unknown or missing field and for a value of another type.
    """
    if not isinstance(body, dict):
        raise TypeError(f"{kind.__name__} is {body!r}")
    hints = get_type_hints(kind)
    for name, value in body.items():
        if name in hints and name not in more and not _is_of(value, hints[name]):
            raise TypeError(f"{name} is {value!r}")
    return kind(**{**body, **more})


def _is_of(value: object, hint: Any) -> bool:
    kinds = {get_origin(each) or each for each in get_args(hint) or (hint,)}
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return True
    return type(value) in kinds
