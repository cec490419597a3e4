"""One image set restored twice: the same state in both, and a hook that makes it differ.

Two processes from one set have the same keys, tokens and future random numbers. If a program
handles a signal as the message that it is a copy, a hook can send the signal at ``post-restore``,
whose notification has the pid, before the process runs.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pycriu_native import CriuOpts, Notification, Notify, restore

from .conftest import Spawn
from .support.processes import Target, kill

SCENARIO = """
    import random, signal
    generator = random.Random()

    def copied(number, frame):
        generator.seed()

    signal.signal(signal.SIGUSR1, copied)
    serve(token=lambda: generator.random())
"""


def reseed(notification: Notification) -> None:
    """The hook for the documentation: send the process a signal, by which it detects that it is a
    copy.
    """
    if notification.action is Notify.POST_RESTORE and notification.pid is not None:
        os.kill(notification.pid, signal.SIGUSR1)


def _next_token(target: Target, opts: CriuOpts, tell: bool) -> float:
    """The next output of the process after a restore."""
    restore(opts, on_notify=reseed if tell else None)
    try:
        return float(target.ask("token"))
    finally:
        kill(target.pid)


def test_the_same_and_not_the_same(spawn: Spawn, orphans: None, images: Path) -> None:
    """Without the hook both copies have the same next token; with it each has a different one."""
    target = spawn(SCENARIO)
    opts = CriuOpts(images_directory=images)
    target.dump(opts)
    first, second = (_next_token(target, opts, tell=False) for _ in range(2))
    assert first == second
    message = {_next_token(target, opts, tell=True) for _ in range(2)}
    assert len(message - {first}) == 2
