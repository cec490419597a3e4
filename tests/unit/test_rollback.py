"""The argument ``files``, and copies of files, without CRIU."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from pycriu_native._integrity import manifest
from pycriu_native._integrity.dump_marker import CLAIM
from pycriu_native._rollback import copies, copying, index, restored_file, saved_files
from pycriu_native._rollback.put_back import RollBack
from pycriu_native._rollback.restored_file import before_of


def test_values_that_are_refused(tmp_path: Path) -> None:
    """The error names the argument, the value and what is accepted."""
    opts = CriuOpts(images_directory=tmp_path)
    trusting = Worker(allow_untrusted=True)
    with pytest.raises(OptionError, match="files='roll': None, \"rollback\" or a Rollback"):
        dump(os.getppid(), opts, files="roll")
    with pytest.raises(OptionError, match=r"also='log': an absolute path"):
        Rollback(also=["log"])
    odd: list[tuple[str, Any]] = [
        ("also", 3),
        ("also", [None]),
        ("also", b"/log"),
        ("ignore", None),
        ("link_from", 3),
        ("changed_since", "5"),
        ("changed_since", float("nan")),
    ]
    for name, value in odd:
        with pytest.raises(OptionError, match=rf"{name}=.*: an? .* is accepted"):
            Rollback(**{name: value})
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
    saved_files.save(at, [], Rollback(also=files), lambda: None)
    return at


def test_put_back_and_changed_back(tmp_path: Path) -> None:
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


def test_new_files_of_a_restore_that_was_killed(tmp_path: Path) -> None:
    """What a killed restore has moved away is not saved by a dump, and removed by a restore."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("at the dump")
    moved = Path(before_of(str(place / "new")))
    moved.mkdir()
    (moved / "file").touch()
    for number, patterns in enumerate((["*", "*/*"], ["*/*", "*"])):
        images = tmp_path / f"images-{number}"
        images.mkdir()
        os.close(_saved(images, *(place / each for each in patterns)))
        assert moved.name not in (images / index.INDEX).read_text()
    for number in range(2):
        moved.mkdir(exist_ok=True)
        (moved / "file").touch()
        _restored(tmp_path / f"images-{number}")
        assert os.listdir(place) == ["file"]


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
        copies = '{"format": 3, "files": [{"copies": [1]}]}'
        for text in ("", "[]", '{"format": 2}', '{"format": 3, "files": [{}]}', copies):
            (tmp_path / index.INDEX).write_text(text)
            with pytest.raises(ImagesError, match="cannot be read"):
                RollBack(at)
        place = tmp_path / "place"
        place.mkdir()
        (place / "file").write_text("x")
        (tmp_path / index.INDEX).unlink()
        saved_files.save(at, [], Rollback(also=[place / "*"]), lambda: None)
        text_of = tmp_path / index.INDEX
        text_of.write_text(text_of.read_text().replace("pycriu-native.file-0", "../other"))
        with pytest.raises(ImagesError, match="cannot be read"):
            RollBack(at)
    finally:
        os.close(at)


def test_an_index_with_another_value(tmp_path: Path) -> None:
    """Each value of another type is refused by its name, and no file is changed."""
    (place := tmp_path / "place").mkdir()
    (place / "file").write_text("saved")
    (place / "link").symlink_to("file")
    (images := tmp_path / "images").mkdir()
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        saved_files.save(at, [], Rollback(also=[place / "*"]), lambda: None)
        text = (images / index.INDEX).read_text()
        (place / "file").write_text("later")
        odd = (None, True, "/\0", "/\ud800", -(2**70), 2**70, 0.5, ["/"], {"/": 1})
        for *above, last in _paths(json.loads(text)):
            for value in odd:
                body = json.loads(text)
                part = body
                for key in above:
                    part = part[key]
                if type(part[last]) is type(value) in (bool, list, type(None)):
                    continue
                part[last] = value
                (images / index.INDEX).write_text(json.dumps(body))
                with pytest.raises(ImagesError, match=f"{index.INDEX} cannot be read"):
                    RollBack(at)
        assert (place / "file").read_text() == "later"
    finally:
        os.close(at)


