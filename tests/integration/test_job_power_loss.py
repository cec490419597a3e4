"""Jobs on a file system that loses power: what was not synced is gone, and the job is resumed.

ext4 has an ioctl that stops all writing at once and drops what is in memory (EXT4_IOC_SHUTDOWN,
with which xfstests tests file systems). The file system is then mounted again, with its journal.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .support.jobs import RunningJob, check_exact, nothing_runs
from .support.mounts import loop_device, unmounted, why_no_loop_device
from .support.processes import eventually

LOSSES = int(os.environ.get("PYCRIU_NATIVE_JOB_POWER_LOSSES", "3"))
"""Random power failures; ``make test-jobs`` uses 100."""

SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2
"""EXT4_IOC_SHUTDOWN, and EXT4_GOING_FLAGS_NOLOGFLUSH: nothing more is written."""


class Disk:
    """A file system on a loop device."""

    def __init__(self, directory: Path, owned: ExitStack) -> None:
        image, self.path = directory / "image", directory / "disk"
        self.path.mkdir()
        with open(image, "wb") as file:
            file.truncate(512 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        self._device = loop_device(image, owned)
        self._mount()
        owned.callback(unmounted, self.path)

    def lose_power(self) -> None:
        """Stop all writing, without writing what is in memory."""
        place = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(place, SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        finally:
            os.close(place)

    def start_again(self) -> bool:
        """Mount it as after the power failure; False while a process uses it.

        The kernel may still be freeing the job's mount namespace, which has a mount of its own: the
        new mount is then one of the file system that was shut down, which cannot be written.
        """
        if not unmounted(self.path):
            return False
        self._mount()
        try:
            (self.path / "used").touch()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def _mount(self) -> None:
        subprocess.run(["mount", "-t", "ext4", self._device, self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system that can lose power."""
    if why := why_no_loop_device("mkfs.ext4"):
        pytest.skip(why)
    with ExitStack() as owned:
        yield Disk(tmp_path, owned)


def test_power_is_lost_at_random_instants(disk: Disk, tmp_path: Path) -> None:
    """The job is resumed from a checkpoint that was written wholly, or started again; the output is
    that of an uninterrupted run.
    """
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    job = RunningJob(disk.path / "place")
    os.sync()  # the directory of the command is older than the job
    try:
        for _ in range(LOSSES):
            process = job.start()
            if rng.random() < 0.7:
                number = job.directory.status().checkpoints + 1
                job.until(functools.partial(job.has_checkpoints, number), "a checkpoint")
            if rng.random() < 0.4:
                job.until(job.criu, "CRIU at work")
            try:
                code = process.wait(rng.uniform(0, 1.5))
                pytest.fail(f"the job ended with {code} (seed {seed}): {job.messages()}")
            except subprocess.TimeoutExpired:
                disk.lose_power()
            process.kill()
            process.wait()
            eventually(functools.partial(nothing_runs, job), f"the end of the command ({seed})")
            eventually(disk.start_again, f"the end of all users of the disk ({seed})")
        assert job.finish() == 0, (seed, job.messages())
        steps = check_exact(job, tmp_path / "reference")
        resumed = job.directory.status().resumed
        print(f"{LOSSES} power failures, resumed {resumed} times, {steps} steps")
    finally:
        job.end()
