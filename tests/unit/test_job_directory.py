"""The directory of a job: whether its last supervisor has ended, its path, and its events."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycriu_native import ImagesError, OptionError
from pycriu_native._system.host import boot_id
from pycriu_native._system.process import stat_of
from pycriu_native.jobs import Job, JobStatus, State
from pycriu_native.jobs.directory import META, JobDirectory, StorageStatus

EXIT = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
"""exit(2), which ends one thread."""

ENDED_FIRST = f"""
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({EXIT}, 0)
"""


@pytest.mark.skipif(EXIT is None, reason="the number of exit(2) is not known here")
def test_a_supervisor_whose_first_thread_has_ended(tmp_path: Path) -> None:
    """The job is busy until the last thread has ended, with which its pid namespace ends."""
    directory = JobDirectory(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ENDED_FIRST], stdin=subprocess.PIPE)
    assert process.stdin is not None
    started = stat_of(process.pid)
    assert started is not None
    status = JobStatus(
        state=State.RUNNING,
        supervisor=process.pid,
        supervisor_start=started.start,
        boot_id=boot_id(),
    )
    directory.keep(status)
    try:
        while not (seen := stat_of(process.pid)) or not seen.has_ended:
            time.sleep(0.01)
        assert directory.is_busy()
        assert directory.lock() is None
    finally:
        process.stdin.close()
    lock = directory.lock(5)  # it is a zombie now
    assert lock is not None
    os.close(lock)
    process.wait()


def test_a_renamed_directory(tmp_path: Path) -> None:
    """It is refused: the resumed command would write its output to the former path."""
    former, new = JobDirectory(tmp_path / "former"), JobDirectory(tmp_path / "new")
    former.make()
    former.take_command(["true"], "/")
    former.path.rename(new.path)
    new.take_command(["true"], "/")  # it was never started
    new.start.mkdir()
    new.path.rename(former.path)
    with pytest.raises(OptionError, match=f"it was renamed: .* to {new.path}; rename it back"):
        former.check_command(["true"])
    former.keep(JobStatus(state=State.ENDED, exit_code=0))
    former.check_command(["true"])
    former.path.rename(new.path)
    former.path.symlink_to(new.path)
    former.keep(JobStatus())
    former.check_command(["true"])


def test_a_storage_that_was_left_out(tmp_path: Path) -> None:
    """A run without the lease that former runs had is refused: another host may run the job."""
    job = Job(tmp_path / "job", ["true"])
    directory = JobDirectory(job.directory)
    directory.make()
    directory.take_command(["true"], "/")
    directory.keep_storage(StorageStatus(url="s3://bucket/job", seen=2))
    with pytest.raises(OptionError, match=r"storage.*s3://bucket/job.*another host"):
        job.run()
    assert not directory.start.exists()
    directory.keep(JobStatus(state=State.ENDED, exit_code=7))
    assert job.run().exit_code == 7


def test_events_on_a_full_disk(tmp_path: Path) -> None:
    """A line that cannot be written completely is removed, and so is that of a killed process."""
    directory = JobDirectory(tmp_path)
    directory.event("first", message="x" * 5000)
    path = tmp_path / "events.jsonl"
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left on device"):
            directory.event("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.stat().st_size == size
    with open(path, "a") as file:
        file.write('{"time": "' + "x" * 9000)
    directory.event("third")
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["first", "third"]
    path.write_text("incomplete")
    directory.event("only")
    assert [each["event"] for each in directory.events()] == ["only"]
    assert path.read_text().startswith("{")


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """The label of the metrics is UTF-8, with the characters of the format escaped."""
    directory = JobDirectory(tmp_path / os.fsdecode(b'\xff"\\\n'))
    directory.make()
    directory.keep(JobStatus())
    label = str(tmp_path) + '/\ufffd\\"\\\\\\n'
    text = (directory.path / "metrics.prom").read_bytes().decode()
    assert f'pycriu_native_job_running{{directory="{label}"}} 0\n' in text


def test_a_status_that_cannot_be_read(tmp_path: Path) -> None:
    """The lock is free after the error: this process can run the job when it is repaired."""
    directory = JobDirectory(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ImagesError, match=r"status\.json cannot be read"):
        directory.lock()
    (tmp_path / "status.json").unlink()
    lock = directory.lock()
    assert lock is not None
    os.close(lock)


@pytest.mark.parametrize("content", [b"[" * 10**6, b'"\xff"', b"[]", b"", None])
def test_damaged_files(tmp_path: Path, content: bytes | None) -> None:
    """Files with other content, and named pipes in their places, are reported; none blocks."""
    directory = JobDirectory(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "1"
    checkpoint.mkdir(parents=True)
    names = ("job.json", "status.json", "storage.json")
    for path in (*(tmp_path / name for name in names), checkpoint / META):
        os.mkfifo(path) if content is None else path.write_bytes(content)
    error = OSError if content is None else ImagesError
    for read in (directory.command, directory.status, directory.storage_status):
        with pytest.raises(error, match=r"job\.json|status\.json|storage\.json"):
            read()
    (broken,) = directory.all_checkpoints()
    assert broken.options is None


RECORDS: dict[str, dict[str, object]] = {
    "job.json": {"command": ["true"], "directory": "/", "path": "/bin"},
    "status.json": {"state": "new", "supervisor": 5, "last_duration": 0.5, "message": "x"},
    "storage.json": {"url": "file:///x", "token": 1, "seen": 2, "exclusive": True},
}


@pytest.mark.parametrize("name", RECORDS)
def test_values_of_other_types(tmp_path: Path, name: str) -> None:
    """They are an error of the directory, which names the file; no file is changed."""
    directory = JobDirectory(tmp_path)
    good = RECORDS[name]
    (tmp_path / name).write_text(json.dumps(good))
    directory.command()
    directory.status()
    refused = set()
    for key in good:
        for value in (None, True, 0.5, "a", [5], [None], {"x": 5}, 10**30, math.inf, math.nan):
            text = json.dumps({**good, key: value})
            (tmp_path / name).write_text(text)
            try:
                assert isinstance(directory.command(), dict | None)
                assert isinstance(directory.status(), JobStatus)
            except ImagesError as error:
                refused.add(key)
                name_of_file = f"{tmp_path}/{name}" in str(error)
            else:
                name_of_file = True
            assert name_of_file
            assert (tmp_path / name).read_text() == text
    assert refused == good.keys()


@pytest.mark.parametrize("number", [10**30, -(10**30), math.inf, math.nan])
def test_numbers_that_the_system_does_not_have(tmp_path: Path, number: float) -> None:
    """A pid, a time or a size of more than 64 bits is refused as another type is."""
    directory = JobDirectory(tmp_path)
    for name, key in (
        ("status.json", "supervisor"),
        ("status.json", "last_duration"),
        ("storage.json", "token"),
    ):
        (tmp_path / name).write_text(json.dumps({**RECORDS[name], key: number}))
        with pytest.raises(ImagesError, match=rf"{name} cannot be read.*{key} is"):
            directory.status()
        (tmp_path / name).unlink()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_record_that_is_no_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """It is an error of the directory, without a wait."""
    make(tmp_path / "job.json")
    with pytest.raises(ImagesError, match=r"job\.json cannot be read"):
        JobDirectory(tmp_path).command()


def test_events_that_are_no_objects(tmp_path: Path) -> None:
    """Lines of another form are left out."""
    directory = JobDirectory(tmp_path)
    (tmp_path / "events.jsonl").write_text('5\n["x"]\nx\n' + "[" * 100_000 + "\n")
    directory.event("one")
    assert [each["event"] for each in directory.events()] == ["one"]
