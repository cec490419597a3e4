"""The verbs: dump, restore and the other requests to CRIU. Each is one call from start to end.

The parameters are the target of the verb, the options, and keywords that are no options of CRIU:

* ``via``: how CRIU is reached; None: by a new ``Worker()``
* ``on_notify``: called on the caller's thread with each :class:`Notification`; if it raises, CRIU
  undoes its work, and then the exception is raised again
* ``deadline``: seconds for the whole call, after which CRIU undoes its work and ``DeadlineError``
  is raised (CRIU's own ``timeout`` option bounds freezing only)
* ``on_progress`` (dumps and restores): called with a :class:`Progress` during the call, on another
  thread

Any verb raises :class:`~pycriu_native.CriuError` or a subclass: ``OptionError`` and
``UnsupportedError`` before anything is touched, ``ProgramNotFoundError`` and
``ProgramError`` if CRIU cannot run, ``WorkerDiedError`` if it ended early. A dump that
fails leaves the process running; a restore that fails leaves the images complete.

If a signal handler raises during the call (Ctrl-C), CRIU undoes its work first, and
then the exception is raised. If CRIU had already finished, the exception has a note about that,
and the result in its attribute ``result``.

Synchronization: every verb may be called on any number of threads at the same time.
"""

from __future__ import annotations

import contextlib
import os

from .._checks.arguments import check_types
from .._native.ffi import LIBCRIU_VERSION
from .._rollback.option import Files, rollback_of
from .._support.frozen_dataclass import replace
from .._support.light_typing import Any, TypeVar
from .._support.unpatched import close
from .._system.process_identity import Target, located
from .._transport.base import Via
from .._transport.worker import Worker
from ..enums import Verb
from ..errors import Problem, UnsupportedError
from ..options.criu_opts import CriuOpts
from ..options.table import On
from ..results import (
    CheckResult,
    CpuinfoResult,
    DumpResult,
    DumpStatistics,
    Features,
    RestoreResult,
    RestoreStatistics,
    Version,
)
from . import requirements
from .call import Call
from .notification import Hook
from .progress_state import OnProgress
from .request import REAP_TIMEOUT, Outcome, Request

_CPUINFO_ON = ("x86_64", "s390x", "ppc64le")
"""Architectures, as uname(2) names them."""

Result = TypeVar("Result")


def dump(
    pid: Target | None,
    opts: CriuOpts,
    *,
    include_caller: bool = False,
    via: Via | None = None,
    on_notify: Hook | None = None,
    files: Files = None,
    deadline: float | None = None,
    reap_timeout: float = REAP_TIMEOUT,
    on_progress: OnProgress | None = None,
) -> DumpResult:
    """Save a process and all its descendants into the images directory.

    The process has ended when this returns, unless ``leave_running`` or ``leave_stopped`` is
    set. Its pid is free once its parent has reaped it: this function waits ``reap_timeout`` seconds
    for another parent; children of the caller must be reaped by the caller
    (``DumpResult.pid_free``). With ``pre_dump`` set this is :func:`pre_dump`.

    ``pid=None`` is a self-dump: the calling process saves itself. The call then returns in the
    restored copy, with ``restored=True``, and with ``leave_running`` also in the original, with
    ``restored=False``. Any other target whose tree contains the caller, such as its parent or its
    own pid as a number, is refused with ``OptionError`` unless ``include_caller`` is set: the
    caller is then dumped, and ends, with the rest.

    A pid can be reused by another process; a :class:`~pycriu_native.Pidfd` or a
    :class:`~pycriu_native.ProcessIdentity` identifies one. The process of the pid is compared with
    that at the start of the call, before CRIU begins and again when the tree is frozen; another
    one continues to run, and ``ProcessMismatchError`` is raised.

    ``files="rollback"`` (or a :class:`~pycriu_native.Rollback`) saves the files that the processes
    have open for writing into the images directory while they are frozen, by reflinks if the
    file system has them: a restore with the same argument puts them back. CRIU itself saves only
    the names of files: a file that changes after the dump no longer fits the memory, and one that
    has grown makes the restore fail.

    Raises ``NoSuchProcessError``, ``PermissionDeniedError``, ``ImagesError``, with ``parent_image``
    ``MovedMemoryError``, and what any verb raises. Needs CRIU 3.17.
    """
    request = dump_request(
        pid,
        opts,
        via,
        on_notify,
        deadline,
        include_caller=include_caller,
        files=files,
        reap_timeout=reap_timeout,
    )
    call = Call(request)
    with _observed(on_progress, call):
        return dump_result(request, call.wait())


