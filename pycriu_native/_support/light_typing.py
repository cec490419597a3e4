"""The names of ``typing`` that the core modules use: importing ``typing`` takes too long.

Type checkers see the names of ``typing``; at run time annotations are text, and only names that are
called or inherited from must exist. ``typing.get_type_hints`` evaluates the text: ``Any`` is
``object`` for it.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Generic as Generic
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TypeVar as TypeVar
    from typing import cast as cast
else:
    from types import GenericAlias

    Any = Self = Protocol = object

    class ClassVar:
        """``typing.ClassVar``, once a hint is evaluated."""

        def __class_getitem__(cls, item: object) -> object:
            import typing

            return typing.ClassVar[item]

    class Generic:
        """A base class with parameters that only type checkers use."""

        def __class_getitem__(cls, item: object) -> object:
            return cls if cls is Generic else GenericAlias(cls, item)

    def cast(kind: object, value: object) -> object:
        """The value; the type is for type checkers."""
        return value

    class TypeVar:
        """A name for annotations."""

        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __or__(self, other: object) -> object:
            import typing

            return typing.TypeVar(self.__name__) | other  # type: ignore[operator]
