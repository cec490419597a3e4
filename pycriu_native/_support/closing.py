"""What is owned until it is closed, at the latest at the end of a ``with`` statement."""

from __future__ import annotations

from types import TracebackType

from .light_typing import Self


class Closing:
    """Base of everything that has to be given back; ``close`` may be called again."""

    def close(self) -> None:
        """Give it back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
