"""Memory that mremap(2) has moved with its page table, which the kernel does not mark as changed.

CRIU would take the contents of the new address from the parent images. Each incremental dump is
therefore checked, and refused if it would lose memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import (
    CriuOpts,
    DumpResult,
    MovedMemoryError,
    Notification,
    Notify,
    OptionError,
    PageServer,
    Round,
    dump,
    dump_iters,
    page_server_child,
    pre_dump,
    restore,
    seal,
    verify,
)
from pycriu_native._calls.safeguards import Safeguards

from .conftest import Spawn
from .support.features import needs_soft_dirty
from .support.processes import Target
from .support.soft_dirty import MOVER

pytestmark = needs_soft_dirty

REFUSED = r"parent_image='../\d' cannot be used: memory of pid \d+ at 0x\w+ was moved"


def _opts(base: Path, number: int, **more: Any) -> CriuOpts:
    """Options of a dump, with the previous one as parent."""
    base.mkdir(exist_ok=True)
    parent = f"../{number - 1}" if number > 1 else None
    opts = CriuOpts(images_directory=base / str(number), parent_image=parent, track_mem=True)
    return replace(opts, **more)


def _restored(target: Target, images: str) -> list[list[int]]:
    """What the process has in the first two places after a restore."""
    target.reap()
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()
    return [target.ask("contents", number) for number in (0, 1)]


@pytest.fixture(params=[True, False], ids=["CRIU 3.19", "CRIU before"])
def notified(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the notification before CRIU reads the memory, and as if it did not exist."""
    if not request.param:
        monkeypatch.setattr(Safeguards, "frozen", lambda *_: None)


@pytest.mark.parametrize("how", [dump, pre_dump])
def test_a_dump_with_a_parent(
    notified: None, spawn: Spawn, images: Path, how: Callable[..., DumpResult]
) -> None:
    """The dump is refused, and the process runs on; one without the parent is complete."""
    target = spawn(MOVER)
    how(target.pid, _opts(images, 1, leave_running=True))
    target.ask("move", 0, 1)
    with pytest.raises(MovedMemoryError, match=REFUSED) as caught:
        dump(target.pid, _opts(images, 2))
    assert caught.value.options == ("parent_image",)
    assert not list((images / "2").glob("*.img"))
    assert target.runs_on()
    with pytest.raises(OptionError, match=r"parent_image='../1'.*accepted once"):
        dump(target.pid, _opts(images, 2))
    full = dump(target.pid, _opts(images, 2, parent_image=None))
    target.reap()
    restore(CriuOpts(images_directory=full.images))
    assert target.ask("contents", 1) == [1]


def test_a_chain(notified: None, spawn: Spawn, images: Path) -> None:
    """Without a move, each dump saves only what was written since the last one."""
    target = spawn(MOVER)
    for number in (1, 2, 3):
        target.ask("fill", 2, number)
        result = dump(target.pid, _opts(images, number, leave_running=True))
        assert result.statistics is not None
        assert (result.statistics.pages_skipped_parent > 1000) is (number > 1)
    target.ask("fill", 1, 4)
    assert _restored(target, dump(target.pid, _opts(images, 4)).images) == [[1], [4]]


def test_tables_that_change_places(spawn: Spawn, images: Path) -> None:
    """Two tables that are exchanged twice are where they were; exchanged once, they are not."""
    target = spawn(MOVER)
    dump(target.pid, _opts(images, 1, leave_running=True))
    target.ask("swap", 0, 1)
    target.ask("swap", 0, 1)
    pre_dump(target.pid, _opts(images, 2))
    target.ask("swap", 0, 1)
    with pytest.raises(MovedMemoryError, match=REFUSED):
        dump(target.pid, _opts(images, 3))
    target.ask("swap", 0, 1)
    pre_dump(target.pid, _opts(images, 2, parent_image=None))
    target.ask("swap", 0, 1)
    target.ask("swap", 0, 1)
    final = dump(target.pid, _opts(images, 3))
    assert final.statistics is not None
    assert final.statistics.pages_skipped_parent > 1000
    assert _restored(target, final.images) == [[1], [2]]


def test_memory_that_was_written_after_the_move(spawn: Spawn, images: Path) -> None:
    """Its pages are marked: the dump is incremental, and has them."""
    target = spawn(MOVER)
    pre_dump(target.pid, _opts(images, 1))
    target.ask("swap", 0, 1)
    target.ask("fill", 0, 3)
    target.ask("fill", 1, 4)
    assert _restored(target, dump(target.pid, _opts(images, 2)).images) == [[3], [4]]


def test_a_huge_page(spawn: Spawn, images: Path) -> None:
    """The kernel marks a huge page that it moves: its memory is in the incremental dump."""
    target = spawn(MOVER)
    for number in (2, 3):
        target.ask("huge", number)
        target.ask("fill", number, 5 + number)
    dump(target.pid, _opts(images, 1, leave_running=True))
    target.ask("move", 3, 2)
    final = dump(target.pid, _opts(images, 2))
    assert _restored(target, final.images) == [[1], [2]]
    assert target.ask("contents", 2) == [8]


