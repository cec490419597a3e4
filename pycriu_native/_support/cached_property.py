"""``functools.cached_property`` without the lock that it holds in Python 3.11.

A child that another thread forks while the lock is held waits for it for ever. Two threads that ask
at once may both compute the value, as in Python 3.12 and later.
"""

from __future__ import annotations

from .light_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property
else:

    class cached_property:
        """A method whose first result is stored in the instance's ``__dict__``."""

        def __init__(self, compute: Any) -> None:
            self.compute = compute
            self.__doc__ = compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            return vars(instance).setdefault(self.name, self.compute(instance))
