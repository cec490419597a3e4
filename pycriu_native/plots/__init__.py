"""Pictures of checkpoints, as PNG or SVG by the file's name (extra ``[plot]``: matplotlib).

``timeline`` shows the phases of a dump, with the time in which the processes were frozen;
``rounds`` the chain of pre-dumps that it builds on; ``memory`` what kinds of memory the images
hold (also needs the extra ``[images]``); ``start`` where the time of starts of snapshots goes.
``read_timeline``, ``read_rounds`` and ``read_starts`` give what is drawn as values, and need no
extra. It is no part of ``import pycriu_native``.
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
