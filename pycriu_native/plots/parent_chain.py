"""The sizes and frozen times of a dump and of the chain of its parent images."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .._calls.progress import size_of_pages
from ..errors import ImagesError
from ..results import PAGE
from .dump_timeline import statistics_of

_LONGEST = 1000
"""Limit of the parents that are followed, for links that form a cycle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRound:
    """One image set of a chain."""

    directory: str
    written: int
    """Bytes of pages in its images."""
    in_parent: int | None
    """Bytes of pages that only its parents have; None without statistics."""
    frozen: float | None
    """Seconds that the processes were frozen; None without statistics."""


def read_rounds(directory: str | os.PathLike[str]) -> tuple[ImageRound, ...]:
    """Read the image set in ``directory`` and the chain of its parents; the oldest comes first.

    Statistics are read from the same directories. Raises ``ImagesError`` for a directory that
    cannot be read or has no images, and for a cyclic chain.
    """
    result: list[ImageRound] = []
    here = os.path.abspath(directory)
    while True:
        result.append(_round(here))
        parent = os.path.join(here, "parent")
        if not os.path.lexists(parent):
            return tuple(reversed(result))
        if len(result) >= _LONGEST:
            raise ImagesError(f"{directory}: its chain of parents is cyclic or too long")
        here = os.path.realpath(parent)


def _round(directory: str) -> ImageRound:
    statistics = statistics_of(directory)
    if statistics is None:
        written = size_of_pages(directory, parents=False)
        if not written and not os.path.exists(os.path.join(directory, "inventory.img")):
            raise ImagesError(
                f"{directory} has neither pages of images nor the statistics of a dump"
            )
        return ImageRound(directory=directory, written=written, in_parent=None, frozen=None)
    skipped = statistics.pages_skipped_parent + statistics.shpages_skipped_parent
    return ImageRound(
        directory=directory,
        written=(statistics.pages_written + statistics.shpages_written) * PAGE,
        in_parent=skipped * PAGE,
        frozen=statistics.frozen_time / 1e6,
    )
