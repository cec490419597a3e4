"""Incremental checkpoints: which are incremental, and the links to the memory of their parents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import ImagesError, OptionError, seal, verify
from pycriu_native._integrity.dump_marker import FRAMES
from pycriu_native._integrity.manifest import seal_with
from pycriu_native.jobs import Job
from pycriu_native.jobs.directory import Checkpoint
from pycriu_native.jobs.increments import PARENT, Increments, layers, link


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
    for name in ("inventory.img", "pages-1.img", "pagemap-7.img", "core-7.img", FRAMES):
        (before / name).write_bytes(name.encode())
    (before / "other").mkdir()
    (before / "other" / "pages-1.img").write_bytes(b"")
    seal(before)
    for number in (2, 3):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "inventory.img").write_bytes(b"%d" % number)
        entries = link(replace(_made(0, 1), path=str(before)), place / PARENT)
        assert not (before / FRAMES).exists()
        (place / PARENT / FRAMES).rename(place / FRAMES)
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
