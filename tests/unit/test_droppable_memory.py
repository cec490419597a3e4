"""Droppable memory in images of CRIU before 4.2, which has its content."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native._integrity.droppable_memory import drop, drop_of_pre_dump
from pycriu_native._integrity.image_files import ImageFiles
from pycriu_native._system.mappings import droppable_of
from pycriu_native._system.process import status_of
from pycriu_native._wire.fields import message_fields, messages_of
from pycriu_native._wire.protobuf import image_of, message
from pycriu_native.images import decode

PAGE = mmap.PAGESIZE
PAGES = 4
PRIVATE, DROPPABLE, ANONYMOUS, NORESERVE = 0x02, 0x08, 0x20, 0x4000  # linux/mman.h
ANON_PRIVATE, DONTDUMP = 1 << 0 | 1 << 9, 1 << 16
PARENT, LAZY, PRESENT = 1, 2, 4

Run = tuple[int, int, int]
"""Address, pages and flags."""


@pytest.fixture
def droppable() -> Iterator[int]:
    """The address of droppable memory of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(PAGES * PAGE)
    place = libc.mmap(None, size, 3, ANONYMOUS | DROPPABLE, -1, 0)
    if place in (None, ctypes.c_void_p(-1).value):
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    yield place
    libc.munmap(ctypes.c_void_p(place), size)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def mapping(start: int, end: int, *, flags: int = PRIVATE, advices: int = DONTDUMP) -> bytes:
    """A mapping as CRIU 4.1.1 saves it."""
    return message(
        (1, start), (2, end), (3, 0), (4, 0), (5, 3), (6, flags | ANONYMOUS | NORESERVE),
        (7, ANON_PRIVATE), (8, 2**64 - 1), (9, advices), (10, 0),
    )  # fmt: skip


def saved(at: Path, mappings: list[bytes], runs: list[Run]) -> None:
    """Write the images of this process's memory; each stored page has its own number."""
    number = status_of(os.getpid())["NSpid"].split()[-1]
    numbers: list[tuple[int, int | bytes]] = [
        *((field, 0) for field in range(1, 13)),
        *((14, each) for each in mappings),
    ]
    (at / f"mm-{number}.img").write_bytes(image_of("MM", message(*numbers)))
    entries = [
        message((1, start), (2, count), *([(3, 1)] if flags & PARENT else []), (4, flags))
        for start, count, flags in runs
    ]
    data = image_of("PAGEMAP", message((1, 1)), *entries)
    (at / f"pagemap-{number}.img").write_bytes(data)
    stored = sum(count for _, count, flags in runs if flags & PRESENT)
    (at / "pages-1.img").write_bytes(b"".join(bytes([1 + n]) * PAGE for n in range(stored)))


def contents(at: Path) -> list[int]:
    """The first byte of each stored page, all bytes of which are equal."""
    data = (at / "pages-1.img").read_bytes()
    pages = [data[start : start + PAGE] for start in range(0, len(data), PAGE)]
    assert all(page == page[:1] * PAGE for page in pages)
    return [page[0] for page in pages]


def only(at: Path, pattern: str) -> Path:
    (result,) = at.glob(pattern)
    return result


def test_content_is_removed(droppable: int, tmp_path: Path, directory: int) -> None:
    """The droppable mapping has zeros, and its flag; others are not changed."""
    end = droppable + PAGES * PAGE
    assert (droppable, end) in droppable_of(os.getpid())
    before, other = (droppable - PAGE, droppable), (end, end + 2 * PAGE)
    mappings = [mapping(*before), mapping(droppable, end), mapping(*other, advices=0)]
    runs = [(before[0], 2, PRESENT | LAZY), (droppable + 2 * PAGE, 4, PRESENT)]
    saved(tmp_path, mappings, runs)
    drop(ImageFiles(directory), [os.getpid()])
    assert contents(tmp_path) == [1, 0, 0, 0, 5, 6]
    (entry,) = decode(only(tmp_path, "mm-*.img"))["entries"]
    files = ImageFiles(directory)
    kept = files.runs(only(tmp_path, "pagemap-*.img").name).between(0, 2**63)
    assert [run[:3] for _, run in kept] == [
        (before[0], droppable, PRESENT | LAZY),
        (droppable, droppable + PAGE, PRESENT),
        (droppable + 2 * PAGE, end + 2 * PAGE, PRESENT),
    ]
    rows = files.rows(only(tmp_path, "mm-*.img").name, "MM flags")
    assert [row[3] & (PRIVATE | DROPPABLE) for row in rows] == [PRIVATE, DROPPABLE, PRIVATE]
    (changed,) = messages_of(only(tmp_path, "mm-*.img").read_bytes())
    ours = [value for field, value in message_fields(changed) if field == 14]
    assert ours[0::2] == mappings[0::2]
    assert len(entry["vmas"]) == len(mappings)


