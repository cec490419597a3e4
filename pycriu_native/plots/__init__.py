"""Pictures of checkpoints, as PNG or SVG by the file's name (extra ``[plot]``: matplotlib).

``timeline`` shows the phases of a dump, with the time in which the processes were frozen;
``rounds`` the chain of pre-dumps that it builds on; ``memory`` what kinds of memory the images
hold (also needs the extra ``[images]``). ``read_timeline`` and ``read_rounds`` give what the first
two draw as values, and need no extra. It is no part of ``import pycriu_native``.
"""

from __future__ import annotations

from .draw import memory, rounds, timeline
from .dump_timeline import Span, Timeline, read_timeline
from .parent_chain import ImageRound, read_rounds

__all__ = [
    "ImageRound",
    "Span",
    "Timeline",
    "memory",
    "read_rounds",
    "read_timeline",
    "rounds",
    "timeline",
]
