"""Jobs whose files are truncated, renamed, removed, or on a full file system: all are resumed."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycriu_native.jobs import INTERRUPTED

from .support.jobs import RunningJob
from .support.mounts import tmpfs

COMMON = """
import os, sys, tempfile, time
place = sys.argv[1]
def pause(number):
    open(f"{place}/ready-{number}", "w").close()
    while not os.path.exists(f"{place}/go-{number}"):
        time.sleep(0.01)
"""
"""The start of each command. It pauses at two places: for a checkpoint, and to be killed."""

TRUNCATED = """
log = open(f"{place}/log", "a", buffering=1)
log.write("x" * 5 * 2**20)
pause(1)
log.truncate(0)
log.write("after\\n")
pause(2)
log.write("end\\n")
"""

ROTATED = """
log = open(f"{place}/log", "a", buffering=1)
log.write("x" * 5 * 2**20)
pause(1)
log.write("before\\n")
os.rename(f"{place}/log", f"{place}/log.1")
log = open(f"{place}/log", "a", buffering=1)
pause(2)
log.write("end\\n")
"""

REMOVED = """
with tempfile.TemporaryDirectory(dir=place) as work:
    file = open(f"{work}/work", "w+", buffering=1)
    file.write("work\\n")
    pause(1)
    file.seek(0)
    open(f"{place}/log", "w").write(file.read())
pause(2)
open(f"{place}/log", "a").write("end\\n")
"""

REREAD = """
open(f"{place}/temporary", "w").write("temporary\\n")
file = open(f"{place}/temporary")
pause(1)
os.unlink(f"{place}/temporary")
open(f"{place}/log", "w").write(file.read())
pause(2)
open(f"{place}/log", "a").write("end\\n")
"""

LINKED = """
files = f"{place}/files"
os.mkdir(files)
log = open(f"{files}/log", "w", buffering=1)
log.write("log\\n")
os.link(f"{files}/log", f"{files}/name")
os.symlink("log", f"{files}/link")
os.mkfifo(f"{files}/pipe")
pipe = os.open(f"{files}/pipe", os.O_RDWR)
os.write(pipe, b"pipe\\n")
pause(1)
log.write(os.read(pipe, 99).decode())
os.unlink(f"{files}/pipe")
os.mkdir(f"{files}/new")
open(f"{files}/new/file", "w").write("new\\n")
pause(2)
log.write("end\\n")
"""


def _killed_after(job: RunningJob, script: str, place: Path, *words: str) -> None:
    """Start the script, take a checkpoint at its first pause, and kill it at its second."""
    job.words = [sys.executable, "-c", COMMON + script, str(place), *words]
    job.start("--every", "1h")
    job.until((place / "ready-1").exists, "its first pause")
    _checkpoint(job)
    (place / "go-1").touch()
    job.until((place / "ready-2").exists, "its second pause")
    job.end()


def _checkpoint(job: RunningJob) -> None:
    words = [sys.executable, "-m", "pycriu_native", "job", "checkpoint", job.path]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def _was_resumed(job: RunningJob, times: int) -> bool:
    return job.directory.status().resumed == times


def _resumed(job: RunningJob, place: Path) -> int:
    """Resume it and let it end; returns its exit code."""
    (place / "go-2").touch()
    job.start("--every", "1h")
    return job.wait()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(TRUNCATED, "after\nend\n", id="truncated"),
        pytest.param(ROTATED, "end\n", id="rotated"),
        pytest.param(REREAD, "temporary\nend\n", id="removed after it was read"),
        pytest.param(REMOVED, "work\nend\n", id="removed directory"),
    ],
)
def test_changed_after_the_checkpoint(job: RunningJob, script: str, expected: str) -> None:
    """A large log that is truncated or rotated, and a file whose directory is removed."""
    _killed_after(job, script, job.place)
    assert _resumed(job, job.place) == 0, job.messages()
    assert job.directory.status().resumed == 1
    assert (job.place / "log").read_text() == expected
    if script is ROTATED:
        assert (job.place / "log.1").read_text() == "x" * 5 * 2**20 + "before\n"


def test_links_and_the_directory_of_the_job_match_patterns(job: RunningJob) -> None:
    """Patterns that lead through a link to open files, and to the checkpoints, remove neither.
    Links and named pipes that match are as at the checkpoint.
    """
    (job.place / "path").symlink_to("files")
    also = ["path/*", "*/*", "*/*/*", "*/*/*/*"]
    job.options = [word for each in also for word in ("--also", str(job.place / each))]
    _killed_after(job, LINKED, job.place)
    events = sum(1 for _ in job.directory.events())
    assert _resumed(job, job.place) == 0, job.messages()
    assert job.directory.status().resumed == 1
    assert sum(1 for _ in job.directory.events()) > events
    files = job.place / "files"
    names = ["link", "log", "name", "new", "new/file"]
    assert sorted(str(path.relative_to(files)) for path in files.rglob("*")) == names
    for name in names[:3]:
        assert (files / name).read_text() == "log\npipe\nend\n"
    assert (files / "log").samefile(files / "name")


def test_checkpoints_share_a_log(job: RunningJob) -> None:
    """The second checkpoint has a hard link to the copy of the first, also of another supervisor,
    and remains restorable when the first is removed.
    """
    job.words = [sys.executable, "-c", COMMON + TRUNCATED, str(job.place)]
    copies = []
    for number in range(2):
        job.start("--every", "1h", "--keep", "1")
        job.until((job.place / "ready-1").exists, "its pause")
        job.until(functools.partial(_was_resumed, job, number), "its start")
        _checkpoint(job)
        (newest,) = job.directory.all_checkpoints()
        large = 4 * 2**20
        files = [*Path(newest.path).glob("pycriu-native.file-*")]
        copies.append([each.stat().st_ino for each in files if each.stat().st_size > large])
        assert all(copies)
        job.end()
    if copies[0] != copies[1]:
        pytest.skip("this file system makes reflinks")
    (job.place / "log").unlink()
    (job.place / "go-1").touch()
    assert _resumed(job, job.place) == 0, job.messages()
    assert (job.place / "log").read_text() == "after\nend\n"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    with tmpfs(tmp_path / "small", "40m") as place:
        yield place


REWRITTEN = """
file = open(f"{place}/log", "w+b", buffering=0)
file.write(b"a" * 25 * 2**20)
pause(1)
if os.pread(file.fileno(), 2**26, 0) != b"a" * 25 * 2**20:
    sys.exit(9)
