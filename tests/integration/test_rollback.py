"""``files="rollback"``: after a restore the files match the memory, after any changes of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native import (
    CriuError,
    CriuOpts,
    ImagesError,
    Notification,
    Notify,
    OptionError,
    PidInUseError,
    Rollback,
    Severity,
    archive,
    dump,
    preflight,
    restore_child,
    seal,
    verify,
)
from pycriu_native._rollback.restored_file import BEFORE

from .support.processes import eventually, kill

WRITER = Path(__file__).parent / "programs" / "writer.py"
OPENED_EACH_TIME = "opened-each-time"


def _opts(images: Path, leave_running: bool | None = None) -> CriuOpts:
    return CriuOpts(images_directory=images, file_locks=True, leave_running=leave_running)


def _files(place: Path) -> Rollback:
    return Rollback(also=[place / "out" / OPENED_EACH_TIME])


def _place(tmp_path: Path, name: str) -> Path:
    place = tmp_path / name
    (place / "out").mkdir(parents=True)
    return place


@contextlib.contextmanager
def _writer(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(place / "stdout", "wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, str(WRITER), str(place)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process.pid)
        process.wait()


def _until(place: Path, number: int) -> None:
    eventually((place / f"ready-{number}").exists, f"pause {number} of the writer")


def _contents(place: Path) -> dict[str, object]:
    """All written files: names, modes and contents; of the database, its rows."""
    result: dict[str, object] = {}
    for path in sorted((place / "out").iterdir()):
        with contextlib.closing(sqlite3.connect(path)) as database:
            content: object = (
                [*database.execute("select * from rows"), *database.execute("pragma quick_check")]
                if path.name == "database"
                else path.read_bytes()
            )
        result[path.name] = (oct(path.stat().st_mode), content)
    return result


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The files of the writer without an interruption."""
    place = _place(tmp_path_factory.mktemp("rollback"), "uninterrupted")
    (place / "go-1").touch()
    (place / "go-2").touch()
    with _writer(place) as process:
        assert process.wait(60) == 0, (place / "stdout").read_text()
    return _contents(place)


