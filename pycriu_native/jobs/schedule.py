"""The times of a job's checkpoints."""

from __future__ import annotations

import time

GROWTH = 2
"""Factor between two pauses at the start of a command."""

LEAST = 10
"""Least length of such a pause, as a multiple of the duration of the checkpoint before it."""


class Schedule:
    """When the next checkpoint is due.

    After the start of a command, the pauses are short and grow to ``every``: files that it opens
    after a checkpoint are not part of it, and it opens most of them soon after its start.
    """

    def __init__(self, every: float, first: float | None = None) -> None:
        """``first`` is the first pause of a command that was started, not resumed; seconds."""
        self._every = every
        self._pause = every if first is None else min(first, every)
        self._due = time.monotonic() + self._pause

    @property
    def left(self) -> float:
        """Seconds until the next checkpoint is due; 0 or less if it is due now."""
        return self._due - time.monotonic()

    def attempted(self, took: float) -> None:
        """A checkpoint was taken or has failed after so many seconds."""
        self._pause = self.next_pause(took)
        self._due = time.monotonic() + self._pause

    def next_pause(self, took: float) -> float:
        """Seconds from the end of a checkpoint that took so long to the next one."""
        return min(self._every, max(GROWTH * self._pause, LEAST * took))
