"""Jobs on full disks, with files that cannot be written, and with invalid arguments."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pycriu_native.cli.commands.job import seconds_of
from pycriu_native.jobs import CANNOT_RESTORE, INTERRUPTED, Job, State

from .support.jobs import RunningJob, check_exact
from .support.mounts import tmpfs
from .support.processes import eventually

WAITS = 'echo begun; while [ ! -e "$0"/finish ]; do sleep 0.05; done; exit 3'


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with tmpfs(tmp_path / "small", "4m") as place:
        yield place


def _fill(place: Path) -> Path:
    """Fill a file system, also what has become free since the last time."""
    filler = place / "filler"
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@pytest.fixture
def small_job(small: Path) -> Iterator[RunningJob]:
    """A job on the small file system."""
    job = RunningJob(small / "place", options=("--every", "0.5"))
    yield job
    job.end()


def test_a_full_disk(small: Path, small_job: RunningJob) -> None:
    """The command continues, its exit code is returned, and a second run has no effect."""
    job = small_job
    job.words = ["sh", "-c", WAITS, str(job.place)]
    job.start()
    # Its status is written after the start of the command, and cannot be created on a full disk.
    job.until(lambda: job.directory.status().state is State.RUNNING, "its start")
    (job.directory.path / "events.jsonl").write_text("")  # blocks for what is added

    def fails() -> bool:
        _fill(small)  # a checkpoint that was under way has released its space
        return job.directory.status().failures > 2

    filler = _fill(small)
    job.until(fails, "failed checkpoints")
    assert "make room" in job.directory.status().message
    filler.unlink()
    job.until(lambda: job.has_checkpoints(1), "a checkpoint")
    (job.place / "finish").touch()
    filler = _fill(small)
    assert job.wait() == 3, job.messages()
    status = job.directory.status()
    assert (status.state, status.exit_code) == (State.ENDED, 3)
    filler.unlink()
    job.start()
    assert job.wait() == 3
    assert job.directory.status().resumed == 0


def test_a_disk_that_is_full_at_the_start(small: Path) -> None:
    """Nothing is started, and no file remains that would prevent a later start."""
    job = RunningJob(small / "place")
    job.words = ["true"]
    filler = _fill(small)
    job.process = subprocess.Popen(
        [sys.executable, "-m", "pycriu_native", "run", "--dir", job.path, "--", "true"],
        stderr=subprocess.PIPE,
    )
    _, text = job.process.communicate()
    assert job.process.returncode == 6
    assert b"cannot be used: No space left on device" in text
    filler.unlink()
    job.start()
    assert job.wait() == 0


def test_a_status_that_cannot_be_written(job: RunningJob, tmp_path: Path) -> None:
    """The command continues; if its end cannot be recorded, ``run`` reports this, and the next run
    has the same result.
    """
    job.start("--grace", "1")
    job.until(lambda: job.has_checkpoints(1), "a checkpoint")
    in_the_way = job.directory.path / ".status.json.partial"
    eventually(lambda: _made(in_the_way), "a directory in the way")
    before = len(job.messages_of("checkpoint"))
    job.until(lambda: len(job.messages_of("checkpoint")) > before + 1, "more checkpoints")
    (job.place / "finish").touch()
    assert job.wait() == 1
    assert "the status cannot be written for the next run" in job.messages()
    assert job.directory.status().state is State.INTERRUPTED
    in_the_way.rmdir()
    assert job.finish() == 0
    check_exact(job, tmp_path / "reference")


def _made(place: Path) -> bool:
    try:
        place.mkdir()
    except FileExistsError:  # it is being written
        return False
    return True


def test_a_line_that_was_cut_off(job: RunningJob) -> None:
    """The event after an incomplete line can be read."""
    job.directory.make()
    job.directory.event("first")
    with open(job.directory.path / "events.jsonl", "a") as file:
        file.write('{"time": "2026')
    job.directory.event("second")
    assert job.events() == ["first", "second"]


def test_a_command_that_was_never_started(tmp_path: Path) -> None:
    """A directory belongs to a command only after its start: a wrong command can be corrected."""
    with pytest.raises(Exception, match="'misspelt' cannot be started: No such file"):
        Job(tmp_path / "job", ["misspelt"]).run()
    assert Job(tmp_path / "job", ["true"]).run().exit_code == 0
    with pytest.raises(ValueError, match="is the directory of another command"):
        Job(tmp_path / "job", ["false"]).run()


def test_a_start_that_was_killed(tmp_path: Path) -> None:
    """The files of a start that was killed do not prevent the next start."""
    (tmp_path / "job").mkdir()
    for name in ("lock", ".job.json.partial"):
        (tmp_path / "job" / name).touch()
    assert Job(tmp_path / "job", ["true"]).run().exit_code == 0


def test_many_starts_at_once(tmp_path: Path) -> None:
    """One of them runs the command once; the others return its result."""
    words = [sys.executable, "-m", "pycriu_native", "run", "--dir", str(tmp_path / "job"), "--"]
    command = ["sh", "-c", f"echo once >> {tmp_path}/log; exit 5"]
    started = [subprocess.Popen([*words, *command]) for _ in range(4)]
    codes = {each.wait() for each in started}
    assert codes <= {5, 77}  # 77 under load: another one runs it
    assert 5 in codes
    assert (tmp_path / "log").read_text() == "once\n"


@pytest.mark.parametrize("option", ["every", "grace", "lease", "keep"])
@pytest.mark.parametrize("value", [float("inf"), 1e300, -1, float("nan")])
def test_numbers_that_are_refused(tmp_path: Path, option: str, value: float) -> None:
    """Invalid numbers are refused by name before anything is created."""
    with pytest.raises(ValueError, match=re.escape(f"{option}={value}")):
        Job(tmp_path / "job", ["true"], **{option: value})  # type: ignore[arg-type]
    assert not (tmp_path / "job").exists()


def test_durations_that_are_refused(tmp_path: Path) -> None:
    """The command line reports the option and the value."""
    for value in ("5 m", "10M", "1e3", "-1", "inf", "", "9" * 30 + "d"):
        with pytest.raises(click.BadParameter, match=f"^{re.escape(repr(value))}: "):
            seconds_of(value)
    words = [sys.executable, "-m", "pycriu_native", "run", "--dir", str(tmp_path / "job")]
    done = subprocess.run(
        [*words, "--every", "0s", "--", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "every=0.0: a number of seconds of 0.1 to 1e+09 is accepted" in done.stderr
    assert not (tmp_path / "job").exists()


IGNORES = "import os,signal,sys,time\nfor n in (1,2,10,12,15): signal.signal(n, signal.SIG_IGN)\n"
IGNORES += "print('begun', flush=True)\nwhile not os.path.exists(sys.argv[1] + '/finish'):\n"
IGNORES += "    time.sleep(0.02)\nprint(sys.stdin.read(), os.getppid(), flush=True)\n"


def test_a_command_that_ignores_signals(job: RunningJob) -> None:
    """A last checkpoint ends it, and it is resumed; its standard input is empty."""
    job.words = [sys.executable, "-c", IGNORES, str(job.place)]
    job.start("--every", "1h")
    job.until(job.has_begun, "its start")
    for pid in job.processes():
        os.kill(pid, 15)
    assert job.wait() == INTERRUPTED
    assert job.directory.status().checkpoints == 1
    assert job.finish() == 0
    assert (job.directory.path / "stdout").read_text() == "begun\n 1\n"


def test_a_damaged_record(job: RunningJob, tmp_path: Path) -> None:
    """A checkpoint with an unreadable record is skipped; if all are unreadable, nothing
    is started.
    """
    job.start()
    job.until(lambda: job.has_checkpoints(2), "two checkpoints")
    job.end()
    newest, *others = job.directory.all_checkpoints()
    for text in ("", "[]", '{"number": 1}', '{"time": "x", "options": 5}', "\0" * 100):
        record = Path(newest.path, "pycriu-native.job")
        record.write_text(text)
        assert job.directory.all_checkpoints()[0].number == newest.number
    kept = {each.path: Path(each.path, "pycriu-native.job").read_text() for each in others}
    for place in kept:
        Path(place, "pycriu-native.job").write_text("{}")
    job.start()
    assert job.wait() == CANNOT_RESTORE
    for place, text in kept.items():
        Path(place, "pycriu-native.job").write_text(text)
    assert job.finish() == 0
    assert job.directory.status().resumed == 1
    check_exact(job, tmp_path / "reference")
