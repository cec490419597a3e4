"""Pre-copy: ``pre_dump``, ``parent_image``, ``auto_dedup``, ``track_mem``, ``pre_dump_mode``.

A pre-dump saves the memory of a process that continues to run, and lets the kernel track changes.
The next pre-dump, or the dump, names these images as its parent and saves only changed pages, so
that the process is frozen for a short time at the end. A restore reads the whole chain.

The process in these tests writes some of its memory all the time, and can verify all of it.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    DumpResult,
    DumpStatistics,
    OptionError,
    dump,
    pre_dump,
    restore,
)

from .conftest import Spawn
from .support.features import needs_soft_dirty
from .support.processes import Target, eventually
from .support.soft_dirty import BUSY, PAGES, WRITER

pytestmark = needs_soft_dirty

PAGE = mmap.PAGESIZE
OTHERS = 500
"""Pages that can change in addition to the requested ones: busy pages, and Python's own."""


def _numbers(result: DumpResult) -> DumpStatistics:
    assert result.statistics is not None
    return result.statistics


def _round(base: Path, number: int) -> CriuOpts:
    """Options of a round, with the previous one as parent."""
    parent = f"../{number - 1}" if number > 1 else None
    base.mkdir(exist_ok=True)
    return CriuOpts(images_directory=base / str(number), parent_image=parent, track_mem=True)


def _writes_on(target: Target) -> None:
    before = target.ask("writes")
    eventually(lambda: target.ask("writes") > before, "more writes")


def _is_intact(target: Target) -> None:
    """Whether the process continues to write, and every page has the written contents."""
    _writes_on(target)
    assert target.ask("wrong") == []


def _blocks(directory: Path) -> int:
    """Bytes of disk space of the pages in these images."""
    return sum(path.stat().st_blocks * 512 for path in directory.glob("pages-*.img"))


def _size(directory: Path) -> int:
    """Bytes of the pages in these images, including holes."""
    return sum(path.stat().st_size for path in directory.glob("pages-*.img"))


