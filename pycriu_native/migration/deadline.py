"""The deadline of a migration; a cancellation brings it forward to now."""

from __future__ import annotations

import time

from ..errors import DeadlineError

LOOK = 0.25
"""Seconds between two checks of it, during a wait for something else."""


class MigrationDeadline:
    """A deadline. ``cancel`` may be called from any thread."""

    def __init__(self, seconds: float | None = None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds
        self._cancelled = False

    def cancel(self, reason: BaseException | None = None) -> None:
        """Let the deadline pass now. ``reason`` is not used."""
        self._cancelled = True

    def remaining(self, most: float | None = None) -> float | None:
        """Remaining seconds, at most ``most``; never 0: a socket timeout of 0 does not wait."""
        if self._at is None:
            return most
        remaining = max(0.01, self._at - time.monotonic())
        return remaining if most is None else min(remaining, most)

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._at is not None and time.monotonic() > self._at

    def check(self) -> None:
        """Raise ``DeadlineError`` once if the deadline has passed; later messages report that."""
        if self._cancelled:
            self._cancelled, self._at = False, None
            raise DeadlineError("the migration was cancelled", verb="migrate")
        if self.is_over():
            self._at = None
            raise DeadlineError("the deadline of the migration passed", verb="migrate")
