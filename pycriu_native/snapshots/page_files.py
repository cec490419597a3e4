"""Writing of memory images: page maps with their pages, and links to pages of another set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .._integrity.page_size import HOST_PAGE
from .._integrity.pagemap import IN_PARENT, PRESENT
from .._system.regular_file import create_regular, open_regular
from .._wire.protobuf import image_of
from ..errors import ImagesError
from ..images.pages import OpenPages, Stored
from ..images.schema import message

Part = tuple[int, int, Stored | None]
"""Start and end of a part of memory, and the run of pages that has it; None: a parent has it."""

CHUNK = 2**20


def write_image(path: Path, kind: str, entries: Iterable[Any]) -> None:
    """Write the messages of an image into a new file, of mode 0600."""
    with open(create_regular(path), "wb") as file:
        file.write(image_of(kind, *(entry.SerializeToString() for entry in entries)))


def write_page_map(path: Path, pages: Path, pages_id: int, parts: Iterable[Part]) -> None:
    """Write a page map and its pages into two new files."""
    entries = [message("pagemap_head")(pages_id=pages_id)]
    with open(create_regular(pages), "wb", buffering=0) as target:
        for start, end, stored in _joined(parts, target.fileno()):
            count = (end - start) // HOST_PAGE
            entries.append(
                message("pagemap_entry")(
                    vaddr=start,
                    compat_nr_pages=count,
                    nr_pages=count,
                    flags=PRESENT if stored else IN_PARENT,
                )
            )
    write_image(path, "PAGEMAP", entries)


def _joined(parts: Iterable[Part], target: int) -> Iterator[tuple[int, int, bool]]:
    """Write the pages of the parts. Yields start, end and whether they are stored, of each run."""
    run: tuple[int, int, bool] | None = None
    with OpenPages() as opened:
        for start, end, stored in parts:
            if stored is not None:
                source = opened.of(stored[2])
                copy(source, target, stored[3] + start - stored[0], end - start)
            here = stored is not None
            if run is not None and run[1:] == (start, here):
                run = run[0], end, here
                continue
            if run is not None:
                yield run
            run = start, end, here
        if run is not None:
            yield run


def copy(source: int, target: int, offset: int, size: int) -> None:
    """Append bytes of one file to another."""
    while size:
        done = os.sendfile(target, source, offset, size)
        if not done:
            raise ImagesError("a pages file was truncated while it was read")
        offset, size = offset + done, size - done


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, or a copy of mode 0600 if that is impossible."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open(open_regular(source), "rb") as old, open(create_regular(target), "wb") as new:
            shutil.copyfileobj(old, new, CHUNK)