def dump_request(
    target: Target | None,
    opts: CriuOpts,
    via: Via | None,
    on_notify: Hook | None,
    deadline: float | None,
    *,
    include_caller: bool | None = None,
    files: Files = None,
    reap_timeout: float = REAP_TIMEOUT,
) -> Request:
    """The checked request of :func:`dump`; ``include_caller`` None: not an argument of the call."""
    check_types(opts, via, "dump", on_notify=on_notify)
    verb = Verb.PRE_DUMP if opts.pre_dump else Verb.DUMP
    pid, start = (None, None) if target is None else located(target, str(verb))
    if verb is Verb.PRE_DUMP:
        opts = for_pre_dump(opts)
    elif include_caller and pid == os.getpid():
        pid = start = None
    return checked_request(
        verb,
        opts,
        via,
        files,
        pid=pid,
        start_time=start,
        on_notify=on_notify,
        deadline=deadline,
        include_caller=include_caller,
        reap_timeout=reap_timeout,
    )


def dump_result(request: Request, outcome: Outcome) -> DumpResult:
    """The result of :func:`dump`."""
    pid = request.pid
    statistics = outcome.statistics
    assert statistics is None or isinstance(statistics, DumpStatistics)
    result = DumpResult(
        pid=os.getpid() if pid is None else pid,
        images=outcome.images,
        duration=outcome.duration,
        log=outcome.log,
        statistics=statistics,
        restored=outcome.result == 1,
        pid_free=outcome.pid_free,
        reap_wait=outcome.reap_wait,
    )
    return _finish(request, outcome, result)


def pre_dump(
    pid: Target,
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    deadline: float | None = None,
    on_progress: OnProgress | None = None,
) -> DumpResult:
    """Save the memory of a process that continues to run, as parent images of a later dump.

    The later dump has these images in ``parent_image``. They can be the parent of one dump or
    pre-dump. Options that matter to the dump only are accepted and have no effect here. CRIU sends
    no notifications of a pre-dump; after a deadline its next write fails, and if there is none, the
    error has a ``result``. A tree that contains the caller cannot be pre-dumped. The process of the
    pid is compared with that at the start of the call, before CRIU begins and after it has ended.

    Raises as :func:`dump`; ``UnsupportedError`` where the kernel has no soft-dirty tracking. Needs
    CRIU 3.17.
    """
    check_types(opts, via, "pre_dump", on_notify=on_notify, on_progress=on_progress)
    return dump(
        pid,
        replace(opts, pre_dump=True),
        via=via,
        on_notify=on_notify,
        deadline=deadline,
        on_progress=on_progress,
    )


def for_pre_dump(opts: CriuOpts) -> CriuOpts:
    """These options, for a pre-dump: without those that only the dump after it needs."""
    return replace(_without(opts, On.DUMP, On.PRE_DUMP), pre_dump=True)


def after_pre_dumps(opts: CriuOpts) -> CriuOpts:
    """These options, for the final dump: without those that only pre-dumps need."""
    return _without(opts, On.PRE_DUMP, On.DUMP)


def _without(opts: CriuOpts, these: int, others: int) -> CriuOpts:
    exited = [row.name for row, _ in opts.items() if row.on & these and not row.on & others]
    return replace(opts, **dict[str, Any].fromkeys(exited))


