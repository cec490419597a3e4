"""``dump_iters``: rounds of pre-dumps until a callback ends them."""

from __future__ import annotations

import mmap
import os
from itertools import pairwise
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    NoSuchProcessError,
    Round,
    ShrinkingRounds,
    dump_iters,
    restore,
)

from .conftest import Spawn
from .support.features import needs_soft_dirty
from .support.soft_dirty import BUSY, PAGES, WRITER

pytestmark = needs_soft_dirty

PAGE = mmap.PAGESIZE


def test_a_callback_decides(spawn: Spawn, images: Path) -> None:
    """The callback is called after each round is on disk, while the process runs."""
    target = spawn(WRITER)
    message: list[tuple[int, int]] = []

    def should_continue(round: Round) -> bool:
        message.append((round.number, round.bytes_written))
        on_disk = sum(path.stat().st_size for path in (images / str(round.number)).glob("pages-*"))
        assert on_disk == round.bytes_written
        assert target.runs_on()
        return round.number < 3

    result = dump_iters(target.pid, CriuOpts(images_directory=images), should_continue)
    target.reap()
    assert [round.number for round in result.rounds] == [1, 2, 3]
    assert message == [(round.number, round.bytes_written) for round in result.rounds]
    assert message[0][1] > PAGES * PAGE
    assert all(BUSY * PAGE <= written < message[0][1] * 2 // 3 for _, written in message[1:])
    assert sorted(os.listdir(images)) == ["1", "2", "3", "4"]
    assert result.final.images == str(images / "4")
    assert restore(CriuOpts(images_directory=result.final.images)).pid == target.pid
    assert target.ask("wrong") == []
    assert target.runs_on()


def test_shrinking_rounds(spawn: Spawn, images: Path) -> None:
    """The default policy continues after the first round, and ends when rounds no longer shrink."""
    target = spawn(WRITER)
    steady = ShrinkingRounds(enough=0)
    result = dump_iters(target.pid, CriuOpts(images_directory=images), steady)
    target.reap()
    written = [round.bytes_written for round in result.rounds]
    assert 2 <= len(written) <= 8
    assert all(b < a * 0.8 for a, b in pairwise(written[:-1]))
    assert len(written) == 8 or written[-1] >= written[-2] * 0.8
    statistics = result.final.statistics
    assert statistics is not None
    assert statistics.pages_written < result.rounds[0].pages_written // 2
    restore(CriuOpts(images_directory=result.final.images))
    assert target.ask("wrong") == []


def test_a_process_with_few_changes(spawn: Spawn, images: Path) -> None:
    """With few changes, the default policy ends after few rounds."""
    target = spawn("memory = bytearray(b'memory!!') * 2**20\nserve(sum=lambda: sum(memory))")
    total = target.ask("sum")
    result = dump_iters(target.pid, CriuOpts(images_directory=images, pre_dump_mode="read"))
    target.reap()
    written = [round.bytes_written for round in result.rounds]
    assert 2 <= len(written) <= 4
    assert max(written[1:]) < written[0] // 2
    restore(CriuOpts(images_directory=result.final.images))
    assert target.ask("sum") == total


def test_a_callback_that_raises(spawn: Spawn, images: Path) -> None:
    """An exception of the callback is raised unchanged; the process and the rounds remain."""
    target = spawn(WRITER)

    def should_continue(round: Round) -> bool:
        if round.number == 2:
            raise KeyError("enough")
        return True

    with pytest.raises(KeyError, match="enough"):
        dump_iters(target.pid, CriuOpts(images_directory=images), should_continue)
    assert sorted(os.listdir(images)) == ["1", "2"]
    assert target.ask("wrong") == []
    assert target.runs_on()


def test_a_process_that_ends_between_rounds(spawn: Spawn, images: Path) -> None:
    """The next round reports it, and earlier rounds remain on disk."""
    target = spawn()

    def should_continue(round: Round) -> bool:
        target.end()
        return True

    with pytest.raises(NoSuchProcessError, match=str(target.pid)):
        dump_iters(target.pid, CriuOpts(images_directory=images), should_continue)
    assert (images / "1" / "inventory.img").exists()
