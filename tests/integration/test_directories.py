"""``images_directory`` and ``work_directory``: the directories for the files of a call.

The images, which contain the process, are written to ``images_directory``. The log and the
statistics of the call are written to ``work_directory``, or to the images directory if that is not
set. Each field is a path or an open directory: a descriptor, or an object with a ``fileno()``. The
caller's descriptor remains open.

A dump creates a missing images directory, for the owner only; a restore does not, and no call
creates a work directory. If a directory is read-only or full, the call raises ``ImagesError``, and
the process continues.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuOpts, ImagesError, OptionError, dump, restore
from pycriu_native._integrity.dump_marker import RECORD

from .conftest import Spawn
from .support.mounts import make_read_only, tmpfs
from .support.processes import is_alive

HEAVY = """
    import os
    memory = os.urandom(8 << 20)
    serve()
"""


class Directory:
    """An object that owns an open directory, as in user code."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd


Given = int | Path | Directory
Give = Callable[[Path], AbstractContextManager[Given]]


@contextlib.contextmanager
def by_path(path: Path) -> Iterator[Path]:
    """The path as it is."""
    yield path


@contextlib.contextmanager
def by_number(path: Path) -> Iterator[int]:
    """The number of an open directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)  # fails if the call has closed it


@contextlib.contextmanager
def by_object(path: Path) -> Iterator[Directory]:
    """An object with a ``fileno()``."""
    with by_number(path) as fd:
        yield Directory(fd)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory, which exists."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.mark.parametrize("give", [by_path, by_number, by_object])
def test_images_in_one_log_and_statistics_in_the_other(
    spawn: Spawn, images: Path, work: Path, give: Give
) -> None:
    """Images are written to one directory, log and statistics to the other, for each form of the
    fields.
    """
    target = spawn()
    images.mkdir()
    with give(images) as one, give(work) as other:
        opts = CriuOpts(images_directory=one, work_directory=other)
        result = dump(target.pid, opts)
        saved = set(os.listdir(images))
        assert {"inventory.img", "pstree.img", "pages-1.img"} <= saved
        assert {Path(name).suffix for name in saved - {RECORD}} == {".img"}
        assert set(os.listdir(work)) == {"dump.log", "stats-dump"}
        assert (result.images, result.log) == (str(images), str(work / "dump.log"))
        assert result.statistics is not None
        assert (
            result.statistics.pages_written * mmap.PAGESIZE
            == (images / "pages-1.img").stat().st_size
        )

        target.reap()
        restored = restore(opts)
        assert set(os.listdir(images)) == saved
        assert set(os.listdir(work)) >= {"restore.log", "stats-restore"}
        assert restored.log == str(work / "restore.log")
        assert restored.statistics is not None
    assert target.runs_on()


def test_one_directory_for_all(spawn: Spawn, images: Path) -> None:
    """Without a work directory, log and statistics are in the images directory."""
    target = spawn()
    opts = CriuOpts(images_directory=images)
    assert dump(target.pid, opts).log == str(images / "dump.log")
    assert {"inventory.img", "dump.log", "stats-dump"} <= set(os.listdir(images))
    target.reap()
    assert restore(opts).log == str(images / "restore.log")
    assert {"restore.log", "stats-restore"} <= set(os.listdir(images))
    assert target.runs_on()


def test_a_relative_path(
    spawn: Spawn, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved in the caller's current directory, not in CRIU's."""
    target = spawn()
    monkeypatch.chdir(tmp_path)
    opts = CriuOpts(images_directory="relative", work_directory="work")
    dump(target.pid, opts)
    assert (tmp_path / "relative" / "inventory.img").exists()
    assert (work / "dump.log").exists()
    target.reap()
    restore(opts)
    assert target.runs_on()


def test_a_dump_makes_the_images_directory(spawn: Spawn, images: Path) -> None:
    """A dump creates a missing images directory, readable by its owner only."""
    target = spawn()
    before = os.umask(0)
    try:
        dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    finally:
        os.umask(before)
    assert stat.S_IMODE(images.stat().st_mode) == 0o700


def test_a_dump_makes_no_parents(spawn: Spawn, images: Path) -> None:
    """Only the last component of the path is created, since a missing parent is
    probably a mistake.
    """
    target = spawn()
    with pytest.raises(ImagesError, match=r"images_directory=.*/images does not exist") as caught:
        dump(target.pid, CriuOpts(images_directory=images / "deeper"))
    assert caught.value.errno == errno.ENOENT
    assert not images.exists()
    assert target.runs_on()


def test_a_restore_makes_nothing(images: Path) -> None:
    """A restore refuses a missing images directory, and does not create it."""
    with pytest.raises(OptionError, match=r"images_directory=.*an existing directory") as caught:
        restore(CriuOpts(images_directory=images))
    assert [problem.field for problem in caught.value.problems] == ["images_directory"]
    assert not images.exists()


