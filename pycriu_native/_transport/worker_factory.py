"""Where warm workers come from: started by one thread, all alike, and known to be.

A program that can be made a seed (``forkserver.py``) is loaded once; the others are started each on
its own.
"""

from __future__ import annotations

import errno

from .._support.closing import Closing
from .forkserver import NO_INPUT, ForkServer, ForkServerUnavailableError
from .inherited_state import inherited_state
from .program import find_program, on_disk
from .spawn import SpawnOptions
from .worker import Worker, WorkerConnection, connect_worker, start_worker

WorkerFingerprint = tuple[object, ...]
"""What a worker is like: its program, and what it has taken over from the thread that starts it."""


def fingerprint(worker: Worker) -> WorkerFingerprint | None:
    """What a worker that is started now, by this thread, would be like; None: nobody knows."""
    result = inherited_state(worker.env)
    if result is None:
        return None
    # Who else could change the program, each call has looked at, and so has who starts one.
    return on_disk(find_program(worker.program, allow_untrusted=True)), result


def start_fork_server(
    worker: Worker,
    spawn_options: SpawnOptions,
    like: WorkerFingerprint,
    *,
    patience: float | None = None,
) -> ForkServer | None:
    """A seed whose workers are like that; None: what they would be like has changed meanwhile.

    Raises ``ForkServerUnavailableError``, and what starting a worker raises.
    """
    seed = ForkServer(worker.name(), worker.env, spawn_options, patience=patience)
    if fingerprint(worker) == like:
        return seed
    seed.close()
    return None


class WorkerFactory(Closing):
    """Starts workers, on one thread. Owned."""

    def __init__(self, worker: Worker, spawn_options: SpawnOptions) -> None:
        self._worker = worker
        self._manner = spawn_options
        self._fork_server: ForkServer | None = None
        self._unavailable = False
        self._known: WorkerFingerprint | None = None
        """What the seed is like, or the last worker that was started without one."""

    def start(self) -> tuple[WorkerConnection, WorkerFingerprint] | None:
        """One more worker, and what it is like; None: that has just changed, ask again.

        Raises what starting a worker raises, and ``OSError`` where nobody knows what it is like.
        """
        program = self._worker.name()
        if self._fork_server is None and not self._unavailable:
            self._known = self._fingerprint()
            try:
                self._fork_server = start_fork_server(self._worker, self._manner, self._known)
            except ForkServerUnavailableError:
                self._unavailable = True
        if self._fork_server is not None and self._known is not None:
            try:
                return connect_worker(program, self._fork_server.fork_worker), self._known
            except ForkServerUnavailableError:
                self._fork_server = self._known = (
                    None  # it was killed, perhaps: this once without it
                )
        before = self._known or self._fingerprint()
        line = start_worker(program, self._worker.env, NO_INPUT, spawn_options=self._manner)
        # If it is as before now, it was so meanwhile.
        self._known = fingerprint(self._worker)
        if self._known == before:
            return line, before
        line.wait()
        return None

    def _fingerprint(self) -> WorkerFingerprint:
        result = fingerprint(self._worker)
        if result is None:
            raise FileNotFoundError(errno.ENOENT, "what workers take over cannot be told", "/proc")
        return result

    def close(self) -> None:
        """End the seed; the workers stay."""
        if self._fork_server is not None:
            self._fork_server.close()