def _dumped_and_gone_on(place: Path, images: Path, process: subprocess.Popen[bytes]) -> None:
    """A dump in the middle; the process continues to its second pause, and is killed there."""
    _until(place, 1)
    dump(process.pid, _opts(images, leave_running=True), files=_files(place))
    (place / "go-1").touch()
    _until(place, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_exact(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """Written, appended, truncated, mapped, sparse, renamed, deleted, replaced and linked files,
    and a database in a transaction, are restored exactly; twice from the same images.
    """
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        digest = seal(images)
        verify(images, digest)
        (place / "go-2").touch()
        for _ in range(2):
            result = restore_child(_opts(images), files="rollback")
            assert result.wait(60) == 0, (place / "stdout").read_text()
            assert _contents(place) == uninterrupted
        verify(images, digest)
    assert not list(place.rglob(BEFORE + "*"))
    assert (images / "pycriu-native.files").exists()


def test_a_fifo_instead_of_a_file(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """It is replaced by the saved file before CRIU would open it."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        (place / "out" / "appended").unlink()
        os.mkfifo(place / "out" / "appended")
        (place / "go-2").touch()
        result = restore_child(_opts(images), files="rollback")
        assert result.wait(60) == 0, (place / "stdout").read_text()
        assert _contents(place) == uninterrupted


def test_what_happens_without(tmp_path: Path) -> None:
    """Without rollback CRIU refuses a file that has grown."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        with pytest.raises(CriuError, match="size"):
            restore_child(_opts(images))


def test_files_after_a_failed_restore(tmp_path: Path) -> None:
    """After a failed restore every file is as before, including created and moved ones."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        before = _contents_raw(place)
        seen: list[bool] = []

        def refuse(notification: Notification) -> None:
            if notification.action is Notify.POST_RESTORE:
                seen.append(_contents_raw(place) != before)
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            restore_child(_opts(images), on_notify=refuse, files="rollback")
        assert seen == [True]
        assert _contents_raw(place) == before
    assert not list(place.rglob(BEFORE + "*"))


def _contents_raw(place: Path) -> dict[str, object]:
    return {
        path.name: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in (place / "out").iterdir()
    }


def test_a_pid_that_is_taken(tmp_path: Path) -> None:
    """A restore while the process still runs is refused, and its files are unchanged."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _until(place, 1)
        dump(process.pid, _opts(images, leave_running=True), files=_files(place))
        (place / "go-1").touch()
        _until(place, 2)
        before = _contents_raw(place)
        with pytest.raises(PidInUseError):
            restore_child(_opts(images), files="rollback")
        assert _contents_raw(place) == before


@pytest.mark.parametrize("spoil", ["cut", "gone"])
def test_a_large_file_that_was_appended_to(tmp_path: Path, spoil: str) -> None:
    """Only its length is saved if no reflink can be made; if the earlier contents have changed, the
    restore is refused, and nothing is changed.
    """
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        large = place / "out" / "large"
        if '"copies": []' not in (images / "pycriu-native.files").read_text():
            pytest.skip("this file system makes reflinks")
        if spoil == "cut":
            os.truncate(large, 100)
        else:
            large.unlink()
        before = _contents_raw(place)
        with pytest.raises(ImagesError, match="large cannot be put back: it was only appended to"):
            restore_child(_opts(images), files="rollback")
        assert _contents_raw(place) == before


def test_another_name_that_is_lost(tmp_path: Path) -> None:
    """A file with two names whose own name was removed is refused, since the other one
    is unknown.
    """
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        (place / "out" / "linked").unlink()
        before = _contents_raw(place)
        with pytest.raises(ImagesError, match="linked cannot be put back: it had 2 names"):
            restore_child(_opts(images), files="rollback")
        assert _contents_raw(place) == before


def test_through_an_archive(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """An archive includes the files, and so does a copy of the directory."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _dumped_and_gone_on(place, images, process)
        archive.pack(images, tmp_path / "set.tar")
        shutil.rmtree(images)
        archive.unpack(tmp_path / "set.tar", tmp_path / "unpacked")
        (place / "go-2").touch()
        result = restore_child(_opts(tmp_path / "unpacked"), files="rollback")
        assert result.wait(60) == 0
    assert _contents(place) == uninterrupted


def test_images_without_files(tmp_path: Path) -> None:
    """A restore with rollback needs a dump with saved files."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _until(place, 1)
        dump(process.pid, _opts(images))
        process.wait()
        with pytest.raises(ImagesError, match="hold no saved files"):
            restore_child(_opts(images), files="rollback")


def test_the_images_of_an_earlier_dump(tmp_path: Path) -> None:
    """After a failed dump the earlier set is complete with its files, without new ones."""
    place, images = _place(tmp_path, "job"), tmp_path / "ckpt"
    with _writer(place) as process:
        _until(place, 1)
        dump(process.pid, _opts(images, leave_running=True), files="rollback")
        digest = seal(images)

        def refuse(notification: Notification) -> None:
            if notification.action is Notify.POST_DUMP:
                assert (images / "pycriu-native.files").exists()
                raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            dump(process.pid, _opts(images), on_notify=refuse, files="rollback")
        verify(images, digest)


def test_another_mount_namespace(tmp_path: Path) -> None:
    """Files of another mount namespace are refused by name, before anything is frozen."""
    with open(tmp_path / "file", "w") as file, open(os.devnull, "r+b") as null:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", "echo; exec sleep 1000"],
            stdin=null,
            stdout=file,
            stderr=null,
            start_new_session=True,
        )
        try:
            eventually((tmp_path / "file").read_text, "its start")
            with pytest.raises(OptionError, match="is in another mount namespace"):
                dump(process.pid, _opts(tmp_path / "ckpt"), files="rollback")
            assert not (tmp_path / "ckpt").exists()
            findings = preflight(process.pid, files="rollback").findings
            assert [f.id for f in findings if f.id == "file-not-saved"]
        finally:
            kill(process.pid)
            process.wait()


def test_preflight(tmp_path: Path) -> None:
    """Preflight lists each file with its size, its file system and how it is saved."""
    place = _place(tmp_path, "job")
    with _writer(place) as process:
        _until(place, 1)
        opts = _opts(tmp_path / "ckpt")
        result = preflight(process.pid, opts, files=_files(place))
        notes = {f.path: f for f in result.findings if f.id == "saved-file"}
        assert {Path(str(path)).name for path in notes} >= {
            *("written", "appended", "large", "mapped", "database", "database-journal"),
            OPENED_EACH_TIME,
        }
        assert all(f.severity is Severity.NOTE for f in notes.values())
        assert "8.0 MiB" in notes[str(place / "out" / "large")].message
        assert preflight(process.pid, opts).size.written_files == 0
        words = [sys.executable, "-m", "pycriu_native", "preflight", str(process.pid), "--json"]
        words += ["--files", "rollback", "--also", str(place / "out" / "*")]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
        command = json.loads(done.stdout)["result"]["command"]
        assert command[-3:] == ["--files", "rollback", f"--also={place}/out/*"]
