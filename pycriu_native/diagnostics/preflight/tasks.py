"""Processes that CRIU cannot stop or cannot restore.

Sources: ``criu/seize.c`` (stop), ``criu/namespaces.c`` and ``criu/kcmp-ids.c`` (shared resources),
``criu/pstree.c`` (sessions).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource

from ..._calls.requirements import caller_inside
from ..._failures.explain import DESCRIPTORS_OF_CRIU
from ..._support.unpatched import closing, sleep
from ..._system.capabilities import CAP_SYS_ADMIN, has_capability
from ..._system.cgroups import frozen_cgroup
from ..._system.descriptors import free_numbers, link
from ..._system.host import lines, read
from ..._system.process import children_of, stat_of, status_of
from ..._system.process_snapshot import Process, in_first
from ..._system.system_calls import (
    KCMP_FILES,
    KCMP_FS,
    KCMP_SIGHAND,
    KCMP_VM,
    differs,
    kcmp,
    namespace_owner,
)
from ...enums import Verb
from ...findings import Finding
from .context import Context, Findings, lost, no_restore, note, stops

KCMP = {KCMP_VM: "memory", KCMP_FS: "its directory and root", KCMP_SIGHAND: "signal handlers"}
"""Resources that only threads of one process may share, and their names."""
OF_A_THREAD = {KCMP_FILES: "table of descriptors", KCMP_FS: "directory, root or umask"}
"""Resources that a thread can have separately (unshare(2)), and their names."""
SPACES_OF_A_THREAD = ("net", "mnt", "uts", "ipc", "cgroup")
"""Namespaces that a thread of several can enter by itself."""
EVEN_NESTED = ("mnt", "net")
"""Kinds of namespaces that a process below the root may have separately."""


def look(context: Context) -> Findings:
    root = context.tree.root
    exited = list(_nothing_to_dump(root))
    yield from exited
    if exited:
        return
    yield from _frozen(context)
    for process in context.tree.processes:
        yield from _stoppable(process)
        yield from _session(context, process)
    may_suspend = _may_suspend_filters()
    for process in context.tree.alive:
        if not may_suspend and process.status.get("Seccomp", "0") != "0":
            about = "it is under a seccomp filter, which CRIU may not suspend"
            yield stops("seccomp-suspend", about, pid=process.pid, failure="seccomp-suspend")
        yield from _hidden(process)
        yield from _limits(process)
        yield from _free_descriptors(context, process)
        yield from _threads(process)
        yield from _word_size(process)
        yield from _shares(context, process)
        yield from _time_of_children(process)
        if process is not root:
            yield from _nested(context, process)
    yield from _pid_namespace(context)
    yield from _user_namespace(context)
    if os.getpid() in context.tree.pids:
        yield _caller_inside(context)


def _may_suspend_filters() -> bool:
    """Whether the kernel lets the caller suspend seccomp filters (PTRACE_O_SUSPEND_SECCOMP)."""
    own = status_of(os.getpid()).get("Seccomp", "0")
    return own == "0" and has_capability(CAP_SYS_ADMIN) and in_first("user")


def _caller_inside(context: Context) -> Finding:
    pid = context.tree.root.pid
    why = caller_inside(pid, Verb.DUMP, context.include_caller)
    if why is None:
        words = "itself" if pid == os.getpid() else "itself with the others"
        return note("caller-inside", f"the caller is in the tree: it dumps {words}")
    words, _, cure = why.partition(": ")
    return stops("caller-inside", words, failure="criu-in-tree", cure=cure, pid=pid)


def _nothing_to_dump(root: Process) -> Findings:
    leader = int(root.status.get("Tgid", root.pid))
    if not root.status:
        message = f"there is no process {root.pid}"
        yield stops("no-process", message, pid=root.pid, failure="seize-gone")
    elif leader != root.pid:
        message = f"{root.pid} is the number of a thread of process {leader}"
        yield stops("thread-number", message, pid=root.pid, cure=f"dump pid {leader}")
    elif "VmSize" not in root.status and root.state not in ("Z", "X"):
        yield stops(
            "kernel-thread",
            "it is a thread of the kernel",
            pid=root.pid,
            failure="seize-refused",
            cure="look at the pid: it has nothing to dump",
        )
    elif root.state in ("Z", "X") and len(root.threads) < 2:
        yield stops(
            "zombie",
            "the process has ended and is a zombie: there is nothing to dump",
            pid=root.pid,
            failure="zombie-root",
            cure="have its parent reap it",
        )


def _frozen(context: Context) -> Findings:
    cgroup = frozen_cgroup(context.tree.root.pid, of_v1=True)
    if cgroup is not None and context.opts.freeze_cgroup is None:
        yield context.needs(
            "frozen",
            f"it is in the frozen cgroup {cgroup}, where CRIU would wait for it for ever",
            cure=f'freeze_cgroup="{cgroup}", or thaw it',
            sets={"freeze_cgroup": cgroup},
            pid=context.tree.root.pid,
        )


def _stoppable(process: Process) -> Findings:
    threads = (status_of(process.pid, thread) for thread in process.threads)
    for tracer in sorted({each.get("TracerPid", "0") for each in threads} - {"", "0"}):
        yield stops(
            "traced",
            f"it is traced by process {tracer}",
            pid=process.pid,
            failure="ptrace-refused",
            cure="end that debugger or tracer, or detach it",
        )
    if process.state == "Z" and len(process.threads) > 1:
        message = "its main thread has ended while other threads run on, which CRIU cannot save"
        yield stops("main-thread-ended", message, pid=process.pid, failure="zombie-thread")
    if process.state == "T":
        message = "it is stopped; a dump fails if SIGTTIN or SIGTTOU did that, which cannot be seen"
        yield note("stopped", message, pid=process.pid, failure="stop-signal")
    yield from _hangs(process)
    if (bits(process, "SigPnd") | bits(process, "ShdPnd")) & 1 << 4:
        message = "a SIGTRAP is pending, with which CRIU cannot work in it"
        yield stops("sigtrap", message, pid=process.pid, failure="sigtrap-pending")


def bits(process: Process, name: str) -> int:
    """A set of signals or capabilities of /proc/PID/status."""
    return int(process.status.get(name, "0"), 16)


def _hangs(process: Process) -> Findings:
    """Threads that cannot be stopped. Most waits for a disk end soon, so the check repeats."""
    stuck = process.threads
    for _ in range(5):
        stuck = [thread for thread in stuck if _thread_state(process, thread) == "D"]
        if not stuck:
            return
        sleep(0.01)
    if any("vfork" in read(f"/proc/{process.pid}/task/{t}/wchan") for t in stuck) or any(
        kcmp(process.pid, child, KCMP_VM) for child in children_of(process.pid)
    ):
        yield stops(
            "vfork",
            "it waits in vfork for a child to run a program, and cannot be stopped meanwhile",
            pid=process.pid,
            failure="timeout",
            cure="try again when the child has started its program",
        )
    else:
        yield stops(
            "uninterruptible",
            "it hangs in the kernel (state D) and cannot be stopped, usually on a disk or a "
            "network file system that does not respond",
            pid=process.pid,
            failure="timeout",
            cure="look at what it waits for, and try again",
        )


def _thread_state(process: Process, thread: int) -> str:
    stat = stat_of(process.pid, thread)
    return "" if stat is None else stat.state


def _limits(process: Process) -> Findings:
    """The system call that CRIU makes: its result depends on the user and CAP_SYS_RESOURCE."""
    try:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    except PermissionError:
        message = "it belongs to another user than CRIU, which lacks CAP_SYS_RESOURCE"
        yield stops("other-user", message, pid=process.pid, failure="rlimit-other-user")
    except OSError:
        return


def _free_descriptors(context: Context, process: Process) -> Findings:
    """Whether CRIU can open its descriptors in the process."""
    needed = DESCRIPTORS_OF_CRIU - (process is not context.tree.root)
    free = free_numbers(process.pid)
    if free is None or free >= needed:
        return
    with contextlib.suppress(OSError):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        more = max(soft, _limit_with(process, needed))
        most = "unlimited" if hard == resource.RLIM_INFINITY else max(hard, more)
        yield stops(
            "descriptors-used-up",
            f"it can open {free} more descriptors (RLIMIT_NOFILE), and CRIU opens {needed} in it",
            pid=process.pid,
            failure="descriptors-used-up",
            cure=f"raise its limit: prlimit --pid {process.pid} --nofile={more}:{most}; or make it "
            "close some descriptors",
        )


def _limit_with(process: Process, needed: int) -> int:
    """The lowest limit below which so many numbers are free: higher ones can be in use."""
    used = {fd.number for fd in process.descriptors}
    unused = (number for number in itertools.count() if number not in used)
    return next(itertools.islice(unused, needed - 1, None)) + 1


def _threads(process: Process) -> Findings:
    """What a thread has separately from its process: a restored one has that of the process."""
    for thread in process.threads:
        if thread == process.pid:
            continue
        names = [words for kind, words in OF_A_THREAD.items() if differs(process.pid, thread, kind)]
        for kind in SPACES_OF_A_THREAD:
            own = link(f"/proc/{process.pid}/task/{thread}/ns/{kind}")
            if own and process.namespaces[kind] not in ("", own):
                names.append(f"{kind} namespace")
        if names:
            yield lost(
                "thread-resources",
                f"its thread {thread} has a separate {', '.join(names)}: a restored thread has "
                "that of its process",
                pid=process.pid,
                cure="make the thread set it up again after the restore",
            )


def _hidden(process: Process) -> Findings:
    """Processes that the caller may not read: usually its CRIU may not read them either."""
    try:
        os.listdir(f"/proc/{process.pid}/fd")
    except PermissionError:
        yield stops(
            "hidden",
            "the caller may not read it: its open files are unknown",
            pid=process.pid,
            cure="run as root, or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE",
        )
    except OSError:
        return


def _word_size(process: Process) -> Findings:
    try:
        with open(f"/proc/{process.pid}/exe", "rb") as file:
            is_32 = file.read(5) == b"\x7fELF\x01"
    except OSError:
        return
    if is_32 and os.uname().machine == "x86_64":
        message = "it is a 32-bit program, which needs a CRIU that was built for that"
        yield note("32-bit", message, pid=process.pid, cure="look with doctor at feature:compat_cr")


def _session(context: Context, process: Process) -> Findings:
    session = process.inner("NSsid")
    if session == 0:
        message = "the leader of its session is outside of its pid namespace"
        yield stops("session-outside", message, pid=process.pid, failure="sid-outside")
    elif process is context.tree.root and session != process.inner("NSpid"):
        yield context.needs(
            "shell-job",
            "the leader of its session is outside of the tree, as of what a shell starts",
            sets={"shell_job": True},
            pid=process.pid,
            failure="shell-job",
        )


def _shares(context: Context, process: Process) -> Findings:
    parent = process.stat.parent
    if process is context.tree.root or parent not in context.tree.pids:
        return
    for kind, words in KCMP.items():
        if kcmp(parent, process.pid, kind):
            yield stops(
                "shared-by-processes",
                f"it shares {words} with its parent, process {parent}, which CRIU can save of "
                "threads only",
                pid=process.pid,
                failure="shared-by-processes",
            )
            return


def _nested(context: Context, process: Process) -> Findings:
    """Other namespaces than those of the root (``criu/namespaces.c``, ``criu/pstree.c``)."""
    root, ours = context.tree.root.namespaces, context.tree.ours.namespaces
    for kind, which in process.namespaces.items():
        if "" in (which, root[kind]):
            continue  # unreadable
        if which == root[kind] or (kind, which) == ("cgroup", ours[kind]):
            continue  # of cgroups see ``means``
        where, failure, makes = "of its own that the root of the tree has not", "nested-ns", stops
        if which == ours[kind]:
            where, failure = "that CRIU has, and the root of the tree has one of its own", "host-ns"
            if kind not in EVEN_NESTED:
                failure, makes = "nested-ns-root", no_restore
        elif kind in EVEN_NESTED:
            if context.tree.has_own(kind):
                continue
            where = "of its own, and the root of the tree has that of CRIU"
            failure, makes = "nested-ns-root", no_restore
        message = f"it has a {kind} namespace {where}"
        yield makes("nested-namespace", message, pid=process.pid, failure=failure)


def _time_of_children(process: Process) -> Findings:
    own = process.namespaces["time"]
    later = process.namespace("time_for_children")
    if later and later != own:
        message = "its children are to have a time namespace of their own"
        yield stops("nested-namespace", message, pid=process.pid, failure="nested-ns")


def _pid_namespace(context: Context) -> Findings:
    root = context.tree.root
    if not context.tree.has_own("pid") or root.inner("NSpid") == 1:
        return
    if context.external(root.namespaces["pid"].replace(":", "")):
        return
    message = "it is inside of a pid namespace, and is not its first process"
    yield stops("not-the-first", message, pid=root.pid, failure="pidns-no-init")


def _user_namespace(context: Context) -> Findings:
    """CRIU enters the other namespaces from the tree's user namespace, which must own them."""
    if not context.tree.has_own("user"):
        return
    root = context.tree.root
    for file, what in (("uid_map", "user"), ("gid_map", "group")):
        ranges = [line.split() for line in lines(f"/proc/{root.pid}/{file}")]
        if not any(first == "0" for first, _, _ in ranges):
            yield stops(
                "user-namespace-without-root",
                f"its user namespace has no {what} 0, which CRIU becomes to enter it",
                pid=root.pid,
                failure="userns-no-root",
            )
    known_owners = (None, root.namespaces["user"])
    for kind in ("net", "uts", "time", "ipc", "mnt"):
        if context.tree.has_own(kind) and owner_of(root, kind) not in known_owners:
            message = f"its {kind} namespace does not belong to its user namespace"
            yield stops("foreign-namespace", message, pid=root.pid, failure="userns-foreign")


def owner_of(process: Process, kind: str) -> str | None:
    """The user namespace that owns a namespace; None if the kernel refuses the request."""
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{process.pid}/ns/{kind}") as file,
        closing(namespace_owner(file.fileno())) as number,
    ):
        return link(f"/proc/self/fd/{number}")
    return None
