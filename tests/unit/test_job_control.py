"""Requests to the supervisor of a running job."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pycriu_native import CriuError
from pycriu_native._system.host import boot_id
from pycriu_native._system.process import stat_of
from pycriu_native.jobs import JobStatus, State, control
from pycriu_native.jobs.control import request_checkpoint
from pycriu_native.jobs.directory import META, CheckpointProgress, JobDirectory


@dataclass
class FakeSupervisor:
    """The files of a supervisor, whose process ignores requests."""

    directory: JobDirectory
    pid: int
    status: JobStatus = field(init=False)

    def __post_init__(self) -> None:
        seen = stat_of(self.pid)
        assert seen is not None
        self.status = JobStatus(
            state=State.RUNNING,
            supervisor=self.pid,
            supervisor_start=seen.start,
            boot_id=boot_id(),
        )
        self.directory.keep(self.status)

    def begin(self) -> None:
        """A checkpoint has begun."""
        self.directory.keep_progress(CheckpointProgress(started=time.time(), phase="dump"))

    def take(self, number: int, moment: float) -> None:
        """A checkpoint that began at this time is complete."""
        place = self.directory.checkpoints / str(number)
        place.mkdir(parents=True)
        body = {"time": moment, "duration": 1.0, "frozen": 0.1, "bytes": 1}
        (place / META).write_text(json.dumps({**body, "number": number, "path": ""}))
        self.directory.keep_progress(None)
        self.status = replace(self.status, checkpoints=self.status.checkpoints + 1)
        self.directory.keep(self.status)

    def fail(self, why: str) -> None:
        """A checkpoint has failed."""
        self.directory.keep_progress(None)
        self.status = replace(self.status, failures=self.status.failures + 1, message=why)
        self.directory.keep(self.status)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[FakeSupervisor]:
    ready = "trap '' USR2; echo ready; exec sleep 1000"
    process = subprocess.Popen(["sh", "-c", ready], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield FakeSupervisor(JobDirectory(tmp_path), process.pid)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Each pause of a request takes the next of these steps."""

    def take(*steps: Callable[[], None]) -> None:
        remaining = iter(steps)
        monkeypatch.setattr(control, "sleep", lambda _: next(remaining)())

    return take


def test_a_checkpoint_that_had_begun_before(
    supervisor: FakeSupervisor, meanwhile: Callable[..., None]
) -> None:
    """The request waits for the next one, which has what the command did until the request."""
    supervisor.begin()
    moment = time.time()
    meanwhile(
        lambda: supervisor.take(1, moment),
        supervisor.begin,
        lambda: supervisor.take(2, time.time()),
    )
    assert request_checkpoint(supervisor.directory, 60).number == 2


def test_one_that_had_begun_before_fails(
    supervisor: FakeSupervisor, meanwhile: Callable[..., None]
) -> None:
    """Only the failure of the requested checkpoint is one of the request."""
    supervisor.begin()
    meanwhile(lambda: supervisor.fail("an earlier one"), lambda: supervisor.take(1, time.time()))
    assert request_checkpoint(supervisor.directory, 60).number == 1
    meanwhile(lambda: supervisor.fail("this one"))
    with pytest.raises(CriuError, match="checkpoint failed: this one"):
        request_checkpoint(supervisor.directory, 60)
    supervisor.begin()
    moment = time.time()
    meanwhile(lambda: supervisor.take(2, moment), lambda: supervisor.fail("the second"))
    with pytest.raises(CriuError, match="checkpoint failed: the second"):
        request_checkpoint(supervisor.directory, 60)
