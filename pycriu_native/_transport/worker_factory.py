"""Where warm workers come from: started by one thread, all alike, and known to be.

A program that can be made a seed (``forkserver.py``) is loaded once; the others are started each on
its own.
"""

from __future__ import annotations

import errno

from .._support.closing import Owned
from .forkserver import NO_INPUT, BarrenError, Seed
from .inherited_state import surroundings
from .program import find_program, on_disk
from .spawn import Manner
from .worker import Worker, WorkerLine, connect_worker, start_worker

Likeness = tuple[object, ...]
"""What a worker is like: its program, and what it has taken over from the thread that starts it."""


def likeness(worker: Worker) -> Likeness | None:
    """What a worker that is started now, by this thread, would be like; None: nobody knows."""
    found = surroundings(worker.env)
    if found is None:
        return None
    # Who else could change the program, each call has looked at, and so has who starts one.
    return on_disk(find_program(worker.program, allow_untrusted=True)), found


def sow(worker: Worker, manner: Manner, like: Likeness) -> Seed | None:
    """A seed whose workers are like that; None: what they would be like has changed meanwhile.

    Raises ``BarrenError``, and what starting a worker raises.
    """
    seed = Seed(worker.name(), worker.env, manner)
    if likeness(worker) == like:
        return seed
    seed.close()
    return None


class Nursery(Owned):
    """Starts workers, on one thread. Owned."""

    def __init__(self, worker: Worker, manner: Manner) -> None:
        self._worker = worker
        self._manner = manner
        self._seed: Seed | None = None
        self._barren = False
        self._known: Likeness | None = None
        """What the seed is like, or the last worker that was started without one."""

    def start(self) -> tuple[WorkerLine, Likeness] | None:
        """One more worker, and what it is like; None: that has just changed, ask again.

        Raises what starting a worker raises, and ``OSError`` where nobody knows what it is like.
        """
        program = self._worker.name()
        if self._seed is None and not self._barren:
            self._known = self._likeness()
            try:
                self._seed = sow(self._worker, self._manner, self._known)
            except BarrenError:
                self._barren = True
        if self._seed is not None and self._known is not None:
            try:
                return connect_worker(program, self._seed.grow), self._known
            except BarrenError:
                self._seed = self._known = None  # it was killed, perhaps: this once without it
        before = self._known or self._likeness()
        line = start_worker(program, self._worker.env, NO_INPUT, manner=self._manner)
        # If it is as before now, it was so meanwhile.
        self._known = likeness(self._worker)
        if self._known == before:
            return line, before
        line.reap()
        return None

    def _likeness(self) -> Likeness:
        found = likeness(self._worker)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "what workers take over cannot be told", "/proc")
        return found

    def close(self) -> None:
        """End the seed; the workers stay."""
        if self._seed is not None:
            self._seed.close()