def test_the_final_dump_is_small(
    spawn: Spawn, images: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """After two rounds the dump saves a small part of the memory."""
    target = spawn(f"import os\nballast = bytearray(os.urandom(2**20) * 48)\n{dedent(WRITER)}")
    plain = dump(target.pid, CriuOpts(images_directory=tmp_path / "plain", leave_running=True))
    for number in (1, 2):
        pre_dump(target.pid, _round(images, number))
        _writes_on(target)
    final = dump(target.pid, _round(images, 3))
    target.reap()
    whole, rest = _numbers(plain), _numbers(final)
    assert whole.pages_written > PAGES
    assert whole.pages_skipped_parent == 0
    assert BUSY <= rest.pages_written < whole.pages_written // 4
    assert rest.pages_skipped_parent > PAGES - OTHERS
    assert _size(images / "3") == rest.pages_written * PAGE
    record_property(
        "measured",
        f"frozen for {whole.frozen_time / 1000:.0f} ms in a plain dump of {whole.pages_written} "
        f"pages, for {rest.frozen_time / 1000:.0f} ms in one of {rest.pages_written} after two "
        "pre-dumps",
    )
    restore(CriuOpts(images_directory=images / "3"))
    _is_intact(target)


def test_a_chain_of_three(spawn: Spawn, images: Path) -> None:
    """Each image has a different part; the restore uses the newest of each page."""
    target = spawn(WRITER)
    pre_dump(target.pid, _round(images, 1))
    target.ask("touch", 1000, 2000)
    second = pre_dump(target.pid, _round(images, 2))
    target.ask("touch", 1500, 1600)
    final = dump(target.pid, _round(images, 3))
    target.reap()
    assert _numbers(second).pages_written >= 1000
    assert _numbers(second).pages_skipped_parent >= PAGES - 1000 - OTHERS
    assert _numbers(final).pages_written >= 100
    assert _numbers(final).pages_skipped_parent >= PAGES - 100 - OTHERS
    for number in (2, 3):
        assert os.readlink(images / str(number) / "parent") == f"../{number - 1}"
    restore(CriuOpts(images_directory=images / "3"))
    _is_intact(target)


def test_a_chain_can_be_moved_but_not_broken(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """Parents are relative to the images; if one is missing, the restore reports it."""
    target = spawn(WRITER)
    for number in (1, 2):
        pre_dump(target.pid, _round(images, number))
    dump(target.pid, _round(images, 3))
    target.reap()
    moved = tmp_path / "elsewhere"
    shutil.move(images, moved)
    (moved / "1").rename(moved / "away")
    with pytest.raises(CriuError) as caught:
        restore(CriuOpts(images_directory=moved / "3"))
    assert "builds on the images in '../1'" in str(caught.value)
    assert caught.value.options == ("parent_image",)
    target.until_free()
    (moved / "away").rename(moved / "1")
    restore(CriuOpts(images_directory=moved / "3"))
    _is_intact(target)


def test_auto_dedup(spawn: Spawn, images: Path) -> None:
    """Pages in a later image are removed from the files of its parents: disk space, not size."""
    target = spawn(WRITER)
    pre_dump(target.pid, _round(images, 1))
    size, blocks = _size(images / "1"), _blocks(images / "1")
    assert blocks >= size
    target.ask("touch", 1000, 3000)
    final = dump(target.pid, replace(_round(images, 2), auto_dedup=True))
    target.reap()
    assert _size(images / "1") == size
    freed = blocks - _blocks(images / "1")
    assert 2000 * PAGE <= freed <= (_numbers(final).pages_written + 16) * PAGE
    restore(CriuOpts(images_directory=images / "2"))
    _is_intact(target)


def test_no_auto_dedup(spawn: Spawn, images: Path) -> None:
    """Without auto_dedup the parents are unchanged."""
    target = spawn(WRITER)
    pre_dump(target.pid, _round(images, 1))
    blocks = _blocks(images / "1")
    target.ask("touch", 1000, 3000)
    dump(target.pid, _round(images, 2))
    target.reap()
    assert _blocks(images / "1") == blocks


def test_auto_dedup_on_restore(spawn: Spawn, images: Path) -> None:
    """Pages are removed from the images and parents when they are read, so these can be restored
    once.
    """
    target = spawn(WRITER)
    pre_dump(target.pid, _round(images, 1))
    dump(target.pid, _round(images, 2))
    target.reap()
    before = _blocks(images / "1") + _blocks(images / "2")
    restore(CriuOpts(images_directory=images / "2", auto_dedup=True))
    _is_intact(target)
    assert before - _blocks(images / "1") - _blocks(images / "2") > PAGES // 2 * PAGE


@pytest.mark.parametrize("mode", ["splice", "read"])
def test_pre_dump_mode(spawn: Spawn, images: Path, mode: str) -> None:
    """With each mode all memory is saved."""
    target = spawn(WRITER)
    first = pre_dump(target.pid, replace(_round(images, 1), pre_dump_mode=mode))
    assert _numbers(first).pages_written > PAGES - BUSY
    assert target.ask("wrong") == []
    final = dump(target.pid, _round(images, 2))
    target.reap()
    assert _numbers(final).pages_written < PAGES // 2
    restore(CriuOpts(images_directory=images / "2"))
    _is_intact(target)


def test_track_mem(spawn: Spawn, images: Path) -> None:
    """A dump with tracking can be a parent; one without cannot."""
    target, other = spawn(WRITER), spawn(WRITER)
    images.mkdir()
    first = CriuOpts(images_directory=images / "1", leave_running=True, track_mem=True)
    dump(target.pid, first)
    tracked = dump(target.pid, replace(_round(images, 2), leave_running=True))
    assert _numbers(tracked).pages_skipped_parent > PAGES - OTHERS

    dump(other.pid, CriuOpts(images_directory=images / "3", leave_running=True))
    with pytest.raises(CriuError):  # CRIU reads the time of the parent
        dump(other.pid, _round(images, 4))
    _is_intact(other)


def test_pre_dump_leaves_it_alone(spawn: Spawn, images: Path) -> None:
    """``pre_dump`` accepts the options of the dump, and calls no hook, in any release."""
    target = spawn(WRITER)
    asked: list[object] = []
    opts = replace(_round(images, 1), tcp_established=True, file_locks=True)
    result = pre_dump(target.pid, opts, on_notify=asked.append)
    assert asked == []
    assert not result.pid_free
    assert not list((images / "1").glob("core-*.img"))
    _is_intact(target)


def test_a_parent_that_is_refused(spawn: Spawn, images: Path) -> None:
    """A parent that is absolute, missing, empty or of another process is refused before the process
    is touched.
    """
    target, other = spawn(WRITER), spawn()
    pre_dump(target.pid, _round(images, 1))
    (images / "empty").mkdir()
    for parent, why in {
        str(images / "1"): "relative to the images directory",
        "../missing": "an existing directory",
        "../empty": "a directory with images",
    }.items():
        opts = CriuOpts(images_directory=images / "2", parent_image=parent, track_mem=True)
        for verb in (dump, pre_dump):
            with pytest.raises(OptionError, match=f"parent_image.*{why}"):
                verb(target.pid, opts)
    opts = CriuOpts(images_directory=images / "2", parent_image="../1")
    with pytest.raises(OptionError, match=r"parent_image.*needs track_mem"):
        dump(target.pid, opts)
    opts = replace(opts, track_mem=True)
    with pytest.raises(OptionError, match=f"parent_image.*pid {other.pid}.*{target.pid}"):
        dump(other.pid, opts)
    assert not (images / "2").exists()
    _is_intact(target)
    assert other.runs_on()
