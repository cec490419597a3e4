"""The argument of ``on_progress``."""

from __future__ import annotations

from collections.abc import Callable

from .._support.frozen_dataclass import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of an operation."""

    phase: str
    """The verb, the phase of a migration, or ``round 1`` of a dump in rounds; ``interrupting``
    while a call is undone. Bytes are those of the phase."""
    done: int
    """Bytes of memory or images that are done."""
    total: int | None
    """Estimated bytes of the phase: it changes while the process runs, and excludes memory that
    CRIU does not save (file mappings that were never written). None: unknown."""
    rate: float
    """Bytes per second, smoothed; 0 at the beginning of a phase."""
    left: float | None
    """Remaining seconds at that rate; None: unknown."""


OnProgress = Callable[[Progress], object]
"""The type of ``on_progress``."""
