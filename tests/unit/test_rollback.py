"""The argument ``files``, and copies of files, without CRIU."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pycriu_native import (
    CriuOpts,
    DumpJob,
    ImagesError,
    OptionError,
    Rollback,
    Worker,
    dump,
    restore,
)
from pycriu_native._rollback import copying, saved_files
from pycriu_native._rollback.put_back import RollBack, before_of


def test_values_that_are_refused(tmp_path: Path) -> None:
    """The error names the argument, the value and what is accepted."""
    opts = CriuOpts(images_directory=tmp_path)
    trusting = Worker(allow_untrusted=True)
    with pytest.raises(OptionError, match="files='roll': None, \"rollback\" or a Rollback"):
        dump(os.getppid(), opts, files="roll")
    with pytest.raises(OptionError, match=r"also='log': an absolute path"):
        Rollback(also=["log"])
    with pytest.raises(OptionError, match="the files are in images_directory"):
        restore(CriuOpts(images_dir="/nowhere"), via=trusting, files="rollback")
    with pytest.raises(OptionError, match="the caller is in the tree"):
        dump(None, opts, files="rollback")
    with pytest.raises(OptionError, match="a pre-dump saves memory only"):
        dump(os.getppid(), CriuOpts(images_directory=tmp_path, pre_dump=True), files="rollback")
    assert not list(tmp_path.iterdir())


def test_a_value() -> None:
    """``Rollback`` values are compared and pickled, also in a job."""
    files = Rollback(also=("/var/log/x*", Path("/tmp/y")))
    assert files == Rollback(also=["/var/log/x*", "/tmp/y"])
    job = DumpJob(pid=os.getppid(), opts=CriuOpts(images_directory="/x"), files=files)
    assert pickle.loads(pickle.dumps(job)).files == files


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_copy_with_holes(tmp_path: Path, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has the same bytes and takes no more blocks, also where the kernel copies nothing."""
    if by_hand:

        def refused(*_: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refused)
        monkeypatch.setattr(copying, "reflink", lambda *_: False)
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "w+b") as a, open(target, "w+b") as b:
        a.truncate(50 * 2**20)
        for at in (0, 20 * 2**20 + 3, 50 * 2**20 - 4):
            a.seek(at)
            a.write(b"data")
        a.flush()
        parts: list[None] = []
        copying.copy(a.fileno(), b.fileno(), lambda: parts.append(None))
    assert source.read_bytes() == target.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_a_copy_of_an_end(tmp_path: Path) -> None:
    """The end of a file is copied to a new one, and back to its offset."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"0123456789")
    with open(source, "r+b") as a, open(target, "w+b") as b:
        copying.copy(a.fileno(), b.fileno(), lambda: None, start=6)
        assert target.read_bytes() == b"6789"
        a.truncate(6)
        copying.copy(b.fileno(), a.fileno(), lambda: None, at=6)
    assert source.read_bytes() == b"0123456789"


def _saved(images: Path, *files: Path) -> int:
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    saved_files.save(at, [], tuple(map(str, files)), lambda: None)
    return at


def test_put_back_and_given_back(tmp_path: Path) -> None:
    """Changed, deleted, replaced by a link, new: each is put back to the state of the dump, and
    changed back, with owner, mode and time.
    """
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    for name in ("changed", "deleted", "a-link"):
        (place / name).write_text(f"{name} at the dump")
        os.utime(place / name, (1000, 1000))
    at = _saved(images, place / "*")
    try:
        (place / "changed").write_text("later, and longer than before")
        (place / "changed").chmod(0o640)
        (place / "deleted").unlink()
        (place / "a-link").unlink()
        (place / "a-link").symlink_to("changed")
        (place / "new").write_text("new")
        before = _state(place)
        rolled_back = RollBack(at)
        rolled_back.put_back(lambda: None)
        assert {name: text for name, (text, *_) in _state(place).items() if name[0] != "."} == {
            name: f"{name} at the dump" for name in ("changed", "deleted", "a-link")
        }
        assert (place / "changed").stat().st_mtime == 1000
        with pytest.raises(ImagesError, match="another restore of these images is under way"):
            RollBack(at)
        assert rolled_back.give_back() == ()
        rolled_back.close()
        assert _state(place) == before
        rolled_back = RollBack(at)
        rolled_back.put_back(lambda: None)
        rolled_back.succeeded()
        rolled_back.close()
        assert sorted(path.name for path in place.iterdir()) == ["a-link", "changed", "deleted"]
    finally:
        os.close(at)


def test_left_by_a_restore_that_was_killed(tmp_path: Path) -> None:
    """Files that a killed restore has saved are removed if its journal no longer exists."""
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    (place / "database").touch()
    at = _saved(images, place / "*")
    try:
        Path(before_of(str(place / "database-journal"))).touch()
        rolled_back = RollBack(at)
        rolled_back.put_back(lambda: None)
        rolled_back.succeeded()
        rolled_back.close()
    finally:
        os.close(at)
    assert os.listdir(place) == ["database"]


def test_nothing_is_changed_if_one_cannot_be(tmp_path: Path) -> None:
    """All files are checked first; a failure in the middle is undone."""
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    for name in ("a", "b"):
        (place / name).write_text("at the dump")
    at = _saved(images, place / "*")
    try:
        (place / "a").write_text("later")
        (place / "b").unlink()
        (place / "b").mkdir()
        rolled_back = RollBack(at)
        with pytest.raises(ImagesError, match="b cannot be put back: Is a directory"):
            rolled_back.put_back(lambda: None)
        rolled_back.close()
        (place / "b").rmdir()
        (place / "b").write_text("later")
        copy = next(path for path in images.iterdir() if path.name.endswith("-1"))
        copy.write_text("cut")
        rolled_back = RollBack(at)
        with pytest.raises(ImagesError, match="is not whole"):
            rolled_back.put_back(lambda: None)
        rolled_back.close()
    finally:
        os.close(at)
    assert {name: text for name, (text, *_) in _state(place).items()} == {
        "a": "later",
        "b": "later",
    }


def test_an_index_that_is_none(tmp_path: Path) -> None:
    """A damaged index is an error; no file outside is read."""
    at = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for text in ("", "[]", '{"format": 2}', '{"format": 1, "files": [{}], "patterns": []}'):
            (tmp_path / saved_files.INDEX).write_text(text)
            with pytest.raises(ImagesError, match="cannot be read"):
                RollBack(at)
        place = tmp_path / "place"
        place.mkdir()
        (place / "file").write_text("x")
        (tmp_path / saved_files.INDEX).unlink()
        saved_files.save(at, [], (str(place / "*"),), lambda: None)
        index = tmp_path / saved_files.INDEX
        index.write_text(index.read_text().replace("pycriu-native.file-0", "../other"))
        with pytest.raises(ImagesError, match="cannot be read"):
            RollBack(at)
    finally:
        os.close(at)


def _state(place: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path in place.iterdir():
        seen = path.lstat()
        text = os.readlink(path) if path.is_symlink() else path.read_text()
        result[path.name] = (text, seen.st_mode, seen.st_uid, seen.st_mtime_ns)
    return result