def test_a_missing_work_directory(spawn: Spawn, images: Path, tmp_path: Path) -> None:
    """Dump and restore refuse it before anything is touched."""
    target = spawn()
    opts = CriuOpts(images_directory=images, work_directory=tmp_path / "missing")
    with pytest.raises(OptionError, match=r"work_directory=.*an existing directory") as caught:
        dump(target.pid, opts)
    assert [problem.field for problem in caught.value.problems] == ["work_directory"]
    assert not images.exists()
    assert target.runs_on()

    target.dump(CriuOpts(images_directory=images))
    with pytest.raises(OptionError, match=r"work_directory=.*an existing directory"):
        restore(opts)
    assert not is_alive(target.pid)
    assert not (tmp_path / "missing").exists()
    restore(CriuOpts(images_directory=images))
    assert target.runs_on()


@pytest.mark.parametrize("name", ["pages-1.img", RECORD])
@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
def test_what_is_in_the_place_of_an_image(
    spawn: Spawn, images: Path, tmp_path: Path, kind: str, name: str
) -> None:
    """It is refused before anything is touched: CRIU would write through a link, and wait for the
    reader of a FIFO. When it is removed the dump works.
    """
    target = spawn()
    images.mkdir(mode=0o700)
    place = images / name
    if kind == "link":
        place.symlink_to(tmp_path / "victim")
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(ImagesError, match=f"{name} is not a regular file"):
        dump(target.pid, CriuOpts(images_directory=images), deadline=60)
    assert [each.name for each in images.iterdir()] == [name]
    assert not (tmp_path / "victim").exists()
    assert target.runs_on()
    place.rmdir() if kind == "directory" else place.unlink()
    dump(target.pid, CriuOpts(images_directory=images, leave_running=True))
    assert target.runs_on()


@pytest.mark.parametrize("field", ["images_directory", "work_directory"])
def test_what_is_no_directory(spawn: Spawn, images: Path, tmp_path: Path, field: str) -> None:
    """A file and a closed descriptor are refused by name."""
    target = spawn()
    (tmp_path / "file").touch()
    closed = os.open(tmp_path, os.O_RDONLY)
    os.close(closed)
    for wrong, rule in [(tmp_path / "file", "an existing directory"), (closed, "an open descript")]:
        opts = CriuOpts(**{"images_directory": images, field: wrong})  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=f"{field}=.*{rule}"):
            dump(target.pid, opts)
    assert target.runs_on()


@pytest.mark.parametrize("field", ["images_directory", "work_directory"])
def test_a_read_only_directory(spawn: Spawn, tmp_path: Path, images: Path, field: str) -> None:
    """The dump raises ImagesError, and the process continues."""
    target = spawn()
    images.mkdir()
    (tmp_path / "work").mkdir()
    both = {"images_directory": images, "work_directory": tmp_path / "work"}
    with tmpfs(tmp_path / "mount") as mount:
        both[field] = mount
        opts = CriuOpts(
            images_directory=both["images_directory"], work_directory=both["work_directory"]
        )
        dump(target.pid, replace(opts, leave_running=True))
        make_read_only(mount)
        with pytest.raises(ImagesError, match="cannot be written") as caught:
            dump(target.pid, opts)
        assert field in caught.value.options
        assert isinstance(caught.value, OSError)
    assert target.runs_on()


def test_a_directory_that_cannot_be_made(spawn: Spawn, tmp_path: Path) -> None:
    """A missing images directory on a read-only file system is refused with the name of
    the field.
    """
    target = spawn()
    with tmpfs(tmp_path / "mount") as mount:
        make_read_only(mount)
        opts = CriuOpts(images_directory=mount / "new")
        with pytest.raises(
            ImagesError, match=r"images_directory=.*Read-only file system"
        ) as caught:
            dump(target.pid, opts)
        assert caught.value.errno == errno.EROFS
    assert target.runs_on()


def test_read_only_images_are_enough_to_restore(spawn: Spawn, tmp_path: Path, work: Path) -> None:
    """A restore only reads the images; with a work directory they can be on a read-only mount."""
    target = spawn()
    with tmpfs(tmp_path / "mount") as mount:
        opts = CriuOpts(images_directory=mount / "images", work_directory=work)
        target.dump(opts)
        make_read_only(mount)
        with pytest.raises(ImagesError, match="cannot be written"):
            restore(CriuOpts(images_directory=mount / "images"))
        restore(opts)
        assert target.runs_on()


def test_a_full_disk(spawn: Spawn, tmp_path: Path) -> None:
    """If the images do not fit, the dump raises ImagesError, and the process continues."""
    target = spawn(HEAVY)
    with tmpfs(tmp_path / "small", "2m") as small:
        opts = CriuOpts(images_directory=small / "images")
        with pytest.raises(ImagesError, match="file system of the images is full") as caught:
            dump(target.pid, opts)
        assert caught.value.options[0] == "images_directory"
        assert target.runs_on()
    with tmpfs(tmp_path / "large", "64m") as large:
        opts = CriuOpts(images_directory=large / "images")
        target.dump(opts)
        restore(opts)
        assert target.runs_on()