@pytest.mark.parametrize("more", [False, True], ids=["after the last round", "between rounds"])
def test_rounds(spawn: Spawn, images: Path, more: bool) -> None:
    """The final dump has all memory, and does not need the rounds."""
    target = spawn(MOVER)

    def should_continue(round: Round) -> bool:
        if round.number == 1:
            target.ask("swap", 0, 1)
        return more

    result = dump_iters(target.pid, CriuOpts(images_directory=images), should_continue)
    assert "was moved" in result.not_incremental
    assert len(result.rounds) == 1
    assert sorted(os.listdir(images)) == ["1", "2"]
    assert not os.path.lexists(images / "2" / "parent")
    assert _restored(target, result.final.images) == [[2], [1]]


def test_memory_that_grows(
    spawn: Spawn, images: Path, record_property: Callable[[str, object], None]
) -> None:
    """New memory is in no record of a pre-dump that has begun already: whatever the final dump
    saves, all memory has its contents.
    """
    target = spawn("""
        import hashlib, mmap, os, threading, time
        lock, parts = threading.Lock(), []

        def grow():
            while True:
                with lock:
                    part = mmap.mmap(-1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                    part.madvise(mmap.MADV_NOHUGEPAGE)
                    content = os.urandom(2**16)
                    part.write(content * 32)
                    parts.append((part, content))
                time.sleep(0.05)

        def wrong():
            with lock:
                return [at for at, (part, content) in enumerate(parts) if part[:] != content * 32]

        threading.Thread(target=grow, daemon=True).start()
        serve(wrong=wrong, size=lambda: len(parts))
    """)
    result = dump_iters(
        target.pid, CriuOpts(images_directory=images), lambda round: round.number < 3
    )
    record_property("measured", f"{len(result.rounds)} rounds; {result.not_incremental or 'used'}")
    target.reap()
    restore(CriuOpts(images_directory=result.final.images))
    assert target.ask("size") > 1
    assert target.ask("wrong") == []


def test_a_page_server(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """The pages and page maps are elsewhere; the check does not need them."""
    target = spawn(MOVER)
    base = tmp_path / "far"

    def served(number: int) -> DumpResult:
        far = _opts(base, number, track_mem=None)
        far = replace(far, page_server=PageServer("127.0.0.1", 0))
        with page_server_child(far) as server:
            near = PageServer("127.0.0.1", server.result.port)
            result = dump(target.pid, _opts(images, number, page_server=near, leave_running=True))
            assert server.wait(60) == 0
        return result

    served(1)
    second = served(2)
    assert second.statistics is not None
    assert second.statistics.pages_skipped_parent > 1000
    target.ask("swap", 0, 1)
    with pytest.raises(MovedMemoryError, match=REFUSED):
        served(3)
    assert target.runs_on()


def test_processes_that_share_pages(spawn: Spawn, images: Path) -> None:
    """After a fork, two processes have the same frames: their incremental dumps are accepted."""
    target = spawn(
        "import os\n"
        "memory = bytearray(os.urandom(2**20) * 16)\n"
        "def fork():\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        time.sleep(10**6)\n"
        "    return pid\n"
        "def write(at):\n"
        "    memory[at : at + 2**20] = os.urandom(2**20)\n"
        "import time\n"
        "serve(fork=fork, write=write, sum=lambda: sum(memory))"
    )
    target.ask("fork")
    dump(target.pid, _opts(images, 1, leave_running=True))
    target.ask("write", 0)
    pre_dump(target.pid, _opts(images, 2))
    target.ask("fork")
    target.ask("write", 2**22)
    total = target.ask("sum")
    final = dump(target.pid, _opts(images, 3))
    assert final.statistics is not None
    assert final.statistics.pages_skipped_parent > 1000
    target.reap()
    restore(CriuOpts(images_directory=final.images))
    assert target.ask("sum") == total


@pytest.mark.parametrize("into", [2, 1], ids=["with this parent", "over this parent"])
def test_a_parent_of_two_dumps(spawn: Spawn, images: Path, into: int) -> None:
    """A dump that fails can have reset the marks of the kernel: what was written before it would be
    missing in another dump with the same parent.
    """
    target = spawn(MOVER)
    pre_dump(target.pid, _opts(images, 1))
    target.ask("fill", 0, 3)

    def refuse(notification: Notification) -> None:
        if notification.action is Notify.POST_DUMP:
            raise KeyError("no")

    with pytest.raises(KeyError):
        dump(target.pid, _opts(images, into), on_notify=refuse)
    assert (images / "1" / "inventory.img").exists()
    with pytest.raises(OptionError, match=r"parent_image='../1'.*accepted once"):
        dump(target.pid, _opts(images, 2))
    final = dump(target.pid, _opts(images, 2, parent_image=None))
    assert _restored(target, final.images) == [[3], [2]]


def test_the_record_of_frames(spawn: Spawn, images: Path) -> None:
    """It is small, and not part of the image set."""
    target = spawn(MOVER)
    dump(target.pid, _opts(images, 1, leave_running=True))
    record = images / "1" / "pycriu-native.frames"
    pages = sum(path.stat().st_size for path in (images / "1").glob("pages-*.img"))
    assert 1000 * 8 < record.stat().st_size < pages / 200
    seal(images / "1")
    verify(images / "1")
    dump(target.pid, _opts(images, 2))
    assert not record.exists()
    verify(images / "1")
