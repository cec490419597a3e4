"""The names of ``typing`` that the core modules use: importing ``typing`` takes too long.

Type checkers see the names of ``typing``; at run time annotations are text, and only names that are
called or inherited from must exist.
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

    Any = ClassVar = Self = None
    Protocol = object

    class Generic:
        """A base class with parameters that only type checkers use."""

        def __class_getitem__(cls, item: object) -> object:
            return cls if cls is Generic else GenericAlias(cls, item)

    def cast(kind: object, value: object) -> object:
        """The value; the type is for type checkers."""
        return value

    def TypeVar(name: str) -> str:
        """A name for annotations."""
        return name
