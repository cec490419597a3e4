"""Checks that the pages of a page map exist: in its pages file, or in a parent."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from .._support.no_fork import no_fork
from .image_files import COPY_AGAIN, DamagedError, ImageFiles, Problem, replaced

_BRING_PARENTS = "bring the images of the pre-dumps along, in the same places"


def stored_pages(
    name: str, layers: list[ImageFiles], broken: bool, owners: dict[str, str]
) -> Iterator[Problem]:
    """Problems of the pages of a page map.

    ``layers`` are the set and its parents, the nearest first; ``broken``: not all parents could be
    opened, which the caller has reported. ``owners`` has the page map of each pages file, and gets
    this one: CRIU writes a separate file for each.
    """
    files, *parents = layers
    try:
        pagemap = files.page_map(name)
        size = files.size(pagemap.pages) if pagemap.pages in files.names else None
    except DamagedError as damaged:
        yield damaged.problem
        return
    if (owner := owners.setdefault(pagemap.pages, name)) != name:
        yield replaced(name, f"it refers to {pagemap.pages}, as {owner} does")
    if pagemap.lazy:
        # CRIU would wait for them forever (seen with 4.2.1).
        yield Problem(
            f"the images lack memory, which the lazy dump that made them kept to serve ({name})",
            "set lazy_pages, with a LazyPages daemon that is connected to the dump while it "
            "serves; if that has ended, dump again",
            ("lazy_pages",),
            served=True,
        )
    if size is None:
        if pagemap.size:
            yield missing(pagemap.pages, "which holds contents of memory")
    elif size != pagemap.size:
        than = "shorter" if size < pagemap.size else "longer"
        cause = f"{pagemap.pages} is {abs(pagemap.size - size)} bytes {than} than {name} states"
        if size > pagemap.size:
            cause += f": {name} is cut short, or they belong to different dumps"
        yield Problem(cause, COPY_AGAIN)
    if pagemap.in_parent:
        yield from _in_parents(name, pagemap.in_parent, files, parents, broken)


def missing(name: str, purpose: str) -> Problem:
    """The problem of a file of pages that is not in the directory."""
    return Problem(
        f"there is no {name}, {purpose}",
        "give an images_directory that is complete; pages that went to a page_server are in its "
        "directory",
        ("images_directory", "page_server"),
    )


def _in_parents(
    name: str, in_parent: int, files: ImageFiles, parents: list[ImageFiles], broken: bool
) -> Iterator[Problem]:
    """Problems of the pages that a set has in its parents."""
    lack = f"{name} has pages in a parent, and "
    if not parents:
        if not broken:
            yield _of_parent(f"{lack}there is no parent link")
        return
    if name not in parents[0].names:
        yield _of_parent(f"{lack}the parent has no {name}")
        return
    try:
        missing = in_parent - _bytes_in(files, parents[0], name)
    except DamagedError as damaged:
        yield _of_parent(f"in the parent, {damaged.problem.cause}")
        return
    if missing > 0:
        yield _of_parent(f"{lack}the parent lacks {missing} bytes of them")
    for problem in stored_pages(name, parents, broken, {}):
        yield Problem(f"in the parent, {problem.cause}", problem.cure, problem.options)


def _of_parent(cause: str) -> Problem:
    return Problem(cause, _BRING_PARENTS, ("parent_image",))


def _bytes_in(files: ImageFiles, parent: ImageFiles, name: str) -> int:
    """Bytes that a page map has in a parent, and that the parent or its own parents have.

    ``DamagedError`` for a parent's page map that is damaged.
    """
    with no_fork:
        from .pagemap import IN_PARENT  # few sets have parents

    parent.page_map(name)
    runs = [run for _, run in files.runs(name).between(0, 2**64) if run[2] & IN_PARENT]
    starts, ends = array("Q", (run[0] for run in runs)), array("Q", (run[1] for run in runs))
    counts = parent.runs(name).count(starts, ends)
    return sum(stored + deeper for stored, deeper, _ in counts)
