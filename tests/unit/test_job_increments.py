"""Incremental checkpoints: which are incremental, and whether all changes of memory are in them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import ImagesError, OptionError, seal, verify
from pycriu_native._integrity.manifest import seal_with
from pycriu_native._system.page_frames import PAGE
from pycriu_native._system.process import status_of
from pycriu_native._wire.protobuf import image_of, message
from pycriu_native.jobs import Job, unchanged_memory
from pycriu_native.jobs.directory import Checkpoint
from pycriu_native.jobs.increments import PARENT, Increments, layers, link
from pycriu_native.jobs.unchanged_memory import FrameRecord, MovedMemoryError

IN_PARENT, PRESENT = 1, 4
START = 0x10000000

Run = tuple[int, int, int]
"""First page, number of pages, and flags."""


class Memory:
    """The frame of each page of a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = list(range(100, 120))
        monkeypatch.setattr(unchanged_memory, "frames", self.read)

    def read(self, pagemap: int, start: int, end: int) -> bytes:
        pages = range((start - START) // PAGE, (end - START) // PAGE)
        return b"".join(self.frames[page].to_bytes(8, "little") for page in pages)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def _dumped(record: FrameRecord, place: Path, *runs: Run) -> None:
    """Record the dump of this process."""
    number = status_of(os.getpid())["NSpid"].split()[-1]
    entries = [
        message((1, START + first * PAGE), (2, count), (3, flags & IN_PARENT), (4, flags))
        for first, count, flags in runs
    ]
    place.mkdir(exist_ok=True)
    data = image_of("PAGEMAP", message((1, 1)), *entries)
    (place / f"pagemap-{number}.img").write_bytes(data)
    record.update(place, [os.getpid()])


def test_memory_in_its_place(memory: Memory, tmp_path: Path) -> None:
    """Changed pages can have other frames; runs of a parent can be divided otherwise."""
    record = FrameRecord()
    _dumped(record, tmp_path, (0, 4, PRESENT), (4, 4, PRESENT), (10, 2, PRESENT))
    memory.frames[3] = 200
    _dumped(record, tmp_path, (0, 3, IN_PARENT), (3, 1, PRESENT), (4, 4, IN_PARENT))
    _dumped(record, tmp_path, (1, 6, IN_PARENT))


@pytest.mark.parametrize(
    "run",
    [(0, 4, IN_PARENT), (2, 1, IN_PARENT), (7, 2, IN_PARENT), (8, 1, IN_PARENT), (9, 2, IN_PARENT)],
)
def test_memory_that_was_moved(memory: Memory, tmp_path: Path, run: Run) -> None:
    """A page with another frame, or one that the parent does not have, is refused."""
    record = FrameRecord()
    _dumped(record, tmp_path, (0, 8, PRESENT), (10, 2, PRESENT))
    memory.frames[2] = 300
    with pytest.raises(MovedMemoryError, match="was moved"):
        _dumped(record, tmp_path, run)


def _made(parents: int, size: int) -> Checkpoint:
    return Checkpoint(number=1, path="", time=0, duration=0, frozen=0, bytes=size, parents=parents)


@pytest.mark.parametrize(
    ("most", "sizes", "expected"),
    [
        (0, [100, 1, 1], [0, 0, 0]),
        (2, [100, 1, 1, 100, 1, 1, 100], [0, 1, 2, 0, 1, 2, 0]),
        (9, [100, 60, 60, 100, 30, 100, 100], [0, 1, 2, 0, 1, 2, 0]),
    ],
)
def test_which_are_incremental(most: int, sizes: list[int], expected: list[int]) -> None:
    """Until their number, or the sum of their sizes, reaches its limit."""
    increments, result = Increments(most), []
    for size in sizes:
        parent = increments.parent()
        increments.begin()
        result.append(0 if parent is None else parent.parents + 1)
        increments.made(_made(result[-1], size))
    assert result == expected


def test_after_a_failure() -> None:
    """The tracking of changes may have been reset: the next one is full."""
    increments = Increments(5)
    increments.made(_made(0, 100))
    assert increments.parent() is not None
    increments.begin()
    assert increments.parent() is None


def test_after_refusals() -> None:
    """The pause until the next attempt grows, and ends with a success."""
    increments, attempts = Increments(5), []
    increments.made(_made(0, 100))
    for number in range(1, 16):
        parent = increments.parent()
        increments.begin()
        if parent is not None:
            attempts.append(number)
            increments.refusal = "moved" if number < 13 else ""
        is_full = increments.refusal or parent is None
        increments.made(_made(0, 100) if is_full else _made(1, 10))
    assert attempts == [1, 3, 7, 15]
    assert increments.parent() is not None


def test_links(tmp_path: Path) -> None:
    """A checkpoint has the memory of its parents, without a copy, and is verified with it."""
    before = tmp_path / "1"
    before.mkdir()
    for name in ("inventory.img", "pages-1.img", "pagemap-7.img", "core-7.img"):
        (before / name).write_bytes(name.encode())
    (before / "other").mkdir()
    (before / "other" / "pages-1.img").write_bytes(b"")
    seal(before)
    for number in (2, 3):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "inventory.img").write_bytes(b"%d" % number)
        entries = link(replace(_made(0, 1), path=str(before)), place / PARENT)
        seal_with(place, entries)
        before = place
    assert (before / "parent/parent/pages-1.img").samefile(tmp_path / "1/pages-1.img")
    names = {str(path.relative_to(before)) for path in (before / "parent").rglob("*")}
    memory = ("inventory.img", "pages-1.img", "pagemap-7.img")
    assert names == {"parent/inventory.img", "parent/parent"} | {
        f"parent/parent/{name}" for name in memory
    }
    assert len(list(layers(before))) == 3
    verify(before)
    (before / "parent/parent/pages-1.img").write_bytes(b"pages-2.img")
    with pytest.raises(ImagesError, match=r"parent/parent/pages-1.img was changed"):
        verify(before)


@pytest.mark.parametrize("value", [-1, 200, 1.5, True, "3"])
def test_values_that_are_refused(value: object) -> None:
    """The number is limited by the depth of parents that the checks accept."""
    with pytest.raises(OptionError, match="incremental"):
        Job("/job", ["true"], incremental=value)  # type: ignore[arg-type]