def restore(
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    files: Files = None,
    deadline: float | None = None,
    on_progress: OnProgress | None = None,
) -> RestoreResult:
    """Restore the processes of a dump: they continue, with the same pids.

    The restored processes belong to the system's reaper, not to the caller. Raises
    ``PidInUseError`` when a pid is taken, ``ImagesError``, ``PermissionDeniedError``,
    ``ResumedError`` if it failed after the processes had been resumed, and what any verb raises.
    Needs CRIU 3.17.

    ``files="rollback"`` puts the files back that a dump with this argument has saved, before
    CRIU starts; if the restore fails, the changes are undone. ``ImagesError`` if one cannot be put
    back, or none were saved; nothing is changed then.
    """
    return _restored(restore_request(opts, via, on_notify, deadline, files=files), on_progress)


def restore_child(
    opts: CriuOpts,
    *,
    via: Via | None = None,
    on_notify: Hook | None = None,
    files: Files = None,
    deadline: float | None = None,
    on_progress: OnProgress | None = None,
) -> RestoreResult:
    """:func:`restore`, with the root process as a child of the caller.

    Only a parent gets the exit status: the caller must call ``os.waitpid(result.pid, 0)`` at some
    time. Raises as :func:`restore`. Needs CRIU 3.17, and a ``Worker`` or ``WorkerPool``.
    """
    request = restore_request(opts, via, on_notify, deadline, sibling=True, files=files)
    return _restored(request, on_progress)


def restore_request(
    opts: CriuOpts,
    via: Via | None,
    on_notify: Hook | None,
    deadline: float | None,
    *,
    sibling: bool = False,
    files: Files = None,
) -> Request:
    """The checked request of :func:`restore` or :func:`restore_child`."""
    return checked_request(
        Verb.RESTORE, opts, via, files, on_notify=on_notify, deadline=deadline, sibling=sibling
    )


def _restored(request: Request, on_progress: OnProgress | None) -> RestoreResult:
    call = Call(request)
    with _observed(on_progress, call):
        outcome = call.wait()
        statistics = outcome.statistics
        assert statistics is None or isinstance(statistics, RestoreStatistics)
        result = RestoreResult(
            pid=outcome.result,
            images=outcome.images,
            duration=outcome.duration,
            log=outcome.log,
            statistics=statistics,
            exec_pid=None if request.opts.exec_cmd is None else outcome.connection.pid,
        )
        return _finish(request, outcome, result)


def check(
    opts: CriuOpts | None = None, *, via: Via | None = None, deadline: float | None = None
) -> CheckResult:
    """Whether CRIU can work on this kernel; raises with the reasons if it cannot.

    ``opts`` are needed for ``unprivileged`` and for the options of the log only; without an
    images directory, CRIU gets a temporary one.
    """
    from .._failures.log_excerpt import is_benign
    from .._support.scratch import scratch_directory  # slow to import; only this verb needs it

    chosen = CriuOpts() if opts is None else opts
    check_types(chosen, via, "check")
    with contextlib.ExitStack() as stack:
        if chosen.images_directory is None and chosen.images_dir is None:
            scratch = stack.enter_context(scratch_directory("pycriu-native-check-"))
            # A descriptor: the directories above are those of the system or the caller.
            at = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(close, at)
            chosen = replace(chosen, images_directory=at)
        request = checked_request(Verb.CHECK, chosen, via, deadline=deadline)
        outcome = Call(request).wait()
        response = outcome.connection.final_stderr
        if outcome.log is not None:
            with open(outcome.log, errors="replace") as log:
                response += log.read()
    warnings = tuple(
        line.strip()
        for line in response.splitlines()
        if ("Warn" in line or "Error" in line) and not is_benign(line)
    )
    return _finish(request, outcome, CheckResult(duration=outcome.duration, warnings=warnings))