def _paths(body: Any) -> Iterator[tuple[Any, ...]]:
    """The place of each value in a JSON object."""
    items = body.items() if isinstance(body, dict) else enumerate(body)
    for key, value in items:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *path) for path in _paths(value))


def test_an_index_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by the dump, whose processes run on: a restore would read a part of it."""
    monkeypatch.setattr(index, "LARGEST_INDEX", 1000)
    place = tmp_path / "place"
    place.mkdir()
    for number in range(10):
        (place / str(number)).touch()
    at = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(ImagesError, match="index of 10 files is larger than 1000 bytes"):
            saved_files.save(at, [], Rollback(also=[place / "*"]), lambda: None)
    finally:
        os.close(at)


@pytest.mark.parametrize("place", ["images", "elsewhere"])
def test_a_pattern_that_matches_image_sets(tmp_path: Path, place: str) -> None:
    """The set is neither saved in itself nor removed by its restore, also after it was moved; nor
    is a later one.
    """
    images, data, later = (tmp_path / name for name in ("images", "data", "later"))
    for each in (images, data, images / "parent"):
        each.mkdir()
    (data / "x").write_text("saved")
    names = ("pages-1.img", "inventory.img", "parent/pages-1.img", "application.log")
    for name in names:
        (images / name).write_text("saved")
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        rollback = Rollback(also=[tmp_path / "*", tmp_path / "*/*", tmp_path / "*/*/*"])
        saved_files.save(at, [], rollback, lambda: None)
    finally:
        os.close(at)
    copied = {"pycriu-native.file-0", "pycriu-native.file-1"}
    expected = {*os.listdir(images), "pycriu-native.restore-1"}
    assert expected == {*names[:2], names[3], "parent", index.INDEX, *copied} | {CLAIM + "1"}
    images = images.rename(tmp_path / place)
    (images / f"{CLAIM}1").touch()
    shutil.copytree(images, later)
    (later / index.INDEX).write_text("another")
    for _ in range(2):
        (data / "x").write_text("changed")
        (data / "new").touch()
        _restored(images)
        assert [each.read_text() for each in data.iterdir()] == ["saved"]
        assert set(os.listdir(images)) >= expected - {"application.log"}
        assert set(os.listdir(later)) >= expected - {"application.log"}
        assert (later / index.INDEX).read_text() == "another"
        assert (images / "parent/pages-1.img").exists()


@pytest.mark.usefixtures("without_reflinks")
@pytest.mark.parametrize("size", [100, 5 * 2**20])
def test_a_log_that_another_process_writes(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is appended while it is copied belongs to the copy, and does not damage it."""
    path, images = tmp_path / "app.log", tmp_path / "images"
    real = copying.copy

    def appending(source: int, target: int, *args: Any, **kwargs: Any) -> None:
        with open(path, "a") as other:
            other.write("of another process\n")
        real(source, target, *args, **kwargs)

    monkeypatch.setattr(copies, "copy", appending)
    with open(path, "ab") as log:
        log.write(bytes(size))
        log.flush()
        _dumped(images)
        expected = path.read_bytes()
        log.write(b"after the dump\n")
    _restored(images)
    assert path.read_bytes() == expected == bytes(size) + b"of another process\n"


def _restored(images: Path, *, keep: bool = True) -> None:
    """Put the files of a set back, and give them back unless they are to be kept."""
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        rolled_back = RollBack(at)
        try:
            rolled_back.put_back(lambda: None)
            if keep:
                rolled_back.succeeded()
        finally:
            rolled_back.close()
    finally:
        os.close(at)


