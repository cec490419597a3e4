"""Request and outcome of one call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .._support.cached_property import cached_property
from .._support.frozen_dataclass import dataclass, replace
from .._support.light_typing import TYPE_CHECKING, cast
from .._system.descriptors import link
from .._system.process_tree import is_above
from .._transport.spawn import DEFAULT_SPAWN_OPTIONS, RESTORING, SAVING, SpawnOptions
from ..enums import Verb
from ..options.criu_opts import CriuOpts
from ..options.values import InheritFd, WireValue, descriptor_number

if TYPE_CHECKING:
    from .._rollback.option import Rollback
    from .._transport.base import Via
    from .._transport.connection import Connection
    from ..results import DumpStatistics, RestoreStatistics
    from .notification import Hook

REAP_TIMEOUT = 0.5
"""Default of ``dump``: a parent that waits for its children reaps them within milliseconds."""


class Remaining(float):
    """Seconds that remain of a deadline for one call of several."""

    whole: float
    """The deadline as the caller gave it, for messages."""


def remaining(until: float | None, whole: float | None) -> Remaining | None:
    """The seconds until a time (time.monotonic()), at least 0; None without a deadline."""
    if until is None or whole is None:
        return None
    result = Remaining(max(0.0, until - time.monotonic()))
    result.whole = whole
    return result


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a verb."""

    verb: Verb
    opts: CriuOpts
    pid: int | None = None
    via: Via
    on_notify: Hook | None = None
    deadline: float | None = None
    """Seconds for the whole call."""
    sibling: bool = False
    """Restore the root process as a child of the caller."""
    start_time: int | None = None
    """Start of the process ``pid`` when the call began, in clock ticks since boot; None: there was
    no such process, or it is the caller itself."""
    include_caller: bool | None = None
    """Dump a tree although the caller is in it; None: that is not an argument of the call."""
    reap_timeout: float = REAP_TIMEOUT
    """Seconds that a dump waits for parents to reap the processes that were dumped."""
    rollback: Rollback | None = None
    """Save the files that the tree writes, or put them back."""
    keep_connection: bool = False
    """Leave the connection open for the next request."""
    abort: Callable[[], object] | None = None
    """Called when the call is cancelled: it stops the program that receives CRIU's images."""

    @cached_property
    def inside(self) -> bool:
        """Whether the caller is in the tree to be dumped: CRIU must not be."""
        if self.verb not in (Verb.DUMP, Verb.PRE_DUMP):
            return False
        return self.pid is None or is_above(self.pid, os.getpid())

    @property
    def deadline_passed(self) -> str:
        """The text for a deadline that passed."""
        given = self.deadline.whole if isinstance(self.deadline, Remaining) else self.deadline
        return f"the deadline of {float(given or 0):g} s passed"  # it can be a Fraction

    def with_pids_here(self, images: str) -> str:
        """The images whose pids are of this pid namespace; empty for another one (``inherit_fds``).

        Other pids do not refer to processes of this namespace.
        """
        return "" if self.pid_namespace else images

    @property
    def pid_namespace(self) -> str:
        """The pid namespace of restored processes, as its link in /proc; empty: the caller's."""
        given = [cast(InheritFd, each).fd for each in self.opts.inherit_fds or ()]
        links = [link(f"/proc/self/fd/{descriptor_number(fd)}") for fd in given]
        return next((each for each in links if each.startswith("pid:[")), "")

    @property
    def spawn_options(self) -> SpawnOptions:
        """How its worker is started."""
        if self.verb is Verb.RESTORE:
            # A program that CRIU executes in its place inherits the signals that CRIU ignores.
            return RESTORING if self.opts.exec_cmd is None else DEFAULT_SPAWN_OPTIONS
        if self.inside:
            return replace(SAVING, detached=True)
        if self.opts.lazy_pages or self.verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD):
            return replace(SAVING, block_signals=False)  # SIGTERM ends a page server
        return SAVING


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of a call."""

    result: int
    """The return value of libcriu's verb."""
    answer: dict[str, WireValue]
    """CRIU's final response."""
    duration: float
    """Seconds until CRIU had ended."""
    images: str
    """Path of the images directory, or an empty string."""
    log: str | None
    """Path of the log that this call has written."""
    statistics: DumpStatistics | RestoreStatistics | None
    """CRIU's statistics."""
    connection: Connection
    """The connection to CRIU: still open with ``keep_connection``, else closed."""
    tree: list[int]
    """The processes that were dumped."""
    interrupted_by: BaseException | None
    """The exception that cancelled the call too late."""
    pid_free: bool = False
    """Whether the processes that were dumped have left their pids."""
    reap_wait: float = 0.0
    """Seconds of waiting after that for their parents to reap them."""


def log_path(opts: CriuOpts) -> str | None:
    """The log file, if it is a path and not the name of a file in the work directory."""
    return opts.log_file if opts.log_file is not None and "/" in opts.log_file else None


def log_name(opts: CriuOpts, verb: Verb) -> str:
    """The log's name in the work directory."""
    return opts.log_file or f"{verb}.log"


_STATISTICS = {
    Verb.DUMP: ("stats-dump",),
    Verb.PRE_DUMP: ("stats-dump",),
    Verb.RESTORE: ("stats-restore",),
}


def output_names(opts: CriuOpts, verb: Verb) -> tuple[str, ...]:
    """The files that CRIU writes to in the work directory."""
    log = () if log_path(opts) else (log_name(opts, verb),)
    return (*log, *_STATISTICS.get(verb, ("stats-dump", "stats-restore")))
