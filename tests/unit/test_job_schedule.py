"""When the checkpoints of a job are due."""

from __future__ import annotations

import pytest

from pycriu_native.jobs import Job
from pycriu_native.jobs.schedule import Schedule


def test_pauses_grow_to_the_interval() -> None:
    """They double, and are not short compared with the duration of a checkpoint."""
    schedule, pauses = Schedule(60, 1), []
    for took in (0.01, 0.01, 1, 0.01, 0.01, 0.01):
        pauses.append(schedule.next_pause(took))
        schedule.attempted(took)
    assert pauses == [2, 4, 10, 20, 40, 60]
    assert 0 < schedule.left <= 60


def test_the_first_pause() -> None:
    """It is at most the interval, and that itself after a resumption."""
    assert Schedule(0.5, 1).left <= 0.5
    assert Schedule(600, 0).left <= 0
    assert Schedule(600).left > 500
    assert Schedule(600).next_pause(100) == 600
    assert Job("job", ["true"]).first == 1
    with pytest.raises(ValueError, match="first=-1: a number of seconds of 0 to"):
        Job("job", ["true"], first=-1)
