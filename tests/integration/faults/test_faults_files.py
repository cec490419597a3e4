"""The images directory fails during a dump: the process is unchanged.

A disk becomes full, a file system read-only, or a directory is removed. CRIU reports most of these
failures. If the directory is removed after the last file was written, CRIU does not detect it, and
would end the process, whose images no longer exist; the library checks this before it accepts the
last notification (``tests/unit/test_exchange.py``).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Notification, Notify, dump, restore

from ..conftest import Spawn
from ..support.mounts import make_read_only, make_writable, tmpfs
from ..support.processes import is_alive, reap_all
from . import matrix
from .faults import CheckedProcess, images_are, left, raised
from .matrix import Cell

Harm = Callable[[Path], None]


def _fill(where: Path) -> None:
    """Fill the file system."""
    with open(where / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass


def _remove(where: Path) -> None:
    shutil.rmtree(where / "images")


def _empty(where: Path) -> None:
    for name in os.listdir(where / "images"):
        if name.endswith(".img"):
            os.unlink(where / "images" / name)


def _freeze(where: Path, flags: int = 0x10) -> None:
    """Make the directory immutable (FS_IOC_SETFLAGS, FS_IMMUTABLE_FL)."""
    fd = os.open(where / "images", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x40086602, struct.pack("l", flags))
    except OSError:
        pytest.skip("tmpfs has no immutable directories on this kernel")
    finally:
        os.close(fd)


HARMS: dict[str, Harm] = {
    "the disk fills up": _fill,
    "the images directory becomes unwritable": _freeze,
    "the images directory is removed": _remove,
    "the images are removed": _empty,
}


CELLS = [
    (what, moment)
    for what in HARMS
    for moment in (Notify.PRE_DUMP, Notify.QUERY_EXT_FILES, Notify.POST_DUMP)
    # A hook may move the images after the last notification.
    if moment is not Notify.POST_DUMP or "removed" not in what
]


@pytest.mark.parametrize(("what", "moment"), CELLS)
def test_the_place_fails(
    spawn: Spawn, tmp_path: Path, orphans: None, what: str, moment: Notify
) -> None:
    """The dump fails and the process runs, intact; or the images were already complete."""
    checked = CheckedProcess.start(spawn)

    def damage(notification: Notification) -> None:
        if notification.action is moment:
            HARMS[what](tmp_path / "disk")

    error: CriuError | None = None
    with tmpfs(tmp_path / "disk") as disk:
        opts = CriuOpts(images_directory=disk / "images", tcp_established=True)
        try:
            dump(checked.pid, opts, on_notify=damage)
        except CriuError as caught:
            error = caught
        saved = images_are(disk / "images")
        if error is None:
            process = "saved, and restored intact"
            if HARMS[what] is _freeze:
                _freeze(disk, 0)
            checked.restores(opts)
        else:
            process = "runs, intact"
            assert checked.is_intact()
    matrix.cells.append(
        Cell("dump", what, f"`{moment}`", raised(error), process, saved, left(error))
    )


@pytest.mark.parametrize("there", [True, False], ids=["a directory", "none yet"])
def test_a_read_only_place(spawn: Spawn, tmp_path: Path, orphans: None, there: bool) -> None:
    """The error reports it; the process is unchanged, and can be dumped when the file system is
    writable.
    """
    checked = CheckedProcess.start(spawn)
    with tmpfs(tmp_path / "disk") as disk:
        opts = CriuOpts(images_directory=disk / "images", tcp_established=True)
        if there:
            (disk / "images").mkdir(mode=0o700)
        make_read_only(disk)
        with pytest.raises((CriuError, OSError), match=r"(?i)read-only") as caught:
            dump(checked.pid, opts)
        assert checked.is_intact()
        error = caught.value
        saved = images_are(disk / "images") if there else "none"
        what = "the images directory is read-only" if there else "it cannot be made: read-only"
        matrix.cells.append(
            Cell("dump", what, "from the start", raised(error), "runs, intact", saved, left(error))
        )
        make_writable(disk)
        checked.dumps_and_restores(opts)


def test_a_restore_from_a_read_only_place(spawn: Spawn, tmp_path: Path, orphans: None) -> None:
    """A restore from a read-only directory needs a work directory for its log only."""
    checked = CheckedProcess.start(spawn)
    with tmpfs(tmp_path / "disk") as disk:
        opts = CriuOpts(images_directory=disk / "images", tcp_established=True)
        dump(checked.pid, opts)
        checked.target.end()
        reap_all()
        make_read_only(disk)
        with pytest.raises((CriuError, OSError), match=r"(?i)read-only") as caught:
            restore(opts)
        assert not is_alive(checked.pid)
        (tmp_path / "work").mkdir(mode=0o700)
        restore(replace(opts, work_directory=tmp_path / "work"))
        assert checked.losses() == []
    what, again = "the images directory is read-only", "restored with a `work_directory`"
    cell = Cell("restore", what, "from the start", raised(caught.value), "none", again)
    matrix.cells.append(cell)
