"""Droppable memory (MAP_DROPPABLE), in which glibc from 2.41 on keeps the state of getrandom()."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from pycriu_native import CriuOpts, dump, pre_dump, restore
from pycriu_native._system.mappings import droppable_of
from pycriu_native.snapshots import Snapshot

from .conftest import Spawn
from .support.features import needs_soft_dirty
from .support.processes import kill

MAPPED = """
import ctypes, mmap, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
place = libc.mmap(None, ctypes.c_size_t(2 * mmap.PAGESIZE), 3, 0x28, -1, 0)
assert place != ctypes.c_void_p(-1).value
ctypes.memset(place, 7, 2 * mmap.PAGESIZE)
def content():
    return max(ctypes.string_at(place, 2 * mmap.PAGESIZE))
def content_in_child():
    ctypes.memset(place, 7, 2 * mmap.PAGESIZE)
    if not (pid := os.fork()):
        os._exit(content())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

PROGRAM = """
import json
fd = int(os.environ["PYCRIU_NATIVE_GUEST_FD"])
while True:
    os.write(fd, b"ready\\n")
    line = b""
    while not line.endswith(b"\\n"):
        part = os.read(fd, 65536)
        if not part: raise SystemExit
        line += part
    os.write(1, b"%d %d\\n" % (content(), content_in_child()))
    ctypes.memset(place, 7, 2 * mmap.PAGESIZE)
"""
"""A program without the library's helper, which can be saved again."""


def test_a_restored_process(orphans: None, spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """Restored droppable memory has zeros, and remains droppable: a fork empties it."""
    try:
        target = spawn(MAPPED + "serve(content=content, content_in_child=content_in_child)")
    except AssertionError:
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    before = droppable_of(target.pid)
    assert target.ask("content") == 7
    target.dump(CriuOpts(images_directory=images))
    restore(CriuOpts(images_directory=images))
    try:
        assert target.ask("content") == 0
        assert target.ask("content_in_child") == 0
        assert droppable_of(target.pid) == before
    finally:
        kill(target.pid)


@needs_soft_dirty
def test_a_parent_has_its_pages(orphans: None, spawn: Spawn, tmp_path: Path, images: Path) -> None:
    """Droppable memory has zeros also if an earlier dump, the parent, has its pages."""
    try:
        target = spawn(MAPPED + "serve(content=content)")
    except AssertionError:
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    first = tmp_path / "first"
    first.mkdir()
    opts = CriuOpts(images_directory=first, track_mem=True, leave_running=True)
    dump(target.pid, opts)
    again = CriuOpts(
        images_directory=images, track_mem=True, parent_image=os.path.relpath(first, images)
    )
    target.dump(again)
    restore(CriuOpts(images_directory=images))
    try:
        assert target.ask("content") == 0
    finally:
        kill(target.pid)


@needs_soft_dirty
def test_a_pre_dump_and_two_dumps(orphans: None, spawn: Spawn, tmp_path: Path) -> None:
    """The page that does not change is found in the parent of the parent."""
    try:
        target = spawn(MAPPED + "serve(content=content)")
    except AssertionError:
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    places = [tmp_path / name for name in ("first", "second", "third")]
    for place in places:
        place.mkdir()
    first, second, third = places
    pre_dump(target.pid, CriuOpts(images_directory=first))
    opts = CriuOpts(
        images_directory=second, parent_image="../first", track_mem=True, leave_running=True
    )
    dump(target.pid, opts)
    target.dump(CriuOpts(images_directory=third, parent_image="../second", track_mem=True))
    restore(CriuOpts(images_directory=third))
    try:
        assert target.ask("content") == 0
    finally:
        kill(target.pid)


def test_copies_of_a_snapshot(tmp_path: Path) -> None:
    """Copies of a program without the helper, and copies of a copy, start with zeros."""
    probe = [sys.executable, "-c", MAPPED]
    if os.spawnv(os.P_WAIT, probe[0], probe):
        pytest.skip("this kernel has no MAP_DROPPABLE (Linux 6.11)")
    snapshot = Snapshot.take([sys.executable, "-c", MAPPED + PROGRAM], tmp_path / "one")
    streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    with snapshot, snapshot.start(**streams, savable=True) as copy:
        assert copy.stdout is not None
        assert copy.stdout.readline() == b"0 0\n"
        of_copy = Snapshot.take(copy, tmp_path / "two")
    with of_copy, of_copy.start(**streams) as copy:
        assert copy.communicate()[0] == b"0 0\n"
