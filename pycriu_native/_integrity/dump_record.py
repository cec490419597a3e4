"""The record of a dump: which images it made, and how long each is.

Some images are not referenced by any other (``completeness.py``). So the end of each dump writes
the names and sizes of the images into a file beside them, and a set with this file is compared
with it. The record has a copy of ``inventory.img``, so that it is not used for the images of a
later dump, by another program, in the same directory. Pages and page maps are left out: page
servers and lazy dumps write them elsewhere or later, and page maps give their sizes.

The file is a line of text for each image, between the first line and ``end``::

    pycriu-native images 1
    inventory HEX
    120 core-4242.img
    end
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._support.light_typing import TYPE_CHECKING
from .._system.regular_file import read_regular, replace_file
from .dump_marker import RECORD

if TYPE_CHECKING:
    from .image_files import ImageFiles, Problem

_FIRST, _LAST = b"pycriu-native images 1", b"end"
_LARGEST = 2**24
"""Bytes of a record that are read: some 25 for each image."""

_LEFT_OUT = ("pages-", "pagemap-", "cpuinfo.", "irmap-cache.")


def write_record(directory: int) -> None:
    """Record the images of a dump that is complete. Without space for it there is no record."""
    with contextlib.suppress(OSError):
        sizes = {
            os.fsencode(entry.name): entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(directory)
            if entry.name.endswith((".img", ".tar.gz")) and not entry.name.startswith(_LEFT_OUT)
        }
        try:
            _write(directory, _inventory(directory), sizes)
        except OSError:
            os.unlink(RECORD, dir_fd=directory)


def record_size(directory: int, name: str) -> None:
    """Record the size of an image that was written again, if the set has a record."""
    with contextlib.suppress(OSError, ValueError):
        inventory, sizes = _read(directory)
        encoded = os.fsencode(name)
        if encoded in sizes:
            sizes[encoded] = os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
            _write(directory, inventory, sizes)


def problems(files: ImageFiles, names: set[str]) -> Iterator[Problem]:
    """The differences of a set from its record; none without a record.

    ``names`` are the files of the set, and ``files.names`` those without a reported problem.
    """
    if RECORD not in names:
        return
    from .image_files import COPY_AGAIN, DamagedError, Problem, short  # not for a dump's start

    try:
        here = _inventory(files.directory)
    except OSError:
        return  # reported
    try:
        inventory, sizes = _read(files.directory)
    except OSError as error:
        yield Problem(f"{RECORD} is damaged: it cannot be read as a file: {error.strerror}")
        return
    except ValueError:
        yield Problem(f"{RECORD}, the record of the dump, is damaged", COPY_AGAIN)
        return
    for encoded, size in sizes.items() if inventory == here else ():
        name = os.fsdecode(encoded)
        if name not in names:
            yield from files.missing(name)
        elif name in files.names:
            try:
                if files.size(name) < size:
                    cure = f"{COPY_AGAIN}; if it was made shorter on purpose, remove {RECORD}"
                    yield Problem(short(name).problem.cause, cure)
            except DamagedError as damaged:
                yield damaged.problem


def _inventory(directory: int) -> bytes:
    return read_regular("inventory.img", 2**16, dir_fd=directory)


def _write(directory: int, inventory: bytes, sizes: dict[bytes, int]) -> None:
    lines = [_FIRST, b"inventory " + inventory.hex().encode()]
    lines += [b"%d %s" % (size, name) for name, size in sorted(sizes.items())]
    replace_file(directory, RECORD, b"\n".join((*lines, _LAST, b"")))


def _read(directory: int) -> tuple[bytes, dict[bytes, int]]:
    """The inventory and the sizes of a record. ``OSError``; ``ValueError`` if it is damaged."""
    record = read_regular(RECORD, _LARGEST, dir_fd=directory)
    first, inventory, *lines, last, end = record.split(b"\n")
    key, _, content = inventory.partition(b" ")
    if (first, key, last, end) != (_FIRST, b"inventory", _LAST, b""):
        raise ValueError(RECORD)
    sizes = {}
    for line in lines:
        size, _, name = line.partition(b" ")
        sizes[name] = int(size)
    return bytes.fromhex(content.decode("ascii")), sizes
