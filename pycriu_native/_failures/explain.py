"""Makes the exception of a failed call: verb, process or images, cause, cure."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Protocol, cast

from .._integrity.image_files import DamagedError, ImageFiles
from .._support.frozen_dataclass import replace
from .._support.signal_names import signal_name
from .._system.capabilities import CAP_SYS_ADMIN, has_capability
from .._system.descriptors import free_numbers, opened_directory
from .._system.process import leader_of, name_of, stat_of, status_of
from .._system.process_tree import holders, is_above, process_tree
from .._system.regular_file import LogMark
from .._transport.connection import Connection
from ..enums import Verb
from ..errors import CriuError, Diagnosis, NoSuchProcessError, PidInUseError, WorkerDiedError
from ..options.criu_opts import CriuOpts
from ..options.values import PageServer, WireValue
from . import unbound_socket
from .log_excerpt import diagnose, error_lines, known, stderr_lines

EBADRQC = 56
"""The errno in CRIU's response when it refuses the options of a request."""

NO_CAUSE = "CRIU reports no cause"
LOG_MORE = "log_level=3 makes CRIU log more"

SMALL = 2**16
"""Bytes of free space below which a file system counts as full."""

_KERNEL_UNKNOWN = re.compile("initialize kernel features detection|initializing kerndat")
"""Lines that report that CRIU cannot detect the features of the kernel."""

_PARASITE = re.compile("reply from daemon is trimmed|for daemon failed|/proc/self/cgroup fd")
"""Lines of any failure of the code that CRIU runs in a process."""

DESCRIPTORS_OF_CRIU = 4
"""Descriptors that CRIU opens in the root process of a tree; in others one less, since it reads the
cgroups of the root only (``criu/pie/parasite.c``)."""

_SUMMARY = re.compile(r"(Dumping|Restoring) FAILED|killed by signal|exited, status=")
"""Lines that report a failure without its cause."""


class FailedCall(Protocol):
    """The fields of ``_calls.request.Outcome`` that an explanation needs."""

    @property
    def result(self) -> int: ...
    @property
    def answer(self) -> dict[str, WireValue]: ...
    @property
    def images(self) -> str: ...
    @property
    def log(self) -> str | None: ...
    @property
    def connection(self) -> Connection: ...


def explain_failure(
    verb: Verb,
    pid: int | None,
    opts: CriuOpts,
    outcome: FailedCall,
    mark: LogMark | None,
    lost: CriuError | None = None,
) -> CriuError:
    """The error for a negative response, or for a missing one (``lost``)."""
    lines = _evidence(verb, pid, outcome, mark)
    errno = cast(int, outcome.answer.get("cr_errno", 0))
    result = diagnose(lines, verb, errno)
    if lost is None and result.cause is None and all(map(_SUMMARY.search, lines)):
        if _is_full(outcome.log or outcome.images):
            full = known("images-full")  # the error did not fit into the log either
            kind = full.error or result.kind
            result = Diagnosis(kind, full.cause, full.cure, tuple(full.options))
        elif lines:
            result = _without_cause(opts, result, lines)
    result = _refined(result, pid, outcome.images)
    if _KERNEL_UNKNOWN.search(result.line or "") and not opts.unprivileged:
        result = _without_admin(result)
    cure = result.cure
    if verb is Verb.CHECK and cure is None:
        cure = "the kernel, a sandbox or the rights of the caller lack this: see doctor()"
    proof = result.line or next(iter(lines), "")
    cause = result.cause
    if lost is not None:
        ending = str(lost) + _how_it_ended(outcome.connection)
        cause = ending if cause is None else f"{ending}: {cause}"
    elif cause is None:
        cause = _reported_cause(proof, errno)
    what = str(verb)
    if pid is not None:
        what = f"{verb} of pid {pid}"
    elif verb is Verb.RESTORE:
        what = f"{verb} from {outcome.images}"
    message = f"{what} failed: {cause}"
    if outcome.log:
        message += f" ({outcome.log}{': ' + proof if proof else ''})"
    elif proof not in message:
        message += f" ({proof})"
    if cure:
        message += f"; {cure}"
    error = (result.kind if lost is None else type(lost))(
        message,
        verb=str(verb),
        pid=pid,
        code=outcome.result,
        errno=errno,
        log=outcome.log,
        lines=lines,
        cause=cause,
        cure=cure,
        options=result.options,
    )
    if isinstance(error, WorkerDiedError):
        error.status = outcome.connection.status
    return error


