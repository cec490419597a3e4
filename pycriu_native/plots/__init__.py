"""Plots of checkpoints, as PNG or SVG files (extra ``[plot]``: matplotlib).

``read_timeline``, ``read_rounds`` and ``read_starts`` return the same data as values, and need no
extra. ``import pycriu_native`` does not import this package.
"""

from __future__ import annotations

from .draw import memory, rounds, start, timeline
from .dump_timeline import Span, Timeline, read_timeline
from .parent_chain import ImageRound, read_rounds
from .start_timings import read_starts

__all__ = [
    "ImageRound",
    "Span",
    "Timeline",
    "memory",
    "read_rounds",
    "read_starts",
    "read_timeline",
    "rounds",
    "start",
    "timeline",
]