@contextlib.contextmanager
def _other_process(directory: Path) -> Iterator[int]:
    """A process that has open what this process has open below a directory.

    This process also has its output open, which can be a file.
    """
    fds = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listed directory
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{directory}/"):
                fds.append(int(name))
    null = subprocess.DEVNULL
    words = ["sleep", "1000"]
    with subprocess.Popen(words, stdin=null, stdout=null, stderr=null, pass_fds=fds) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def _dumped(images: Path, link_from: Path | None = None) -> set[int]:
    """Save the files that this process has open beside ``images``; returns the inodes of the
    copies.
    """
    images.mkdir()
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        rollback = Rollback(complete=True, link_from=link_from)
        with _other_process(images.parent) as pid:
            saved_files.save(at, [pid], rollback, lambda: None)
    finally:
        os.close(at)
    index = json.loads((images / "pycriu-native.files").read_text())
    (entry,) = (each for each in index["files"] if each["path"].endswith("app.log"))
    return {(images / name).stat().st_ino for name in entry["copies"]}


@pytest.fixture
def without_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that does not support them."""
    for module in (copying, copies, restored_file):
        monkeypatch.setattr(module, "reflink", lambda *_: False)


@pytest.mark.usefixtures("without_reflinks")
def test_appended_data_is_saved_once(tmp_path: Path) -> None:
    """Copies of a large log share their parts, and each set restores the log of its time after it
    was truncated, and after it was removed.
    """
    path, images = tmp_path / "app.log", [tmp_path / str(number) for number in range(4)]
    contents, inodes = [], []
    with open(path, "ab") as log:
        for number, place in enumerate(images):
            log.write(os.urandom((5 * 2**20, 2500, 500, 3000)[number]))
            log.flush()
            inodes.append(_dumped(place, images[number - 1] if number else None))
            contents.append(path.read_bytes())
        assert [len(each) for each in inodes] == [1, 2, 3, 2]
        assert inodes[0] < inodes[1] < inodes[2]
        assert len(inodes[2] & inodes[3]) == 1  # two small parts and the new one were joined
        shutil.rmtree(images[0])
        log.truncate(0)
        for place, content in zip(images[1:], contents[1:], strict=True):
            _restored(place)
            assert path.read_bytes() == content
        path.rename(tmp_path / "app.log.1")
        _restored(images[3])
        assert path.read_bytes() == (tmp_path / "app.log.1").read_bytes() == contents[3]


@pytest.mark.usefixtures("without_reflinks")
def test_a_shared_part_that_was_damaged(tmp_path: Path) -> None:
    """A later set that shares it is sealed with its checksum from before."""
    first, second = tmp_path / "1", tmp_path / "2"
    with open(tmp_path / "app.log", "ab") as log:
        log.write(os.urandom(5 * 2**20))
        log.flush()
        _dumped(first)
        manifest.seal(first)
        (part,) = first.glob("pycriu-native.file-*")
        with open(part, "r+b") as file:
            file.write(b"damaged")
        log.write(b"more")
        log.flush()
        _dumped(second, first)
        manifest.seal_with(second, manifest.linked_entries(second, first))
        with pytest.raises(ImagesError, match="file-0 was changed"):
            manifest.verify(second)


@pytest.mark.usefixtures("without_reflinks")
def test_a_log_that_was_truncated(tmp_path: Path) -> None:
    """A log that was truncated and is longer again shares nothing with its earlier copy."""
    path = tmp_path / "app.log"
    with open(path, "ab") as log:
        log.write(os.urandom(5 * 2**20))
        log.flush()
        first = _dumped(tmp_path / "1")
        log.truncate(0)
        log.write(content := os.urandom(6 * 2**20))
        log.flush()
        assert not first & _dumped(tmp_path / "2", tmp_path / "1")
        log.truncate(0)
        _restored(tmp_path / "2")
        assert path.read_bytes() == content
        assert not first & _dumped(tmp_path / "3", tmp_path / "none")


@pytest.mark.usefixtures("without_reflinks")
def test_only_what_differs_is_kept(tmp_path: Path) -> None:
    """Of a file that was only appended to since the dump, its end is copied and given back."""
    images, path = tmp_path / "images", tmp_path / "data"
    images.mkdir()
    path.write_bytes(content := os.urandom(3 * 2**20))
    os.close(_saved(images, path))
    for grown in (content + b"more", content[:-1] + b"x" * 5, content[: 2**20], b"", content):
        path.write_bytes(grown)
        at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
        try:
            rolled_back = RollBack(at)
            rolled_back.put_back(lambda: None)
            assert path.read_bytes() == content
            assert os.stat(before_of(str(path))).st_size < 2**20
            rolled_back.close()
        finally:
            os.close(at)
        assert path.read_bytes() == grown


def test_files_that_are_read(tmp_path: Path) -> None:
    """A file that is open for reading is saved if it was changed since the time; a restore creates
    it if it does not exist, and leaves another one unchanged.
    """
    images = [tmp_path / name for name in ("a", "b", "c")]
    path, other = tmp_path / "temporary", tmp_path / "linked"
    path.write_text("at the dump")
    os.link(path, other)
    since = path.stat().st_ctime
    with open(path):
        for place, rollback in zip(
            images,
            (
                Rollback(changed_since=since + 100),
                Rollback(changed_since=since),
                Rollback(changed_since=since, also=[path]),
            ),
            strict=True,
        ):
            place.mkdir()
            at = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with _other_process(tmp_path) as pid:
                    saved_files.save(at, [pid], rollback, lambda: None)
            finally:
                os.close(at)
    other.unlink()
    assert '"files": []' in (images[0] / "pycriu-native.files").read_text()
    path.write_text("another")
    _restored(images[1])
    assert path.read_text() == "another"
    path.unlink()
    _restored(images[1], keep=False)
    assert not path.exists()
    _restored(images[1])
    assert path.read_text() == "at the dump"
    path.write_text("another")
    _restored(images[2])
    assert path.read_text() == "at the dump"


@pytest.mark.usefixtures("without_reflinks")
def test_a_matching_file_that_is_removed_meanwhile(tmp_path: Path) -> None:
    """A file that another process removes while a dump copies others did not exist at the dump."""
    images, first, second = (tmp_path / name for name in ("images", "first", "second"))
    images.mkdir()
    for each in (first, second):
        each.write_text("at the dump")
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files = Rollback(also=(first, second))
        saved_files.save(at, [], files, lambda: second.unlink(missing_ok=True))
    finally:
        os.close(at)
    second.write_text("new")
    _restored(images)
    assert first.exists()
    assert not second.exists()


@pytest.mark.usefixtures("without_reflinks")
@pytest.mark.parametrize("name", ["a", "z"])
def test_a_new_file_that_is_removed_meanwhile(tmp_path: Path, name: str) -> None:
    """A file that the restore would remove, and that another process removes first."""
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    (place / "saved").write_text("at the dump")
    at = _saved(images, place / "*")
    (place / "saved").write_text("later")
    new = place / name
    new.touch()
    try:
        rolled_back = RollBack(at)
        rolled_back.put_back(lambda: new.unlink(missing_ok=True))
        assert (place / "saved").read_text() == "at the dump"
        assert rolled_back.give_back() == ()
        rolled_back.close()
        assert _state(place).keys() == {"saved"}
        assert (place / "saved").read_text() == "later"
    finally:
        os.close(at)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_setuid_program_of_another_owner(tmp_path: Path) -> None:
    """A change of the owner clears the setuid bit, which is set again."""
    images, program = tmp_path / "images", tmp_path / "program"
    images.mkdir()
    program.write_text("at the dump")
    program.chmod(0o4755)
    at = _saved(images, program)
    os.close(at)
    os.chown(program, 1, 1)
    program.chmod(0o4755)
    _restored(images)
    assert program.stat().st_uid == 0
    assert program.stat().st_mode & 0o7777 == 0o4755


def test_directories_that_were_removed(tmp_path: Path) -> None:
    """They are created again with their owner and mode, and removed if the restore fails."""
    images, place = tmp_path / "images", tmp_path / "a" / "b"
    images.mkdir()
    place.mkdir(parents=True)
    (place / "work").write_text("at the dump")
    place.chmod(0o2751)
    os.close(_saved(images, place / "work"))
    shutil.rmtree(tmp_path / "a")
    _restored(images, keep=False)
    assert not (tmp_path / "a").exists()
    _restored(images)
    assert (place / "work").read_text() == "at the dump"
    assert place.stat().st_mode & 0o7777 == 0o2751


def test_a_copy_that_is_missing(tmp_path: Path) -> None:
    """The error names the copy, and nothing is changed."""
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "a").write_text("at the dump")
    os.close(_saved(images, tmp_path / "a"))
    (tmp_path / "a").write_text("later")
    (images / "pycriu-native.file-0").unlink()
    with pytest.raises(ImagesError, match=r"saved copy of .*/a, pycriu-native.file-0 in .*: No su"):
        _restored(images)
    assert (tmp_path / "a").read_text() == "later"


def test_names_that_are_no_files(tmp_path: Path) -> None:
    """Links, hard links, named pipes and directories that match a pattern and existed at the dump
    remain or are created again; new ones are removed; a failed restore undoes both.
    """
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    (place / "old" / "empty").mkdir(parents=True)
    (place / "file").write_text("at the dump")
    os.link(place / "file", place / "name")
    os.link(place / "file", place / "other-name")
    for name in ("kept", "replaced", "removed"):
        (place / name).symlink_to("file")
    (place / "folder-link").symlink_to("old")
    (place / "old" / "inner").write_text("inner")
    for name in ("pipe", "removed-pipe"):
        os.mkfifo(place / name)
    names = _names(place)
    os.close(_saved(images, place / "*", place / "*" / "*"))
    (place / "file").write_text("later")
    for name in ("replaced", "removed", "name", "removed-pipe"):
        (place / name).unlink()
    (place / "name").write_text("another file")
    (place / "replaced").symlink_to("old")
    (place / "new-link").symlink_to("old")
    (place / "old" / "empty").rmdir()
    (place / "new").mkdir()
    (place / "new" / "file").touch()
    (place / "with-more" / "deeper").mkdir(parents=True)
    (place / "with-more" / "deeper" / "file").touch()
    before = _names(place)
    _restored(images, keep=False)
    assert _names(place) == before
    _restored(images)
    not_matched = ("with-more", "with-more/deeper", "with-more/deeper/file")
    assert _names(place) == names | dict.fromkeys(not_matched)
    assert {(place / name).read_text() for name in ("file", "name", "other-name", "kept")} == {
        "at the dump"
    }
    assert (place / "name").samefile(place / "other-name")


def test_all_names_of_a_file_were_removed(tmp_path: Path) -> None:
    """A file whose names all match is created again with them."""
    images = tmp_path / "images"
    images.mkdir()
    paths = [tmp_path / name for name in ("a.x", "b.x")]
    paths[0].write_text("at the dump")
    os.link(*paths)
    os.close(_saved(images, tmp_path / "*.x"))
    for path in paths:
        path.unlink()
    _restored(images)
    assert paths[0].samefile(paths[1])
    assert paths[0].read_text() == "at the dump"


def test_a_pattern_below_a_link(tmp_path: Path) -> None:
    """A file that is open by its own path, and matches a pattern below a link to its directory, is
    one file: it is not removed, also if its directory is a link at the restore. The target of a
    link that is named is saved, too.
    """
    images, place, link = tmp_path / "images", tmp_path / "place", tmp_path / "link"
    images.mkdir()
    place.mkdir()
    link.symlink_to("place")
    (place / "file").write_text("at the dump")
    (tmp_path / "target").write_text("at the dump")
    (tmp_path / "named").symlink_to("target")
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(place / "file", "a"), _other_process(place) as pid:
            also = [link / "*", tmp_path / "named"]
            saved_files.save(at, [pid], Rollback(also=also), lambda: None)
    finally:
        os.close(at)
    for name in ("place/file", "place/new", "target"):
        (tmp_path / name).write_text("later")
    _restored(images)
    assert os.listdir(place) == ["file"]
    assert (link / "file").read_text() == (tmp_path / "named").read_text() == "at the dump"
    place.rename(tmp_path / "moved")
    place.symlink_to("moved")
    (place / "file").write_text("later")
    _restored(images)
    assert os.listdir(place) == ["file"]
    assert (place / "file").read_text() == "at the dump"


def test_directories_that_are_ignored(tmp_path: Path) -> None:
    """Patterns do not match in them; a path does."""
    images, ignored = tmp_path / "images", tmp_path / "place" / "ignored"
    images.mkdir()
    ignored.mkdir(parents=True)
    for name in ("kept", "named"):
        (ignored / name).write_text("at the dump")
    at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        also = [tmp_path / "place" / "*" / "*", ignored / "named"]
        saved_files.save(at, [], Rollback(also=also, ignore=[ignored]), lambda: None)
    finally:
        os.close(at)
    for name in ("kept", "named", "new"):
        (ignored / name).write_text("later")
    _restored(images)
    assert {path.name: path.read_text() for path in ignored.iterdir()} == {
        "kept": "later",
        "named": "at the dump",
        "new": "later",
    }


def _names(place: Path) -> dict[str, str | None]:
    """All names, with the targets of links."""
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else None
        for path in place.rglob("*")
    }


def test_content_before_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored processes run by then: it is no failure, and the next restore works too."""
    images, place = tmp_path / "images", tmp_path / "place"
    images.mkdir()
    place.mkdir()
    (place / "changed").write_text("at the dump")
    at = _saved(images, place / "*")
    unlink = os.unlink

    def refused(path: str, **more: int) -> None:
        if restored_file.BEFORE in path and os.path.exists(path):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path, **more)

    try:
        for now in (refused, unlink):
            monkeypatch.setattr(os, "unlink", now)
            (place / "new").write_text("new")
            (place / "changed").write_text("later")
            with contextlib.closing(RollBack(at)) as rolled_back:
                rolled_back.put_back(lambda: None)
                rolled_back.succeeded()
            assert (place / "changed").read_text() == "at the dump"
            assert not (place / "new").exists()
        assert os.listdir(place) == ["changed"]
    finally:
        os.close(at)


