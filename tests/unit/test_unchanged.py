"""Results of reading a set are kept until one of its files changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycriu_native import CriuOpts
from pycriu_native._checks import replaced_files
from pycriu_native._integrity import unchanged
from pycriu_native._integrity.unchanged import SetState, Unchanged
from pycriu_native._recovery.file_entries import FileEntries

OLD = 10**18
"""A time in the past, in nanoseconds since the epoch."""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A set with a parent, whose files count as old."""
    monkeypatch.setattr(unchanged, "TICK_NS", -(10**18))
    (tmp_path / "parent").mkdir()
    for path in (tmp_path, tmp_path / "parent"):
        (path / "pages-1.img").write_bytes(b"pages")
        (path / "pycriu-native.images").write_bytes(b"record")
        (path / "starts").write_bytes(b"1")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def counter() -> Callable[[], int]:
    """A function that returns how often it was called."""
    calls: list[None] = []

    def count() -> int:
        calls.append(None)
        return len(calls)

    return count


def test_a_result_is_kept(images: int) -> None:
    """A result is kept under its key."""
    kept, count = Unchanged[int](), counter()
    assert [kept.result(SetState(images), "a", count) for _ in range(3)] == [1, 1, 1]
    assert kept.result(SetState(images), "b", count) == 2
    assert kept.result(SetState(images), "a", count) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: (path / "pages-1.img").write_bytes(b"PAGES"),
    "longer": lambda path: (path / "pages-1.img").write_bytes(b"pages and more"),
    "replaced": lambda path: (path / "pages-1.img").rename(path / "pages-2.img"),
    "added": lambda path: (path / "pycriu-native.unfinished").touch(),
    "removed": lambda path: (path / "pycriu-native.images").unlink(),
    "of the parent": lambda path: (path / "parent/pages-1.img").write_bytes(b"PAGES"),
    "times put back": lambda path: os.utime(path / "pages-1.img", ns=(OLD, OLD)),
    "no parent": lambda path: (path / "parent").rename(path / "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(images: int, tmp_path: Path, change: str) -> None:
    """Changes of contents, names and times are detected, in the set and in its parents."""
    kept, count = Unchanged[int](), counter()
    kept.result(SetState(images), "a", count)
    CHANGES[change](tmp_path)
    assert kept.result(SetState(images), "a", count) == 2


def test_other_files_do_not_matter(images: int, tmp_path: Path) -> None:
    """Other files, such as the number of the last start, do not matter."""
    kept, count = Unchanged[int](), counter()
    kept.result(SetState(images), "a", count)
    (tmp_path / "starts").write_bytes(b"22")
    assert kept.result(SetState(images), "a", count) == 1


def test_files_that_were_just_changed(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were changed a moment ago could change again within the same clock tick."""
    monkeypatch.setattr(unchanged, "TICK_NS", 10**18)
    kept, count = Unchanged[int](), counter()
    assert [kept.result(SetState(images), "a", count) for _ in range(2)] == [1, 2]


def test_an_error_is_not_kept(images: int) -> None:
    """After an error the next call reads again."""
    kept = Unchanged[int]()

    def fail() -> int:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            kept.result(SetState(images), "a", fail)
    assert kept.result(SetState(images), "a", lambda: 3) == 3


def test_few_are_kept(images: int) -> None:
    """If too many results are kept, the oldest one is dropped."""
    kept, count = Unchanged[int](), counter()
    for key in range(unchanged.MOST + 1):
        kept.result(SetState(images), key, count)
    assert kept.result(SetState(images), unchanged.MOST, count) == unchanged.MOST + 1
    assert kept.result(SetState(images), 0, count) == unchanged.MOST + 2


def test_a_restore_with_other_descriptors(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files to open depend on which files are given, not on the numbers of descriptors."""
    calls = 0

    def opened_files(*_: object) -> tuple[()]:
        nonlocal calls
        calls += 1
        return ()

    monkeypatch.setattr(replaced_files, "_opened", Unchanged())
    monkeypatch.setattr(replaced_files, "opened_files", opened_files)
    for fd in (0, 1):
        join = [("net", f"/proc/self/fd/{fd}")]
        opts = CriuOpts(inherit_fds=[(fd, "pipe:[1]")], join_ns=join)
        replaced_files.check(SetState(images), FileEntries(images), opts)
    assert calls == 1
    opts = CriuOpts(inherit_fds=[(0, "pipe:[2]")])
    replaced_files.check(SetState(images), FileEntries(images), opts)
    assert calls == 2
