"""Checks that libcriu, ``criu`` and the kernel support a call, before it starts.

The library's fields are checked in each call; the program's release once for each file, the
kernel's features once for each program, and only if an option needs them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from .._checks import criu_files, linked_pages, option_rules
from .._checks.arguments import check_types, is_seconds
from .._checks.criu_files import ALLOW_UNTRUSTED
from .._checks.work_directory import from_work_directory
from .._integrity.dump_marker import holds_dump
from .._native.ffi import LIBCRIU_VERSION
from .._support.light_typing import TYPE_CHECKING, Any, cast
from .._support.unpatched import close
from .._system import trusted_path
from .._system.cgroups import frozen_cgroup, is_in_cgroup
from .._system.descriptors import link
from .._system.process import leader_of
from .._system.process_identity import foreign_proc
from .._system.process_tree import process_tree
from .._wire.messages import knows
from ..enums import Verb
from ..errors import OptionError, Problem, UnsupportedError
from ..options.criu_opts import CriuOpts
from ..options.table import MEMBER_SINCE, OLDEST, Row, release
from ..options.values import descriptor_number
from .call import Call
from .request import Request, log_path

if TYPE_CHECKING:
    from .._transport.base import Via
    from ..results import Features, Version

_FEATURES_NEEDED = {
    "track_mem": "mem_track",
    "lazy_pages": "lazy_pages",
    "pidfd_store_sk": "pidfd_store",
}
"""Fields that need a feature of the kernel, by its name in ``Features``."""

_FEATURE_NAMES = {
    "lazy_pages": "userfaultfd (CONFIG_USERFAULTFD, vm.unprivileged_userfaultfd)",
    "pidfd_store": "pidfd_getfd (kernel 5.6)",
}

PIPE_MAX_SIZE = "/proc/sys/fs/pipe-max-size"

_versions: dict[tuple[object, ...] | None, Version] = {}
_features: dict[tuple[object, ...] | None, Features] = {}


def check(request: Request) -> None:
    """Refuse a call that cannot succeed; the ``OptionError`` or ``UnsupportedError`` lists all."""
    check_types(request.opts, request.via, str(request.verb), on_notify=request.on_notify)
    option_rules.check(request.opts, request.verb, request.pid)
    refused = [
        *by_arguments(request),
        *by_caller(request),
        *by_trust(request),
        *by_images(request),
        *by_files(request),
        *linked_pages.problems(request.opts, request.verb, request.via),
    ]
    _refuse(OptionError, refused, request)
    problems = [*by_position(request), *by_limits(request), *by_library(request.opts)]
    if request.via.identity() is not None:
        problems += by_program(request.opts, request.via)
        problems += by_kernel(request.opts, request.verb, request.via)
    _refuse(UnsupportedError, problems, request)


def _refuse(kind: type[OptionError], problems: Iterable[Problem], request: Request) -> None:
    result = list(problems)
    if result:
        raise kind(result, verb=str(request.verb), pid=request.pid)


def by_arguments(request: Request) -> Iterator[Problem]:
    """Arguments of the verb itself, whose use would fail when CRIU works already."""
    if request.deadline is not None and not is_seconds(request.deadline):
        yield Problem("deadline", request.deadline, "a number of seconds is accepted")
    if not is_seconds(request.reap_timeout) or request.reap_timeout < 0:
        yield Problem(
            "reap_timeout", request.reap_timeout, "a number of seconds from 0 is accepted"
        )


def by_caller(request: Request) -> Iterator[Problem]:
    """A tree that contains the caller, which would be killed with it; the number of a thread."""
    pid = request.pid
    if request.via.ours and (why := foreign_proc()):
        yield Problem("/proc", link("/proc/self"), why)
        return
    if request.verb not in (Verb.DUMP, Verb.PRE_DUMP):
        return
    if why := caller_frozen(request.opts):
        yield Problem("freeze_cgroup", request.opts.freeze_cgroup, why)
    if pid is None:
        return
    if request.via.ours and (leader := leader_of(pid) or pid) != pid:
        # CRIU stops with a BUG, and leaves its code in the process.
        rule = f"it is the number of a thread of process {leader}: dump pid {leader}"
        yield Problem("pid", pid, rule)
    elif request.inside and (why := caller_inside(pid, request.verb, request.include_caller)):
        yield Problem("pid", pid, why)


def by_files(request: Request) -> Iterator[Problem]:
    """Why the files of the tree cannot be saved or put back."""
    if request.rollback is None:
        return
    opts = request.opts
    why = ""
    if request.verb is Verb.PRE_DUMP:
        why = "a pre-dump saves memory only: give it to the dump"
    elif request.inside:
        why = "the caller is in the tree, and would be frozen when the files are to be saved"
    elif opts.stream:
        why = "images in a stream have no directory for the files"
    elif opts.images_directory is None:
        why = "the files are in images_directory: give it"
    elif opts.root is not None:
        why = (
            "the files of a tree with a mount namespace of its own are not supported (root is set)"
        )
    if why:
        yield Problem("files", "rollback", why)
    elif request.verb is Verb.DUMP and request.pid is not None:
        from .._rollback.option import Rollback  # few calls need these
        from .._rollback.written_files import written_files

        try:
            written_files(process_tree(request.pid), Rollback())
        except OptionError as error:
            yield from error.problems


def caller_frozen(opts: CriuOpts) -> str | None:
    """Why this freezer cgroup cannot be frozen, and the cure; None: it can be.

    CRIU freezes all of it and then waits for responses of the caller. A worker is in the caller's
    cgroup, so it stops as well.
    """
    cgroup = opts.freeze_cgroup
    if cgroup is None or not is_in_cgroup(os.getpid(), os.fsdecode(cgroup)):
        return None
    return (
        f"the caller, pid {os.getpid()}, is in this cgroup, and would be frozen with it forever: "
        "call from a process outside of the cgroup"
    )


def caller_inside(pid: int, verb: Verb, include_caller: bool | None) -> str | None:
    """Why a tree that contains the caller cannot be dumped, and the cure; None: it can be.

    ``include_caller`` None: that is not an argument of the call.
    """
    us = f"the caller, pid {os.getpid()}, is in this tree"
    if pid == 1:
        return (
            f"{us}, and so is every worker: the first process of a pid namespace is dumped from "
            "outside of the namespace, by the pid that it has there"
        )
    if verb is Verb.PRE_DUMP:
        return f"{us}, and cannot be pre-dumped: call from a process outside of the tree"
    if include_caller:
        return None
    why = f"{us}, and would be dumped and killed with it: call from a process outside of the tree"
    return why if include_caller is None else f"{why}, or set include_caller=True"


def by_trust(request: Request) -> Iterator[Problem]:
    """Directories and files of CRIU that another user of this machine could change."""
    via = request.via
    if via.allow_untrusted:
        return
    opts = request.opts
    directories = {name: getattr(opts, name) for name in ("images_directory", "work_directory")}
    if log := log_path(opts):
        # CRIU would follow a symbolic link of another user there.
        directories["log_file"] = os.path.dirname(from_work_directory(opts, log))
    for field, directory in directories.items():
        try:
            if isinstance(directory, str):
                if trusted_path.is_plain(directory):
                    continue
                close(trusted_path.open_directory(directory, make=False, allow_untrusted=False))
            elif directory is not None:
                trusted_path.check_descriptor(descriptor_number(directory))
        except trusted_path.UntrustedError as reason:
            rule = f"{reason.strerror}, so other users can change it; {ALLOW_UNTRUSTED}"
            yield Problem(field, getattr(opts, field), rule)
        except OSError:
            continue  # it does not exist yet, or another check or the call reports the error
    if via.ours and opts.images_dir is not None:
        rule = (
            "it cannot be checked before CRIU opens it: set images_directory instead, which a "
            f"worker can open as well; {ALLOW_UNTRUSTED}"
        )
        yield Problem("images_dir", opts.images_dir, rule)
    yield from _parents_by_trust(opts)
    yield from criu_files.problems(opts, via)


def _parents_by_trust(opts: CriuOpts) -> Iterator[Problem]:
    """The parents of these images: memory of the process is read from them."""
    field = "images_directory" if opts.parent_image is None else "parent_image"
    for parent in option_rules.parents(opts):
        if (why := criu_files.why_untrusted(parent)) is not None:
            rule = f"its parent {parent} is not trusted: {why}; {ALLOW_UNTRUSTED}"
            yield Problem(field, getattr(opts, field), rule)
            return


def by_images(request: Request) -> Iterator[Problem]:
    """Images whose pages a page server would overwrite, or that it lacks to serve them."""
    directory = request.opts.images_directory
    if request.verb not in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD) or directory is None:
        return
    with contextlib.suppress(OSError):
        where = directory if isinstance(directory, str) else descriptor_number(directory)
        holds = holds_dump(where)
        if request.opts.lazy_pages:
            if not holds:
                rule = "has no images whose pages could be served: set it to that of a dump"
                yield Problem("images_directory", directory, rule)
        elif holds:
            rule = "has the images of an earlier dump, whose pages would be overwritten"
            yield Problem("images_directory", directory, f"{rule}: use another directory")


def by_position(request: Request) -> Iterator[Problem]:
    if request.inside:
        rule = "not in a dump of a tree that the caller is in: it is frozen and cannot respond"
        values = {
            "on_notify": request.on_notify,
            "deadline": request.deadline,
            "parent_image": request.opts.parent_image,
        }
        for name, value in values.items():
            if value is not None:
                yield Problem(name, value, rule)
    if request.verb in (Verb.DUMP, Verb.PRE_DUMP) and request.opts.freeze_cgroup is None:
        cgroup = None if request.pid is None else frozen_cgroup(request.pid)
        if cgroup is not None:
            rule = (
                f"pid {request.pid} is in the frozen cgroup {cgroup}, where CRIU would wait "
                "forever: set freeze_cgroup to it, or thaw it"
            )
            yield Problem("freeze_cgroup", None, rule)
    if request.verb is Verb.RESTORE and request.opts.orphan_pts_master and not request.on_notify:
        rule = "orphan_pts_master passes the pty's master to a hook: without one it would be lost"
        yield Problem("on_notify", None, rule)
    inherits = (
        bool(request.opts.inherit_fds) or getattr(request.opts.page_server, "fd", None) is not None
    )
    yield from request.via.refuses(inherits=inherits, sibling=request.sibling)


def by_limits(request: Request) -> Iterator[Problem]:
    """The size limit of pipes: pages are served through one.

    If it is too low, CRIU ignores that (``criu/page-pipe.c``, ``pipe_read_dest_init``) and later,
    when the destination runs already, fails to serve with ``page-pipe: tee``.
    """
    serves = request.verb in (Verb.DUMP, Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
    if not serves or not request.opts.lazy_pages or not request.via.ours:
        return
    from .._system.capabilities import CAP_SYS_RESOURCE, has_capability  # few calls serve pages
    from .._system.host import number

    if has_capability(CAP_SYS_RESOURCE):
        return
    most = number(PIPE_MAX_SIZE)  # 0: it cannot be read
    page = os.sysconf("SC_PAGE_SIZE")
    pages = (page << 3) // 40  # PIPE_MAX_SIZE in criu/include/page-pipe.h
    needed = 1 << (pages * page - 1).bit_length()  # rounded as in the kernel
    if 0 < most < needed:
        rule = (
            "without CAP_SYS_RESOURCE, CRIU can serve pages only if fs.pipe-max-size is at least "
            f"{needed}; it is {most}: sysctl -w fs.pipe-max-size={needed}"
        )
        yield Problem("lazy_pages", True, rule)


def _young(opts: CriuOpts) -> Iterator[tuple[Row, Any, str]]:
    """The options that some supported releases lack, with the release that introduced them."""
    for row, value in opts.items():
        since = row.since
        if isinstance(value, int):
            since = MEMBER_SINCE.get((row.name, value), since)
        if release(since) > release(OLDEST) and value != ():
            yield row, value, since


def by_library(opts: CriuOpts) -> Iterator[Problem]:
    for row, value, since in _young(opts):
        too_old = since != row.since and release(LIBCRIU_VERSION) < release(since)
        if row.wire is not None and (too_old or not knows(row.wire)):
            yield Problem(row.name, value, f"needs libcriu {since}; {LIBCRIU_VERSION} is loaded")


def by_program(opts: CriuOpts, via: Via) -> Iterator[Problem]:
    # An older program ignores an unknown field without a warning.
    young = list(_young(opts))
    if not young:
        return
    from ..results import Version

    result = program_version(via)
    for row, value, since in young:
        if result < Version.parse(since):
            yield Problem(row.name, value, f"needs CRIU {since}; {via.name()} is {result}")


def by_kernel(opts: CriuOpts, verb: Verb, via: Via) -> Iterator[Problem]:
    needed = {
        field: name
        for field, name in _FEATURES_NEEDED.items()
        if getattr(opts, field) not in (None, False)
    }
    if verb is Verb.PRE_DUMP:
        needed["pre_dump"] = "mem_track"
    if verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD):
        needed.pop("lazy_pages", None)  # only the host that restores needs userfaultfd
    if not needed:
        return
    result = program_features(via)
    for field, name in needed.items():
        if not getattr(result, name):
            value = getattr(opts, field)
            lack = _memory_tracking() if name == "mem_track" else _FEATURE_NAMES[name]
            yield Problem(field, value, f"this kernel or CRIU lacks {lack}")


def _memory_tracking() -> str:
    """The name of soft-dirty tracking, and whether Linux has it for this architecture."""
    from .._system.processor import can_track_memory  # needed for a failure only

    if can_track_memory():
        return "tracking of changed memory (soft-dirty, CONFIG_MEM_SOFT_DIRTY)"
    return f"tracking of changed memory (soft-dirty), as all of Linux does on {os.uname().machine}"


def program_version(via: Via) -> Version:
    """The release of the program, requested once for each file; from a socket each time."""
    identity = via.identity()
    if identity is None:
        return ask_version(via)
    if identity not in _versions:
        _versions[identity] = ask_version(via)
    return _versions[identity]


def pointer_authentication(program: Version) -> str | None:
    """The defect of this CRIU on this processor; None if there is none.

    Seen with Debian's CRIU 4.1.1 for arm64 under QEMU; 4.2.1 restores there.
    """
    from .._system.processor import authenticates_pointers

    if (program.major, program.minor) < (4, 2) and authenticates_pointers():
        return (
            f"CRIU {program} hangs in a restore on an Arm processor with pointer authentication "
            "(PAC)"
        )
    return None


def ask_version(via: Via, deadline: float | None = None) -> Version:
    """The release of the program, requested now."""
    outcome = Call(Request(verb=Verb.VERSION, opts=CriuOpts(), via=via, deadline=deadline)).wait()
    message = cast(dict[str, Any], outcome.answer["version"])
    from ..results import Version

    return Version(
        major=message["major_number"],
        minor=message["minor_number"],
        sublevel=message.get("sublevel", 0),
        git=message.get("gitid"),
        name=message.get("name"),
    )


def program_features(via: Via) -> Features:
    """The features of program and kernel, requested once for each file."""
    identity = via.identity()
    if identity not in _features:
        _features[identity] = ask_features(via)
    return _features[identity]


def ask_features(via: Via, deadline: float | None = None) -> Features:
    """The features of program and kernel, requested now."""
    outcome = Call(
        Request(verb=Verb.FEATURE_CHECK, opts=CriuOpts(), via=via, deadline=deadline)
    ).wait()
    message = cast(dict[str, bool], outcome.answer.get("features", {}))
    from ..results import Features

    names = ("mem_track", "lazy_pages", "pidfd_store", "mem_compression")
    return Features(**{name: message.get(name, False) for name in names})
