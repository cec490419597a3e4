"""Memory that the kernel may drop (MAP_DROPPABLE), in images of CRIU before 4.2.

That CRIU saves it as ordinary memory, with its content. glibc from 2.41 on keeps the state of
getrandom() in it, so that all processes restored from the same images, and their children, would
get equal random numbers. This module changes the images to what CRIU 4.2 saves, while the dumped
processes are frozen: a mapping with MAP_DROPPABLE, without content. Programs cannot rely on the
content: the kernel may replace it by zeros at any time. For the state of getrandom() zeros mean
that a new key is needed (``lib/vdso/getrandom.c``: the generation of a valid key is never 0).

Pages that a page server received, and the images of a stream, are not in the directory, and are
not changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .._native.ffi import native
from .._system.descriptors import opened_directory
from .._system.mappings import droppable_of
from .._system.process import own_number_of
from .._system.regular_file import open_regular, replace_file
from .._wire.fields import messages_of
from .._wire.protobuf import image, message
from .changed_image import Value, change_image, fields_of, replaced
from .image_files import DamagedError, ImageFiles, Row, kind_of
from .pagemap import IN_PARENT, LAZY, PRESENT

Range = tuple[int, int]
"""Start and end of a part of memory."""

CHUNK = 2**20
"""Bytes that are overwritten at once."""

_VMA, _START, _FLAGS = 14, 1, 6
"""Of ``mm.proto`` and ``vma.proto``: a mapping, its address and its flags."""
_ADDRESS, _COMPAT_PAGES, _RUN_FLAGS, _PAGES = 1, 2, 4, 5
"""Of ``pagemap.proto``: the address of a run, its flags, and its pages as 32 and 64 bits."""
_ANON_PRIVATE = 1 << 9
"""Bit of the status of a mapping (``criu/include/image.h``)."""
_MAP_PRIVATE, _MAP_DROPPABLE = 0x02, 0x08
"""Of mmap(2)."""
_DONT_DUMP = 1 << 16
"""MADV_DONTDUMP, among the advices of a mapping."""

_UNEXPECTED = DamagedError, IndexError, KeyError, ValueError
"""Images of an unexpected form, which their check reports; or a page server has the pages."""


def drop(files: ImageFiles, tree: Sequence[int]) -> None:
    """Change the images of droppable memory of the processes, which are frozen.

    An image of an unexpected form is not changed. Raises ``OSError`` if one cannot be written.
    """
    images = [name for name in files.names if kind_of(name) == "MM"]
    candidates = {name: found for name in images if (found := _candidates(files, name))}
    for pid in tree if candidates else ():
        number = own_number_of(pid)
        name = f"mm-{number}.img"
        if name not in candidates:
            continue
        if ranges := [each for each in droppable_of(pid) if each in candidates[name]]:
            with contextlib.suppress(*_UNEXPECTED):
                _drop_pages(files, f"pagemap-{number}.img", ranges)
                _mark(files.directory, name, ranges)


def drop_of_pre_dump(files: ImageFiles, tree: Iterable[int]) -> None:
    """Replace the content in a pre-dump, so that later dumps can refer to its pages.

    The processes run: pages of a droppable mapping that is new are saved by the next dump.
    """
    for pid in tree:
        number = own_number_of(pid)
        if f"pagemap-{number}.img" in files.names and (ranges := droppable_of(pid)):
            with contextlib.suppress(*_UNEXPECTED):
                _drop_pages(files, f"pagemap-{number}.img", ranges)


def _candidates(files: ImageFiles, name: str) -> set[Range]:
    try:
        rows = files.rows(name, "MM flags")
    except DamagedError:
        return set()
    return {(start, end) for _, start, end, *_ in filter(_is_candidate, rows)}


def _is_candidate(row: Row) -> bool:
    """Whether a mapping has the properties that the kernel gives to droppable ones."""
    _, _, _, flags, status, advices = row
    return bool(
        status & _ANON_PRIVATE
        and flags & native.pn_map_noreserve
        and not flags & _MAP_DROPPABLE
        and advices & _DONT_DUMP
    )


def _drop_pages(files: ImageFiles, name: str, ranges: Sequence[Range]) -> None:
    """Replace stored pages by zeros, and remove references to pages elsewhere.

    A reference to zeros in a parent remains: CRIU refuses a later dump with these images as its
    parent if they lack a page that has not changed since.

    Stored pages are not lazy afterwards: a lazy restore leaves only private mappings to the
    lazy-pages daemon, which would try for ever to load the others.
    """
    pages, runs = files.page_map(name).pages, files.runs(name)
    parts: dict[int, list[Range]] = {}
    access = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(pages, access, dir_fd=files.directory), "wb", buffering=0) as file:
        for start, end in ranges:
            for index, (first, last, flags, offset) in runs.between(start, end):
                begin, until = max(start, first), min(end, last)
                if flags & PRESENT and runs.blocks(index) is None:
                    _overwrite(file.fileno(), offset + begin - first, until - begin)
                if flags & IN_PARENT and _parent_has_zeros(files, name, begin, until):
                    continue
                if flags & LAZY or not flags & PRESENT:
                    parts.setdefault(index, []).append((begin, until))
    if parts:
        _change_runs(files, name, parts)


def _parent_has_zeros(files: ImageFiles, name: str, start: int, end: int) -> bool:
    """Whether these pages of the parent are stored, and zeros, as after ``_drop_pages``."""
    try:
        with opened_directory(f"/proc/self/fd/{files.directory}/parent") as at:
            parent = ImageFiles(at)
            pages, runs = parent.page_map(name).pages, parent.runs(name)
            with open(open_regular(pages, dir_fd=at), "rb") as file:
                for index, (first, last, flags, offset) in runs.between(start, end):
                    begin, until = max(start, first), min(end, last)
                    if begin > start or runs.blocks(index) is not None:
                        return False
                    if flags & PRESENT:
                        data = os.pread(file.fileno(), until - begin, offset + begin - first)
                        if data != bytes(until - begin):
                            return False
                    elif not flags & IN_PARENT or not _parent_has_zeros(parent, name, begin, until):
                        return False
                    start = until
    except (DamagedError, OSError):
        return False
    return start == end


def _overwrite(fd: int, offset: int, size: int) -> None:
    zeros = bytes(min(size, CHUNK))
    while size:
        done = os.pwrite(fd, zeros[:size], offset)
        offset, size = offset + done, size - done


def _change_runs(files: ImageFiles, name: str, parts: Mapping[int, Sequence[Range]]) -> None:
    """Change parts of runs, by the indexes of the runs; the parts of a run ascend."""
    data = b"".join(files.pieces(name))
    head, *entries = messages_of(data)
    changed = [head]
    for index, entry in enumerate(entries):
        changed += _split(entry, parts[index], files.page) if index in parts else [entry]
    replace_file(files.directory, name, image(*changed, magic=data[:8]))


def _split(entry: bytes, parts: Sequence[Range], page: int) -> Iterator[bytes]:
    """The runs between parts of a run, and those parts that are stored."""
    fields = fields_of(entry)
    numbers = {number: value for number, value in fields if isinstance(value, int)}
    flags = numbers.get(_RUN_FLAGS, 0)
    position = numbers[_ADDRESS]
    end = position + (numbers.get(_PAGES) or numbers[_COMPAT_PAGES]) * page

    def run(first: int, last: int, flags: int) -> bytes:
        count = (last - first) // page
        changed = {_ADDRESS: first, _COMPAT_PAGES: count, _PAGES: count, _RUN_FLAGS: flags}
        return message(*((number, changed.get(number, value)) for number, value in fields))

    for first, last in parts:
        if position < first:
            yield run(position, first, flags)
        if flags & PRESENT:
            yield run(first, last, flags & ~LAZY)
        position = last
    if position < end:
        yield run(position, end, flags)


def _mark(directory: int, name: str, ranges: Sequence[Range]) -> None:
    """Give mappings the flag MAP_DROPPABLE, which replaces MAP_PRIVATE."""
    starts = {start for start, _ in ranges}

    def marked(mapping: Value) -> Value:
        if dict(fields_of(mapping))[_START] not in starts:
            return mapping
        return replaced(mapping, _FLAGS, lambda flags: int(flags) & ~_MAP_PRIVATE | _MAP_DROPPABLE)

    change_image(directory, name, lambda memory: replaced(memory, _VMA, marked))
