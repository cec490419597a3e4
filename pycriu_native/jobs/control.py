"""Requests to the supervisor of a running job, by signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from .._support.held_signals import CHECKPOINTING
from .._support.unpatched import sleep
from .._system.host import boot_id
from .._system.process import stat_of
from ..errors import CriuError, DeadlineError, NoSuchProcessError
from .directory import Checkpoint, JobDirectory, JobStatus, State

PAUSE = 0.05


def request_checkpoint(directory: JobDirectory, timeout: float) -> Checkpoint:
    """Request a checkpoint, wait for it, and return it: not one that had begun before.

    Raises ``NoSuchProcessError`` if the job does not run here, ``CriuError`` if the checkpoint
    failed, ``DeadlineError``.
    """
    moment = time.time()
    before = _signalled(directory, CHECKPOINTING)
    earlier = 0 if before.progress is None else 1
    for status in _until(directory, timeout, "checkpoint"):
        taken = status.checkpoints - before.checkpoints
        failed = status.failures - before.failures
        if taken and (newest := directory.all_checkpoints()[0]).time >= moment:
            return newest
        if failed and taken + failed > earlier:
            raise CriuError(f"checkpoint failed: {status.message}", verb="job checkpoint")
        if status.state is not State.RUNNING:
            why = f"no checkpoint: the job is {status.state} ({status.message})"
            raise CriuError(why, verb="job checkpoint")
    raise AssertionError


def request_stop(directory: JobDirectory, timeout: float) -> JobStatus:
    """End the job after a last checkpoint; returns its status. Raises as the function above."""
    _signalled(directory, signal.SIGUSR1)
    for status in _until(directory, timeout, "stop"):
        if status.state is not State.RUNNING:
            directory.wait_until_free(timeout)
            return status
    raise AssertionError


def _signalled(directory: JobDirectory, number: int) -> JobStatus:
    """Send a signal to the supervisor, if it runs here; returns the status before that."""
    status = directory.status()
    if status.state is not State.RUNNING or status.supervisor is None:
        raise NoSuchProcessError(f"the job in {directory.path} does not run: it is {status.state}")
    seen = stat_of(status.supervisor)
    if status.boot_id != boot_id() or seen is None or seen.start != status.supervisor_start:
        raise NoSuchProcessError(
            f"the job in {directory.path} runs on another host or in another pid namespace "
            f"({status.host}, pid {status.supervisor} there)"
        )
    try:
        os.kill(status.supervisor, number)
    except PermissionError:
        owner = os.stat(f"/proc/{status.supervisor}").st_uid
        raise CriuError(
            f"the job in {directory.path} belongs to user {owner}; root and that user can do this",
            verb="job",
        ) from None
    return status


def _until(directory: JobDirectory, timeout: float, what: str) -> Iterator[JobStatus]:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        yield directory.status()
        sleep(PAUSE)
    raise DeadlineError(f"no {what} within {timeout:g} s", verb=f"job {what}")
