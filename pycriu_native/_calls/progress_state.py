"""What ``on_progress`` receives."""

from __future__ import annotations

from collections.abc import Callable

from .._support.frozen_dataclass import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far it is."""

    phase: str
    """What is being done: the verb, the phase of a migration, ``round 1`` of a dump in rounds;
    ``interrupting`` while a call is undone. Bytes are those of the phase."""
    done: int
    """Bytes of memory or images that are done."""
    total: int | None
    """Bytes that there are to do, as far as one knows: a process that runs on changes it, and
    memory that CRIU leaves out (file mappings that were never written) is not in it. None:
    unknown."""
    rate: float
    """Bytes per second, smoothed; 0 at the beginning of a phase."""
    left: float | None
    """Seconds that are left at that rate; None: unknown."""


OnProgress = Callable[[Progress], object]
"""What ``on_progress`` is."""
