"""Taking and restoring the checkpoints of a job."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .._calls.progress_state import OnProgress, Progress
from .._calls.request import remaining
from .._calls.verbs import dump, feature_check, restore_child
from .._integrity.manifest import linked_entries, seal_with, verify
from .._recovery.half_restored import pids_in
from .._rollback.option import Rollback
from .._support.held_signals import HeldSignals
from .._system.id_maps import NO_ID, unmapped
from .._system.process import all_pids, is_running, name_of
from .._system.process_tree import is_above
from ..diagnostics.preflight import PreflightError, preflight
from ..enums import CgroupMode
from ..errors import CriuError, DeadlineError, ImagesError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from ..results import DumpResult
from . import pending_signals
from .directory import META, Checkpoint, JobDirectory, sync
from .increments import PARENT, Increments, link


def take(
    directory: JobDirectory,
    pid: int,
    options: CriuOpts,
    files: Rollback,
    increments: Increments,
    *,
    signals: HeldSignals,
    token: int,
    last: bool,
    deadline: float | None,
    on_progress: OnProgress,
) -> Checkpoint:
    """Take a checkpoint: dump, seal, sync and rename it. ``last``: the dump ends the command.

    ``increments`` determines whether it is incremental; it is full if that is not possible.
    ``signals`` are those of the supervisor; ``token`` is that of the lease, or 0. ``on_progress``
    is as for ``dump``, and also called when the phases around it begin. Raises ``CriuError`` and
    ``OSError``; the command then continues, unless the dump of a last checkpoint was complete.
    """
    began, now = time.monotonic(), time.time()
    on_progress(_begun("preflight"))
    check_strays(pid)
    directory.checkpoints.mkdir(mode=0o700, exist_ok=True)
    new = directory.new
    opts = replace(with_defaults(options, new), leave_running=None if last else True)
    if increments.tracks:
        opts = replace(opts, track_mem=True)
    known: dict[str, dict[str, Any]] = {}
    shutil.rmtree(directory.linked, ignore_errors=True)
    if (parent := increments.parent()) is not None:
        with contextlib.suppress(OSError, ImagesError):  # without links it is full
            known = link(parent, directory.linked)
    increments.begin()

    def save(opts: CriuOpts) -> tuple[CriuOpts, DumpResult]:
        shutil.rmtree(new, ignore_errors=True)
        looked = preflight(pid, opts, files=files)
        if looked.stops or looked.no_restore:
            raise PreflightError(looked)

        opts = looked.opts
        left = remaining(None if deadline is None else began + deadline, deadline)
        return opts, dump(pid, opts, files=files, deadline=left, on_progress=on_progress)

    try:
        with_parent = f"../{directory.linked.name}" if known else None
        opts, result = save(replace(opts, parent_image=with_parent))
    except CriuError as error:
        late = deadline is not None and time.monotonic() - began >= deadline
        if not known or late or isinstance(error, WorkerDiedError | DeadlineError):
            raise
        known = {}
        increments.refusal = str(error)
        opts, result = save(opts)
    if known:
        (new / PARENT).unlink()  # CRIU's link
        os.rename(directory.linked, new / PARENT)
    on_progress(_begun("seal"))
    pending_signals.remove(new)
    stopped = signals.stopped
    statistics = result.statistics
    made = Checkpoint(
        number=1 + max((each.number for each in directory.all_checkpoints()), default=0),
        path="",
        time=now,
        duration=time.monotonic() - began,
        frozen=0.0 if statistics is None else statistics.frozen_time / 1e6,
        bytes=sum(each.stat().st_size for each in os.scandir(new) if each.stat().st_nlink == 1),
        parents=1 + parent.parents if known and parent is not None else 0,
        options=replace(opts, images_directory=None).only_for("restore").to_dict(),
        last_pid=max(pids_in(str(new)), default=pid),
        token=token,
        stopped_by=None if stopped is None else signal.Signals(stopped).name,
    )
    (new / META).write_text(json.dumps(asdict(made)) + "\n")
    if files.link_from is not None:
        known = {**known, **linked_entries(new, files.link_from)}
    seal_with(new, known)
    sync(directory.checkpoints)
    place = directory.checkpoints / str(made.number)
    os.rename(new, place)
    sync(directory.checkpoints)
    made = replace(made, path=str(place))
    increments.made(made)
    return made


def _begun(phase: str) -> Progress:
    return Progress(phase=phase, done=0, total=None, rate=0.0, left=None)


def with_defaults(options: CriuOpts, images: os.PathLike[str]) -> CriuOpts:
    """The options of a job's dump: file locks are saved, cgroups are not."""
    given = options.to_dict()
    ignore = {"manage_cgroups_mode": CgroupMode.IGNORE.value, "file_locks": True}
    return CriuOpts.from_dict({**ignore, **given, "images_directory": for_criu(images)})


def for_criu(path: os.PathLike[str]) -> str:
    """A path of the job's directory, which is the working directory, for a call.

    In a user namespace it is a relative one: above the directory, whose path was checked outside
    of the namespace, root and other users that are not mapped cannot be distinguished.
    """
    return os.fspath(path) if unmapped("uid") == NO_ID else os.path.relpath(path)


def check_strays(pid: int) -> None:
    """Raise ``CriuError`` if processes that the command started are not its descendants."""
    strays = [
        f"{other} ({name_of(other)})"
        for other in all_pids()
        if not is_helper(other) and not is_above(pid, other) and is_running(other)
    ]
    if strays:
        raise CriuError(
            f"the command has started processes that are not its descendants and would not be "
            f"saved: pid {', '.join(strays)}; start them without a daemon's double fork",
            verb="dump",
            pid=pid,
        )


def is_helper(pid: int) -> bool:
    """Whether a process belongs to the supervisor: it is in its session, or a CRIU worker."""
    try:
        return os.getsid(pid) == os.getsid(0) or name_of(pid) == "criu"
    except ProcessLookupError:
        return True


def resume(directory: JobDirectory, checkpoint: Checkpoint) -> int:
    """Restore a checkpoint as a child of this process; returns the pid of the command.

    Raises ``CriuError`` and ``OSError``; no process then runs, and the files are unchanged.
    """
    if checkpoint.options is None:
        raise ImagesError(f"{checkpoint.path}/{META} is missing or cannot be read")
    verify(checkpoint.path)
    # CRIU's log goes to another directory, so that the sealed image set is not changed.
    work = directory.path / "restore"
    work.mkdir(mode=0o700, exist_ok=True)
    places = {"images_directory": for_criu(Path(checkpoint.path)), "work_directory": for_criu(work)}
    opts = CriuOpts.from_dict({**checkpoint.options, **places})
    return restore_child(opts, files="rollback").pid


def criu_failure() -> str:
    """Why no checkpoint can be taken or restored here: CRIU cannot be run; empty if it can be."""
    try:
        feature_check()
    except CriuError as error:
        return str(error)
    return ""
