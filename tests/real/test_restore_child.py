"""restore_child: the restored root is our child, so its exit status is ours to collect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, dump, restore, restore_child

from .conftest import Spawn
from .processes import Target, eventually

EXITS = """
    import os
    serve(exit=lambda: os._exit(42))
"""


def _ask_to_exit(target: Target) -> None:
    """No answer will come."""
    partial = target.directory / "question.partial"
    partial.write_text('[0, "exit"]')
    partial.rename(target.directory / "question")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_exit_status_reaches_us(spawn: Spawn, images: Path) -> None:
    """The restored process is a child of ours, and waitpid gives the status it exits with."""
    target = spawn(EXITS)
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts)
    target.reap()
    result = restore_child(opts)
    assert result.pid == target.pid
    assert _parent(result.pid) == os.getpid()
    assert target.runs_on()
    _ask_to_exit(target)
    assert result.wait() == 42
    assert result.wait() is None  # it was reaped


def test_a_plain_restore_is_no_child(spawn: Spawn, images: Path) -> None:
    """Without it the restored process belongs to the system's reaper."""
    target = spawn(EXITS)
    opts = CriuOpts(images_directory=images)
    dump(target.pid, opts)
    target.reap()
    result = restore(opts)
    eventually(lambda: _parent(result.pid) != os.getpid(), "a parent other than us")
    assert target.runs_on()
    with pytest.raises(TimeoutError):
        result.wait(0.01)
    _ask_to_exit(target)
    assert result.wait() is None