def cpuinfo_dump(
    opts: CriuOpts, *, via: Via | None = None, deadline: float | None = None
) -> CpuinfoResult:
    """Write the features of this processor into the images directory, as ``cpuinfo.img``.

    For :func:`cpuinfo_check` on another host, before anything is moved there. x86-64, s390x and
    ppc64le only: ``UnsupportedError`` elsewhere. Needs CRIU 3.17.
    """
    return _cpuinfo(Verb.CPUINFO_DUMP, opts, via, deadline)


def cpuinfo_check(
    opts: CriuOpts, *, via: Via | None = None, deadline: float | None = None
) -> CpuinfoResult:
    """Check that this processor has the features in ``cpuinfo.img`` of the images directory.

    ``cpu_cap`` selects what is compared. Raises ``CriuError`` if one is missing. Needs CRIU 3.17.
    """
    return _cpuinfo(Verb.CPUINFO_CHECK, opts, via, deadline)


def _cpuinfo(verb: Verb, opts: CriuOpts, via: Via | None, deadline: float | None) -> CpuinfoResult:
    machine = os.uname().machine
    if machine not in _CPUINFO_ON:
        rule = f"CRIU describes processors on {', '.join(_CPUINFO_ON)} only (criu/arch/*/cpu.c)"
        raise UnsupportedError([Problem("machine", machine, rule)])
    request = checked_request(verb, opts, via, deadline=deadline)
    outcome = Call(request).wait()
    result = CpuinfoResult(images=outcome.images, duration=outcome.duration, log=outcome.log)
    return _finish(request, outcome, result)


def version(*, via: Via | None = None, deadline: float | None = None) -> Version:
    """The release of the ``criu`` program."""
    check_types(CriuOpts(), via, "version", deadline=deadline)
    return requirements.ask_version(via or Worker(), deadline)


def libcriu_version() -> Version:
    """The release of the libcriu that is loaded, which need not be the program's."""
    return Version.parse(LIBCRIU_VERSION)


def feature_check(*, via: Via | None = None, deadline: float | None = None) -> Features:
    """The features that this kernel and this CRIU support together."""
    check_types(CriuOpts(), via, "feature-check", deadline=deadline)
    return requirements.ask_features(via or Worker(), deadline)


def _observed(
    on_progress: OnProgress | None, call: Call
) -> contextlib.AbstractContextManager[None]:
    if on_progress is None:
        return contextlib.nullcontext()
    check_types(call.request.opts, verb=str(call.request.verb), on_progress=on_progress)
    from .progress import observing  # few calls are watched

    return observing(on_progress, call)


def checked_request(
    verb: Verb, opts: CriuOpts, via: Via | None, files: Files = None, **more: Any
) -> Request:
    """A request, whose other fields are in ``more``, after all checks."""
    rollback = None if files is None else rollback_of(files, str(verb))
    request = Request(verb=verb, opts=opts, via=via or Worker(), rollback=rollback, **more)
    requirements.check(request)
    return request


def _finish(request: Request, outcome: Outcome, result: Result) -> Result:
    """Return the result; or raise an interruption that was too late to undo the call, with it."""
    if outcome.interrupted_by is None:
        return result
    raise too_late(outcome.interrupted_by, str(request.verb), result)


def too_late(interruption: BaseException, verb: str, result: object) -> BaseException:
    """Add the attribute ``result`` to an interruption after the end of the work."""
    interruption.add_note(f"the {verb}{_COMPLETE}{result}")
    interruption.result = result  # type: ignore[attr-defined]
    return interruption


def remove_result(interruption: BaseException) -> None:
    """Undo :func:`too_late` for work that was undone afterwards."""
    if hasattr(interruption, "result"):
        del interruption.result
        notes = interruption.__notes__
        notes[:] = [each for each in notes if _COMPLETE not in each]


_COMPLETE = " was complete by then: "