def _evidence(verb: Verb, pid: int | None, outcome: FailedCall, mark: LogMark | None) -> list[str]:
    """The lines that report the failure: of the log, else of standard error; of the response."""
    text = mark.text() if mark is not None else ""
    lines = error_lines(text, pid) or stderr_lines(outcome.connection.final_stderr)
    message = cast(str, outcome.answer.get("cr_errmsg", "")).strip()
    if message and not any(message in line for line in lines):
        lines += stderr_lines(message)
    if verb is Verb.CHECK and not any("Error" in line for line in lines):
        lines = [line for line in text.splitlines() if "Warn" in line] + lines
    return lines


def _reported_cause(proof: str, errno: int) -> str:
    """The cause of a failure without a diagnosis."""
    if proof:
        return "CRIU reports: " + proof
    if errno == EBADRQC:
        return "CRIU refuses an option and does not name it"
    return os.strerror(errno) if errno else NO_CAUSE


def _without_admin(diagnosis: Diagnosis) -> Diagnosis:
    """The failure of CRIU's detection of kernel features without CAP_SYS_ADMIN."""
    if has_capability(CAP_SYS_ADMIN):
        return diagnosis
    return replace(
        diagnosis,
        cause="CRIU lacks CAP_SYS_ADMIN, which it needs to find out what this kernel can do",
        cure="give CRIU CAP_SYS_ADMIN, or set unprivileged=True",
        options=("unprivileged",),
    )


def _how_it_ended(line: Connection) -> str:
    """A worker's exit status as text; empty if it is not known."""
    if line.status is None:
        return ""
    if line.status < 0:
        return f", killed by {signal_name(-line.status)}"
    return f", with exit status {line.status}"


def _without_cause(opts: CriuOpts, diagnosis: Diagnosis, lines: list[str]) -> Diagnosis:
    """The likely cause of a failure for which CRIU logs none, or at ``log_level=3`` only."""
    server = opts.page_server
    if isinstance(server, PageServer) and not opts.lazy_pages:
        return Diagnosis(
            diagnosis.kind,
            f"{NO_CAUSE}, which is so when the page server "
            f"{server.address}:{server.port} cannot be reached",
            f"start it before the dump, and check page_server's address and port; {LOG_MORE}",
            ("page_server",),
        )
    if "killed by signal 9" in lines[0]:
        return Diagnosis(
            diagnosis.kind,
            "a process was killed during its restore, perhaps because memory ran out",
            f"check the memory limit of the cgroup in which the restore runs; {LOG_MORE}",
        )
    return Diagnosis(diagnosis.kind, NO_CAUSE, LOG_MORE, ())


def _is_full(path: str) -> bool:
    """Whether the file system of a file or directory has no space for a log."""
    with contextlib.suppress(OSError):
        system = os.statvfs(path)
        return system.f_bavail * system.f_frsize < SMALL
    return False


def _refined(diagnosis: Diagnosis, pid: int | None, images: str) -> Diagnosis:
    """The diagnosis, with the state of the process from /proc."""
    line = diagnosis.line or ""
    if _PARASITE.search(line) and not _lacks_descriptors(pid):
        return replace(diagnosis, cause=None, cure=None, line=None)
    if match := re.search(r"fork for (\d+): File exists", line):
        return _pid_in_use(diagnosis, int(match[1]), images)
    if "Unable to create a thread" in line and diagnosis.kind is PidInUseError:
        held = holders()
        threads = _threads(images)
        taken = (tid for tid in threads if tid in held or stat_of(tid) is not None)
        return next((_pid_in_use(diagnosis, tid, images) for tid in taken), diagnosis)
    if match := re.search(r"(?:Unable to interrupt task:|Unseizable non-zombie) (\d+)", line):
        return _why_not_stopped(diagnosis, int(match[1]))
    if match := re.search(r"Can't bind inet socket \(id (\d+)\): (.*)", line):
        return unbound_socket.look_closer(diagnosis, images, int(match[1]), match[2])
    if match := re.search(r"Can't open (\d+): No such file or directory", line):
        if pid is not None and int(match[1]) != pid and status_of(pid):
            return replace(
                diagnosis,
                kind=CriuError,
                cause=f"thread or process {match[1]} of the tree ended while CRIU was reading it",
                cure="repeat the call; with freeze_cgroup, the cgroup of the process, no thread or "
                "process can start or end during it",
                options=("freeze_cgroup",),
            )
        return diagnosis
    if pid is not None and (leader := leader_of(pid) or pid) != pid:
        # CRIU stops with a BUG.
        cause = f"{pid} is the number of a thread of process {leader}"
        return replace(diagnosis, cause=cause, cure=f"dump pid {leader}")
    return diagnosis