file.truncate(int(sys.argv[2]))
os.pwrite(file.fileno(), b"b" * int(sys.argv[2]), 0)
pause(2)
"""


def test_no_space_for_a_second_copy(job: RunningJob, small: Path) -> None:
    """The previous content of a file is kept in the directory of the job, if there is no space
    beside the file.
    """
    _killed_after(job, REWRITTEN, small, str(25 * 2**20))
    assert (small / "log").read_bytes() == b"b" * 25 * 2**20
    assert _resumed(job, small) == 0, job.messages()
    assert job.directory.status().resumed == 1
    assert (small / "log").read_bytes() == b"b" * 25 * 2**20
    assert sorted(path.name for path in small.iterdir() if "-" not in path.name) == ["log"]


def test_no_space_for_the_file(job: RunningJob, small: Path) -> None:
    """The job is not resumed, but can be when there is space; the message has the reason."""
    _killed_after(job, REWRITTEN, small, "10")
    (small / "other").write_bytes(b"c" * 25 * 2**20)
    assert _resumed(job, small) == INTERRUPTED, job.messages()
    assert "log cannot be put back: No space left on device; free disk space" in job.messages()
    assert (small / "log").read_bytes() == b"b" * 10
    (small / "other").unlink()
    assert _resumed(job, small) == 0, job.messages()
    assert job.directory.status().resumed == 1


LOGGED = """
log = open(f"{place}/log", "a", buffering=1)
number = 0
while not os.path.exists(f"{place}/go-2"):
    log.write(f"{number}\\n")
    number += 1
    time.sleep(0.01)
"""


def test_a_kill_soon_after_the_start(job: RunningJob) -> None:
    """The first checkpoint does not wait for the interval: no line of a log is lost or doubled."""
    job.words = [sys.executable, "-c", COMMON + LOGGED, str(job.place)]
    job.start("--every", "1d", "--first", "0.1s")
    job.until(lambda: job.has_checkpoints(2), "its early checkpoints")
    lines = _lines(job)
    job.until(lambda: _lines(job) > lines, "lines after a checkpoint")
    job.end()
    assert _resumed(job, job.place) == 0, job.messages()
    assert job.directory.status().resumed == 1
    text = (job.place / "log").read_text()
    assert text == "".join(f"{number}\n" for number in range(text.count("\n")))


def _lines(job: RunningJob) -> int:
    return (job.place / "log").read_bytes().count(b"\n")
