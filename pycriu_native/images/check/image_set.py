"""The images themselves, and the files that CRIU writes to."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator

from ..._calls.request import output_names
from ..._checks.work_directory import path_of
from ..._integrity.dump_marker import RECORD
from ..._integrity.page_size import HOST_PAGE
from ..._system.descriptors import opened_directory
from ..._system.regular_file import check_writable
from ...enums import Verb
from ..model import ImageSet
from ..pages import Layers, joined
from .context import Context, Findings, stops, warning


def complete(context: Context) -> Findings:
    for problem in context.images.problems:
        yield stops(context.images.directory, problem, "dump again, or copy all of it here")
    if context.images.kind == "pre-dump":
        yield stops(
            context.images.directory,
            "a pre-dump has memory only",
            "restore the dump that builds on it",
        )
        return
    if context.images.problems or os.path.lexists(os.path.join(context.images.directory, RECORD)):
        return
    for name, why in _misplaced(context.images):
        yield stops(name, why, "copy the images again from their origin")
    for each in context.images.processes:
        if each.state != "zombie" and not each.descriptors:
            yield warning(
                f"fdinfo-{each.files_table}.img",
                f"it does not exist: pid {each.pid} had no open file, or the images lack it, "
                "and a restore would leave all of them closed",
                "look for it where the images come from",
            )


def _misplaced(images: ImageSet) -> Iterator[tuple[str, str]]:
    """Images that do not fit the mappings of their process, each with the reason.

    Sets without a record of their dump (``_integrity/dump_record.py``) have no sums that would show
    an image of another process under the name of this one.
    """
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


def outputs(context: Context) -> Findings:
    place = context.opts.work_directory
    path = context.images.directory if place is None else path_of(place)
    if not os.path.isdir(path):
        return  # a call reports or makes it
    with opened_directory(path) as directory:
        for name in output_names(context.opts, Verb.RESTORE):
            try:
                check_writable(directory, name)
            except OSError as error:
                why = f"{error.strerror}, and CRIU writes to it"
                yield stops(name, why, "remove it")
