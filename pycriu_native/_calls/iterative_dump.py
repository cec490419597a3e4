"""Dump in rounds: pre-dumps while the process runs, then a short final dump.

Each round writes the memory that has changed since the previous round to a new directory, whose
parent is the directory of the previous round. The final dump freezes the process and writes the
rest. (libcriu's loop passes nothing to its callback and can free a response twice; this one
consists of single calls.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from .._checks.arguments import check_types
from .._support.frozen_dataclass import dataclass, replace
from .._support.unpatched import close
from .._system.process_identity import Target, identified, number_of
from .._system.process_tree import process_tree
from .._transport.base import Via
from ..enums import Verb
from ..errors import MovedMemoryError, OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..results import PAGE, DumpResult
from . import logs, verbs
from .notification import Hook
from .prepare import open_directory
from .progress_state import OnProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One completed pre-dump."""

    number: int
    """1 for the first."""
    result: DumpResult
    """Its images, duration and CRIU's statistics."""

    @property
    def pages_written(self) -> int:
        """Pages in this round's images, shared memory included."""
        statistics = self.result.statistics
        return 0 if statistics is None else statistics.pages_written + statistics.shpages_written

    @property
    def bytes_written(self) -> int:
        """The same in bytes."""
        return self.pages_written * PAGE


More = Callable[[Round], bool]
"""Called after each round; True: another round, False: the final dump."""


class ShrinkingRounds:
    """The default policy: continue while rounds shrink.

    There is another round if the last one wrote less than ``shrink`` times the bytes of the
    previous one, and more than ``enough`` bytes, and if there were fewer than ``most`` rounds. Each
    dump needs a new object.
    """

    def __init__(self, *, most: int = 8, shrink: float = 0.8, enough: int = 2**20) -> None:
        self._most = most
        self._shrink = shrink
        self._enough = enough
        self._before: int | None = None

    def __call__(self, round: Round) -> bool:
        before, self._before = self._before, round.bytes_written
        if round.number >= self._most or round.bytes_written <= self._enough:
            return False
        return before is None or round.bytes_written < before * self._shrink


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpItersResult:
    """The result of a complete dump in rounds."""

    rounds: tuple[Round, ...]
    """The pre-dumps, in order."""
    final: DumpResult
    """The final dump. Restore from ``final.images``, which needs the directories of the rounds."""
    not_incremental: str = ""
    """Why the final dump saved all memory, and does not need the rounds: memory was moved (see
    :class:`~pycriu_native.MovedMemoryError`). Empty if it saved the changes only."""


def saves_all(moved: MovedMemoryError) -> str:
    """Log that the final dump saves all memory, and return the reason."""
    reason = moved.cause or str(moved)
    logs.warn("the final dump saves all memory: %s", reason)
    return reason


def round_opts(opts: CriuOpts, base: str, number: int, *, track: bool = True) -> CriuOpts:
    """The options of round ``number``, from 1, in a directory of that name, with its parent."""
    return replace(
        opts,
        images_directory=os.path.join(base, str(number)),
        parent_image=f"../{number - 1}" if number > 1 else None,
        track_mem=True if track else None,
    )


def dump_iters(
    pid: Target,
    opts: CriuOpts,
    should_continue: More | None = None,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
    on_progress: OnProgress | None = None,
) -> DumpItersResult:
    """Pre-dump a process until ``should_continue`` returns False, then dump it.

    ``opts.images_directory`` is a path. The rounds are written to ``1``, ``2``, … in it, each with
    the previous one as its parent, and the final dump to the next number. The default of
    ``should_continue`` is :class:`ShrinkingRounds`. ``deadline`` bounds each round.
    ``on_progress`` gets each round as a phase, ``round 1`` and so on, and the final one as
    ``dump``; the total is all memory in the first round, and unknown after it. ``opts`` can have
    options of pre-dumps and of the final dump; each is used where it applies. A round that fails
    leaves the process running, and the previous rounds on disk.

    If memory was moved without a mark, so that the rounds cannot be used, the final dump saves all
    memory (``DumpItersResult.not_incremental``).

    A tree that contains the caller is refused: it cannot be pre-dumped. All rounds are of the
    process that had the pid when this was called.

    Raises as :func:`pycriu_native.dump`; ``UnsupportedError`` where the kernel has no
    soft-dirty tracking. Needs CRIU 3.17.
    """
    functions = {"on_notify": on_notify, "on_progress": on_progress}
    check_types(opts, via, "dump_iters", should_continue=should_continue, **functions)
    target = identified(pid)  # of all rounds
    number = number_of(target)
    base = opts.images_directory
    problems = []
    if not isinstance(base, str):
        problems.append(
            Problem("images_directory", base, "a path is accepted: each round gets a directory")
        )
    for field in ("parent_image", "pre_dump"):
        if getattr(opts, field) is not None:
            problems.append(Problem(field, getattr(opts, field), "is set by dump_iters itself"))
    if problems:
        raise OptionError(problems, verb="dump_iters", pid=number)
    assert isinstance(base, str)
    decide = ShrinkingRounds() if should_continue is None else should_continue

    def step(number: int) -> CriuOpts:
        return round_opts(opts, base, number)

    # Problems of the final dump are raised now, not after the rounds.
    final_opts = replace(verbs.after_pre_dumps(opts), track_mem=True)
    verbs.dump_request(target, final_opts, via, on_notify, deadline)
    close(open_directory(base, "images_directory", via, make=True, verb="dump_iters", pid=number))

    rounds: list[Round] = []
    phase = "round 1"
    memory: int | None = None

    def measure() -> tuple[str, int, int | None]:
        here = os.path.join(base, str(len(rounds) + 1))
        return phase, progress.size_of_pages(here, parents=False), None if rounds else memory

    with contextlib.ExitStack() as owned:
        if on_progress is not None:
            from . import progress  # few calls are watched

            memory = progress.memory_of(process_tree(number))
            owned.enter_context(progress.reporting(on_progress, measure))

        def save(**changes: None) -> DumpResult:
            nonlocal phase
            phase = str(Verb.DUMP)
            last = replace(verbs.after_pre_dumps(step(len(rounds) + 1)), **changes)
            return verbs.dump(target, last, via=via, on_notify=on_notify, deadline=deadline)

        refusal = ""
        try:
            while not rounds or decide(rounds[-1]):
                count = len(rounds) + 1
                phase = f"round {count}"
                result = verbs.pre_dump(
                    target, step(count), via=via, on_notify=on_notify, deadline=deadline
                )
                rounds.append(Round(number=count, result=result))
            final = save()
        except MovedMemoryError as moved:
            refusal = saves_all(moved)
            final = save(parent_image=None)
    return DumpItersResult(rounds=tuple(rounds), final=final, not_incremental=refusal)
