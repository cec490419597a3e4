"""Incremental checkpoints of jobs: exact, complete without earlier ones, and smaller."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from pycriu_native import UnsupportedError
from pycriu_native.jobs import CANNOT_RESTORE, INTERRUPTED, Job
from pycriu_native.jobs.directory import Checkpoint

from .support.features import FEATURES, needs_soft_dirty
from .support.jobs import RunningJob, check_exact, command_line, nothing_runs
from .support.processes import eventually

KILLS = 3
MOVER = Path(__file__).parent / "programs" / "mover.py"
CHANGING = MOVER.with_name("changing_memory.py")


def _checkpoint(job: RunningJob) -> Checkpoint:
    """Take a checkpoint now."""
    done = command_line("job", "checkpoint", job.path, "--json")
    number = json.loads(done.stdout)["result"]["number"]
    return next(each for each in job.directory.all_checkpoints() if each.number == number)


@needs_soft_dirty
def test_a_chain(job: RunningJob, tmp_path: Path) -> None:
    """At most N in a row are incremental; they are smaller, and do not need earlier checkpoints,
    which are removed. The first one after a resumption is full.
    """
    options = ("--every", "1h", "--keep", "1", "--incremental", "2")
    process = job.start(*options)
    job.until(job.has_begun, "its first step")
    made = [_checkpoint(job) for _ in range(5)]
    assert [each.parents for each in made] == [0, 1, 2, 0, 1]
    full, *incremental = made[:3]
    assert all(each.bytes < full.bytes / 2 for each in incremental)
    assert [each.number for each in job.directory.all_checkpoints()] == [made[-1].number]
    assert not job.messages_of("not incremental")
    status = job.directory.status()
    assert (status.incremental, status.last_parents, status.failures) == (3, 1, 0)
    assert "incremental" in command_line("job", "list", job.path).stdout
    process.send_signal(signal.SIGTERM)
    assert job.wait() == INTERRUPTED
    last = job.directory.all_checkpoints()[0]
    assert last.parents == 2
    assert command_line("check-images", last.path).returncode == 0
    job.start(*options)
    job.until(lambda: job.directory.status().resumed == 1, "its resumption")
    assert [_checkpoint(job).parents for _ in range(2)] == [0, 1]
    assert job.finish() == 0
    check_exact(job, tmp_path / "reference")


@needs_soft_dirty
def test_killed_at_random_instants(job: RunningJob, tmp_path: Path) -> None:
    """Any process is killed at any time: the job is resumed from checkpoints of both kinds, and the
    output is exact.
    """
    job.options = ("--every", "0.4", "--grace", "30", "--incremental", "3", "--keep", "2")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    kinds: list[str] = []
    for _ in range(KILLS):
        process = job.start()
        number = job.directory.status().checkpoints + rng.randint(1, 3)
        job.until(functools.partial(job.has_checkpoints, number), "checkpoints")
        if rng.random() < 0.5:
            job.until(job.criu, "CRIU at work")
        kinds.append(job.kill_one(rng))
        if process.poll() is None:
            process.terminate()
        assert job.wait() in (INTERRUPTED, -signal.SIGKILL), (seed, kinds, job.messages())
        eventually(functools.partial(nothing_runs, job), f"the end of the command (seed {seed})")
    assert job.finish() == 0, (seed, kinds, job.messages())
    check_exact(job, tmp_path / "reference")
    assert job.directory.status().incremental > 0, (seed, kinds)


@needs_soft_dirty
def test_a_parent_is_damaged(job: RunningJob) -> None:
    """The memory of a parent is verified too, and all checkpoints that contain it are refused."""
    job.start("--every", "1h", "--incremental", "3")
    job.until(job.has_begun, "its first step")
    made = [_checkpoint(job) for _ in range(3)]
    job.end()
    pages = next(Path(made[0].path).glob("pages-*.img"))
    assert pages.samefile(f"{made[2].path}/parent/parent/{pages.name}")
    with open(pages, "r+b") as file:
        file.seek(pages.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    job.start("--every", "1h")
    assert job.wait() == CANNOT_RESTORE
    assert len(job.messages_of("restore failed")) == 3


@needs_soft_dirty
def test_memory_that_was_moved(job: RunningJob) -> None:
    """The kernel marks no pages that it has moved with their page table: the checkpoint is full."""
    job.words = [sys.executable, str(MOVER), str(job.place)]
    job.start("--every", "1h", "--incremental", "3")
    job.until(lambda: job.directory.status().started, "its start")
    job.until(lambda: (job.place / "job").exists(), "its directory")
    eventually(lambda: _checkpoint(job).parents, "an incremental checkpoint")
    (job.place / "move").touch()
    job.until((job.place / "moved").exists, "the move")
    assert _checkpoint(job).parents == 0
    (message,) = job.messages_of("not incremental")
    assert "was moved" in message
    job.end()
    assert job.finish() == 0, job.messages()
    assert (job.place / "result").read_text() == "1"


@needs_soft_dirty
def test_memory_that_changes_in_all_ways(job: RunningJob) -> None:
    """Memory is mapped, written, moved and unmapped between checkpoints; after each resumption, all
    of it has its contents.
    """
    job.words = [sys.executable, str(CHANGING), str(job.place)]
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for _ in range(KILLS):
        job.start("--every", "0.4", "--incremental", "4")
        before = job.directory.status().checkpoints
        job.until(functools.partial(job.has_checkpoints, before + rng.randint(2, 4)), "some")
        job.end()
    assert job.finish() == 0, (seed, job.messages(), (job.directory.path / "stderr").read_text())
    assert job.directory.status().incremental > 0, seed


@pytest.mark.skipif(FEATURES.mem_track, reason="this kernel tracks changed memory")
def test_a_kernel_without_tracking(tmp_path: Path) -> None:
    """An explicit number is refused before the directory is made; by default all are full."""
    done = command_line("run", "--dir", str(tmp_path / "job"), "--incremental", "3", "--", "true")
    assert done.returncode == 3
    assert "incremental=3: this kernel or CRIU lacks tracking of changed memory" in done.stderr
    assert not (tmp_path / "job").exists()
    assert Job(tmp_path / "job", ["true"], incremental=0).run().exit_code == 0


def test_a_user_namespace(tmp_path: Path) -> None:
    """In it the frames of pages are not visible."""
    job = Job(tmp_path / "job", ["true"], incremental=3, unprivileged=True)
    with pytest.raises(UnsupportedError, match="outside of user namespaces"):
        job.run()
