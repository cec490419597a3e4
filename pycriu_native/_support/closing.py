"""Objects that own resources until they are closed, at the latest by a ``with`` statement."""

from __future__ import annotations

from .light_typing import Self


class Closing:
    """Base of the classes with a ``close`` method, which may be called again."""

    def close(self) -> None:
        """Release the resources."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