def _lacks_descriptors(pid: int | None) -> bool:
    """Whether CRIU cannot open all of its descriptors in a process of the tree."""
    free = map(free_numbers, () if pid is None else process_tree(pid))
    return any(each is not None and each < DESCRIPTORS_OF_CRIU for each in free)


def _threads(images: str) -> list[int]:
    """The numbers of the threads in the images that are not those of processes."""
    with contextlib.suppress(OSError, DamagedError), opened_directory(images) as directory:
        rows = ImageFiles(directory).rows("pstree.img")
        return [tid for _, pid, tid in rows if tid != pid]
    return []


def _pid_in_use(diagnosis: Diagnosis, taken: int, images: str) -> Diagnosis:
    """The process, zombie, session or process group that uses a pid of the images."""
    seen = stat_of(taken)
    if seen is None:
        cause, cure = _number_in_use(taken)
        return replace(diagnosis, cause=cause, cure=cure)
    if seen.state == "Z":
        cause = f"pid {taken} is a zombie that its parent, pid {seen.parent}, has not reaped"
        cure = f"make pid {seen.parent} reap it, or end pid {seen.parent}"
        if seen.parent == os.getpid():
            cause = f"pid {taken} is a zombie child of this process"
            cure = f"reap it with os.waitpid({taken}, 0) before the restore"
        elif seen.parent == 1:
            cure = (
                "try again once pid 1 has reaped it; in a container, start an init that does "
                "(docker run --init)"
            )
        return replace(diagnosis, cause=cause, cure=cure)
    process = leader_of(taken) or taken
    what = f"a thread of pid {process}" if process != taken else "a running process"
    cause = f"pid {taken} is taken by {what}, which is {name_of(process)}"
    if is_above(os.getpid(), process):
        cause += " and was started by this process"
    if not images or os.path.exists(os.path.join(images, f"core-{taken}.img")):
        return replace(diagnosis, cause=cause)
    # CRIU makes a process with the number of a leader that was not dumped.
    return replace(
        diagnosis,
        cause=f"{cause}, and the images need it for the leader of their session or process group, "
        "which they do not contain",
        cure="shell_job=True on restore too, if the dump had it; else end that process",
        options=("shell_job",),
    )


def _number_in_use(taken: int) -> tuple[str, str]:
    """Cause and cure for a number that no process has, and that a session or group can have."""
    holder = holders().get(taken)
    if holder is None:
        return f"pid {taken} was taken", "it is free now: try again"
    pid, kind = holder
    cause = f"{taken} is the {kind} of pid {pid} ({name_of(pid)}), so no process can get it"
    ended = stat_of(pid)
    if ended is None or ended.state != "Z":
        return cause, f"end pid {pid} and others of that {kind}, or restore in a pid namespace"
    cause += f": a zombie that its parent, pid {ended.parent}, has not reaped"
    if ended.parent == os.getpid():
        return cause, f"reap it with os.waitpid({pid}, 0), and others of that {kind}"
    return cause, f"have pid {ended.parent} reap it, and others of that {kind}"


def _why_not_stopped(diagnosis: Diagnosis, pid: int) -> Diagnosis:
    """Why CRIU cannot stop a process."""
    status = status_of(pid)
    kind, cause, cure = diagnosis.kind, diagnosis.cause, diagnosis.cure
    if not status:
        kind, cause = NoSuchProcessError, f"there is no process {pid}"
    elif status["State"].startswith("Z") and int(status.get("Threads", 1)) > 1:
        kind = CriuError
        cause = (
            f"the main thread of process {pid} has ended while other threads run, which CRIU "
            "cannot save"
        )
        cure = "make the main thread wait for the others"
    elif status["State"].startswith("Z"):
        kind = NoSuchProcessError
        cause = f"process {pid} has ended and is a zombie: there is nothing to dump"
        cure = "make its parent reap it"
    elif status.get("TracerPid", "0") != "0":
        cause = f"process {pid} is traced by process {status['TracerPid']}"
        cure = "end that debugger or tracer, or detach it"
    elif "VmSize" not in status:
        cause = f"process {pid} is a thread of the kernel"
        cure = "check the pid: a kernel thread cannot be dumped"
    else:
        return diagnosis
    return replace(diagnosis, kind=kind, cause=cause, cure=cure, options=())
