"""Snapshots of programs that have mapped files which they, or a copy, delete."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from pycriu_native import DeadlineError, OptionError
from pycriu_native.snapshots import Snapshot
from pycriu_native.snapshots.locks import one_at_a_time

from .support.processes import PATIENCE
from .test_snapshots import ENVIRONMENT

PROGRAMS = Path(__file__).parent / "programs"

COUNTERS = """
import contextlib, mmap, os, sys
from pycriu_native import guest

os.makedirs(os.path.dirname(sys.argv[1]))
with open(sys.argv[1], "w+b") as file:
    file.write(bytes(4096))
    file.flush()
    counters = mmap.mmap(file.fileno(), 4096)
if sys.argv[2] == "deleted":
    os.unlink(sys.argv[1])
guest.wait()
counters[0] += 1
print(counters[0], flush=True)
with contextlib.suppress(FileNotFoundError):
    os.unlink(sys.argv[1])
"""
"""Maps a file, and unlinks it at its end, as a Java virtual machine does."""


def take(directory: Path, file: Path, *, deleted: bool = False, **options: Any) -> Snapshot:
    """A snapshot of this program."""
    word = "deleted" if deleted else "kept"
    command = [sys.executable, "-c", COUNTERS, str(file), word]
    return Snapshot.take(command, directory, env=ENVIRONMENT, **options)


def output(snapshot: Snapshot, **options: Any) -> bytes:
    """The output of one more copy, which succeeds."""
    with snapshot.start(stdin=DEVNULL, stdout=PIPE, **options) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("deleted", [False, True])
def test_each_copy_has_its_own_file(tmp_path: Path, deleted: bool) -> None:
    """Copies start one after the other and at the same time, with the saved contents, although each
    unlinks the file.
    """
    file = tmp_path / "hsperfdata_root" / "17"
    with take(tmp_path / "snapshot", file, deleted=deleted) as snapshot:
        assert not file.exists()
        assert [output(snapshot) for _ in range(3)] == [b"1\n"] * 3
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: output(snapshot), range(8))) == [b"1\n"] * 8
        with snapshot.zygote() as zygote, zygote.start(stdout=PIPE) as process:
            assert process.communicate(timeout=PATIENCE)[0] == b"1\n"
    assert list(file.parent.iterdir()) == []


def test_a_deadline_while_another_copy_starts(tmp_path: Path) -> None:
    """A start waits for others with deleted files only, and until its deadline."""
    with take(tmp_path / "snapshot", tmp_path / "data" / "file", deleted=True) as snapshot:
        with one_at_a_time(snapshot.directory, None):
            with pytest.raises(DeadlineError):
                snapshot.start(deadline=0.2)
            with pytest.raises(DeadlineError), one_at_a_time(snapshot.directory, time.monotonic()):
                pytest.fail("two have the lock")
        assert output(snapshot) == b"1\n"


def test_an_interruption_while_another_copy_starts(tmp_path: Path) -> None:
    """Ctrl-C ends the wait for another start."""
    with take(tmp_path / "snapshot", tmp_path / "data" / "file", deleted=True) as snapshot:
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        try:
            with one_at_a_time(snapshot.directory, None):
                interrupt.start()
                with pytest.raises(KeyboardInterrupt) as interrupted:
                    snapshot.start(deadline=PATIENCE)
                assert interrupted.value.__cause__ is None, "it has waited until the deadline"
        finally:
            interrupt.cancel()
            signal.signal(signal.SIGINT, handler)
        assert output(snapshot) == b"1\n"


def test_a_mapped_file_that_is_missing(tmp_path: Path) -> None:
    """Other files are kept; a start without one is refused, with a cure."""
    file = tmp_path / "data" / "file"
    snapshot = take(tmp_path / "snapshot", file)
    assert file.exists()
    file.unlink()
    with pytest.raises(OptionError, match="take the snapshot again, or restore the file"):
        snapshot.start()


def test_counters_of_a_program_that_continues(tmp_path: Path) -> None:
    """They are kept, and the error of a later start without them has a cure."""
    file = tmp_path / "hsperfdata_root" / "17"
    code = COUNTERS.replace("guest.wait()", "print('ready', end='', flush=True)\ninput()")
    with subprocess.Popen(
        [sys.executable, "-c", code, file, "kept"],
        env=ENVIRONMENT,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"ready"
        snapshot = Snapshot.take(
            process, tmp_path / "snapshot", without_guest=True, leave_running=True
        )
        assert file.exists()
        assert process.communicate(b"\n", timeout=PATIENCE)[0] == b"1\n"
    with pytest.raises(OptionError, match="-XX:-UsePerfData"):
        snapshot.start(stdin=PIPE, stdout=PIPE)


def test_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    """A file that another directory has too is not unlinked."""
    (tmp_path / "other").mkdir()
    (tmp_path / "hsperfdata_root").symlink_to("other")
    file = tmp_path / "hsperfdata_root" / "17"
    code = COUNTERS.replace("os.makedirs", "str")
    command = [sys.executable, "-c", code, str(file), "kept"]
    Snapshot.take(command, tmp_path / "snapshot", env=ENVIRONMENT)
    assert (tmp_path / "other" / "17").exists()


def test_java(tmp_path: Path) -> None:
    """A Java virtual machine with its default options starts again and again."""
    compiler, java = shutil.which("javac"), shutil.which("java")
    if compiler is None or java is None:
        pytest.skip("java is not installed")
    subprocess.run([compiler, "-d", tmp_path, PROGRAMS / "GuestJava.java"], check=True)
    command = [java, "--add-opens", "java.base/java.io=ALL-UNNAMED", "-cp", str(tmp_path)]
    with Snapshot.take([*command, "GuestJava"], tmp_path / "snapshot") as snapshot:
        assert [output(snapshot) for _ in range(4)] == [b"started\n"] * 4
