"""The pages that the snapshot of a copy shares with the snapshot that the copy was started from.

The page maps of the new snapshot refer to its parent for these pages, as in CRIU's incremental
dumps (``PE_PARENT``). The parent is the subdirectory ``parent``, with hard links to the page maps
and pages of the other snapshot and of its parents. Pages are thus stored once, but no snapshot
needs the directory of another one: each can be moved, packed and removed separately.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from .._integrity.page_size import HOST_PAGE
from ..errors import ImagesError
from ..images.image_directory import parents_of
from ..images.pages import Layers, OpenPages, Stored
from .page_files import Part, write_page_map
from .uninterrupted import interruption

PARENT = "parent"
"""CRIU's name for the directory of the parent images."""

MOST_PARENTS = 32
"""Longest chain of parents; the next snapshot stores all of its memory. CRIU opens the files of
each parent for each process."""

_PARTIAL = f"{PARENT}.partial"
_MAP = re.compile(r"pagemap-\d+\.img")


def share_with_parent(directory: Path, parent: Path, until: float | None) -> None:
    """Remove the pages of images that are equal to those of a parent snapshot.

    The images are not changed if the parent does not exist or is on another file system, if they
    already have a parent or have compressed or lazy pages, if no page is equal, if the comparison
    is not complete at ``until`` (time.monotonic()) or when the caller is interrupted, or if they
    cannot be written.
    """
    if os.path.lexists(directory / PARENT):
        return
    names = [name for name in sorted(os.listdir(directory)) if _MAP.fullmatch(name)]
    below = directory / _PARTIAL
    try:
        chain = parents_of(str(parent))[1]
        if len(chain) > MOST_PARENTS:
            return
        layers = _linked(below, chain, names)
        compared = {name: _compared(directory, layers, name, until) for name in names}
    except (OSError, ImagesError):
        shutil.rmtree(below, ignore_errors=True)
        return
    if not any(part[2] is None for parts in compared.values() for part in parts):
        shutil.rmtree(below, ignore_errors=True)
        return
    try:
        below.rename(directory / PARENT)
    except OSError:
        return
    for name, parts in compared.items():
        with contextlib.suppress(OSError):  # a full disk: the files remain complete
            _rewrite(directory, name, parts)


def _linked(below: Path, chain: list[str], names: list[str]) -> list[str]:
    """Create nested directories with hard links to page maps and their pages."""
    result = []
    for source in chain:
        below.mkdir(mode=0o700)
        result.append(str(below))
        for name in names:
            page_map = Layers([source], name, HOST_PAGE).level(0)
            if page_map is not None:
                for each in (name, page_map.pages_name):
                    os.link(f"{source}/{each}", below / each, follow_symlinks=False)
                    _refuse_of_others(below / each)
        below /= PARENT
    return result


def _refuse_of_others(path: Path) -> None:
    """Raise ``ImagesError`` for a file that another user owns or can write."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ImagesError(f"{path} is a file that another user can change")


def _compared(directory: Path, parents: list[str], name: str, until: float | None) -> list[Part]:
    """The parts of a process's memory; None: a parent has it. ``TimeoutError`` at ``until``."""
    parent = Layers(parents, name, HOST_PAGE)
    with OpenPages() as opened:
        result: list[Part] = []
        for stored in Layers([str(directory)], name, HOST_PAGE).stored():
            for part in _parts(stored, parent, opened):
                is_late = until is not None and time.monotonic() > until
                if is_late or interruption() is not None:
                    raise TimeoutError
                result.append(part)
        return result


def _parts(stored: Stored, parent: Layers, opened: OpenPages) -> Iterator[Part]:
    begin, end, _, offset = stored
    at = begin
    for start, theirs, size in parent.pieces(begin, end):
        if start > at:
            yield at, start, stored
        at = start + size
        if theirs is None:
            yield start, at, stored
            continue
        ours = os.pread(opened.of(stored[2]), size, offset + start - begin)
        if ours == theirs:
            yield start, at, None
            continue
        for page in range(0, size, HOST_PAGE):
            until = page + HOST_PAGE
            same = ours[page:until] == theirs[page:until]
            yield start + page, start + until, None if same else stored
    if at < end:
        yield at, end, stored


def _rewrite(directory: Path, name: str, parts: list[Part]) -> None:
    page_map = Layers([str(directory)], name, HOST_PAGE).level(0)
    assert page_map is not None
    image, pages = directory / name, Path(page_map.pages)
    new_image, new_pages = (path.with_name(f"{path.name}.partial") for path in (image, pages))
    try:
        write_page_map(new_image, new_pages, page_map.pages_id, parts)
    except BaseException:
        new_image.unlink(missing_ok=True)
        new_pages.unlink(missing_ok=True)
        raise
    new_pages.rename(pages)
    new_image.rename(image)