def test_pages_elsewhere_are_not_needed(droppable: int, tmp_path: Path, directory: int) -> None:
    """Pages outside of droppable memory remain in a parent, or served by a lazy dump."""
    end = droppable + PAGES * PAGE
    runs = [
        (droppable - PAGE, 2, PARENT),
        (droppable + PAGE, 1, PRESENT),
        (droppable + 2 * PAGE, 4, LAZY),
    ]
    saved(tmp_path, [mapping(droppable, end)], runs)
    drop(ImageFiles(directory), [os.getpid()])
    files = ImageFiles(directory)
    kept = files.runs(only(tmp_path, "pagemap-*.img").name).between(0, 2**63)
    expected = [
        (droppable - PAGE, droppable, PARENT),
        (droppable + PAGE, droppable + 2 * PAGE, PRESENT),
        (end, end + 2 * PAGE, LAZY),
    ]
    assert [run[:3] for _, run in kept] == expected
    assert contents(tmp_path) == [0]


def test_zeros_in_a_parent_are_kept(droppable: int, tmp_path: Path) -> None:
    """The third of three dumps can refer to them, also through the second one."""
    end = droppable + PAGES * PAGE
    above: Path | None = None
    for number, flags in enumerate((PRESENT, PARENT, PARENT)):
        at = tmp_path / str(number)
        at.mkdir()
        saved(at, [mapping(droppable, end)], [(droppable, PAGES, flags)])
        if above is not None:
            (at / "parent").symlink_to(above)
        fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
        try:
            drop(ImageFiles(fd), [os.getpid()])
            runs = ImageFiles(fd).runs(only(at, "pagemap-*.img").name).between(0, 2**63)
            assert [run[:3] for _, run in runs] == [(droppable, end, flags)]
        finally:
            os.close(fd)
        above = at
    assert contents(tmp_path / "0") == [0] * PAGES


def test_a_parent_that_is_a_pre_dump(droppable: int, tmp_path: Path, directory: int) -> None:
    """A pre-dump has zeros in place of the content, and no reference to a parent without it."""
    end = droppable + PAGES * PAGE
    runs = [
        (droppable - PAGE, 2, PRESENT),
        (droppable + PAGE, 1, PARENT),
        (droppable + 2 * PAGE, 4, PRESENT | LAZY),
    ]
    saved(tmp_path, [], runs)
    only(tmp_path, "mm-*.img").unlink()
    drop_of_pre_dump(ImageFiles(directory), [os.getpid()])
    assert contents(tmp_path) == [1, 0, 0, 0, 5, 6]
    kept = ImageFiles(directory).runs(only(tmp_path, "pagemap-*.img").name).between(0, 2**63)
    assert [run[:3] for _, run in kept] == [
        (droppable - PAGE, droppable + PAGE, PRESENT),
        (droppable + 2 * PAGE, end, PRESENT),
        (end, end + 2 * PAGE, PRESENT | LAZY),
    ]


def test_two_in_one_run(droppable: int, tmp_path: Path, directory: int) -> None:
    """A run of pages has two droppable mappings, and memory between them."""
    one, two, end = droppable + PAGE, droppable + 2 * PAGE, droppable + PAGES * PAGE
    unmap = ctypes.CDLL(None).munmap
    assert unmap(ctypes.c_void_p(one), ctypes.c_size_t(PAGE)) == 0
    saved(tmp_path, [mapping(droppable, one), mapping(two, end)], [(droppable, 4, PRESENT | LAZY)])
    drop(ImageFiles(directory), [os.getpid()])
    assert contents(tmp_path) == [0, 2, 0, 0]
    files = ImageFiles(directory)
    kept = files.runs(only(tmp_path, "pagemap-*.img").name).between(0, 2**63)
    assert [run[:3] for _, run in kept] == [
        (droppable, one, PRESENT),
        (one, two, PRESENT | LAZY),
        (two, end, PRESENT),
    ]


@pytest.mark.parametrize(("flags", "advices"), [(DROPPABLE, DONTDUMP), (PRIVATE, 0)])
def test_other_images_are_not_changed(
    flags: int, advices: int, droppable: int, tmp_path: Path, directory: int
) -> None:
    """Images of CRIU 4.2, and those of a mapping that is not droppable, are not changed."""
    one = mapping(droppable, droppable + PAGES * PAGE, flags=flags, advices=advices)
    saved(tmp_path, [one], [(droppable, 1, PRESENT)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    drop(ImageFiles(directory), [os.getpid()])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_similar_memory_that_is_not_droppable(tmp_path: Path, directory: int) -> None:
    """A mapping that is not dumped in core files and reserves no memory is kept."""
    with mmap.mmap(-1, PAGE, flags=PRIVATE | ANONYMOUS) as ordinary:
        start = ctypes.addressof(ctypes.c_char.from_buffer(ordinary))
        saved(tmp_path, [mapping(start, start + PAGE)], [(start, 1, PRESENT)])
        drop(ImageFiles(directory), [os.getpid()])
        assert contents(tmp_path) == [1]


def test_pages_of_a_page_server(droppable: int, tmp_path: Path, directory: int) -> None:
    """Without a page map, the images are not changed."""
    saved(tmp_path, [mapping(droppable, droppable + PAGES * PAGE)], [(droppable, 1, PRESENT)])
    only(tmp_path, "pagemap-*.img").unlink()
    before = only(tmp_path, "mm-*.img").read_bytes()
    drop(ImageFiles(directory), [os.getpid()])
    assert only(tmp_path, "mm-*.img").read_bytes() == before
