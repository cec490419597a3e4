"""Whether the images of each process belong together: memory, page map and registers.

Sets without a record of their dump (``_integrity/dump_record.py``) have no sums that would show an
image of another process under the name of this one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from .._integrity.page_size import HOST_PAGE
from .model import ImageSet
from .pages import Layers, joined


def misplaced(images: ImageSet) -> Iterator[tuple[str, str]]:
    """Images that do not fit the mappings of their process, each with the reason."""
    for process in images.processes:
        if not process.mappings:
            continue
        areas = joined(sorted((each.start, each.end) for each in process.mappings))
        for thread in process.threads:
            if thread.instruction is not None and not _covers(
                areas, thread.instruction, thread.instruction + 1
            ):
                yield (
                    f"core-{thread.tid}.img",
                    f"thread {thread.tid} runs at {thread.instruction:#x}, where mm-{process.pid}"
                    ".img has no memory",
                )
        name = f"pagemap-{process.pid}.img"
        top = Layers([images.directory], name, process.page_size or HOST_PAGE).level(0)
        for _, (start, end, _, _) in top.runs.between(0, 2**64) if top is not None else ():
            if not _covers(areas, start, end):
                yield (
                    name,
                    f"it has pages at {start:#x}, where mm-{process.pid}.img has no memory",
                )
                break


def _covers(areas: list[tuple[int, int]], start: int, end: int) -> bool:
    at = bisect_right(areas, (start, 2**64)) - 1
    return at >= 0 and end <= areas[at][1]
