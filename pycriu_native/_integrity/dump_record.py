"""The record of a dump: which images it made, how long each is, and which are alike.

Some images are not referenced by any other (``completeness.py``). So the end of each dump writes
the names and sizes of the images into a file beside them, and a set with this file is compared
with it. The record has a copy of ``inventory.img``, so that it is not used for the images of a
later dump, by another program, in the same directory. Of pages and page maps it has only sums:
page servers and lazy dumps write them elsewhere or later, and page maps give the sizes of pages.

The file is a line of text for each image, between the first line and ``end``. An image that a
copy of another one could replace has a sum too (``image_sums.py``)::

    pycriu-native images 1
    inventory HEX
    640 files.img
    120:5f3a91b2 core-4242.img
    120:0c77e5d1 core-4243.img
    end
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._support.light_typing import TYPE_CHECKING
from .._system.regular_file import read_regular, replace_file
from .dump_marker import RECORD
from .image_sums import Copies, sum_of, sums_of

if TYPE_CHECKING:
    from .image_files import ImageFiles, Problem

_FIRST, _LAST = b"pycriu-native images 1", b"end"
_LARGEST = 2**24
"""Bytes of a record that are read: some 25 for each image."""

_LEFT_OUT = ("cpuinfo.", "irmap-cache.")
_PAGES = b"pages-", b"pagemap-"

Images = dict[bytes, tuple[int, int | None]]
"""The size of each image, and its sum."""


def write_record(directory: int) -> None:
    """Record the images of a dump that is complete. Without space for it there is no record."""
    with contextlib.suppress(OSError):
        sizes = {
            os.fsencode(entry.name): entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(directory)
            if entry.name.endswith(".img") and not entry.name.startswith(_LEFT_OUT)
        }
        try:
            sums = sums_of(directory, sizes)
            images: Images = {
                name: (size, sums.get(name))
                for name, size in sizes.items()
                if name in sums or not name.startswith(_PAGES)
            }
            _write(directory, inventory_of(directory), images)
        except OSError:
            os.unlink(RECORD, dir_fd=directory)


def record_again(directory: int, name: str) -> None:
    """Record an image that was written again, if the set has a record."""
    with contextlib.suppress(OSError, ValueError):
        inventory, images = _read(directory)
        encoded = os.fsencode(name)
        if encoded in images:
            size = os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
            summed = images[encoded][1] is not None
            images[encoded] = size, sum_of(directory, encoded, size) if summed else None
            _write(directory, inventory, images)


def problems(files: ImageFiles, names: set[str]) -> Iterator[Problem]:
    """The differences of a set from its record; none without a record.

    ``names`` are the files of the set, and ``files.names`` those without a reported problem.
    """
    if RECORD not in names:
        return
    # Loaded with the class of ``files``, and not for a dump's start.
    from .image_files import COPY_AGAIN, DamagedError, Problem, replaced, short

    try:
        here = inventory_of(files.directory)
    except OSError:
        return  # reported
    try:
        inventory, images = _read(files.directory)
    except OSError as error:
        yield Problem(f"{RECORD} is damaged: it cannot be read as a file: {error.strerror}")
        return
    except ValueError:
        yield Problem(f"{RECORD}, the record of the dump, is damaged", COPY_AGAIN)
        return
    copies = Copies(images)
    for encoded, (size, _) in images.items() if inventory == here else ():
        name, pages = os.fsdecode(encoded), encoded.startswith(_PAGES)
        if name not in names:
            if not pages:
                yield from files.missing(name)
        elif name in files.names:
            try:
                now = files.size(name)
                if other := copies.original(files.directory, encoded, now):
                    yield replaced(name, f"it is a copy of {os.fsdecode(other)}")
                elif now < size and not pages:
                    cure = f"{COPY_AGAIN}; if it was made shorter on purpose, remove {RECORD}"
                    yield Problem(short(name).problem.cause, cure)
            except DamagedError as damaged:
                yield damaged.problem
            except OSError as error:
                yield Problem(f"{name} is damaged: it cannot be read: {error.strerror}")


def inventory_of(directory: int) -> bytes:
    """The contents of ``inventory.img``, by which a set is recognized. ``OSError``."""
    return read_regular("inventory.img", 2**16, dir_fd=directory)


def _write(directory: int, inventory: bytes, images: Images) -> None:
    lines = [_FIRST, b"inventory " + inventory.hex().encode()]
    for name, (size, total) in sorted(images.items()):
        lines.append(b"%d%s %s" % (size, b"" if total is None else b":%08x" % total, name))
    replace_file(directory, RECORD, b"\n".join((*lines, _LAST, b"")))


def _read(directory: int) -> tuple[bytes, Images]:
    """The inventory and the images of a record. ``OSError``; ``ValueError`` if it is damaged."""
    record = read_regular(RECORD, _LARGEST, dir_fd=directory)
    first, inventory, *lines, last, end = record.split(b"\n")
    key, _, content = inventory.partition(b" ")
    if (first, key, last, end) != (_FIRST, b"inventory", _LAST, b""):
        raise ValueError(RECORD)
    images: Images = {}
    for line in lines:
        numbers, _, name = line.partition(b" ")
        size, _, total = numbers.partition(b":")
        images[name] = int(size), int(total, 16) if total else None
    return bytes.fromhex(content.decode("ascii")), images
