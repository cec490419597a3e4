"""Workers for the calls of a batch, grown from seeds that last as long as it does.

They are like those that could be started when the first of its calls began.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from ._line import Line
from ._owned import Owned
from ._program import find_program
from ._reach import Via
from ._seed import BarrenError, Seed
from ._spawn import Manner
from ._worker import Worker, connect_worker, worker_of


class SeedBed(Owned):
    """A seed for each kind of worker that was asked for. Owned. Any thread may ask."""

    def __init__(self) -> None:
        self._sowing = threading.Lock()
        self._seeds: dict[object, Seed | None] = {}

    def connect(self, via: Via, keep: Sequence[int], manner: Manner) -> Line:
        """What ``via.connect`` gives; from a seed where that makes no difference."""
        worker = None if keep or manner.outside else worker_of(via)
        if worker is not None:
            # Who else could change it, each call has looked at by now.
            program = find_program(worker.program, trusting=True)
            seed = self._seed(program, worker, manner)
            if seed is not None:
                with contextlib.suppress(BarrenError):
                    return connect_worker(program, seed.grow)
        return via.connect(keep, manner)

    def _seed(self, program: str, worker: Worker, manner: Manner) -> Seed | None:
        kind = (program, tuple(worker.env.items()), manner)
        with self._sowing:
            if kind not in self._seeds:
                try:
                    self._seeds[kind] = Seed(program, worker.env, manner)
                except BarrenError:
                    self._seeds[kind] = None
            return self._seeds[kind]

    def close(self) -> None:
        """End the seeds; the workers stay."""
        for seed in self._seeds.values():
            if seed is not None:
                seed.close()
