"""Incremental checkpoints: which checkpoints are incremental, and the images of their parents.

The directory of an incremental checkpoint contains its parent, ``parent/``, as hard links to the
files with the memory. It is complete without the directories of other checkpoints, which can be
removed, and the memory is stored once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._calls.requirements import by_kernel
from .._integrity.dump_marker import FRAMES
from .._integrity.manifest import entries_of
from .._system import page_frames
from .._transport.worker import Worker
from ..enums import Verb
from ..options.criu_opts import CriuOpts
from .directory import Checkpoint, sync

PARENT = "parent"
"""Name of the directory with the parent, which CRIU opens by this name."""

MOST = 10
"""Default of the largest number of incremental checkpoints in a row."""


def lack() -> str | None:
    """The reason why this process cannot make incremental checkpoints; None if it can.

    Raises ``CriuError`` if CRIU cannot run.
    """
    if not page_frames.are_visible():
        return "needs root outside of user namespaces"
    for problem in by_kernel(CriuOpts(track_mem=True), Verb.DUMP, Worker()):
        return problem.rule
    return None


class Increments:
    """The state from one checkpoint of a running command to the next.

    A checkpoint is incremental if the previous one of this run was complete: a failed dump can have
    reset the kernel's tracking of changes, which also begins anew with a restore. It is full after
    ``most`` incremental ones, or if those contain as much as the last full one. After an
    incremental dump that was refused, 1, 3, 7, … checkpoints are full before the next attempt.
    """

    def __init__(self, most: int | None) -> None:
        """``most`` is 0 for none, and None for ``MOST`` if this process can make them."""
        self._most = most
        self._last: Checkpoint | None = None
        self._full = self._sum = 0
        self._pause = self._left = 0
        self.refusal = ""
        """Why the last checkpoint is full though an incremental one was tried."""

    @property
    def tracks(self) -> bool:
        """Whether dumps have to track changes of memory. Raises as ``lack``."""
        if self._most is None:
            self._most = MOST if lack() is None else 0
        return self._most > 0

    def parent(self) -> Checkpoint | None:
        """The parent of the next checkpoint; None for a full one."""
        last = self._last
        if last is None or self._left or self._sum >= self._full:
            return None
        return last if last.parents < (self._most or 0) else None

    def begin(self) -> None:
        """A dump begins. Until ``made``, the next checkpoint is full."""
        self._last = None
        self.refusal = ""

    def made(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is complete."""
        if not self.tracks:
            return
        self._last = checkpoint
        if self.refusal:
            self._left = self._pause = min(2 * self._pause + 1, MOST)
        elif self._left:
            self._left -= 1
        if checkpoint.parents:
            self._pause = 0
            self._sum += checkpoint.bytes
        else:
            self._full, self._sum = checkpoint.bytes, 0


def is_memory(name: str) -> bool:
    """Whether a restore of an incremental checkpoint needs this file of a parent."""
    return name == "inventory.img" or name.startswith(("pagemap-", "pages-"))


def link(checkpoint: Checkpoint, place: Path) -> dict[str, dict[str, Any]]:
    """Create a directory with links to the memory of a checkpoint and its parents.

    It gets the checkpoint's record of page frames, which the incremental dump needs, and no other.
    Returns the entries of the files for the manifest of the incremental checkpoint. Raises
    ``OSError`` if the file system has no hard links, and ``ImagesError`` without a manifest.
    """
    result = {}
    for name, entry in entries_of(checkpoint.path).items():
        directory, _, base = name.rpartition("/")
        if is_memory(base) and "size" in entry and set(directory.split("/")) <= {"", PARENT}:
            (place / directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            os.link(f"{checkpoint.path}/{name}", place / name)
            result[f"{PARENT}/{name}"] = entry
    os.rename(f"{checkpoint.path}/{FRAMES}", place / FRAMES)
    for layer in layers(place):
        sync(layer)
    return result


def layers(images: str | os.PathLike[str]) -> Iterator[Path]:
    """The directory of a checkpoint, and those of its parents in it, the nearest first."""
    at = Path(images)
    while at.is_dir():
        yield at
        at /= PARENT