def test_names_on_another_device(tmp_path: Path) -> None:
    """A file with two names is put back, too, if its disk has another device number by then."""
    images = tmp_path / "images"
    images.mkdir()
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("at the dump")
    other.hardlink_to(path)
    at = _saved(images, path)
    try:
        body = json.loads((images / index.INDEX).read_text())
        for entry in body["files"]:
            entry["device"] += 1
        (images / index.INDEX).write_text(json.dumps(body))
        path.write_text("later")
        with contextlib.closing(RollBack(at)) as rolled_back:
            rolled_back.put_back(lambda: None)
            rolled_back.succeeded()
        assert other.read_text() == "at the dump"
    finally:
        os.close(at)


def test_a_file_that_is_only_read(tmp_path: Path) -> None:
    """A large one that was changed between two dumps, also in its middle, is copied again."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2**23))
    with open(path, "rb") as file:
        reader = subprocess.Popen(
            ["sleep", "100"], stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        last = None
        for number, change in enumerate((b"", b"", b"changed")):
            with open(path, "r+b") as file:
                file.seek(2**22)
                file.write(change)
            images = tmp_path / f"images-{number}"
            images.mkdir()
            files = Rollback(changed_since=0, complete=True, link_from=last)
            at = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
            saved_files.save(at, [reader.pid], files, lambda: None)
            (entry,) = (each for each in index.read(at).files if each.path == str(path))
            os.close(at)
            (copy,) = entry.copies
            assert (images / copy).read_bytes() == path.read_bytes()
            assert ((images / copy).stat().st_nlink > 1) == (number == 1)
            last = images
    finally:
        reader.kill()
        reader.wait()


def _state(place: Path) -> dict[str, tuple[object, ...]]:
    result: dict[str, tuple[object, ...]] = {}
    for path in place.iterdir():
        seen = path.lstat()
        text = os.readlink(path) if path.is_symlink() else path.read_text()
        result[path.name] = (text, seen.st_mode, seen.st_uid, seen.st_mtime_ns)
    return result
